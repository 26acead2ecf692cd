"""The Laplacian propagation as its formulas read, one picture after the other, every plane in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.options.laplacian_propagation import LaplacianPropagationOptions


class Graph(NamedTuple):
    """The weights of one picture's grid of h × w cells."""

    confidence: Tensor
    """ρ: (h, w)."""
    across: Tensor
    """Of the edges along x: (h, w − 1)."""
    down: Tensor
    """Of the edges along y: (h − 1, w)."""


def laplacian_propagation(
    logits: Tensor, guide: Tensor, text: Tensor, options: LaplacianPropagationOptions
) -> Tensor:
    """The formula of `resclip_kernels.laplacian_propagation`, materialised; float32 at least, rounded at the end."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    for other in (guide, text):
        dtype = torch.promote_types(dtype, other.dtype)
    agreement = text_agreement(text.to(dtype))
    pictures = [
        propagate(planes, picture, agreement, options)
        for planes, picture in zip(logits.to(dtype), guide.to(dtype), strict=True)
    ]
    return torch.stack(pictures).to(logits.dtype)


def propagate(
    planes: Tensor, guide: Tensor, agreement: Tensor, options: LaplacianPropagationOptions
) -> Tensor:
    """One picture's (Q, H, W) planes."""
    height, width = planes.shape[1:]
    pooling = options.pooling(height, width)
    if pooling == (1, 1):
        return solve(graph_of(planes, guide, agreement), planes, options.iterations)
    pooled, pooled_guide = (F.avg_pool2d(each, pooling) for each in (planes, guide))
    solved = solve(graph_of(pooled, pooled_guide, agreement), pooled, options.iterations)
    if options.cells:
        return solved
    resized = F.interpolate(
        solved[None], size=(height, width), mode="bilinear", align_corners=False
    )
    return resized[0]


def text_agreement(text: Tensor) -> Tensor:
    """g, the diagonal of G: (Q, E) unit rows → (Q,)."""
    softmax = (text @ text.mT / 0.5).softmax(dim=1)
    matrix = softmax + 10.0 * torch.eye(len(text), dtype=text.dtype, device=text.device)
    matrix = matrix / (matrix.sum(dim=1, keepdim=True) + 1e-6)
    return matrix.diagonal()


def graph_of(planes: Tensor, guide: Tensor, agreement: Tensor) -> Graph:
    """ρ and the edges' weights by the pooled (Q, h, w) planes and the pooled (3, h, w) guide."""
    shares = planes.softmax(dim=0)

    def affinity(one: Tensor, other: Tensor) -> Tensor:
        """Of two positions, by their shares (Q, …)."""
        return torch.einsum("c...,c,c...->...", one, agreement, other).clamp(0.0, 1.0)

    luma = 0.299 * guide[0] + 0.587 * guide[1] + 0.114 * guide[2]

    def weights(differences: Tensor, affinities: Tensor) -> Tensor:
        """Of the edges along one axis, by the differences of their ends' luma."""
        gradient = differences.abs()
        gradient = gradient / (gradient.mean() + 1e-6)
        return ((-5.0 * gradient).exp() * (1.0 + affinities)).clamp(max=1.0)

    confidence = shares.amax(dim=0).clamp(min=0.05).square() * (1.0 + affinity(shares, shares))
    across = weights(luma.diff(dim=1), affinity(shares[:, :, 1:], shares[:, :, :-1]))
    down = weights(luma.diff(dim=0), affinity(shares[:, 1:], shares[:, :-1]))
    return Graph(confidence, across, down)


def solve(graph: Graph, planes: Tensor, iterations: int) -> Tensor:
    """(ρ + Laplacian) F = ρ z for all planes together, by so many steps of conjugate gradients from F = z."""

    def system(field: Tensor) -> Tensor:
        return graph.confidence * field + laplacian(graph, field)

    return conjugate_gradients(system, graph.confidence * planes, planes, iterations)


def laplacian(graph: Graph, field: Tensor) -> Tensor:
    """Σ over a cell's neighbours of weight · (cell − neighbour): (Q, h, w)."""
    across = graph.across * field.diff(dim=2)
    down = graph.down * field.diff(dim=1)
    return (
        F.pad(across, (1, 0, 0, 0))
        - F.pad(across, (0, 1, 0, 0))
        + F.pad(down, (0, 0, 1, 0))
        - F.pad(down, (0, 0, 0, 1))
    )


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, iterations: int
) -> Tensor:
    """`iterations` steps towards system(x) = right, from `start`; one step length for all of x."""
    solution = start
    residual = right - system(solution)
    direction = residual
    squares = residual.square().sum()
    for _ in range(iterations):
        product = system(direction)
        step = squares / ((direction * product).sum() + 1e-12)
        solution = solution + step * direction
        residual = residual - step * product
        previous, squares = squares, residual.square().sum()
        direction = residual + squares / (previous + 1e-12) * direction
    return solution
