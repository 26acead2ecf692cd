"""From a grid of logits to a label map at the output's size, classes with several names merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resclip_kernels.checks import (
    check_count,
    check_float,
    check_pair,
    check_same_images,
    check_type,
    merge_options,
)
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.nan_check import broken_images, mark
from resclip_kernels.online_softmax import kernel_limit
from resclip_kernels.ops.upsample_argmax import portable, reference
from resclip_kernels.options.upsample_argmax import UpsampleKeywords, UpsampleOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["UpsampleOptions", "upsample_argmax"]

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.upsample_argmax.triton", "upsample_argmax"
    ),
    Implementation.TORCH: portable.upsample_argmax,
    Implementation.REFERENCE: reference.upsample_argmax,
}


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    options: UpsampleOptions | None = None,
    *,
    query_to_class: Tensor | None = None,
    guide: Tensor | None = None,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[UpsampleKeywords],
) -> tuple[Tensor, Tensor]:
    """Label map and its probability at any size, without (Q, H, W) probabilities in memory.

    The logits are resized bilinearly (`align_corners=False`), optionally refined by `pamr`; probabilities are
    softmax(logit_scale · logits) over queries; a class takes the largest of its queries' probabilities; the label is
    the arg-max class (the smallest on a tie), or class 0 where that probability is under `threshold`.

    Args:
        logits: (B, Q, h, w), one plane per query; −inf rules a query out of a cell. float16 and bfloat16 are
            computed in float32, except by "reference".
        size: (H, W) of the output in pixels.
        options: the softmax's scale and threshold, a size in between, PAMR's iterations; None for the defaults.
        query_to_class: (Q,) integers from 0, the class of each query; None: every query is its own class. Copied to
            the logits' device if it is elsewhere, which a graph that is being captured cannot hold.
        guide: (B, C, H, W) for PAMR; needed where `refine_iterations` is not 0.
        implementation: see `Implementation`.
        keywords: fields of `UpsampleOptions`, in place of those of `options`.

    Returns:
        (B, H, W) int64 classes, and (B, H, W) float32 (or float64) probabilities of the arg-max class before the
        threshold. On a GPU the classes are −1 all over an image whose logits hold NaN, and its probabilities mean
        nothing.

    Raises:
        TypeError, ValueError: a shape, dtype or value that does not fit; on a CPU logits that hold NaN, with the images
            that do. On a GPU nothing waits for their values here, and `check_labels` raises the same where the host
            reads the classes.
    """
    options = merge_options(UpsampleOptions, options, keywords)
    check_float("logits", logits, 4, "(B, Q, h, w)")
    queries = logits.shape[1]
    check_count("the number of queries", queries, 1)
    size = check_pair("size", size, "(height, width) in pixels", 1)
    if query_to_class is not None:
        check_type("query_to_class", query_to_class, Tensor, "a tensor of integers, or None")
    if query_to_class is not None and query_to_class.shape != (queries,):
        raise ValueError(
            f"query_to_class must be ({queries},), one class per query; got {tuple(query_to_class.shape)}"
        )
    for side in logits.shape[2:]:
        check_count("each side of the logits' grid", side, 1)
    if options.refine_iterations:
        if guide is None:
            raise ValueError("refine_iterations needs a guide image; pass guide, or 0 iterations")
        check_float("guide", guide, 4, "(B, C, H, W)")
        check_same_images("logits", logits, "guide", guide)
        if tuple(guide.shape[2:]) != size:
            raise ValueError(f"guide must be of size {size}; got {tuple(guide.shape[2:])}")
    if query_to_class is not None:
        query_to_class = query_to_class.to(logits.device)
    return run(
        logits,
        size,
        options,
        query_to_class,
        guide if options.refine_iterations else None,
        parse_implementation(implementation).value,
    )


def fake(
    logits: Tensor,
    size: tuple[int, int],
    options: UpsampleOptions,
    query_to_class: Tensor | None,
    guide: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """The shapes that `run` returns."""
    label = logits.new_empty((logits.shape[0], *size), dtype=torch.int64)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return label, logits.new_empty(label.shape, dtype=wide)


@custom_op("upsample_argmax", fake)
def run(
    logits: Tensor,
    size: tuple[int, int],
    options: UpsampleOptions,
    query_to_class: Tensor | None,
    guide: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """The chosen implementation's labels and probabilities.

    Raises:
        ValueError: logits on a CPU that hold NaN, since only here are values at hand while compiling.
    """
    broken = broken_images(logits)
    tensors = (logits, query_to_class, guide)
    limit = kernel_limit(size)
    function = resolve(
        implementation, IMPLEMENTATIONS, *tensors, limit=limit, op="upsample_argmax"
    ).function
    label, probability = function(logits, size, options, query_to_class, guide)
    return mark(broken, label), probability


@trial("upsample_argmax")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """Labels and probabilities of a small image; see `resclip_kernels.first_use`."""
    logits = sample(device, dtype, 2, 5, 4, 6)
    return list(upsample_argmax(logits, (20, 28), implementation=implementation))
