"""From the first pass's logits to one label per patch: the labels that semantic feedback feeds on.

ResCLIP's released program, section 3.3 of arXiv 2411.15851: bilinear, PAMR, softmax with a threshold, majority.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resclip_kernels.checks import check_count, check_float, check_same_images, merge_options
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.nan_check import broken_images, mark
from resclip_kernels.online_softmax import kernel_limit
from resclip_kernels.ops.patch_labels import graph, portable, reference
from resclip_kernels.options.patch_labels import PatchLabelsKeywords, PatchLabelsOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PatchLabelsOptions", "patch_labels"]

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred("resclip_kernels.ops.patch_labels.triton", "patch_labels"),
    Implementation.TORCH: portable.patch_labels,
    Implementation.REFERENCE: reference.patch_labels,
}


def patch_labels(
    logits: Tensor,
    image: Tensor,
    options: PatchLabelsOptions | None = None,
    *,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[PatchLabelsKeywords],
) -> Tensor:
    """One query label per patch from a grid of logits.

    The logits are resized bilinearly (`align_corners=False`) to the image's size and refined by `pamr` with the image
    as guide; a pixel's label is its arg-max query, or query 0 where softmax(logit_scale · logits) stays under
    `threshold`; a patch's label is the most frequent label of its pixels, the smallest one on a tie.

    Args:
        logits: (B, Q, h, w), one plane per query; −inf rules a query out of a patch. float16 and bfloat16 are
            computed in float32, except by "reference".
        image: (B, C, H, W) guide, with h = H // patch height and w = W // patch width; pixels past the last whole
            patch belong to no patch.
        options: the patches' size, the softmax's scale and threshold, PAMR's iterations. None: all by keyword.
        implementation: see `Implementation`.
        keywords: fields of `PatchLabelsOptions`, in place of those of `options`.

    Returns:
        (B, h, w) int64 labels in [0, Q); on a GPU −1 all over an image whose logits hold NaN.

    Raises:
        TypeError, ValueError: a shape, dtype or value that does not fit; on a CPU logits that hold NaN, with the images
            that do. On a GPU nothing waits for their values here, and `check_labels` raises the same where the host
            reads the labels.
    """
    options = merge_options(PatchLabelsOptions, options, keywords)
    check_float("logits", logits, 4, "(B, Q, h, w)")
    check_float("image", image, 4, "(B, C, H, W)")
    check_same_images("logits", logits, "image", image)
    check_count("the number of queries", logits.shape[1], 1)
    height, width = options.patch_size
    grid = (image.shape[2] // height, image.shape[3] // width)
    if tuple(logits.shape[2:]) != grid:
        raise ValueError(
            f"an image of {tuple(image.shape[2:])} with patches of {(height, width)} has a grid of {grid}; "
            f"logits have {tuple(logits.shape[2:])}"
        )
    for side in logits.shape[2:]:
        check_count("each side of the logits' grid", side, 1)
    return run(logits, image, options, parse_implementation(implementation).value)


def fake(logits: Tensor, image: Tensor, options: PatchLabelsOptions, implementation: str) -> Tensor:
    """The shape that `run` returns."""
    return logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=torch.int64)


def exported(
    logits: Tensor, image: Tensor, options: PatchLabelsOptions, implementation: str
) -> Tensor:
    """What `run` gives, in plain operators."""
    return graph.patch_labels(logits, image, options)


@custom_op("patch_labels", fake, exported)
def run(logits: Tensor, image: Tensor, options: PatchLabelsOptions, implementation: str) -> Tensor:
    """The chosen implementation's labels.

    Raises:
        ValueError: logits on a CPU that hold NaN, since only here are values at hand while compiling.
    """
    broken = broken_images(logits)
    limit = kernel_limit(image.shape[2:])
    function = resolve(
        implementation, IMPLEMENTATIONS, logits, image, limit=limit, op="patch_labels"
    ).function
    labels: Tensor = function(logits, image, options)
    return mark(broken, labels)


@trial("patch_labels")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """Labels of a small image's patches; see `resclip_kernels.first_use`."""
    logits, image = sample(device, dtype, 2, 5, 4, 6), sample(device, dtype, 2, 3, 32, 48, seed=1)
    return [
        patch_labels(
            logits, image, patch_size=(8, 8), refine_iterations=2, implementation=implementation
        )
    ]
