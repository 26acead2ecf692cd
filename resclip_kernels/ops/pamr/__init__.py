"""Pixel-adaptive mask refinement: an image-guided smoothing of mask planes.

Araslanov & Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, section 4; ResCLIP's released
feedback pass runs it on the first pass's logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resclip_kernels.checks import check_float, check_same_images, merge_options
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.ops.pamr import portable, reference
from resclip_kernels.ops.pamr.tiles import obstacle
from resclip_kernels.options.pamr import PamrKeywords, PamrOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PamrOptions", "pamr"]

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred("resclip_kernels.ops.pamr.triton", "pamr"),
    Implementation.TORCH: portable.pamr,
    Implementation.REFERENCE: reference.pamr,
}


def pamr(
    image: Tensor,
    masks: Tensor,
    options: PamrOptions | None = None,
    *,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[PamrKeywords],
) -> Tensor:
    """Refine mask planes by repeated averaging over pixels that look alike.

    For pixel p and each of its 8 neighbours q at distance δ in `dilations` (coordinates clamped to the image),
    κ(p, q) = mean over channels of −|I_p − I_q| / (1e-8 + 0.1·s_p), with s_p the unbiased standard deviation, per
    channel, of the centre and neighbours (the centre counted once per dilation). The weights are softmax(κ) over the
    8·|dilations| neighbours; every iteration replaces each plane's value at p by the weighted sum at p's neighbours.

    Args:
        image: (B, C, H, W) guide, floating point; any normalisation per channel.
        masks: (B, Q, H, W) planes to refine. float16 and bfloat16 planes are accumulated in float32.
        options: iterations and dilations; without iterations `masks` comes back unchanged. None for the defaults.
        implementation: see `Implementation`.
        keywords: fields of `PamrOptions`, in place of those of `options`.

    Returns:
        (B, Q, H, W) in `masks`' dtype.

    Raises:
        TypeError, ValueError: a shape, dtype or count that does not fit; the message says what was expected.
    """
    options = merge_options(PamrOptions, options, keywords)
    check_float("image", image, 4, "(B, C, H, W)")
    check_float("masks", masks, 4, "(B, Q, H, W)")
    check_same_images("image", image, "masks", masks)
    if image.shape[-2:] != masks.shape[-2:]:
        raise ValueError(
            f"image and masks must have one height and width; "
            f"got {tuple(image.shape[-2:])} and {tuple(masks.shape[-2:])}"
        )
    if options.iterations == 0 or masks.numel() == 0:
        return masks
    return run(image, masks, options, parse_implementation(implementation).value)


def fake(image: Tensor, masks: Tensor, options: PamrOptions, implementation: str) -> Tensor:
    """The shape that `run` returns."""
    return torch.empty_like(masks, memory_format=torch.contiguous_format)


@custom_op("pamr", fake)
def run(image: Tensor, masks: Tensor, options: PamrOptions, implementation: str) -> Tensor:
    """The chosen implementation's planes."""
    limit = obstacle(masks)
    function = resolve(
        implementation, IMPLEMENTATIONS, image, masks, limit=limit, op="pamr"
    ).function
    refined: Tensor = function(image, masks, options.iterations, options.dilations)
    return refined


@trial("pamr")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """Planes of a small image, refined; see `resclip_kernels.first_use`."""
    image, masks = sample(device, dtype, 2, 3, 20, 28), sample(device, dtype, 2, 3, 20, 28, seed=1)
    return [pamr(image, masks, iterations=2, dilations=(2, 4), implementation=implementation)]
