"""PAMR as the released programs run it: neighbours unfolded into a (…, 8·|dilations|, H, W) tensor each iteration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# One output channel a neighbour: the 3 × 3 kernels with a single 1, the centre's left out.
ONE_HOT = torch.eye(9)[[0, 1, 2, 3, 5, 6, 7, 8]].view(8, 1, 3, 3)


def neighbours(planes: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) → (B, C, 8·|dilations|, H, W): every neighbour of every pixel, coordinates clamped.

    Unfolded by dilated convolutions with one-hot kernels, as PAMR's public implementation does.
    """
    batch, channels, height, width = planes.shape
    kernel = ONE_HOT.to(planes)
    flat = planes.reshape(batch * channels, 1, height, width)
    rings = [
        F.conv2d(F.pad(flat, (dilation,) * 4, mode="replicate"), kernel, dilation=dilation)
        for dilation in dilations
    ]
    unfolded: Tensor = torch.cat(rings, dim=1).unflatten(0, (batch, channels))
    return unfolded


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
