"""PAMR in Triton: one kernel for the weights, one launch per iteration for the planes.

An iteration has to move each plane once in and once out: 8 bytes a float32 pixel, of which an H200's memory gives a
multiprocessor 21 a cycle. Its 16 neighbours as 16 loads are 64 bytes through the L1 cache, at 128 a cycle: 1.3 times
as long. So a thread owns a strip of pixels whose rows are gcd(dilations) apart and thus share neighbours: 4 pixels
make 36 loads, not 64, each a full line for 32 threads; wider loads would move more bytes for the same registers of
weights. Cycles for 128 pixels at dilations (8, 16), sm_90:

| planes | memory | L1 loads | instructions, four a cycle |
|---|---|---|---|
| float32 | 50 | 36 | 154 / 4 = 39 |
| float16, bfloat16 | 25 | 36 | 167 / 4 = 42 |

The columns within the largest dilation of the left and right edges are given to programs that clamp each coordinate;
clamping in the strips' programs would take so many registers that half the threads were left to hide memory's latency.
"""

# Tuples grow by tensors while a kernel is traced; mypy would hold them to their first, empty type.
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, launch, target_of
from resclip_kernels.ops.pamr.tiles import (
    Tile,
    ceil_div,
    inner_width,
    share,
    shifts,
    strip_reads,
    tile_for,
    tiles_of,
)


def pamr(image: Tensor, masks: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """The formula of `resclip_kernels.pamr`; float16 and bfloat16 planes are rounded once per iteration."""
    return refine(masks, pamr_weights(image, dilations), iterations, dilations)


class WeightsPlan(NamedTuple):
    """What is compiled into `pamr_weights_kernel`."""

    shifts: tuple[tuple[int, int], ...]
    """(dy, dx) of every neighbour."""
    rings: int
    """How many dilations there are: the centre counts once for each."""
    block: int
    """Pixels a program."""


class StepPlan(NamedTuple):
    """What is compiled into `pamr_step_kernel`."""

    shifts: tuple[tuple[int, int], ...]
    """(dy, dx) of every neighbour."""
    step: int
    """Rows from one pixel of a strip to the next."""
    margin: int
    """Columns at the left and right edges that are clamped."""
    rows: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    terms: tuple[tuple[int, ...], ...]
    """See `tiles.Reads`."""
    in_halves: bool
    """Whether a pixel's terms are added in halves, or as a running sum."""
    block_strips: int
    block_width: int
    """See `tiles.Tile`."""


class Shape(NamedTuple):
    """Of a plane, inside the kernels."""

    height: Tensor
    width: Tensor
    inner_width: Tensor
    """Columns that strips take; see `tiles.inner_width`."""


def pamr_weights(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) guide of any strides → (B, 8·|dilations|, H, W) float32 weights that sum to 1 over axis 1."""
    batch, channels, height, width = image.shape
    # One pixel a thread, for its neighbours fill 96 registers. Interpreted, an operation costs the same however large.
    block = 4096 if target_of(image).backend == "interpreter" else 128
    weights = image.new_empty((batch, 8 * len(dilations), height, width), dtype=torch.float32)
    stride_image, stride_channel, stride_row, stride_column = image.stride()
    launch(
        pamr_weights_kernel,
        batch * ceil_div(height * width, block),
        {
            "guide": image,
            "weights": weights,
            "stride_image": stride_image,
            "stride_channel": stride_channel,
            "stride_row": stride_row,
            "stride_column": stride_column,
            "channels": channels,
            "height": height,
            "width": width,
        },
        {"PLAN": WeightsPlan(shifts(dilations), len(dilations), block)},
        Options(num_warps=4, num_stages=1),
        on=image,
    )
    return weights


def refine(
    planes: Tensor,
    weights: Tensor,
    iterations: int,
    dilations: tuple[int, ...],
    result: Tensor | None = None,
) -> Tensor:
    """`iterations` steps on (B, Q, H, W) planes with the weights of `pamr_weights`; `planes` is left as it is.

    Planes whose rows lie contiguous are read where they are; others are copied once. Each iteration accumulates in
    float32 and rounds to the planes' dtype. A plane has fewer than 2³¹ pixels (`tiles.obstacle`).

    Args:
        result: contiguous planes that are written and returned; None for new ones.
    """
    if iterations == 0:
        return planes
    if planes.stride(3) != 1 or planes.shape[2] * planes.stride(2) >= 1 << 31:
        planes = planes.contiguous()
    if result is None:
        result = torch.empty_like(planes, memory_format=torch.contiguous_format)
    spare = torch.empty_like(result) if iterations > 1 else result
    batch, count, height, width = planes.shape
    tile = tile_for(dilations, target_of(planes))
    tiles = tiles_of(height, width, dilations, tile)
    planes_per_program = share(count, batch * tiles)
    programs = batch * tiles * ceil_div(count, planes_per_program)
    inner = inner_width(width, dilations, tile)
    constants = {"PLAN": step_plan(dilations, tile, planes.dtype == torch.float32)}
    for remaining in range(iterations, 0, -1):
        output = result if remaining % 2 else spare
        stride_image, stride_plane, stride_row, _ = planes.stride()
        launch(
            pamr_step_kernel,
            programs,
            {
                "source": planes,
                "weights": weights,
                "output": output,
                "stride_image": stride_image,
                "stride_plane": stride_plane,
                "stride_row": stride_row,
                "planes": count,
                "planes_per_program": planes_per_program,
                "height": height,
                "width": width,
                "inner_width": inner,
            },
            constants,
            tile.options,
            on=weights,
        )
        planes = output
    return result


@lru_cache
def step_plan(dilations: tuple[int, ...], tile: Tile, in_halves: bool) -> StepPlan:
    """For planes whose terms are added in halves or not."""
    reads = strip_reads(dilations, tile.strip)
    return StepPlan(
        shifts(dilations),
        math.gcd(*dilations),
        max(dilations),
        reads.rows,
        reads.places,
        reads.terms,
        in_halves,
        tile.block_strips,
        tile.block_width,
    )


@triton.constexpr_function
def halvings(count):
    """How often a tuple of this length has to be halved until one is left."""
    return (count - 1).bit_length()


@triton.jit
def sum_halves(terms):
    """Σ terms, neighbours first: a running sum of 16 loses several roundings."""
    for _ in tl.static_range(halvings(len(terms))):
        sums = ()
        for pair in tl.static_range(len(terms) // 2):
            sums += (terms[2 * pair] + terms[2 * pair + 1],)
        if len(terms) % 2 == 1:
            sums += (terms[len(terms) - 1],)
        terms = sums
    return terms[0]


@triton.jit
def weighted_sum(weights, values, PIXEL: tl.constexpr, TERMS: tl.constexpr, HALVES: tl.constexpr):
    """Σ weight · value over a strip's pixel's neighbours, in float32: halves first, or as a running sum."""
    COUNT: tl.constexpr = len(TERMS[0])
    FIRST: tl.constexpr = PIXEL * COUNT
    pairs = ()
    total = weights[FIRST] * values[TERMS[PIXEL][0]]
    if HALVES:
        for pair in tl.static_range(COUNT // 2):
            pairs += (
                weights[FIRST + 2 * pair] * values[TERMS[PIXEL][2 * pair]]
                + weights[FIRST + 2 * pair + 1] * values[TERMS[PIXEL][2 * pair + 1]],
            )
        total = sum_halves(pairs)
    else:
        for n in tl.static_range(1, COUNT):
            total += weights[FIRST + n] * values[TERMS[PIXEL][n]]
    return total


@triton.jit(
    do_not_specialize=[
        "stride_image",
        "stride_channel",
        "stride_row",
        "channels",
        "height",
        "width",
    ]
)
def pamr_weights_kernel(
    guide,
    weights,
    stride_image,
    stride_channel,
    stride_row,
    stride_column,
    channels,
    height,
    width,
    PLAN: tl.constexpr,
):
    """Softmax over a pixel's neighbours of how much they look like it; a program takes a run of one image's pixels."""
    BLOCK: tl.constexpr = PLAN.block
    SHIFTS: tl.constexpr = PLAN.shifts
    size = height * width
    blocks = tl.cdiv(size, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks
    offs_p = program % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    stored = offs_p < size
    offs_p = tl.minimum(offs_p, size - 1)
    y = offs_p // width
    x = offs_p % width
    plane = guide + image * stride_image

    affinity = ()
    for _ in tl.static_range(len(SHIFTS)):
        affinity += (tl.zeros([BLOCK], tl.float32),)
    for _ in range(channels):
        centre = tl.load(plane + y * stride_row + x * stride_column)
        # Differences to the centre: of a nearly flat neighbourhood they keep the digits that the values would lose.
        differences = ()
        for neighbour in tl.static_range(len(SHIFTS)):
            row = tl.minimum(tl.maximum(y + SHIFTS[neighbour][0], 0), height - 1)
            column = tl.minimum(tl.maximum(x + SHIFTS[neighbour][1], 0), width - 1)
            value = tl.load(plane + row * stride_row + column * stride_column)
            differences += (value.to(tl.float32) - centre.to(tl.float32),)
        mean = sum_halves(differences) / (9 * PLAN.rings)
        squares = (PLAN.rings * mean * mean,)
        for neighbour in tl.static_range(len(SHIFTS)):
            squares += ((differences[neighbour] - mean) * (differences[neighbour] - mean),)
        scale = 1e-8 + 0.1 * tl.sqrt_rn(sum_halves(squares) / (9 * PLAN.rings - 1))
        summed = ()
        for neighbour in tl.static_range(len(SHIFTS)):
            summed += (affinity[neighbour] - tl.div_rn(tl.abs(differences[neighbour]), scale),)
        affinity = summed
        plane += stride_channel
    largest = affinity[0]
    for neighbour in tl.static_range(1, len(SHIFTS)):
        largest = tl.maximum(largest, affinity[neighbour])
    exponentials = ()
    for neighbour in tl.static_range(len(SHIFTS)):
        exponentials += (tl.exp((affinity[neighbour] - largest) / channels),)
    total = sum_halves(exponentials)
    for neighbour in tl.static_range(len(SHIFTS)):
        weight = tl.div_rn(exponentials[neighbour], total)
        plane_of_weights = weights + (image * len(SHIFTS) + neighbour) * size
        tl.store(plane_of_weights + offs_p, weight, mask=stored)


@triton.jit(
    do_not_specialize=[
        *("source", "output", "stride_image", "stride_plane", "stride_row"),
        *("planes", "planes_per_program", "height", "width", "inner_width"),
    ]
)
def pamr_step_kernel(
    source,
    weights,
    output,
    stride_image,
    stride_plane,
    stride_row,
    planes,
    planes_per_program,
    height,
    width,
    inner_width,
    PLAN: tl.constexpr,
):
    """One iteration for some planes: a program takes a tile of strips, or of pixels near the left and right edges."""
    size = height * width
    column_tiles = tl.cdiv(inner_width, PLAN.block_width)
    strips = PLAN.step * tl.cdiv(tl.cdiv(height, PLAN.step), len(PLAN.terms))
    inner_tiles = column_tiles * tl.cdiv(strips, PLAN.block_strips)
    edge = (width - inner_width) * height
    tiles = inner_tiles + tl.cdiv(edge, PLAN.block_strips * PLAN.block_width)
    chunks = tl.cdiv(planes, planes_per_program)
    tile = tl.program_id(0) % tiles
    chunk = tl.program_id(0) // tiles
    first = chunk % chunks * planes_per_program
    count = tl.minimum(planes_per_program, planes - first)
    image = (chunk // chunks).to(tl.int64)
    source += image * stride_image + first.to(tl.int64) * stride_plane
    output += (image * planes + first) * size
    weights += image * len(PLAN.shifts) * size
    shape = Shape(height, width, inner_width)
    if tile < inner_tiles:
        refine_strips(source, weights, output, stride_plane, stride_row, count, shape, tile, PLAN)
    else:
        tile -= inner_tiles
        refine_edges(source, weights, output, stride_plane, stride_row, count, shape, tile, PLAN)


@triton.jit
def refine_strips(
    source, weights, output, stride_plane, stride_row, planes, shape, tile, PLAN: tl.constexpr
):
    """Columns no neighbour of which is past an edge: each load is contiguous, its column an immediate offset."""
    STEP: tl.constexpr = PLAN.step
    MARGIN: tl.constexpr = PLAN.margin
    ROWS: tl.constexpr = PLAN.rows
    PLACES: tl.constexpr = PLAN.places
    TERMS: tl.constexpr = PLAN.terms
    BLOCK_STRIPS: tl.constexpr = PLAN.block_strips
    BLOCK_W: tl.constexpr = PLAN.block_width
    STRIP: tl.constexpr = len(TERMS)
    height, width, inner_width = shape
    size = height * width
    column_tiles = tl.cdiv(inner_width, BLOCK_W)
    strips_of_phase = tl.cdiv(tl.cdiv(height, STEP), STRIP)
    strip = tile // column_tiles * BLOCK_STRIPS + tl.arange(0, BLOCK_STRIPS)  # [BLOCK_STRIPS]
    top = strip // strips_of_phase + strip % strips_of_phase * (STRIP * STEP)
    # The last tile is moved back to end where the inner columns do; what its neighbour wrote, it does not write again.
    unmoved = tile % column_tiles * BLOCK_W
    moved = tl.minimum(unmoved, inner_width - BLOCK_W)
    column = MARGIN + moved + tl.arange(0, BLOCK_W)  # [BLOCK_W]
    fresh = (strip < strips_of_phase * STEP)[:, None] & (column >= MARGIN + unmoved)[None, :]

    row_offsets = ()
    for row in tl.static_range(len(ROWS)):
        y = tl.minimum(tl.maximum(top + ROWS[row], 0), height - 1)
        row_offsets += ((y * stride_row)[:, None] + column[None, :],)
    shares = ()
    offsets = ()
    stored = ()
    for pixel in tl.static_range(STRIP):
        y = top + pixel * STEP
        offset = (y * width)[:, None] + column[None, :]  # [BLOCK_STRIPS, BLOCK_W]
        inside = fresh & (y < height)[:, None]
        for neighbour in tl.static_range(len(TERMS[0])):
            plane = weights + tl.cast(neighbour, tl.int64) * size
            shares += (tl.load(plane + offset, mask=inside, other=0.0),)
        offsets += (offset,)
        stored += (inside,)

    for _ in range(planes):
        values = ()
        for place in tl.static_range(len(PLACES)):
            # The column is added to the scalar, so that one address serves all the loads of a row.
            value = tl.load((source + PLACES[place][1]) + row_offsets[PLACES[place][0]])
            values += (value.to(tl.float32),)
        for pixel in tl.static_range(STRIP):
            total = weighted_sum(shares, values, pixel, TERMS, PLAN.in_halves)
            total = total.to(output.dtype.element_ty)
            tl.store(output + offsets[pixel], total, mask=stored[pixel])
        source += stride_plane
        output += size


@triton.jit
def refine_edges(
    source, weights, output, stride_plane, stride_row, planes, shape, tile, PLAN: tl.constexpr
):
    """The columns nearest to the left and right edges, or all where a plane is narrow: every coordinate clamped."""
    SHIFTS: tl.constexpr = PLAN.shifts
    BLOCK: tl.constexpr = PLAN.block_strips * PLAN.block_width
    height, width, inner_width = shape
    size = height * width
    edge_width = width - inner_width
    index = tile * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    y = index // edge_width
    column = index % edge_width
    column += tl.where(column < PLAN.margin, 0, inner_width)
    stored = y < height
    offset = y * width + column
    shares = ()
    offsets = ()
    for neighbour in tl.static_range(len(SHIFTS)):
        row = tl.minimum(tl.maximum(y + SHIFTS[neighbour][0], 0), height - 1)
        clamped = tl.minimum(tl.maximum(column + SHIFTS[neighbour][1], 0), width - 1)
        offsets += (row * stride_row + clamped,)
        plane = weights + tl.cast(neighbour, tl.int64) * size
        shares += (tl.load(plane + offset, mask=stored, other=0.0),)
    for _ in range(planes):
        terms = ()
        for neighbour in tl.static_range(len(SHIFTS)):
            value = tl.load(source + offsets[neighbour])
            terms += (value.to(tl.float32) * shares[neighbour],)
        tl.store(output + offset, sum_halves(terms).to(output.dtype.element_ty), mask=stored)
        source += stride_plane
        output += size
