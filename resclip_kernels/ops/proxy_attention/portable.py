"""The proxy attention in lean torch: a block of rows at a time, all heads side by side in one matrix product.

The map is the same for every head, so (rows, n) weights times (n, A·d) values serves them all; the mean of X Xᵀ is
‖Σ X‖² / n² and needs no map.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.proxy_attention.terms import FeedbackTerm
from resclip_kernels.ops.semantic_feedback.pieces import single_images
from resclip_kernels.ops.semantic_feedback.portable import feedback_rows

# Weights held at a time, and their softmax as much again: the whole map of 1,448 positions in float32, and 84 rows of
# 25,000 positions, enough for the product with the values to be bound by arithmetic.
ROW_BYTES = 1 << 23
SHORTEST = 1e-12


def proxy_attention(
    features: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    beta: float,
    gamma: float,
    feedback: FeedbackTerm | None = None,
) -> Tensor:
    """The formula of `resclip_kernels.proxy_attention`; float16 and bfloat16 compute in float32."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, value.dtype), torch.float32)
    size = (features.shape[2], features.shape[3])
    images = [
        attend(image.to(dtype), side_by_side(heads.to(dtype), grid, size), beta, gamma, own)
        .unflatten(1, (value.shape[1], value.shape[3]))
        .to(value.dtype)
        for image, heads, own in zip(features, value, each(feedback, len(features)), strict=True)
    ]
    return torch.stack(images).transpose(1, 2).contiguous()


@torch.no_grad()
def proxy_rows(
    features: Tensor, rows: list[int], beta: float, gamma: float, feedback: FeedbackTerm | None
) -> Tensor:
    """These rows of every image's map: (B, R, n), in float32 at least."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    positions = features.shape[2] * features.shape[3]
    maps = torch.empty((len(features), len(rows), positions), dtype=dtype, device=features.device)
    for image, own, found in zip(features, each(feedback, len(features)), maps, strict=True):
        unit = unit_rows(image.to(dtype))
        threshold = beta * mean_similarity(unit)
        for place, row in zip(found, rows, strict=True):
            place.copy_(row_weights(unit, row, row + 1, threshold, gamma, own)[0])
    return maps


def each(feedback: FeedbackTerm | None, images: int) -> list[FeedbackTerm | None]:
    """The feedback of every image alone."""
    if feedback is None:
        return [None] * images
    return [replace(feedback, state=state) for state in single_images(feedback.state)]


def attend(
    image: Tensor, values: Tensor, beta: float, gamma: float, feedback: FeedbackTerm | None
) -> Tensor:
    """One image's (C, H_v, W_v) and values (n, A·d) → (n, A·d)."""
    unit = unit_rows(image)
    count = len(unit)
    threshold = beta * mean_similarity(unit)
    rows = max(1, ROW_BYTES // (count * unit.element_size()))
    blocks = [
        row_weights(unit, first, min(first + rows, count), threshold, gamma, feedback) @ values
        for first in range(0, count, rows)
    ]
    return torch.cat(blocks)


def mean_similarity(unit: Tensor) -> Tensor:
    """mean(X Xᵀ) of unit rows (n, C)."""
    return unit.sum(dim=0).square().sum() / len(unit) ** 2


def row_weights(
    unit: Tensor,
    first: int,
    last: int,
    threshold: Tensor,
    gamma: float,
    feedback: FeedbackTerm | None,
) -> Tensor:
    """Rows `first` to `last` of one image's map: (last − first, n), each summing to 1."""
    score = (unit[first:last] @ unit.mT).sub_(threshold)
    if feedback is None:
        score = score.mul_(gamma)
    else:
        bonus = feedback.bonus(feedback_rows(feedback.state, first, last)[0])
        score = score.mul_((1 - feedback.weight) * gamma).add_(bonus).mul_(feedback.temperature)
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
