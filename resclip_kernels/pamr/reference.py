"""PAMR as the released programs run it: neighbours unfolded into a (…, 8·|dilations|, H, W) tensor each iteration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def neighbours(planes: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) → (B, C, 8·|dilations|, H, W): every neighbour of every pixel, coordinates clamped."""
    height, width = planes.shape[-2:]
    rings = []
    for dilation in dilations:
        padded = F.pad(planes, (dilation,) * 4, mode="replicate")
        rings += [
            padded[
                ...,
                dilation * (1 + dy) : dilation * (1 + dy) + height,
                dilation * (1 + dx) : dilation * (1 + dx) + width,
            ]
            for dy, dx in OFFSETS
        ]
    return torch.stack(rings, dim=2)


def pamr(image: Tensor, masks: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """The formula of `resclip_kernels.pamr`, materialised; computes in `masks`' own dtype."""
    image = image.to(masks.dtype)
    around = neighbours(image, dilations)  # [B, C, N, H, W]
    centre = image.unsqueeze(2)  # [B, C, 1, H, W]
    values = torch.cat([around, centre.expand(-1, -1, len(dilations), -1, -1)], dim=2)
    deviation = values.std(dim=2, keepdim=True)
    affinity = -(around - centre).abs() / (1e-8 + 0.1 * deviation)
    weights = affinity.mean(dim=1, keepdim=True).softmax(dim=2)  # [B, 1, N, H, W]
    for _ in range(iterations):
        masks = (neighbours(masks, dilations) * weights).sum(dim=2)
    return masks
