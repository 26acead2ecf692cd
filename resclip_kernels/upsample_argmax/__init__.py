"""From a grid of logits to a label map at the output's size, classes with several names merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resclip_kernels.checks import (
    check_count,
    check_float,
    check_fraction,
    check_positive,
    check_same_images,
)
from resclip_kernels.implementation import Implementation, resolve
from resclip_kernels.upsample_argmax import portable, reference

__all__ = ["upsample_argmax"]

IMPLEMENTATIONS = {
    Implementation.TORCH: portable.upsample_argmax,
    Implementation.REFERENCE: reference.upsample_argmax,
}


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
    """Label map and its probability at any size.

    The logits are resized bilinearly (`align_corners=False`), optionally refined by `pamr`; probabilities are
    softmax(logit_scale · logits) over queries; a class takes the largest of its queries' probabilities; the label is
    the arg-max class (the smallest on a tie), or class 0 where that probability is under `threshold`.

    Args:
        logits: (B, Q, h, w), one plane a query.
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
        TypeError, ValueError: a shape, dtype or value that does not fit.
    """
    check_float("logits", logits, 4, "(B, Q, h, w)")
    queries = logits.shape[1]
    check_count("the number of queries", queries, 1)
    for name, sides in (("size", size), ("through", through)):
        for side in sides or ():
            check_count(f"each side of {name}", side, 1)
    if query_to_class is None:
        query_to_class = torch.arange(queries, device=logits.device)
    if query_to_class.shape != (queries,):
        raise ValueError(
            f"query_to_class must be ({queries},), one class a query; got {tuple(query_to_class.shape)}"
        )
    check_positive("logit_scale", logit_scale)
    check_fraction("threshold", threshold)
    check_count("refine_iterations", refine_iterations, 0)
    if refine_iterations:
        if guide is None:
            raise ValueError("refine_iterations needs a guide picture; pass guide, or 0 iterations")
        check_float("guide", guide, 4, "(B, C, H, W)")
        check_same_images("logits", logits, "guide", guide)
        if tuple(guide.shape[2:]) != tuple(size):
            raise ValueError(f"guide must be of size {tuple(size)}; got {tuple(guide.shape[2:])}")
    function = resolve(implementation, IMPLEMENTATIONS).function
    return function(
        logits,
        (size[0], size[1]),
        query_to_class.to(logits.device),
        logit_scale,
        threshold,
        through,
        guide,
        refine_iterations,
        tuple(dilations),
    )
