"""Semantic feedback as the released program computes it: n × n matrices and a pairs × steps path test."""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.semantic_feedback.state import (
    ROW_SUM_EPSILON,
    SemanticFeedback,
    gaussian_kernel,
    sample_times,
)
from resclip_kernels.options.semantic_feedback import Connectivity, FeedbackOptions


def semantic_feedback(
    labels: Tensor, options: FeedbackOptions, dtype: torch.dtype = torch.float32
) -> SemanticFeedback:
    """The formula of `resclip_kernels.semantic_feedback`; `dtype` float64 makes it an oracle."""
    raw = [raw_matrix(image, options.connectivity, dtype) for image in labels]
    smoothed = smooth(stack(raw, labels, dtype), options.smoothing_std)
    row_sums = smoothed.sum(dim=-1)
    rows = smoothed / (row_sums.unsqueeze(-1) + ROW_SUM_EPSILON)
    maximum = rows.flatten(1).amax(dim=1)
    dense = (rows / maximum.view(-1, 1, 1)).half().to(dtype) if options.normalise else smoothed
    return SemanticFeedback(labels, options, None, row_sums, maximum, dense)


def stack(matrices: list[Tensor], labels: Tensor, dtype: torch.dtype) -> Tensor:
    """torch.stack that also takes a batch of no images."""
    patches = labels.shape[1] * labels.shape[2]
    if not matrices:
        return torch.empty(0, patches, patches, dtype=dtype, device=labels.device)
    return torch.stack(matrices)


def raw_matrix(
    labels: Tensor, connectivity: Connectivity | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(h, w) labels → (n, n): 1 for a connected pair of one label, exp(−d/M) for another pair of it, else 0."""
    flat = labels.flatten()
    same = (flat[:, None] == flat[None, :]).to(dtype)
    steps = max(labels.shape) - 1
    if connectivity is None or steps == 0:
        return same
    decay = torch.exp(-chebyshev_distance(labels).to(dtype) / steps)
    return same * torch.where(connected(labels, connectivity), 1.0, decay)


def chebyshev_distance(labels: Tensor) -> Tensor:
    """(h, w) → (n, n) int64 distances in patches."""
    points = grid_points(labels)
    return (points[:, None] - points[None, :]).abs().amax(dim=-1)


def grid_points(labels: Tensor) -> Tensor:
    """(h, w) → (n, 2) int64 coordinates (y, x) in row-major order."""
    height, width = labels.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y.flatten(), x.flatten()], dim=1).to(labels.device)


def connected(labels: Tensor, connectivity: Connectivity) -> Tensor:
    """(h, w) labels → (n, n) bool: is the column's patch connected to the row's?"""
    if connectivity == "component":
        component = connected_components(labels).flatten()
        return component[:, None] == component[None, :]
    sample = prefix_samples if connectivity == "prefix" else line_samples
    steps = max(labels.shape) - 1
    distance = chebyshev_distance(labels)
    points = sample(grid_points(labels), distance, steps)  # [M + 1, n, n, 2]
    on_path = labels[points[..., 0], points[..., 1]]  # [M + 1, n, n]
    past_the_end = torch.arange(steps + 1, device=labels.device).view(-1, 1, 1) > distance
    return ((on_path == labels.flatten()[:, None]) | past_the_end).all(dim=0)


def prefix_samples(points: Tensor, distance: Tensor, steps: int) -> Tensor:
    """Sample k stands at round(p_i·(1 − t_k) + p_j·t_k), in float32, for M + 1 times whatever the distance."""
    times = torch.tensor(sample_times(steps), dtype=torch.float32, device=points.device)
    times = times.view(-1, 1, 1, 1)
    start, end = points.float()[:, None], points.float()[None, :]
    return (start * (1 - times) + end * times).round().long()


def line_samples(points: Tensor, distance: Tensor, steps: int) -> Tensor:
    """Sample k stands at round(p_i + (p_j − p_i)·k/d), half to even; float64 is exact enough to see every tie."""
    k = torch.arange(steps + 1, device=points.device).view(-1, 1, 1, 1)
    start, end = points[:, None], points[None, :]
    length = distance.clamp(min=1)[..., None]
    exact = start + ((end - start) * torch.minimum(k, length)).double() / length.double()
    return exact.round().long()


def connected_components(labels: Tensor) -> Tensor:
    """(h, w) labels → (h, w) component numbers, by breadth-first search over the 8 neighbours."""
    height, width = labels.shape
    grid = labels.tolist()
    component = [[-1] * width for _ in range(height)]
    for start in range(height * width):
        y, x = divmod(start, width)
        if component[y][x] >= 0:
            continue
        component[y][x] = start
        queue = deque([(y, x)])
        while queue:
            y, x = queue.popleft()
            for next_y in range(max(y - 1, 0), min(y + 2, height)):
                for next_x in range(max(x - 1, 0), min(x + 2, width)):
                    unseen = component[next_y][next_x] < 0
                    if unseen and grid[next_y][next_x] == grid[y][x]:
                        component[next_y][next_x] = start
                        queue.append((next_y, next_x))
    return torch.tensor(component, device=labels.device)


def smooth(matrix: Tensor, smoothing_std: float) -> Tensor:
    """Zero-padded Gaussian convolution along the columns' flattened patch index."""
    if smoothing_std == 0:
        return matrix
    patches = matrix.shape[-1]
    kernel = gaussian_kernel(smoothing_std, patches).to(matrix)
    rows = matrix.reshape(-1, 1, patches)
    return F.conv1d(rows, kernel.view(1, 1, -1), padding=len(kernel) // 2).view_as(matrix)
