"""The proxy attention in lean torch: a block of rows at a time, all heads side by side in one matrix product.

The map is the same for every head, so (rows, n) weights times (n, A·d) values serves them all; the mean of X Xᵀ is
‖Σ X‖² / n² and needs no map. Where entries are cut, the mean takes a pass over blocks of rows of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.semantic_feedback.portable import feedback_rows
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.options.proxy_attention import ProxyAttentionOptions

# Bytes of weights held at a time, and their softmax as much again: the whole map of 1,448 positions in float32, and 84
# rows of 25,000 positions, enough for the product with the values to be bound by arithmetic.
ROW_BYTES = 1 << 23
# Length under which a position counts as 0.
SHORTEST = 1e-12


def proxy_attention(
    features: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None = None,
) -> Tensor:
    """The formula of `resclip_kernels.proxy_attention`; float16 and bfloat16 compute in float32."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, value.dtype), torch.float32)
    size = (features.shape[2], features.shape[3])
    images = [
        attend(image.to(dtype), side_by_side(heads.to(dtype), grid, size), options, state)
        .unflatten(1, (value.shape[1], value.shape[3]))
        .to(value.dtype)
        for image, heads, state in zip(features, value, each(feedback, len(features)), strict=True)
    ]
    return torch.stack(images).transpose(1, 2)


@torch.no_grad()
def proxy_rows(
    features: Tensor,
    rows: list[int],
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None,
) -> Tensor:
    """These rows of every image's map: (B, R, n), in float32 at least."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    positions = features.shape[2] * features.shape[3]
    maps = torch.empty((len(features), len(rows), positions), dtype=dtype, device=features.device)
    for image, state, image_rows in zip(features, each(feedback, len(features)), maps, strict=True):
        unit = unit_rows(image.to(dtype))
        threshold = options.beta * mean_similarity(unit, options.cut)
        for row, weights in zip(rows, image_rows, strict=True):
            similarity = similarity_rows(unit, row, row + 1, options.cut)
            weights.copy_(row_weights(similarity, row, threshold, options, state)[0])
    return maps


def each(feedback: SemanticFeedback | None, images: int) -> list[SemanticFeedback | None]:
    """The feedback of every image alone."""
    return [None] * images if feedback is None else [*feedback.images()]


def attend(
    image: Tensor,
    values: Tensor,
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None,
) -> Tensor:
    """One image's (C, H_v, W_v) and values (n, A·d) → (n, A·d)."""
    unit = unit_rows(image)
    threshold = options.beta * mean_similarity(unit, options.cut)
    blocks = []
    for first, last in row_blocks(unit):
        similarity = similarity_rows(unit, first, last, options.cut)
        blocks.append(row_weights(similarity, first, threshold, options, feedback) @ values)
    return torch.cat(blocks)


def row_blocks(unit: Tensor) -> list[tuple[int, int]]:
    """(first, last) of the rows of a map of unit rows (n, C) that are in memory together."""
    count = len(unit)
    rows = max(1, ROW_BYTES // max(1, count * unit.element_size()))
    return [(first, min(first + rows, count)) for first in range(0, count, rows)]


def mean_similarity(unit: Tensor, cut: float | None) -> Tensor:
    """mean(X Xᵀ) of unit rows (n, C), entries below the cut as 0."""
    if cut is None:
        return unit.sum(dim=0).square().sum() / len(unit) ** 2
    total = unit.new_zeros(())
    for first, last in row_blocks(unit):
        # X Xᵀ is symmetric: an entry right of the block's own columns stands for two. Row by row first, since torch
        # would share out one long sum among its threads.
        entries = cut_below(unit[first:last] @ unit[first:].mT, cut)
        within, beyond = entries.split((last - first, len(unit) - last), dim=1)
        total = total + (within.sum(dim=1) + 2.0 * beyond.sum(dim=1)).sum()
    return total / len(unit) ** 2


def similarity_rows(unit: Tensor, first: int, last: int, cut: float | None) -> Tensor:
    """Rows `first` to `last` of X Xᵀ, entries below the cut as 0: (last − first, n)."""
    entries = unit[first:last] @ unit.mT
    return entries if cut is None else cut_below(entries, cut)


def cut_below(entries: Tensor, cut: float) -> Tensor:
    """The entries with those below the cut as 0, in place; a NaN stays."""
    return entries.masked_fill_(entries < cut, 0.0)


def row_weights(
    similarity: Tensor,
    first: int,
    threshold: Tensor,
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None,
) -> Tensor:
    """Rows of one image's map from `first` on, of their similarities, which are overwritten: each sums to 1."""
    last = first + len(similarity)
    score = similarity.sub_(threshold)
    if feedback is None:
        score = score.mul_(options.gamma)
    else:
        weight, temperature = options.mixing
        rows = feedback_rows(feedback, first, last)[0]
        bonus = options.weighted(rows, feedback.options.normalise)
        score = score.mul_((1 - weight) * options.gamma).add_(bonus).mul_(temperature)
    dropped = score < 0
    index = torch.arange(last - first, device=score.device)
    alone = dropped.all(dim=1)
    score = score.masked_fill_(dropped, -torch.inf)
    diagonal = score[index, index + first].masked_fill(alone, 0.0)
    score[index, index + first] = diagonal
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
