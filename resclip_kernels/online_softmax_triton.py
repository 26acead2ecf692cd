"""The best query of each pixel by fused Triton kernels, shared by patch_labels and upsample_argmax.

Without refinement one kernel reads the coarse grid and writes labels; with it, bounded groups of upsampled planes are
refined and folded into a running largest logit, its query and the sum. Queries are folded one by one in a fixed order,
so that neither the size of a group nor the batch changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.bilinear_triton import (
    SIZES,
    Sampling,
    Sizes,
    grid_taps,
    interpolate,
    sampling,
)
from resclip_kernels.launch import Options, launch, target_of
from resclip_kernels.online_softmax import basis_pays
from resclip_kernels.ops.pamr import triton as pamr

# What both buffers of a refinement's ping-pong take together is twice this: 32 MiB, which leaves a third of a 50 MB
# L2 to the guide's weights (3 MiB at 224 × 224) and the running planes.
GROUP_BYTES = 1 << 24

# Stands for −inf while planes are refined: a weight may round to 0, and 0 · −inf is no number.
LOWEST = tl.constexpr(-1e30)

# The running largest logit before any query: finite, so that its difference to −inf is −inf and no NaN.
START = tl.constexpr(-1e36)


@dataclass(frozen=True)
class PixelLaunch:
    """How pixels and queries are shared out."""

    block: int
    """Pixels a program."""
    options: Options


# One pixel a thread: at 224 × 224 that is 392 programs for 132 multiprocessors, and a second pixel would halve them.
GATHER = PixelLaunch(block=128, options=Options(num_warps=4))

# One coalesced read per query and pixel.
FOLD = PixelLaunch(block=128, options=Options(num_warps=4))

# The interpreter's time goes by instructions, whatever their width.
INTERPRETED = PixelLaunch(block=1024, options=Options())

# Sums of 64 queries by 32 pixels, 16 cells at a time: three programs to a multiprocessor, without a spill. Larger tiles
# read less through L2, and spill: float32 by three TF32 products takes each operand apart in registers.
PRODUCT = PixelLaunch(block=32, options=Options(num_warps=4, num_stages=3))
PRODUCT_QUERIES = 64
PRODUCT_CELLS = 16

# Queries that share one computation of coordinates when planes are written.
QUERIES_A_PROGRAM = 8

# Bytes of the basis planes of an image. By model, not by measurement: at 375 × 500 pixels 196 planes take 147 MB, past
# L2; reading them for every 64 of 847 queries moves 2 GB, where refining 847 planes ten times would move 14.
BASIS_BYTES = 1 << 28

STRIDES = ("stride_image", "stride_query", "stride_row")
"""Kernel parameters that Triton is not to specialise: they follow from the picture's size."""


class Plan(NamedTuple):
    """What is compiled into the kernels of this module; each reads some of it."""

    block: int
    """Pixels a program."""
    has_order: bool
    """Whether queries come in the order of their classes, and a label is the class."""
    has_probability: bool
    """Whether probabilities are stored."""
    taps: int = 1
    """Neighbours along each axis, see `bilinear_triton.taps`."""
    is_wide: bool = False
    """Whether offsets inside a plane of the grid need 64 bits."""
    queries: int = 1
    """Planes, or queries, taken at a time."""
    cells: int = 1
    """Cells of the grid taken at a time."""
    precision: str = "ieee"
    """Of products."""


class Output(NamedTuple):
    """Where results go. A tensor that is not there is replaced by one that no instruction reads."""

    classes: Tensor
    """(Q,) integers: the label of each query in its order."""
    probability: Tensor
    """(B, H, W) float32."""
    label: Tensor
    """(B, H, W) int32 or int64."""


class Softmax(NamedTuple):
    """How labels are made of logits."""

    scale: float
    """Factor of the logits for an exponential of base 2, which is the kernels'."""
    threshold: float


class Running(NamedTuple):
    """A softmax over the queries so far, for each pixel, in registers or in memory."""

    m_i: Tensor
    """The largest logit, float32."""
    l_i: Tensor
    """Σ exp(scale · (logit − m_i)), float32."""
    winner: Tensor
    """The first query of the largest logit, int32."""


@triton.jit
def start(BLOCK: tl.constexpr):
    """Before any query."""
    return Running(
        tl.full([BLOCK], START, tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.int32),
    )


@triton.jit
def fold(running, value, query, scale):
    """One more query. One exponential either way: it shrinks the sum where the query leads, and is added elsewhere."""
    difference = value - running.m_i
    share = tl.exp2(-tl.abs(difference) * scale)
    better = difference > 0.0
    return Running(
        tl.where(better, value, running.m_i),
        tl.where(better, running.l_i * share + 1.0, running.l_i + share),
        tl.where(better, query, running.winner),
    )


@triton.jit
def store_result(out, running, offsets, inside, threshold, PLAN: tl.constexpr):
    """Label (0 under the threshold) and probability; NaN where the softmax is undefined."""
    defined = (running.l_i > 0.0) & (running.m_i < float("inf"))
    best = tl.where(defined, 1.0 / running.l_i, float("nan"))
    label = running.winner
    if PLAN.has_order:
        label = tl.load(out.classes + label, mask=inside, other=0)
    label = tl.where(best >= threshold, label, 0)
    tl.store(out.label + offsets, label.to(out.label.dtype.element_ty), mask=inside)
    if PLAN.has_probability:
        tl.store(out.probability + offsets, best, mask=inside)


@triton.jit(do_not_specialize=["queries", *STRIDES, *SIZES])
def upsample_best_kernel(
    logits,
    order,
    out,
    stride_image,
    stride_query,
    stride_row,
    stride_column,
    queries,
    height,
    width,
    rows,
    columns,
    middle_rows,
    middle_columns,
    softmax,
    PLAN: tl.constexpr,
):
    """Label and probability of a run of pixels: all queries stream through, interpolated from the coarse grid."""
    BLOCK: tl.constexpr = PLAN.block
    pixels = height * width
    runs = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // runs).to(tl.int64)
    offs_p = (tl.program_id(0) % runs) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    sizes = Sizes(height, width, rows, columns, middle_rows, middle_columns)
    # Past the last pixel that one is read again: a mask would cost an instruction a read.
    clamped = tl.minimum(offs_p, pixels - 1)
    offsets, weights = grid_taps(clamped, sizes, stride_row, stride_column, PLAN.taps, PLAN.is_wide)
    running = start(BLOCK)
    for query in range(queries):
        source = tl.load(order + query) if PLAN.has_order else tl.cast(query, tl.int64)
        plane = logits + image * stride_image + source * stride_query
        running = fold(running, interpolate(plane, offsets, weights), query, softmax.scale)
    store_result(out, running, image * pixels + offs_p, offs_p < pixels, softmax.threshold, PLAN)


@triton.jit(do_not_specialize=["first", "count", *STRIDES, *SIZES])
def upsample_planes_kernel(
    logits,
    order,
    planes,
    stride_image,
    stride_query,
    stride_row,
    stride_column,
    first,
    count,
    height,
    width,
    rows,
    columns,
    middle_rows,
    middle_columns,
    PLAN: tl.constexpr,
):
    """Some of a group's upsampled planes at a run of pixels; −inf becomes a finite number."""
    BLOCK: tl.constexpr = PLAN.block
    QUERIES: tl.constexpr = PLAN.queries
    pixels = height * width
    runs = tl.cdiv(pixels, BLOCK)
    parts = tl.cdiv(count, QUERIES)
    run = tl.program_id(0) % runs
    part = tl.program_id(0) // runs % parts
    image = (tl.program_id(0) // runs // parts).to(tl.int64)
    offs_p = run * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    sizes = Sizes(height, width, rows, columns, middle_rows, middle_columns)
    clamped = tl.minimum(offs_p, pixels - 1)
    offsets, weights = grid_taps(clamped, sizes, stride_row, stride_column, PLAN.taps, PLAN.is_wide)
    for member in tl.static_range(QUERIES):
        plane = part * QUERIES + member
        # Past the group's last plane that one is read again, and not written.
        source = (first + tl.minimum(plane, count - 1)).to(tl.int64)
        if PLAN.has_order:
            source = tl.load(order + source)
        grid = logits + image * stride_image + source * stride_query
        value = interpolate(grid, offsets, weights)
        value = tl.maximum(value, LOWEST, propagate_nan=tl.PropagateNan.ALL)
        target = planes + (image * count + plane) * pixels + offs_p
        tl.store(target, value, mask=offs_p < tl.where(plane < count, pixels, 0))


@triton.jit(do_not_specialize=["first", "count", "queries", "pixels"])
def fold_planes_kernel(
    planes, memory, out, first, count, queries, pixels, softmax, PLAN: tl.constexpr
):
    """Fold a group of planes into the running softmax of a run of pixels; the last group writes the result."""
    BLOCK: tl.constexpr = PLAN.block
    runs = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // runs).to(tl.int64)
    offs_p = (tl.program_id(0) % runs) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = offs_p < pixels
    offsets = image * pixels + offs_p
    if first == 0:
        running = start(BLOCK)
    else:
        running = Running(
            tl.load(memory.m_i + offsets, mask=inside, other=0.0),
            tl.load(memory.l_i + offsets, mask=inside, other=0.0),
            tl.load(memory.winner + offsets, mask=inside, other=0),
        )
    group = planes + image * count * pixels
    for member in range(count):
        # Not a pointer that moves along: each address is then known before the one before it is read.
        plane = group + tl.cast(member, tl.int64) * pixels
        value = tl.load(plane + offs_p, mask=inside, other=0.0)
        running = fold(running, value, first + member, softmax.scale)
    if first + count == queries:
        store_result(out, running, offsets, inside, softmax.threshold, PLAN)
    else:
        tl.store(memory.m_i + offsets, running.m_i, mask=inside)
        tl.store(memory.l_i + offsets, running.l_i, mask=inside)
        tl.store(memory.winner + offsets, running.winner, mask=inside)


@triton.jit(do_not_specialize=["image", "queries", "cells", "columns", "pixels", *STRIDES])
def fold_basis_kernel(
    logits,
    order,
    basis,
    out,
    stride_image,
    stride_query,
    stride_row,
    stride_column,
    image,
    queries,
    cells,
    columns,
    pixels,
    softmax,
    PLAN: tl.constexpr,
):
    """Label and probability of a run of one image's pixels: each plane is Σ over cells of logit · basis plane.

    −inf becomes a finite number, so low that a query is ruled out wherever its weight is not all but 0, as among
    planes that are refined one by one.
    """
    BLOCK: tl.constexpr = PLAN.block
    BLOCK_Q: tl.constexpr = PLAN.queries
    BLOCK_C: tl.constexpr = PLAN.cells
    offs_p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = offs_p < pixels
    image = image.to(tl.int64)
    grid = logits + image * stride_image
    running = start(BLOCK)
    for first in range(0, queries, BLOCK_Q):
        offs_q = first + tl.arange(0, BLOCK_Q)  # [BLOCK_Q]
        exists = offs_q < queries
        source = offs_q.to(tl.int64)
        if PLAN.has_order:
            source = tl.load(order + offs_q, mask=exists, other=0)
        planes = grid + (source * stride_query)[:, None]
        acc = tl.zeros([BLOCK_Q, BLOCK], tl.float32)
        for cell in range(0, cells, BLOCK_C):
            offs_c = cell + tl.arange(0, BLOCK_C)  # [BLOCK_C]
            known = offs_c < cells
            row, column = offs_c // columns, offs_c % columns
            if PLAN.is_wide:
                row, column = row.to(tl.int64), column.to(tl.int64)
            values = tl.load(
                planes + (row * stride_row + column * stride_column)[None, :],
                mask=exists[:, None] & known[None, :],
                other=0.0,
            ).to(tl.float32)
            values = tl.maximum(values, LOWEST, propagate_nan=tl.PropagateNan.ALL)
            shares = tl.load(
                basis + offs_c[:, None] * pixels + offs_p[None, :],
                mask=known[:, None] & inside[None, :],
                other=0.0,
            )
            acc = tl.dot(values, shares, acc, input_precision=PLAN.precision)
        acc = tl.where(exists[:, None], acc, float("-inf"))  # [BLOCK_Q, BLOCK]
        peak, best = tl.max(acc, axis=0, return_indices=True)
        m_i = tl.maximum(running.m_i, peak)
        l_i = running.l_i * tl.exp2((running.m_i - m_i) * softmax.scale)
        l_i += tl.sum(tl.exp2((acc - m_i[None, :]) * softmax.scale), axis=0)
        running = Running(m_i, l_i, tl.where(peak > running.m_i, first + best, running.winner))
    store_result(out, running, image * pixels + offs_p, inside, softmax.threshold, PLAN)


@dataclass(frozen=True)
class Result:
    """Where the labels and probabilities go, and how they are made."""

    logit_scale: float
    threshold: float
    label: Tensor
    """(B, H, W) int32 or int64."""
    probability: Tensor | None
    """(B, H, W) float32, or None where nobody asks."""
    order: Tensor | None = None
    """(Q,) int64: queries in the order in which the first of equal ones wins; None: as they come."""
    classes: Tensor | None = None
    """(Q,) integers: label of each query in that order; with `order`, or None."""

    @property
    def output(self) -> Output:
        """As the kernels take it."""
        return Output(
            self.label if self.classes is None else self.classes,
            self.label if self.probability is None else self.probability,
            self.label,
        )

    @property
    def softmax(self) -> Softmax:
        """As the kernels take it."""
        return Softmax(self.logit_scale / math.log(2.0), self.threshold)

    @property
    def queries(self) -> Tensor:
        """The order of the queries, or a tensor that no instruction reads."""
        return self.label if self.order is None else self.order

    def plan(self, block: int) -> Plan:
        """What is compiled into a kernel that writes this result."""
        return Plan(block, self.order is not None, self.probability is not None)


def best_query(
    logits: Tensor,
    size: tuple[int, int],
    result: Result,
    *,
    guide: Tensor | None = None,
    refine_iterations: int = 0,
    dilations: tuple[int, ...] = (8, 16),
    through: tuple[int, int] | None = None,
) -> None:
    """Write the label and the largest probability of softmax(logit_scale · planes) over queries into `result`.

    Args:
        logits: (B, Q, h, w), resized bilinearly to `through` first, if it is not None, then to `size`.
        guide: (B, C, H, W) for PAMR on the resized planes; None for none.
    """
    if guide is not None and refine_iterations:
        weights = pamr.pamr_weights(guide, dilations)
        cells, pixels = logits.shape[2] * logits.shape[3], size[0] * size[1]
        pays = basis_pays(cells, logits.shape[1], 4 * pixels, BASIS_BYTES)
        refined = best_of_basis if pays else best_of_planes
        refined(logits, size, result, weights, refine_iterations, dilations, through)
        return
    geometry = sampling(logits, size, through)
    choice = pixel_launch(GATHER, logits)
    batch, queries = logits.shape[:2]
    stride_image, stride_query, stride_row, stride_column = logits.stride()
    plan = result.plan(choice.block)
    launch(
        upsample_best_kernel,
        batch * triton.cdiv(size[0] * size[1], choice.block),
        dict(
            logits=logits,
            order=result.queries,
            out=result.output,
            stride_image=stride_image,
            stride_query=stride_query,
            stride_row=stride_row,
            stride_column=stride_column,
            queries=queries,
            **geometry.sizes._asdict(),
            softmax=result.softmax,
        ),
        {"PLAN": plan._replace(taps=geometry.taps, is_wide=geometry.is_wide)},
        choice.options,
        on=logits,
    )


def pixel_launch(compiled: PixelLaunch, on: Tensor) -> PixelLaunch:
    """The launch on this tensor's device: the interpreter's own, or the compiled one."""
    return INTERPRETED if target_of(on).backend == "interpreter" else compiled


def planes_per_group(batch: int, queries: int, pixels: int, neighbours: int) -> int:
    """Queries refined together, as even as the groups can be.

    At least as many as a pixel has neighbours: each iteration reads that many planes of weights, which where L2
    holds neither would else be most of the traffic.
    """
    largest = max(neighbours, GROUP_BYTES // (4 * max(1, batch) * pixels))
    groups = -(-queries // largest)
    return -(-queries // groups)


def upsampled(
    logits: Tensor,
    first: int,
    count: int,
    geometry: Sampling,
    order: Tensor | None = None,
) -> Tensor:
    """(B, count, H, W) float32: some queries' planes, resized; −inf becomes a finite number."""
    batch, sizes = len(logits), geometry.sizes
    planes = logits.new_empty((batch, count, sizes.height, sizes.width), dtype=torch.float32)
    choice = pixel_launch(GATHER, logits)
    parts = triton.cdiv(count, QUERIES_A_PROGRAM)
    stride_image, stride_query, stride_row, stride_column = logits.stride()
    launch(
        upsample_planes_kernel,
        batch * parts * triton.cdiv(sizes.height * sizes.width, choice.block),
        dict(
            logits=logits,
            order=planes if order is None else order,
            planes=planes,
            stride_image=stride_image,
            stride_query=stride_query,
            stride_row=stride_row,
            stride_column=stride_column,
            first=first,
            count=count,
            **sizes._asdict(),
        ),
        {
            "PLAN": Plan(
                choice.block,
                has_order=order is not None,
                has_probability=False,
                taps=geometry.taps,
                is_wide=geometry.is_wide,
                queries=QUERIES_A_PROGRAM,
            )
        },
        choice.options,
        on=logits,
    )
    return planes


def best_of_planes(
    logits: Tensor,
    size: tuple[int, int],
    result: Result,
    weights: Tensor,
    iterations: int,
    dilations: tuple[int, ...],
    through: tuple[int, int] | None,
) -> None:
    """`best_query` with PAMR: groups of planes are upsampled, refined and folded."""
    batch, queries = logits.shape[:2]
    pixels = size[0] * size[1]
    geometry = sampling(logits, size, through)
    shape = (batch, pixels)
    # Three allocations, so that each starts aligned whatever the number of pixels.
    running = Running(
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty(shape, dtype=torch.int32),
    )
    group = planes_per_group(batch, queries, pixels, weights.shape[1])
    choice = pixel_launch(FOLD, logits)
    for first in range(0, queries, group):
        count = min(group, queries - first)
        planes = upsampled(logits, first, count, geometry, result.order)
        launch(
            fold_planes_kernel,
            batch * triton.cdiv(pixels, choice.block),
            {
                "planes": pamr.refine(planes, weights, iterations, dilations),
                "memory": running,
                "out": result.output,
                "first": first,
                "count": count,
                "queries": queries,
                "pixels": pixels,
                "softmax": result.softmax,
            },
            {"PLAN": result.plan(choice.block)},
            choice.options,
            on=logits,
        )


def best_of_basis(
    logits: Tensor,
    size: tuple[int, int],
    result: Result,
    weights: Tensor,
    iterations: int,
    dilations: tuple[int, ...],
    through: tuple[int, int] | None,
) -> None:
    """`best_query` with PAMR for more queries than cells: the planes that are 1 at one cell are refined, and no others.

    Resizing and PAMR are linear: those of any plane are sums of those of these planes, so the queries' are a product.
    """
    batch, queries, rows, columns = logits.shape
    cells, pixels = rows * columns, size[0] * size[1]
    one_hot = torch.eye(cells, device=logits.device).view(1, cells, rows, columns)
    unrefined = upsampled(one_hot, 0, cells, sampling(one_hot, size, through))
    basis = torch.empty_like(unrefined)
    group = planes_per_group(1, cells, pixels, weights.shape[1])
    choice = pixel_launch(PRODUCT, logits)
    plan = result.plan(choice.block)._replace(
        is_wide=sampling(logits, size, through).is_wide,
        queries=PRODUCT_QUERIES,
        cells=PRODUCT_CELLS,
        precision=target_of(logits).dot_precision,
    )
    stride_image, stride_query, stride_row, stride_column = logits.stride()
    for image in range(batch):
        for first in range(0, cells, group):
            part = slice(first, first + group)
            pamr.refine(
                unrefined[:, part],
                weights[image : image + 1],
                iterations,
                dilations,
                basis[:, part],
            )
        launch(
            fold_basis_kernel,
            triton.cdiv(pixels, choice.block),
            {
                "logits": logits,
                "order": result.queries,
                "basis": basis,
                "out": result.output,
                "stride_image": stride_image,
                "stride_query": stride_query,
                "stride_row": stride_row,
                "stride_column": stride_column,
                "image": image,
                "queries": queries,
                "cells": cells,
                "columns": columns,
                "pixels": pixels,
                "softmax": result.softmax,
            },
            {"PLAN": plan},
            choice.options,
            on=logits,
        )
