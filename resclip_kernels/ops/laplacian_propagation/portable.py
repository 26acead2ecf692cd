"""The Laplacian propagation in lean torch: cells in rows of all queries, each step of the solver a few passes.

On a CPU a cell's row, the numbers of all queries, is replaced by a weighted sum of its own and its neighbours' in one
pass (see `resclip_kernels.pixel_rows`), and planes are pooled and resized along one axis after the other, a few at a
time: nothing of the picture's size is made but the result. Elsewhere, and where a gradient is wanted, torch's own
pooling and resizing and shifted differences do the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.dispatch import needs_gradient
from resclip_kernels.huge_pages import empty
from resclip_kernels.options.laplacian_propagation import LaplacianPropagationOptions
from resclip_kernels.pixel_rows import mix_rows, neighbours

# Bytes of the planes that are pooled, or resized, together: they stay in a CPU's last cache between two passes.
GROUP_BYTES = 1 << 22
# Bytes of a field's rows that are made at a time; they are copied before they leave the caches.
BAND_BYTES = 1 << 20
# Bands of a resized plane's columns, each a product of its own.
BANDS = 4


class Graph(NamedTuple):
    """The weights of one picture's grid of h × w cells, each with an axis of one query behind."""

    confidence: Tensor
    """ρ: (h, w, 1)."""
    across: Tensor
    """Of the edges along x: (h, w − 1, 1)."""
    down: Tensor
    """Of the edges along y: (h − 1, w, 1)."""


def laplacian_propagation(
    logits: Tensor, guide: Tensor, text: Tensor, options: LaplacianPropagationOptions
) -> Tensor:
    """The formula of `resclip_kernels.laplacian_propagation`; float16 and bfloat16 compute in float32."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    for other in (guide, text):
        dtype = torch.promote_types(dtype, other.dtype)
    images, queries, *size = logits.shape
    pooling, output_size = options.pooling(*size), options.output_size(*size)
    agreement = text_agreement(text.to(dtype))
    output = empty((images, queries, *output_size), logits, logits.dtype)
    in_rows = logits.is_cpu and not needs_gradient(logits, guide, text)
    rooms = rooms_for(logits, pooling, dtype) if in_rows else None
    for number, (planes, picture) in enumerate(zip(logits, guide, strict=True)):
        pooled_picture = pool_planes(picture, pooling, dtype)
        if rooms is None:
            cells = pool_planes(planes, pooling, dtype)  # [h, w, Q]
            system = differences(graph_of(cells, pooled_picture, agreement, None))
        else:
            cells = pool_rows(planes, pooling, rooms.cells)
            system = stencil(graph_of(cells, pooled_picture, agreement, rooms))
        solved = solve(system, cells, options.iterations, rooms)
        if rooms is None:
            output[number] = resize_planes(solved, output_size)
        elif output_size == solved.shape[:2]:
            output[number].copy_(solved.permute(2, 0, 1))
        else:
            resize_rows(solved, output[number])
    return output


class Rooms(NamedTuple):
    """Memory for (h, w, Q) fields, the same for every picture: what malloc hands out anew costs more than a pass."""

    cells: Tensor
    residual: Tensor
    direction: Tensor
    product: Tensor


def rooms_for(logits: Tensor, pooling: tuple[int, int], dtype: torch.dtype) -> Rooms:
    """For the cells of these (B, Q, H, W) planes."""
    _, queries, height, width = logits.shape
    shape = (4, height // pooling[0], width // pooling[1], queries)
    return Rooms(*empty(shape, logits, dtype).unbind())


def text_agreement(text: Tensor) -> Tensor:
    """g, the diagonal of G: (Q, E) unit rows → (Q,)."""
    own = (text @ text.mT).mul_(2.0).softmax(dim=1).diagonal()
    # A row of the softmax adds up to 1, and the diagonal of 10 I to 10.
    return (own + 10.0) / (11.0 + 1e-6)


def pool_planes(planes: Tensor, pooling: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(Q, H, W) → means of whole cells, (h, w, Q)."""
    wide = planes.to(dtype)
    pooled: Tensor = wide if pooling == (1, 1) else F.avg_pool2d(wide, pooling)
    return pooled.permute(1, 2, 0).contiguous()


def pool_rows(planes: Tensor, pooling: tuple[int, int], cells: Tensor) -> Tensor:
    """As `pool_planes`, into `cells` and a few planes at a time: sums of lines, which are whole vectors, come first."""
    queries, height, width = planes.shape
    down, across = pooling
    size = cells.shape[:2]
    for first, last in groups(queries, 4 * height * width):
        group = planes[first:last, : size[0] * down].to(cells.dtype)
        if down > 1:
            group = group.unflatten(1, (size[0], down)).sum(dim=2)
        if across > 1:
            group = F.avg_pool2d(group, (1, across))
        pooled = group[:, :, : size[1]].permute(1, 2, 0)
        torch.div(pooled, down, out=cells[:, :, first:last])
    return cells


def groups(planes: int, plane_bytes: int) -> list[tuple[int, int]]:
    """(first, last) of the planes that are worked on together."""
    together = max(1, GROUP_BYTES // plane_bytes)
    return [(first, min(first + together, planes)) for first in range(0, planes, together)]


def graph_of(cells: Tensor, guide: Tensor, agreement: Tensor, rooms: Rooms | None) -> Graph:
    """ρ and the edges' weights by the pooled (h, w, Q) cells and the pooled (h, w, 3) guide."""
    room, spare = (None, None) if rooms is None else (rooms.residual, rooms.direction)
    shares = torch.softmax(cells, dim=2, out=room)
    largest = shares.amax(dim=2, keepdim=True)
    # Of each of two positions the root of g makes g.
    scaled = torch.mul(shares, agreement.sqrt(), out=room)

    def affinity(one: Tensor, other: Tensor) -> Tensor:
        """Of two positions."""
        place = None if spare is None else spare[: len(one), : one.shape[1]]
        return torch.mul(one, other, out=place).sum(dim=2, keepdim=True)

    own = affinity(scaled, scaled)
    beside = affinity(scaled[:, 1:], scaled[:, :-1])
    below = affinity(scaled[1:], scaled[:-1])
    luma = (guide * guide.new_tensor([0.299, 0.587, 0.114])).sum(dim=2, keepdim=True)

    def weights(gradient: Tensor, affinities: Tensor) -> Tensor:
        """Of the edges along one axis, by the differences of their ends' luma."""
        # Line by line first, since torch would share out one long sum among its threads.
        mean = gradient.sum(dim=1).sum() / max(1, gradient.numel())
        gradient = gradient / (mean + 1e-6)
        return ((-5.0 * gradient).exp() * (1.0 + affinities.clamp(0.0, 1.0))).clamp(max=1.0)

    return Graph(
        largest.clamp(min=0.05).square() * (1.0 + own.clamp(0.0, 1.0)),
        weights(luma.diff(dim=1).abs(), beside),
        weights(luma.diff(dim=0).abs(), below),
    )


class System(NamedTuple):
    """What is solved, as functions of (h, w, Q) fields."""

    product: Callable[[Tensor, Tensor | None], Tensor]
    """(ρ + Laplacian) · field, into a second field where there is one."""
    laplacian: Callable[[Tensor], Tensor]
    """Laplacian · field."""


def differences(graph: Graph) -> System:
    """By shifted differences."""

    def laplacian(field: Tensor) -> Tensor:
        across = graph.across * field.diff(dim=1)
        down = graph.down * field.diff(dim=0)
        result = torch.zeros_like(field)
        result[:, 1:] += across
        result[:, :-1] -= across
        result[1:] += down
        result[:-1] -= down
        return result

    def product(field: Tensor, room: Tensor | None) -> Tensor:
        return torch.add(graph.confidence * field, laplacian(field), out=room)

    return System(product, laplacian)


def stencil(graph: Graph) -> System:
    """By sums of a cell's own row and its neighbours'; a neighbour that is not there has the weight 0.

    The Laplacian alone is formed of differences all the same: of the plain cosines such a sum would lose three digits,
    and what the residual lacks at the start no step makes good.
    """
    height, width = graph.confidence.shape[:2]
    line = torch.arange(height)[:, None]
    column = torch.arange(width)[None, :]
    places = [
        line * width + column,
        line * width + (column + 1).clamp(max=width - 1),
        line * width + (column - 1).clamp(min=0),
        (line + 1).clamp(max=height - 1) * width + column,
        (line - 1).clamp(min=0) * width + column,
    ]
    across, down = graph.across[..., 0], graph.down[..., 0]
    around = [
        F.pad(across, (0, 1)),
        F.pad(across, (1, 0)),
        F.pad(down, (0, 0, 0, 1)),
        F.pad(down, (0, 0, 1, 0)),
    ]
    degree = around[0] + around[1] + around[2] + around[3]
    others = [-weight for weight in around]
    where = torch.stack(places, dim=-1).view(-1, 5).int()

    weights = torch.stack([graph.confidence[..., 0] + degree, *others], dim=-1).view(-1, 5)

    def product(field: Tensor, room: Tensor | None) -> Tensor:
        made = torch.empty_like(field) if room is None else room
        rows, result = field.flatten(0, 1), made.view(-1, field.shape[2])
        # The sums have no place of their own: band by band they are copied out of a cache.
        band = max(1, BAND_BYTES // (rows.element_size() * rows.shape[1]))
        for first in range(0, len(rows), band):
            part = slice(first, first + band)
            result[part] = mix_rows(rows, where[part], weights[part])
        return made

    return System(product, differences(graph).laplacian)


def solve(system: System, cells: Tensor, iterations: int, rooms: Rooms | None) -> Tensor:
    """Steps of conjugate gradients from the (h, w, Q) cells; with `rooms` these are overwritten.

    At the start the residual ρ z − (ρ + Laplacian) z is minus the Laplacian of z. Sums are formed line by line and then
    over lines, so that their order depends neither on the batch nor on the number of threads.
    """

    def dot(one: Tensor, other: Tensor) -> Tensor:
        lines: Tensor = torch.linalg.vecdot(one.flatten(1), other.flatten(1))
        return lines.sum()

    own = residuals = directions = products = None
    if rooms is not None:
        own, residuals, directions, products = rooms
    solution = cells
    residual = torch.neg(system.laplacian(cells), out=residuals)
    direction = torch.mul(residual, 1.0, out=directions)
    squares = dot(residual, residual)
    for step in range(iterations):
        product = system.product(direction, products)
        length = squares / (dot(direction, product) + 1e-12)
        solution = torch.addcmul(solution, direction, length, out=own)
        if step == iterations - 1:
            break
        residual = torch.addcmul(residual, product, -length, out=residuals)
        previous, squares = squares, dot(residual, residual)
        share = squares / (previous + 1e-12)
        direction = torch.addcmul(residual, direction, share, out=directions)
    return solution


def resize_planes(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w, Q) → (Q, H, W), bilinearly."""
    planes = cells.permute(2, 0, 1)
    if tuple(planes.shape[1:]) == size:
        return planes
    resized = F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)
    return resized[0]


def resize_rows(cells: Tensor, planes: Tensor) -> None:
    """As `resize_planes`, into dense `planes`, a few at a time: columns by a matrix product, then sums of two lines."""
    height, width, _ = cells.shape
    queries, new_height, new_width = planes.shape
    left, right, share = neighbours(width, new_width, cells)
    across = cells.new_zeros((width, new_width))
    for column, weight in ((left, 1 - share), (right, share)):
        across.scatter_add_(0, column[None].long(), weight[None].to(cells.dtype))
    # A band of columns needs few of the cells: of 83 of these the products would be zeros but for 2.
    bounds = [new_width * band // BANDS for band in range(BANDS + 1)]
    bands = [
        (slice(first, last), slice(int(left[first]), int(right[last - 1]) + 1))
        for first, last in itertools.pairwise(bounds)
        if first < last
    ]
    above, below, share = neighbours(height, new_height, cells)
    lines = torch.stack([above, below], dim=-1)
    weights = torch.stack([1 - share, share], dim=-1).to(cells.dtype)

    def resized(group: Tensor) -> Tensor:
        """(h, w, q) → (q, H, W)."""
        count = group.shape[2]
        narrow = group.permute(2, 0, 1).flatten(0, 1)  # [q * h, w]
        wide = cells.new_empty((len(narrow), new_width))
        for columns, sources in bands:
            torch.mm(narrow[:, sources], across[sources, columns], out=wide[:, columns])
        start = height * torch.arange(count, dtype=torch.int32)
        places = (start[:, None, None] + lines).view(-1, 2)
        mixed = mix_rows(wide, places, weights.repeat(count, 1))
        return mixed.view(count, new_height, new_width)

    for first, last in groups(queries, 4 * new_height * new_width):
        planes[first:last].copy_(resized(cells[:, :, first:last]))
