"""Pixel-adaptive mask refinement: an image-guided smoothing of mask planes.

Araslanov & Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, section 4; ResCLIP's released
feedback pass runs it on the first pass's logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from resclip_kernels.checks import check_count, check_float, check_same_images
from resclip_kernels.dispatch import Implementation, as_operator, parse_implementation
from resclip_kernels.ops.pamr import dispatch

__all__ = ["pamr"]


def pamr(
    image: Tensor,
    masks: Tensor,
    *,
    iterations: int = 10,
    dilations: Sequence[int] = (8, 16),
    implementation: Implementation | str = Implementation.AUTO,
) -> Tensor:
    """Refine mask planes by repeated averaging over pixels that look alike.

    For pixel p and each of its 8 neighbours q at distance δ in `dilations` (coordinates clamped to the image),
    κ(p, q) = mean over channels of −|I_p − I_q| / (1e-8 + 0.1·s_p), with s_p the unbiased standard deviation, per
    channel, of the centre and neighbours (the centre counted once per dilation). The weights are softmax(κ) over the
    8·|dilations| neighbours; every iteration replaces each plane's value at p by the weighted sum at p's neighbours.

    Args:
        image: (B, C, H, W) guide, floating point; any normalisation per channel.
        masks: (B, Q, H, W) planes to refine. float16 and bfloat16 planes are accumulated in float32.
        iterations: how often the step runs; 0 returns `masks` unchanged.
        dilations: distances in pixels of the rings of neighbours.
        implementation: see `Implementation`.

    Returns:
        (B, Q, H, W) in `masks`' dtype.

    Raises:
        TypeError, ValueError: a shape, dtype or count that does not fit; the message says what was expected.
    """
    check_float("image", image, 4, "(B, C, H, W)")
    check_float("masks", masks, 4, "(B, Q, H, W)")
    check_same_images("image", image, "masks", masks)
    if image.shape[-2:] != masks.shape[-2:]:
        raise ValueError(
            f"image and masks must have one height and width; "
            f"got {tuple(image.shape[-2:])} and {tuple(masks.shape[-2:])}"
        )
    check_count("iterations", iterations, 0)
    if not dilations:
        raise ValueError("dilations must name at least one distance; use iterations=0 for none")
    for dilation in dilations:
        check_count("each dilation", dilation, 1)
    if iterations == 0 or masks.numel() == 0:
        return masks
    run = dispatch.operator if as_operator(image, masks) else dispatch.pamr
    return run(
        image, masks, iterations, list(dilations), parse_implementation(implementation).value
    )
