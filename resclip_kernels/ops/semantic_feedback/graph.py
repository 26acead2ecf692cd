"""Semantic feedback in one graph for any size, which is what `torch.export` writes out: Ŝ itself, in memory.

No step depends on a size or a value in Python. The path tests hold every sample of every pair at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.ops.semantic_feedback.state import (
    ROW_SUM_EPSILON,
    SemanticFeedback,
)
from resclip_kernels.options.semantic_feedback import Connectivity, FeedbackOptions

# Squarings of the map of neighbours that join any component: a path of 2^16 patches.
SQUARINGS = 16


def semantic_feedback(labels: Tensor, options: FeedbackOptions) -> SemanticFeedback:
    """The formula of `resclip_kernels.semantic_feedback`, with (B, n, n) matrices and (B, M + 1, n, n) samples."""
    flat = labels.flatten(1)
    raw = (flat[:, :, None] == flat[:, None, :]).float()
    if options.connectivity is not None:
        distance = chebyshev(labels)
        # One patch alone has no other that it could be far from.
        steps = longest(labels).amax(dim=0).clamp(min=1)
        decay = torch.exp(-distance.float() / steps.float())
        raw = raw * torch.where(connected(labels, distance, options.connectivity), 1.0, decay)
    smoothed = raw if options.smoothing_std == 0 else raw @ smoothing(flat, options.smoothing_std)
    row_sums = smoothed.sum(dim=-1)
    rows = smoothed / (row_sums.unsqueeze(-1) + ROW_SUM_EPSILON)
    maximum = rows.amax(dim=(1, 2))
    dense = (rows / maximum[:, None, None]).half().float() if options.normalise else smoothed
    return SemanticFeedback(labels, options, None, row_sums, maximum, dense)


def longest(labels: Tensor) -> Tensor:
    """0 … M, the numbers of a path's samples: (M + 1,) int64."""
    return torch.arange(torch.sym_max(labels.shape[1], labels.shape[2]), device=labels.device)


def coordinates(labels: Tensor) -> tuple[Tensor, Tensor]:
    """y and x of every patch: (n,) int64 each."""
    height, width = labels.shape[1:]
    y = torch.arange(height, device=labels.device)[:, None].expand(height, width)
    x = torch.arange(width, device=labels.device)[None, :].expand(height, width)
    return y.flatten(), x.flatten()


def chebyshev(labels: Tensor) -> Tensor:
    """Chebyshev distances of all patches: (n, n) int64."""
    y, x = coordinates(labels)
    return torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())


def smoothing(flat: Tensor, smoothing_std: float) -> Tensor:
    """The Gaussian of min(n, int(6σ + 1)) taps as a banded (n, n) matrix, float32; see `state.gaussian_kernel`."""
    position = torch.arange(flat.shape[1], device=flat.device)
    taps = torch.clamp(position.amax(dim=0) + 1, max=int(6 * smoothing_std + 1))

    def weights(offset: Tensor) -> Tensor:
        bell = torch.exp(-0.5 * (offset.double() / smoothing_std).square())
        return torch.where(offset.abs() <= taps // 2, bell, 0.0)

    # Of all offsets that there are, on both sides.
    total = 2 * weights(position).sum() - 1
    return (weights(position[:, None] - position) / total).float()


def connected(labels: Tensor, distance: Tensor, connectivity: Connectivity) -> Tensor:
    """Which column's patch is connected to the row's, among those of equal label: (B, n, n) bool."""
    flat = labels.flatten(1)
    if connectivity == "component":
        near = (flat[:, :, None] == flat[:, None, :]) & (distance <= 1)
        joined = near.float()
        for _ in range(SQUARINGS):
            joined = (joined @ joined).clamp(max=1)
        together: Tensor = joined > 0.5
        return together
    number = longest(labels)
    y, x = (
        prefix_samples(labels, number) if connectivity == "prefix" else line_samples(labels, number)
    )
    point = y * labels.shape[2] + x  # [M + 1, n, n]
    seen = flat.index_select(1, point.flatten()).unflatten(1, point.shape)
    differs = (seen != flat[:, None, :, None]) & (number[:, None, None] <= distance)
    reached: Tensor = ~differs.any(dim=1)
    return reached


def prefix_samples(labels: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """y and x of the released path test's samples: (M + 1, n, n) int64 each; see `state.sample_times`."""
    steps = number.amax(dim=0).clamp(min=1)
    step = (1.0 / steps.double()).float().double()
    from_start = step * number
    from_end = 1.0 - step * (steps - number)
    times = torch.where(number < (steps + 1) // 2, from_start, from_end).float()

    def along(positions: Tensor) -> Tensor:
        start, end = positions.float()[:, None], positions.float()
        ahead = times[:, None, None]
        return (start * (1.0 - ahead) + end * ahead).round().long()

    y, x = coordinates(labels)
    return along(y), along(x)


def line_samples(labels: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """y and x of sample k of d on the whole segment, rounded half to even: (M + 1, n, n) int64 each."""
    distance = chebyshev(labels).clamp(min=1)
    k = torch.minimum(number[:, None, None], distance)

    def along(positions: Tensor) -> Tensor:
        start = positions[:, None]
        twice = 2 * (positions - start) * k
        remainder = torch.remainder(twice, 2 * distance)
        # An exact division, which is the same in whichever direction it would be rounded.
        floor = (twice - remainder) // (2 * distance)
        half = (remainder == distance) & (torch.remainder(start + floor, 2) == 1)
        return start + floor + ((remainder > distance) | half).long()

    y, x = coordinates(labels)
    return along(y), along(x)
