"""From the first pass's logits to one label a patch: the labels that semantic feedback feeds on.

ResCLIP's released program, section 3.3 of arXiv 2411.15851: bilinear, PAMR, softmax with a threshold, majority.
"""

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
from resclip_kernels.ops.patch_labels import dispatch

__all__ = ["patch_labels"]


def patch_labels(
    logits: Tensor,
    image: Tensor,
    *,
    patch_size: tuple[int, int],
    logit_scale: float = 40.0,
    threshold: float = 0.0,
    refine_iterations: int = 10,
    dilations: Sequence[int] = (8, 16),
    implementation: Implementation | str = Implementation.AUTO,
) -> Tensor:
    """One query label a patch from a grid of logits.

    The logits are resized bilinearly (`align_corners=False`) to the image's size and refined by `pamr` with the image
    as guide; a pixel's label is its arg-max query, or query 0 where softmax(logit_scale · logits) stays under
    `threshold`; a patch's label is the most frequent label of its pixels, the smallest one on a tie.

    Args:
        logits: (B, Q, h, w), one plane a query; −inf rules a query out of a patch. float16 and bfloat16 are
            computed in float32, except by "reference".
        image: (B, C, H, W) guide, with h = H // patch height and w = W // patch width; pixels past the last whole
            patch belong to no patch.
        patch_size: (height, width) of a patch in pixels.
        logit_scale: factor before the softmax.
        threshold: smallest probability that counts, in [0, 1].
        refine_iterations: of PAMR; 0 for none.
        dilations: of PAMR.
        implementation: see `Implementation`.

    Returns:
        (B, h, w) int64 labels in [0, Q).

    Raises:
        TypeError, ValueError: a shape, dtype or value that does not fit; logits that hold NaN, with the images that do.
    """
    check_float("logits", logits, 4, "(B, Q, h, w)")
    check_float("image", image, 4, "(B, C, H, W)")
    check_same_images("logits", logits, "image", image)
    check_count("the number of queries", logits.shape[1], 1)
    grid = (image.shape[2] // patch_size[0], image.shape[3] // patch_size[1])
    if tuple(logits.shape[2:]) != grid:
        raise ValueError(
            f"an image of {tuple(image.shape[2:])} with patches of {tuple(patch_size)} has a grid of {grid}; "
            f"logits have {tuple(logits.shape[2:])}"
        )
    for side in logits.shape[2:]:
        check_count("each side of the logits' grid", side, 1)
    check_positive("logit_scale", logit_scale)
    check_fraction("threshold", threshold)
    check_count("refine_iterations", refine_iterations, 0)
    run = dispatch.operator if as_operator(logits, image) else dispatch.patch_labels
    return run(
        logits,
        image,
        list(patch_size),
        float(logit_scale),
        float(threshold),
        refine_iterations,
        list(dilations),
        parse_implementation(implementation).value,
    )
