"""The Laplacian propagation on a GPU: two launches a step of conjugate gradients, none of which waits for the host.

* torch pools and resizes: both read and write each number once.
* `propagation_shares_kernel` and `propagation_graph_kernel` form softmax, ρ and the edges' weights, a cell a thread.
* A step is `propagation_product_kernel`, which makes the new direction, its product with the system and the parts of
  their scalar product in one pass, and `propagation_update_kernel`, which moves solution and residual and leaves the
  parts of the residual's square. Each program adds up the parts of its picture itself: there are at most about
  `MOST_PARTS` of them, always in one order.

A program's cells and planes do not depend on the batch, and so neither does a sum.
"""

# Tuples grow by tensors while a kernel is traced; mypy would hold them to their first, empty type.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, launch, target_of
from resclip_kernels.options.laplacian_propagation import LaplacianPropagationOptions

MOST_PARTS = 1024
"""Parts of a picture's sums, where its cells do not make more blocks: 4 kB that every program reads out of L2."""
FEWEST_PLANES = 4
"""Planes that a program works on, for which it reads a cell's weights once."""
# Parts that are read at a time.
PARTS_AT_ONCE = tl.constexpr(1024)
SMALLEST = tl.constexpr(1e-12)


class Graph(NamedTuple):
    """The weights of every picture's cells."""

    confidence: Any
    """ρ: (B, h·w)."""
    across: Any
    """(B, h·w): of the edge to the next cell along x, 0 where there is none."""
    down: Any
    """(B, h·w): of the edge to the next cell along y, 0 where there is none."""


class Shape(NamedTuple):
    """Of the fields, and how programs share them out."""

    queries: int
    height: int
    width: int
    tiles: int
    """Blocks of cells of a picture."""
    planes: int
    """That a program works on."""
    parts: int
    """Programs of a picture."""


def laplacian_propagation(
    logits: Tensor, guide: Tensor, text: Tensor, options: LaplacianPropagationOptions
) -> Tensor:
    """The formula of `resclip_kernels.laplacian_propagation`; computes in float32 whatever the logits' dtype."""
    pooling = options.pooling(logits.shape[2], logits.shape[3])
    solution = pool(logits, pooling)  # [B, Q, h, w]
    graph = graph_of(solution, pool(guide, pooling), text_agreement(text.float()))
    solve(graph, solution, options.iterations)
    if options.cells or pooling == (1, 1):
        return solution.to(logits.dtype)
    output = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for planes, image in zip(solution, output, strict=True):
        size = (logits.shape[2], logits.shape[3])
        image.copy_(F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0])
    return output


def pool(planes: Tensor, pooling: tuple[int, int]) -> Tensor:
    """(B, C, H, W) → means of whole cells, new and dense float32; one picture of a narrower dtype after the other."""
    if pooling == (1, 1):
        return planes.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return torch.stack([F.avg_pool2d(image.float(), pooling) for image in planes])


def text_agreement(text: Tensor) -> Tensor:
    """g, the diagonal of G: (Q, E) unit rows → (Q,)."""
    own = (2.0 * (text @ text.mT)).softmax(dim=1).diagonal()
    # A row of the softmax adds up to 1, and the diagonal of 10 I to 10.
    return ((own + 10.0) / (11.0 + 1e-6)).contiguous()


def share_out(planes: Tensor, block: int) -> Shape:
    """For (B, Q, h, w) planes and blocks of so many cells."""
    _, queries, height, width = planes.shape
    tiles = triton.cdiv(height * width, block)
    groups = max(1, min(MOST_PARTS // tiles, triton.cdiv(queries, FEWEST_PLANES)))
    each = triton.cdiv(queries, groups)
    return Shape(queries, height, width, tiles, each, tiles * triton.cdiv(queries, each))


def block_of(planes: Tensor) -> int:
    """Cells of a program. Interpreted, an operation costs the same however large it is."""
    return 4096 if target_of(planes).backend == "interpreter" else 512


def graph_of(planes: Tensor, guide: Tensor, agreement: Tensor) -> Graph:
    """The weights by the pooled (B, Q, h, w) planes and the pooled (B, 3, h, w) guide."""
    batch, queries, height, width = planes.shape
    luma = (0.299 * guide[:, 0] + 0.587 * guide[:, 1]) + 0.114 * guide[:, 2]
    block = block_of(planes)
    tiles = triton.cdiv(height * width, block)
    totals, largest = (planes.new_empty((batch, height * width)) for _ in range(2))
    graph = Graph(*(planes.new_empty((batch, height * width)) for _ in range(3)))
    common = {"queries": queries, "positions": height * width, "tiles": tiles}
    launch(
        propagation_shares_kernel,
        batch * tiles,
        {"planes": planes, "totals": totals, "largest": largest, **common},
        {"BLOCK": block},
        Options(num_warps=4, num_stages=2),
        on=planes,
    )
    launch(
        propagation_graph_kernel,
        batch * tiles,
        {
            "planes": planes,
            "totals": totals,
            "largest": largest,
            "agreement": agreement,
            "luma": luma.contiguous(),
            "mean_across": mean_difference(luma, 2),
            "mean_down": mean_difference(luma, 1),
            "graph": graph,
            "width": width,
            **common,
        },
        {"BLOCK": block},
        Options(num_warps=8, num_stages=1),
        on=planes,
    )
    return graph


def mean_difference(luma: Tensor, dim: int) -> Tensor:
    """(B,) float32: the mean of |difference| along an axis; added in float64, so that the order decides nothing."""
    differences = luma.diff(dim=dim).abs()
    count = max(1, differences.shape[1] * differences.shape[2])
    mean: Tensor = differences.sum(dim=(1, 2), dtype=torch.float64) / count
    return mean.float()


def solve(graph: Graph, solution: Tensor, iterations: int) -> None:
    """Steps of conjugate gradients from the (B, Q, h, w) planes, which are overwritten.

    At the start the residual ρ z − (ρ + Laplacian) z is minus the Laplacian of z.
    """
    if iterations == 0:
        return
    block = block_of(solution)
    shape = share_out(solution, block)
    programs = len(solution) * shape.parts
    residual, direction, previous, product = (torch.empty_like(solution) for _ in range(4))
    squares, old_squares, products = (
        solution.new_empty((len(solution), shape.parts)) for _ in range(3)
    )
    options = Options(num_warps=4, num_stages=2)
    launch(
        propagation_start_kernel,
        programs,
        {
            "planes": solution,
            "residual": residual,
            "squares": squares,
            "graph": graph,
            "shape": shape,
        },
        {"BLOCK": block},
        options,
        on=solution,
    )
    for step in range(iterations):
        launch(
            propagation_product_kernel,
            programs,
            {
                "residual": residual,
                "previous": previous,
                "direction": direction,
                "product": product,
                "old_squares": old_squares,
                "squares": squares,
                "products": products,
                "graph": graph,
                "shape": shape,
            },
            {"FIRST": step == 0, "BLOCK": block},
            options,
            on=solution,
        )
        squares, old_squares = old_squares, squares
        launch(
            propagation_update_kernel,
            programs,
            {
                "solution": solution,
                "residual": residual,
                "direction": direction,
                "product": product,
                "old_squares": old_squares,
                "squares": squares,
                "products": products,
                "shape": shape,
            },
            {"BLOCK": block},
            options,
            on=solution,
        )
        direction, previous = previous, direction


@triton.jit
def propagation_shares_kernel(
    planes, totals, largest, queries, positions, tiles, BLOCK: tl.constexpr
):
    """log Σ exp over the queries of each cell, and the largest of their shares."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    position = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = position < positions
    cell = planes + image * queries * positions + position
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for query in range(queries):
        value = tl.load(cell + tl.cast(query, tl.int64) * positions, mask=inside, other=0.0)
        higher = tl.maximum(most, value, propagate_nan=tl.PropagateNan.ALL)
        total = total * tl.exp(most - higher) + tl.exp(value - higher)
        most = higher
    at = image * positions + position
    tl.store(totals + at, most + tl.log(total), mask=inside)
    tl.store(largest + at, 1.0 / total, mask=inside)


@triton.jit
def limited(affinity):
    """In [0, 1]; a NaN stays."""
    affinity = tl.where(affinity < 0.0, 0.0, affinity)
    return tl.where(affinity > 1.0, 1.0, affinity)


@triton.jit
def edge_weight(own, other, mean, affinity):
    """Of two cells by their luma, the mean difference of luma, and how alike their shares are."""
    weight = tl.exp(-5.0 * (tl.abs(other - own) / (mean + 1e-6))) * (1.0 + limited(affinity))
    return tl.where(weight > 1.0, 1.0, weight)


@triton.jit
def propagation_graph_kernel(
    planes,
    totals,
    largest,
    agreement,
    luma,
    mean_across,
    mean_down,
    graph,
    queries,
    positions,
    tiles,
    width,
    BLOCK: tl.constexpr,
):
    """ρ of each cell, and the weights of its edges to the right and down."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    position = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = position < positions
    has_right = inside & (position % width < width - 1)
    has_below = position + width < positions
    at = image * positions + position
    cell = planes + image * queries * positions + position
    total = tl.load(totals + at, mask=inside, other=0.0)
    right_total = tl.load(totals + at + 1, mask=has_right, other=0.0)
    below_total = tl.load(totals + at + width, mask=has_below, other=0.0)
    alone = tl.zeros([BLOCK], tl.float32)
    across = tl.zeros([BLOCK], tl.float32)
    down = tl.zeros([BLOCK], tl.float32)
    for query in range(queries):
        source = cell + tl.cast(query, tl.int64) * positions
        share = tl.exp(tl.load(source, mask=inside, other=0.0) - total)
        right = tl.exp(tl.load(source + 1, mask=has_right, other=0.0) - right_total)
        below = tl.exp(tl.load(source + width, mask=has_below, other=0.0) - below_total)
        scaled = tl.load(agreement + query) * share
        alone += scaled * share
        across += scaled * right
        down += scaled * below
    own = tl.load(luma + at, mask=inside, other=0.0)
    beside = tl.load(luma + at + 1, mask=has_right, other=0.0)
    under = tl.load(luma + at + width, mask=has_below, other=0.0)
    most = tl.load(largest + at, mask=inside, other=0.0)
    most = tl.where(most < 0.05, 0.05, most)
    across = edge_weight(own, beside, tl.load(mean_across + image), across)
    down = edge_weight(own, under, tl.load(mean_down + image), down)
    tl.store(graph.confidence + at, most * most * (1.0 + limited(alone)), mask=inside)
    tl.store(graph.across + at, tl.where(has_right, across, 0.0), mask=inside)
    tl.store(graph.down + at, tl.where(has_below, down, 0.0), mask=inside)


@triton.jit
def cells_of(shape, BLOCK: tl.constexpr):
    """The program's picture, its cells, and its first plane and the one after its last."""
    image = (tl.program_id(0) // shape.parts).to(tl.int64)
    part = tl.program_id(0) % shape.parts
    position = part % shape.tiles * BLOCK + tl.arange(0, BLOCK)
    first = part // shape.tiles * shape.planes
    return image, position, first, tl.minimum(first + shape.planes, shape.queries)


@triton.jit
def weights_of(graph, image, position, shape):
    """ρ, the weights of the edges to the right, left, below and above, 0 for none, and where these cells are there."""
    positions = shape.height * shape.width
    inside = position < positions
    column = position % shape.width
    there = (
        inside & (column < shape.width - 1),
        inside & (column > 0),
        position + shape.width < positions,
        inside & (position >= shape.width),
    )
    at = image * positions + position
    confidence = tl.load(graph.confidence + at, mask=inside, other=0.0)
    weights = (
        tl.load(graph.across + at, mask=there[0], other=0.0),
        tl.load(graph.across + at - 1, mask=there[1], other=0.0),
        tl.load(graph.down + at, mask=there[2], other=0.0),
        tl.load(graph.down + at - shape.width, mask=there[3], other=0.0),
    )
    return confidence, weights, there


@triton.jit
def flow(own, others, weights):
    """Σ weight · (own − other)."""
    return (weights[0] * (own - others[0]) + weights[1] * (own - others[1])) + (
        weights[2] * (own - others[2]) + weights[3] * (own - others[3])
    )


@triton.jit
def sum_of_parts(parts, image, count):
    """A picture's sum, of the parts that its programs left."""
    total = tl.zeros([PARTS_AT_ONCE], tl.float32)
    for first in range(0, count, PARTS_AT_ONCE):
        part = first + tl.arange(0, PARTS_AT_ONCE)
        total += tl.load(parts + image * count + part, mask=part < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def propagation_start_kernel(planes, residual, squares, graph, shape, BLOCK: tl.constexpr):
    """Minus the Laplacian of the planes, and the parts of its square."""
    image, position, first, last = cells_of(shape, BLOCK)
    positions = shape.height * shape.width
    inside = position < positions
    _, weights, there = weights_of(graph, image, position, shape)
    total = tl.zeros([BLOCK], tl.float32)
    for plane in range(first, last):
        at = (image * shape.queries + plane) * positions + position
        own = tl.load(planes + at, mask=inside, other=0.0)
        others = (
            tl.load(planes + at + 1, mask=there[0], other=0.0),
            tl.load(planes + at - 1, mask=there[1], other=0.0),
            tl.load(planes + at + shape.width, mask=there[2], other=0.0),
            tl.load(planes + at - shape.width, mask=there[3], other=0.0),
        )
        value = -flow(own, others, weights)
        tl.store(residual + at, value, mask=inside)
        total += value * value
    tl.store(squares + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def direction_at(residual, previous, at, mask, share, FIRST: tl.constexpr):
    """The new direction: the residual and, after the first step, a share of the previous direction."""
    value = tl.load(residual + at, mask=mask, other=0.0)
    if not FIRST:
        value += share * tl.load(previous + at, mask=mask, other=0.0)
    return value


@triton.jit
def propagation_product_kernel(
    residual,
    previous,
    direction,
    product,
    old_squares,
    squares,
    products,
    graph,
    shape,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The new direction, its product with the system, and the parts of their scalar product.

    A neighbour's new direction is formed again, of what its own program reads too: it may not have been written yet.
    """
    image, position, first, last = cells_of(shape, BLOCK)
    positions = shape.height * shape.width
    inside = position < positions
    confidence, weights, there = weights_of(graph, image, position, shape)
    share = 0.0
    if not FIRST:
        old = sum_of_parts(old_squares, image, shape.parts)
        share = sum_of_parts(squares, image, shape.parts) / (old + SMALLEST)
    total = tl.zeros([BLOCK], tl.float32)
    for plane in range(first, last):
        at = (image * shape.queries + plane) * positions + position
        own = direction_at(residual, previous, at, inside, share, FIRST)
        others = (
            direction_at(residual, previous, at + 1, there[0], share, FIRST),
            direction_at(residual, previous, at - 1, there[1], share, FIRST),
            direction_at(residual, previous, at + shape.width, there[2], share, FIRST),
            direction_at(residual, previous, at - shape.width, there[3], share, FIRST),
        )
        value = confidence * own + flow(own, others, weights)
        tl.store(direction + at, own, mask=inside)
        tl.store(product + at, value, mask=inside)
        total += own * value
    tl.store(products + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def propagation_update_kernel(
    solution,
    residual,
    direction,
    product,
    old_squares,
    squares,
    products,
    shape,
    BLOCK: tl.constexpr,
):
    """Solution and residual one step on, and the parts of the new residual's square."""
    image, position, first, last = cells_of(shape, BLOCK)
    positions = shape.height * shape.width
    inside = position < positions
    length = sum_of_parts(old_squares, image, shape.parts)
    length /= sum_of_parts(products, image, shape.parts) + SMALLEST
    total = tl.zeros([BLOCK], tl.float32)
    for plane in range(first, last):
        at = (image * shape.queries + plane) * positions + position
        moved = tl.load(solution + at, mask=inside, other=0.0)
        moved += length * tl.load(direction + at, mask=inside, other=0.0)
        tl.store(solution + at, moved, mask=inside)
        value = tl.load(residual + at, mask=inside, other=0.0)
        value -= length * tl.load(product + at, mask=inside, other=0.0)
        tl.store(residual + at, value, mask=inside)
        total += value * value
    tl.store(squares + tl.program_id(0), tl.sum(total, 0))
