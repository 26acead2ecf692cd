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
clamping in the strips' programs would take so many registers that half the threads were left to hide memory's latency:
the strips alone take 126 to 128 (sm_80 and sm_90, triton 3.8.0).
"""

# Tuples grow by tensors while a kernel is traced; mypy would hold them to their first, empty type.
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, launch, target_of
from resclip_kernels.ops.pamr.tiles import (
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


def pamr_weights(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) guide of any strides → (B, 8·|dilations|, H, W) float32 weights that sum to 1 over axis 1."""
    batch, channels, height, width = image.shape
    # One pixel a thread, for its neighbours fill 96 registers. Interpreted, an operation costs the same however large.
    block = 4096 if target_of(image).backend == "interpreter" else 128
    weights = image.new_empty((batch, 8 * len(dilations), height, width), dtype=torch.float32)
    launch(
        pamr_weights_kernel,
        batch * ceil_div(height * width, block),
        {
            "image_ptr": image,
            "weights_ptr": weights,
            "image_stride_batch": image.stride(0),
            "image_stride_channel": image.stride(1),
            "image_stride_row": image.stride(2),
            "image_stride_column": image.stride(3),
            "channels": channels,
            "height": height,
            "width": width,
            "size": height * width,
        },
        {"SHIFTS": shifts(dilations), "RINGS": len(dilations), "BLOCK": block},
        Options(num_warps=4, num_stages=1),
        on=image,
    )
    return weights


def refine(planes: Tensor, weights: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """`iterations` steps on (B, Q, H, W) planes with the weights of `pamr_weights`; `planes` is left as it is.

    Planes whose rows lie contiguous are read where they are; others are copied once. Each iteration accumulates in
    float32 and rounds to the planes' dtype. A plane has fewer than 2³¹ pixels (`tiles.obstacle`).
    """
    if iterations == 0:
        return planes
    if planes.stride(3) != 1 or planes.shape[2] * planes.stride(2) >= 1 << 31:
        planes = planes.contiguous()
    result = torch.empty_like(planes, memory_format=torch.contiguous_format)
    spare = torch.empty_like(result) if iterations > 1 else result
    for remaining in range(iterations, 0, -1):
        target = result if remaining % 2 else spare
        step(planes, weights, target, dilations)
        planes = target
    return result


def step(source: Tensor, weights: Tensor, output: Tensor, dilations: tuple[int, ...]) -> None:
    """One iteration, from `source` into the contiguous `output`."""
    batch, planes, height, width = source.shape
    tile = tile_for(dilations, target_of(source))
    reads = strip_reads(dilations, tile.strip)
    tiles = tiles_of(height, width, dilations, tile)
    planes_per_program = share(planes, batch * tiles)
    launch(
        pamr_step_kernel,
        batch * tiles * ceil_div(planes, planes_per_program),
        {
            "source_ptr": source,
            "weights_ptr": weights,
            "output_ptr": output,
            "source_stride_batch": source.stride(0),
            "source_stride_plane": source.stride(1),
            "source_stride_row": source.stride(2),
            "planes": planes,
            "planes_per_program": planes_per_program,
            "height": height,
            "width": width,
            "size": height * width,
            "inner_width": inner_width(width, dilations, tile),
        },
        {
            "SHIFTS": shifts(dilations),
            "STEP": math.gcd(*dilations),
            "MARGIN": max(dilations),
            "ROWS": reads.rows,
            "PLACES": reads.places,
            "TERMS": reads.terms,
            "HALVES": source.dtype == torch.float32,
            "BLOCK_STRIPS": tile.block_strips,
            "BLOCK_W": tile.block_width,
        },
        tile.options,
        on=source,
    )


@triton.jit
def sum_halves(terms):
    """Σ terms, neighbours first: a running sum of 16 loses several roundings."""
    for _ in tl.static_range(16):
        if len(terms) > 1:
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


@triton.jit
def pamr_weights_kernel(
    image_ptr,
    weights_ptr,
    image_stride_batch,
    image_stride_channel,
    image_stride_row,
    image_stride_column,
    channels,
    height,
    width,
    size,
    SHIFTS: tl.constexpr,
    RINGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Softmax over a pixel's neighbours of how much they look like it; a program takes BLOCK pixels of one image."""
    blocks = tl.cdiv(size, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    batch = program // blocks
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    stored = pixel < size
    pixel = tl.minimum(pixel, size - 1)
    y = pixel // width
    x = pixel % width
    plane = image_ptr + batch * image_stride_batch

    affinity = ()
    for _ in tl.static_range(len(SHIFTS)):
        affinity += (tl.zeros([BLOCK], tl.float32),)
    for _ in range(channels):
        centre = tl.load(plane + y * image_stride_row + x * image_stride_column)
        # Differences to the centre: of a nearly flat neighbourhood they keep the digits that the values would lose.
        differences = ()
        for neighbour in tl.static_range(len(SHIFTS)):
            row = tl.minimum(tl.maximum(y + SHIFTS[neighbour][0], 0), height - 1)
            column = tl.minimum(tl.maximum(x + SHIFTS[neighbour][1], 0), width - 1)
            value = tl.load(plane + row * image_stride_row + column * image_stride_column)
            differences += (value.to(tl.float32) - centre.to(tl.float32),)
        mean = sum_halves(differences) / (9 * RINGS)
        squares = (RINGS * mean * mean,)
        for neighbour in tl.static_range(len(SHIFTS)):
            squares += ((differences[neighbour] - mean) * (differences[neighbour] - mean),)
        scale = 1e-8 + 0.1 * tl.sqrt_rn(sum_halves(squares) / (9 * RINGS - 1))
        summed = ()
        for neighbour in tl.static_range(len(SHIFTS)):
            summed += (affinity[neighbour] - tl.div_rn(tl.abs(differences[neighbour]), scale),)
        affinity = summed
        plane += image_stride_channel
    largest = affinity[0]
    for neighbour in tl.static_range(1, len(SHIFTS)):
        largest = tl.maximum(largest, affinity[neighbour])
    exponentials = ()
    for neighbour in tl.static_range(len(SHIFTS)):
        exponentials += (tl.exp((affinity[neighbour] - largest) / channels),)
    total = sum_halves(exponentials)
    for neighbour in tl.static_range(len(SHIFTS)):
        weight = tl.div_rn(exponentials[neighbour], total)
        plane_of_weights = weights_ptr + (batch * len(SHIFTS) + neighbour) * size
        tl.store(plane_of_weights + pixel, weight, mask=stored)


@triton.jit
def pamr_step_kernel(
    source_ptr,
    weights_ptr,
    output_ptr,
    source_stride_batch,
    source_stride_plane,
    source_stride_row,
    planes,
    planes_per_program,
    height,
    width,
    size,
    inner_width,
    SHIFTS: tl.constexpr,
    STEP: tl.constexpr,
    MARGIN: tl.constexpr,
    ROWS: tl.constexpr,
    PLACES: tl.constexpr,
    TERMS: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK_STRIPS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One iteration for some planes: a program takes a tile of strips, or of pixels near the left and right edges."""
    BLOCK: tl.constexpr = BLOCK_STRIPS * BLOCK_W
    column_tiles = tl.cdiv(inner_width, BLOCK_W)
    strips = STEP * tl.cdiv(tl.cdiv(height, STEP), len(TERMS))
    inner_tiles = column_tiles * tl.cdiv(strips, BLOCK_STRIPS)
    tiles = inner_tiles + tl.cdiv((width - inner_width) * height, BLOCK)
    chunks = tl.cdiv(planes, planes_per_program)
    tile = tl.program_id(0) % tiles
    chunk = tl.program_id(0) // tiles
    first = chunk % chunks * planes_per_program
    count = tl.minimum(planes_per_program, planes - first)
    batch = (chunk // chunks).to(tl.int64)
    source = source_ptr + batch * source_stride_batch + first.to(tl.int64) * source_stride_plane
    output = output_ptr + (batch * planes + first) * size
    weights_of_image = weights_ptr + batch * len(SHIFTS) * size
    if tile < inner_tiles:
        refine_strips(
            source,
            weights_of_image,
            output,
            source_stride_plane,
            source_stride_row,
            count,
            height,
            width,
            size,
            inner_width,
            tile,
            STEP,
            MARGIN,
            ROWS,
            PLACES,
            TERMS,
            HALVES,
            BLOCK_STRIPS,
            BLOCK_W,
        )
    else:
        refine_edges(
            source,
            weights_of_image,
            output,
            source_stride_plane,
            source_stride_row,
            count,
            height,
            width,
            size,
            inner_width,
            tile - inner_tiles,
            SHIFTS,
            MARGIN,
            BLOCK,
        )


@triton.jit
def refine_strips(
    source,
    weights_ptr,
    output,
    source_stride_plane,
    source_stride_row,
    planes,
    height,
    width,
    size,
    inner_width,
    tile,
    STEP: tl.constexpr,
    MARGIN: tl.constexpr,
    ROWS: tl.constexpr,
    PLACES: tl.constexpr,
    TERMS: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK_STRIPS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Columns no neighbour of which is past an edge: each load is contiguous, its column an immediate offset."""
    STRIP: tl.constexpr = len(TERMS)
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
        row_offsets += ((y * source_stride_row)[:, None] + column[None, :],)
    weights = ()
    pixel_offsets = ()
    stored = ()
    for pixel in tl.static_range(STRIP):
        y = top + pixel * STEP
        pixel_offset = (y * width)[:, None] + column[None, :]  # [BLOCK_STRIPS, BLOCK_W]
        inside = fresh & (y < height)[:, None]
        for neighbour in tl.static_range(len(TERMS[0])):
            plane = weights_ptr + tl.cast(neighbour, tl.int64) * size
            weights += (tl.load(plane + pixel_offset, mask=inside, other=0.0),)
        pixel_offsets += (pixel_offset,)
        stored += (inside,)

    for _ in range(planes):
        values = ()
        for place in tl.static_range(len(PLACES)):
            # The column is added to the scalar, so that one address serves all the loads of a row.
            value = tl.load((source + PLACES[place][1]) + row_offsets[PLACES[place][0]])
            values += (value.to(tl.float32),)
        for pixel in tl.static_range(STRIP):
            total = weighted_sum(weights, values, pixel, TERMS, HALVES)
            total = total.to(output.dtype.element_ty)
            tl.store(output + pixel_offsets[pixel], total, mask=stored[pixel])
        source += source_stride_plane
        output += size


@triton.jit
def refine_edges(
    source,
    weights_ptr,
    output,
    source_stride_plane,
    source_stride_row,
    planes,
    height,
    width,
    size,
    inner_width,
    tile,
    SHIFTS: tl.constexpr,
    MARGIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The columns nearest to the left and right edges, or all where a plane is narrow: every coordinate clamped."""
    edge_width = width - inner_width
    index = tile * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    y = index // edge_width
    column = index % edge_width
    column += tl.where(column < MARGIN, 0, inner_width)
    stored = y < height
    pixel_offset = y * width + column
    weights = ()
    offsets = ()
    for neighbour in tl.static_range(len(SHIFTS)):
        row = tl.minimum(tl.maximum(y + SHIFTS[neighbour][0], 0), height - 1)
        clamped = tl.minimum(tl.maximum(column + SHIFTS[neighbour][1], 0), width - 1)
        offsets += (row * source_stride_row + clamped,)
        plane = weights_ptr + tl.cast(neighbour, tl.int64) * size
        weights += (tl.load(plane + pixel_offset, mask=stored, other=0.0),)
    for _ in range(planes):
        terms = ()
        for neighbour in tl.static_range(len(SHIFTS)):
            value = tl.load(source + offsets[neighbour])
            terms += (value.to(tl.float32) * weights[neighbour],)
        tl.store(output + pixel_offset, sum_halves(terms).to(output.dtype.element_ty), mask=stored)
        source += source_stride_plane
        output += size
