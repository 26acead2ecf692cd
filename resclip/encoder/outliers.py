"""Patches whose tokens stand apart: how they are found, and what takes their place."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip.encoder.trace import map_blocks, sums_around
from resclip.methods.pieces import OutlierRepair

DISTANCE_BYTES = 1 << 25
"""Bytes of distances that are held at a time."""

CLOSEST = 1e-6
"""The least squared distance of two patches, by the mean of all patches' squared distances from their mean."""


@torch.no_grad()
def find_outliers(
    piece: OutlierRepair, patches: Tensor, attention: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Which patches of each image are outliers: (B, n) bool.

    Args:
        piece: the rule.
        patches: (B, n, D), those of the final block's input.
        attention: (q, k) of the last block but one, (B, A, 1 + n, d) each, for "salience" alone.
    """
    if piece.detector == "lof":
        scores = outlier_factors(patches, piece.neighbours)
        return scores > quantile(scores, 1 - piece.share)
    if piece.detector == "norm" or attention is None:
        return largest(torch.linalg.vector_norm(patches.float(), dim=-1), piece.count)
    from_cls, own = salience(*attention)
    salient = piece.salience * from_cls > own
    return largest(from_cls.masked_fill(~salient, -torch.inf), piece.count) & salient


def quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of each row (B, n), linear between two values: (B, 1). Not torch's, which takes float64 for it."""
    ordered = values.sort(dim=1).values
    if torch.compiler.is_exporting():
        # In a graph for any size the position is a value.
        place = share * (torch.ones_like(values[0]).sum(dim=0, dtype=torch.float64) - 1)
        near = torch.stack([place.floor(), place.ceil()]).long()
        low, high = ordered.index_select(1, near).split(1, dim=1)
        return torch.lerp(low, high, (place - place.floor()).to(low.dtype))
    position = share * (values.shape[1] - 1)
    below = int(position)
    pair = ordered[:, below : below + 2]
    return torch.lerp(pair[:, :1], pair[:, -1:], position - below)


def largest(values: Tensor, count: int) -> Tensor:
    """Which of each row's values are its `count` largest."""
    if torch.compiler.is_exporting():
        # Of any number of values, fewer than `count` too.
        return ranks(values, descending=True) < count
    numbers = values.topk(min(count, values.shape[1]), dim=1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, numbers, value=True)


def ranks(values: Tensor, *, descending: bool) -> Tensor:
    """The place of each value among those of its last axis, from 0."""
    return values.argsort(dim=-1, descending=descending).argsort(dim=-1)


def outlier_factors(patches: Tensor, neighbours: int) -> Tensor:
    """`outlier_factor` of each image: (B, n, D) → (B, n)."""
    if not torch.compiler.is_exporting():
        return torch.stack([outlier_factor(image, neighbours) for image in patches])
    points = patches.to(torch.promote_types(patches.dtype, torch.float32))
    points = points - points.mean(dim=1, keepdim=True)
    lengths = points.square().sum(dim=2)
    squared = lengths[:, :, None] + lengths[:, None, :] - 2 * points @ points.mT
    order = squared.argsort(dim=2)
    number = torch.arange(patches.shape[1], device=patches.device)
    nearest = number.amax(dim=0).clamp(max=neighbours)
    at = nearest.expand(*squared.shape[:2], 1)
    least = (CLOSEST * lengths.mean(dim=1)).clamp_min(1e-30)[:, None]
    distance = torch.maximum(squared.gather(2, order.gather(2, at)).squeeze(2), least)
    # Over all patches in the order of their distance, of which the first few count.
    shares = distance.reciprocal()[:, None, :].expand(squared.shape).gather(2, order)
    counts = (number > 0) & (number <= nearest)
    return distance * (shares * counts).sum(dim=2) / counts.sum(dim=0).clamp(min=1)


def outlier_factor(patches: Tensor, neighbours: int) -> Tensor:
    """κ_i times the mean of 1/κ_j over the k nearest j, with κ the squared distance to the k-th nearest: (n,) float32.

    That is what the released local outlier factor amounts to: its reachability takes a point's own κ. Of the k + 1
    smallest distances the first is left out, whichever it is.
    """
    count = len(patches)
    if count < 2:
        return patches.new_zeros(count, dtype=torch.float32)
    points = patches.to(torch.promote_types(patches.dtype, torch.float32))
    # Distances from the mean are as small as those between patches, so that products lose little of these.
    points = points - points.mean(dim=0)
    lengths = points.square().sum(dim=1)
    nearest = min(neighbours, count - 1)
    rows = max(1, DISTANCE_BYTES // (4 * count))
    found = []
    for first in range(0, count, rows):
        some = slice(first, first + rows)
        squared = torch.addmm(lengths, points[some], points.mT, alpha=-2).add_(lengths[some, None])
        found.append(squared.topk(nearest + 1, dim=1, largest=False))
    # What lies closer than rounding can tell is equally close.
    least = (CLOSEST * lengths.mean()).clamp_min(1e-30)
    distance = torch.cat([one.values for one in found])[:, nearest].clamp_min(least)
    near = torch.cat([one.indices for one in found])[:, 1:]
    return distance * distance.reciprocal()[near].mean(dim=1)


def salience(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """[CLS]'s attention to each patch, and each patch's to itself, mean over heads: (B, n) each."""
    from_cls, own = [], []
    for first, rows in map_blocks(query, key, 0, query.shape[2]):
        # Means are tensors of their own: a view would keep its block of maps, and all views all maps.
        if first == 0:
            from_cls.append(rows[:, :, 0].mean(dim=1))
        own.append(rows.diagonal(first, 2, 3).mean(dim=1))
    return from_cls[0][:, 1:], torch.cat(own, dim=1)[:, 1:]


def fill(
    patches: Tensor, outliers: Tensor, grid: tuple[int, int], *, keep_isolated: bool
) -> Tensor:
    """Outliers as the mean of those of their 8 neighbours that are none.

    Args:
        patches: (B, n, D).
        outliers: (B, n) bool.
        grid: (h, w).
        keep_isolated: whether an outlier among outliers keeps its token; else that becomes 0.
    """
    # The outlier in the middle counts as 0 like those around it.
    sound = (~outliers).to(patches.dtype).unsqueeze(-1)
    total, count = sums_around(patches * sound, grid), sums_around(sound, grid)
    replaced = outliers if not keep_isolated else outliers & (count[..., 0] > 0)
    return torch.where(replaced.unsqueeze(-1), total / count.clamp_min(1), patches)
