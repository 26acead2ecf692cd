"""Label propagation over a sparse graph of the nearest patches of all windows of an image.

LPOSS: Stojnić et al., CVPR 2025, label propagation over patches; see `resclip.methods.steps.GraphPropagation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.methods.steps import GraphPropagation
from resclip_kernels import check_float, check_pair

TOLERANCE = 1e-6
"""A query is solved once its residual is at most this part of its logits, both by their norm."""
BLOCK_BYTES = 1 << 26
"""Bytes of similarities that are held at a time while neighbours are looked for."""


def patch_centres(
    corners: Sequence[tuple[int, int]], grid: tuple[int, int], patch_size: tuple[int, int]
) -> Tensor:
    """(B·h·w, 2) float64: (y, x) in pixels of the centre of every patch of an image's windows, window by window.

    Args:
        corners: (y, x) of each window's first pixel.
        grid: (h, w) in patches of a window.
        patch_size: (height, width) in pixels.
    """
    height, width = check_pair("grid", grid, "(h, w) in patches", 1)
    rows = (torch.arange(height, dtype=torch.float64) + 0.5) * patch_size[0]
    columns = (torch.arange(width, dtype=torch.float64) + 0.5) * patch_size[1]
    within = torch.cartesian_prod(rows, columns).view(1, -1, 2)
    starts = torch.tensor(corners, dtype=torch.float64).view(-1, 1, 2)
    return (starts + within).flatten(0, 1)


def propagate(
    features: Tensor, logits: Tensor, positions: Tensor, option: GraphPropagation
) -> Tensor:
    """Logits of all patches of an image, spread over the graph of its nearest patches.

    X are the features at unit length. Patch i is linked to its k nearest by X_i·X_j, itself included, with
    W_ij = max(0, X_i·X_j)^γ · exp(−σ ‖position_i − position_j‖). W + Wᵀ without its diagonal is divided by the roots of
    its row sums on both sides, and (I − α W) F = logits is solved for each query by conjugate gradients from 0, in
    float64.

    Args:
        features: (N, C) of the patches of all windows; a patch without length is linked to none.
        logits: (N, Q).
        positions: (N, 2) in pixels, such as `patch_centres` makes.
        option: k, σ, γ, α and the number of steps.

    Returns:
        (N, Q) in the logits' dtype.

    Raises:
        TypeError, ValueError: a shape or dtype that does not fit.
    """
    check_float("features", features, 2, "(N, C)")
    check_float("logits", logits, 2, "(N, Q)")
    check_float("positions", positions, 2, "(N, 2)")
    count = len(features)
    if not count or len(logits) != count or positions.shape != (count, 2):
        raise ValueError(
            "features, logits and positions must have one row for each of N patches, at least one, and positions two "
            f"columns; got {tuple(features.shape)}, {tuple(logits.shape)} and {tuple(positions.shape)}"
        )
    device = solver_device(features.device)
    graph = patch_graph(features.to(device), positions.to(device), option)
    solved = solve(graph, logits.to(device).double(), option.alpha, option.steps)
    return solved.to(logits.device, logits.dtype)


def solver_device(device: torch.device) -> torch.device:
    """Where it is solved: on the device, or on the CPU for Apple's GPUs, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def patch_graph(features: Tensor, positions: Tensor, option: GraphPropagation) -> Tensor:
    """The normalised graph: a sparse (N, N) float64 tensor of at most 2·N·k entries. No dense one is ever held."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    unit = F.normalize(wide, dim=1)
    count, device = len(unit), unit.device
    places = positions.double()
    neighbours = min(option.neighbours, count)
    block = max(1, BLOCK_BYTES // (count * unit.element_size()))
    sources, targets, weights = [], [], []
    for first in range(0, count, block):
        nearest = (unit[first : first + block] @ unit.mT).topk(neighbours, dim=1, sorted=False)
        source = torch.arange(first, first + len(nearest.indices), device=device)
        source = source.unsqueeze(1).expand_as(nearest.indices)
        away = torch.linalg.vector_norm(places[source] - places[nearest.indices], dim=-1)
        near = torch.exp(-option.sigma * away)
        weight = nearest.values.double().clamp(min=0) ** option.gamma * near
        # γ = 0 makes 1 of a similarity of 0 too.
        linked = (source != nearest.indices) & (nearest.values > 0)
        sources.append(source[linked])
        targets.append(nearest.indices[linked])
        weights.append(weight[linked])
    ends = torch.stack([torch.cat(sources), torch.cat(targets)])
    values = torch.cat(weights)
    # At most two entries fall together, i's to j and j's to i, so that their sum has no order.
    both = torch.sparse_coo_tensor(
        torch.cat([ends, ends.flip(0)], dim=1),
        torch.cat([values, values]),
        (count, count),
        check_invariants=False,
    ).coalesce()
    rows, columns = both.indices()
    degree = torch.sparse.mm(both, torch.ones(count, 1, dtype=torch.float64, device=device))[:, 0]
    root = degree.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    return torch.sparse_coo_tensor(
        both.indices(),
        both.values() * root[rows] * root[columns],
        (count, count),
        is_coalesced=True,
        check_invariants=False,
    )


def solve(graph: Tensor, right: Tensor, alpha: float, steps: int) -> Tensor:
    """F of (I − α·graph) F = right, (N, Q), by at most `steps` conjugate gradients from 0, each query by itself."""
    solution = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    square = (residual**2).sum(dim=0)
    enough = TOLERANCE**2 * square
    for _ in range(steps):
        unsolved = ~(square <= enough)  # A query with NaN stays, and shows it.
        if not unsolved.any():
            break
        image = direction - alpha * torch.sparse.mm(graph, direction)
        length = square / (direction * image).sum(dim=0)
        length = length.where(unsolved, 0)
        solution = solution + length * direction
        residual = residual - length * image
        before, square = square, (residual**2).sum(dim=0)
        direction = residual + (square / before).where(unsolved, 0) * direction
    return solution
