"""The proxy attention in lean torch: a block of rows at a time, all heads side by side in one matrix product.

The map is the same for every head, so (rows, n) weights times (n, A·d) values serves them all; the mean of X Xᵀ is
‖Σ X‖² / n² and needs no map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights held at a time, and their softmax as much again: the whole map of 1,448 positions in float32, and 84 rows of
# 25,000 positions, enough for the product with the values to be bound by arithmetic.
ROW_BYTES = 1 << 23
SHORTEST = 1e-12


def proxy_attention(
    features: Tensor, value: Tensor, grid: tuple[int, int], beta: float, gamma: float
) -> Tensor:
    """The formula of `resclip_kernels.proxy_attention`; float16 and bfloat16 compute in float32."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, value.dtype), torch.float32)
    size = (features.shape[2], features.shape[3])
    images = [
        attend(unit_rows(image.to(dtype)), side_by_side(heads.to(dtype), grid, size), beta, gamma)
        .unflatten(1, (value.shape[1], value.shape[3]))
        .to(value.dtype)
        for image, heads in zip(features, value, strict=True)
    ]
    return torch.stack(images).transpose(1, 2).contiguous()


def attend(unit: Tensor, values: Tensor, beta: float, gamma: float) -> Tensor:
    """One image's unit rows (n, C) and values (n, A·d) → (n, A·d)."""
    count = len(unit)
    threshold = beta * unit.sum(dim=0).square().sum() / count**2
    rows = max(1, ROW_BYTES // (count * unit.element_size()))
    blocks = [
        row_weights(unit, first, min(first + rows, count), threshold, gamma) @ values
        for first in range(0, count, rows)
    ]
    return torch.cat(blocks)


def row_weights(unit: Tensor, first: int, last: int, threshold: Tensor, gamma: float) -> Tensor:
    """Rows `first` to `last` of the map: (last − first, n), each summing to 1."""
    score = (unit[first:last] @ unit.mT).sub_(threshold).mul_(gamma)
    dropped = score < 0
    own = torch.arange(last - first, device=unit.device)
    alone = dropped.all(dim=1)
    score = score.masked_fill_(dropped, -torch.inf)
    diagonal = score[own, own + first].masked_fill(alone, 0.0)
    score[own, own + first] = diagonal
    weights: Tensor = score.softmax(dim=1)
    return weights


def unit_rows(image: Tensor) -> Tensor:
    """(C, H_v, W_v) → (n, C), every position of unit length, or 0 where it has no length."""
    positions = image.flatten(1).T
    length = torch.linalg.vector_norm(positions, dim=1, keepdim=True)
    unit: Tensor = positions * ((length >= SHORTEST) / length.clamp_min(SHORTEST))
    return unit


def side_by_side(heads: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """One image's (A, h·w, d) values, resized to `size`: (n, A·d)."""
    planes = heads.mT.unflatten(-1, grid).flatten(0, 1)  # [A * d, h, w]
    if size != grid:
        planes = F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0]
    values: Tensor = planes.flatten(1).T.contiguous()
    return values
