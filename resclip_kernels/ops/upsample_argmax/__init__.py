"""From a grid of logits to a label map at the output's size, classes with several names merged."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from resclip_kernels.checks import (
    check_count,
    check_float,
    check_fraction,
    check_positive,
    check_same_images,
)
from resclip_kernels.dispatch import Implementation, as_operator, parse_implementation
from resclip_kernels.ops.upsample_argmax import dispatch

__all__ = ["upsample_argmax"]


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    *,
    query_to_class: Tensor | None = None,
    logit_scale: float = 40.0,
    threshold: float = 0.0,
    through: tuple[int, int] | None = None,
    guide: Tensor | None = None,
    refine_iterations: int = 0,
    dilations: Sequence[int] = (8, 16),
    implementation: Implementation | str = Implementation.AUTO,
) -> tuple[Tensor, Tensor]:
    """Label map and its probability at any size, without (Q, H, W) probabilities in memory.

    The logits are resized bilinearly (`align_corners=False`), optionally refined by `pamr`; probabilities are
    softmax(logit_scale · logits) over queries; a class takes the largest of its queries' probabilities; the label is
    the arg-max class (the smallest on a tie), or class 0 where that probability is under `threshold`.

    Args:
        logits: (B, Q, h, w), one plane a query; −inf rules a query out of a cell. float16 and bfloat16 are
            computed in float32, except by "reference".
        size: (H, W) of the output in pixels.
        query_to_class: (Q,) integers, the class of each query; None: every query is its own class.
        logit_scale: factor before the softmax.
        threshold: smallest probability that counts, in [0, 1].
        through: (H', W') to which the logits are resized first; None: straight to `size`.
        guide: (B, C, H, W) for PAMR; needed where `refine_iterations` is not 0.
        refine_iterations: of PAMR on the resized logits; 0 for none.
        dilations: of PAMR.
        implementation: see `Implementation`.

    Returns:
        (B, H, W) int64 classes, and (B, H, W) float32 (or float64) probabilities of the arg-max class before the
        threshold.

    Raises:
        TypeError, ValueError: a shape, dtype or value that does not fit; logits that hold NaN, with the images that do.
    """
    check_float("logits", logits, 4, "(B, Q, h, w)")
    queries = logits.shape[1]
    check_count("the number of queries", queries, 1)
    for name, sides in (("size", size), ("through", through)):
        for side in sides or ():
            check_count(f"each side of {name}", side, 1)
    if query_to_class is not None and query_to_class.shape != (queries,):
        raise ValueError(
            f"query_to_class must be ({queries},), one class a query; got {tuple(query_to_class.shape)}"
        )
    for side in logits.shape[2:]:
        check_count("each side of the logits' grid", side, 1)
    check_positive("logit_scale", logit_scale)
    check_fraction("threshold", threshold)
    check_count("refine_iterations", refine_iterations, 0)
    if refine_iterations:
        if guide is None:
            raise ValueError("refine_iterations needs a guide image; pass guide, or 0 iterations")
        check_float("guide", guide, 4, "(B, C, H, W)")
        check_same_images("logits", logits, "guide", guide)
        if tuple(guide.shape[2:]) != tuple(size):
            raise ValueError(f"guide must be of size {tuple(size)}; got {tuple(guide.shape[2:])}")
    if query_to_class is not None:
        query_to_class = query_to_class.to(logits.device)
    run = dispatch.operator if as_operator(logits, guide) else dispatch.upsample_argmax
    return run(
        logits,
        list(size),
        query_to_class,
        float(logit_scale),
        float(threshold),
        list(through or ()),
        guide if refine_iterations else None,
        refine_iterations,
        list(dilations),
        parse_implementation(implementation).value,
    )
