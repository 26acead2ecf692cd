"""Planes on a CPU as rows of pixels, (H·W, Q): a step that mixes pixels adds whole rows of queries.

A bilinear resize and a step of PAMR both replace a pixel's row by a weighted sum of a few others, with one set of
weights for all queries. That is what torch's `embedding_bag` computes, in one pass: it reads each row once, and keeps
the sum in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_rows(rows: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Σ_k weights[p, k] · rows[places[p, k]]: (m, Q), (P, K) int32 and (P, K) → (P, Q)."""
    mixed: Tensor = F.embedding_bag(places, rows, per_sample_weights=weights, mode="sum")
    return mixed


def resized_lines(rows: Tensor, sizes: Sequence[tuple[int, int]], first: int, last: int) -> Tensor:
    """Lines `first` … `last` − 1 of planes that are resized bilinearly, from each of `sizes` to the next.

    As F.interpolate does it (`align_corners=False`). Of the sizes between, only the lines that these need are made.

    Args:
        rows: (h·w, Q) of the first size.
        sizes: (height, width), one or more.
        first, last: lines of the last size.

    Returns:
        ((last − first) · W, Q).
    """
    height, width = sizes[-1]
    if len(sizes) == 1:
        return rows[first * width : last * width]
    from_height, from_width = sizes[-2]
    if (from_height, from_width) == (height, width):
        return resized_lines(rows, sizes[:-1], first, last)
    above, below, down = neighbours(from_height, height, rows)
    left, right, across = neighbours(from_width, width, rows)
    above, below, down = above[first:last], below[first:last], down[first:last]
    start = int(above[0])
    lines = [((line - start) * from_width)[:, None] for line in (above, above, below, below)]
    columns = (left, right, left, right)
    shares = [(1 - down, 1 - across), (1 - down, across), (down, 1 - across), (down, across)]
    places = torch.stack([a + b for a, b in zip(lines, columns, strict=True)], dim=-1)
    weights = torch.stack([a[:, None] * b for a, b in shares], dim=-1)
    source = resized_lines(rows, sizes[:-1], start, int(below[-1]) + 1)
    return mix_rows(source, places.flatten(0, 1), weights.flatten(0, 1).to(rows.dtype))


def neighbours(source: int, target: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `target` positions the two of `source` that it lies between, int32, and the second one's share."""
    position = torch.arange(target, device=like.device, dtype=torch.float64)
    position = ((position + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = position.floor()
    first = low.int()
    return first, (first + 1).clamp(max=source - 1), position - low
