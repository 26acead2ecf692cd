"""The best query of each pixel by fused Triton kernels, shared by patch_labels and upsample_argmax.

Without refinement one kernel reads the coarse grid and writes labels; with it, bounded groups of upsampled planes are
refined and folded into a running largest logit, its query and the sum. Queries are folded one by one in a fixed order,
so that neither the size of a group nor the batch changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.bilinear_triton import Sampling, grid_taps, interpolate, sampling
from resclip_kernels.launch import Options, launch, target_of
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
# 24 instructions a query, 4 of them reads of neighbours; the compiler unrolls by 4 queries, so that 16 reads are in
# flight and one trip to L2 is shared by them. Through a size in between 9 are read a query, without unrolling (triton
# 3.8.0, sm_90).
GATHER = PixelLaunch(block=128, options=Options(num_warps=4))

# 15 instructions and one coalesced read per query and pixel.
FOLD = PixelLaunch(block=128, options=Options(num_warps=4))

# The interpreter's time goes by instructions, whatever their width.
INTERPRETED = PixelLaunch(block=1024, options=Options())

# Queries that share one computation of coordinates (about 80 instructions) when planes are written.
QUERIES_A_PROGRAM = 8


@triton.jit
def fold(value, query, largest, total, winner, exponent_scale):
    """One more query: the running largest logit, Σ exp(scale · (logit − largest)), and the first best query.

    One exponential either way: it shrinks the sum where the query leads, and is added to it elsewhere.
    """
    difference = value - largest
    share = tl.exp2(-tl.abs(difference) * exponent_scale)
    better = difference > 0.0
    total = tl.where(better, total * share + 1.0, total + share)
    return tl.where(better, value, largest), total, tl.where(better, query, winner)


@triton.jit
def store_result(
    probability,
    label,
    classes,
    offset,
    inside,
    largest,
    total,
    winner,
    threshold,
    CLASSES: tl.constexpr,
    STORE_PROBABILITY: tl.constexpr,
):
    """Label (0 under the threshold) and probability; NaN where the softmax is undefined."""
    best = tl.where((total > 0.0) & (largest < float("inf")), 1.0 / total, float("nan"))
    if CLASSES:
        winner = tl.load(classes + winner, mask=inside, other=0)
    winner = tl.where(best >= threshold, winner, 0)
    tl.store(label + offset, winner.to(label.dtype.element_ty), mask=inside)
    if STORE_PROBABILITY:
        tl.store(probability + offset, best, mask=inside)


@triton.jit
def upsample_best_kernel(
    logits,
    order,
    classes,
    probability,
    label,
    stride_image,
    stride_query,
    stride_row,
    stride_column,
    queries,
    pixels,
    height,
    width,
    rows,
    columns,
    middle_rows,
    middle_columns,
    row_unit,
    column_unit,
    output_row_unit,
    output_column_unit,
    exponent_scale,
    threshold,
    TAPS: tl.constexpr,
    WIDE: tl.constexpr,
    CLASSES: tl.constexpr,
    STORE_PROBABILITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Label and probability of a run of pixels: all queries stream through, interpolated from the coarse grid."""
    runs = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // runs).to(tl.int64)
    pixel = (tl.program_id(0) % runs) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = pixel < pixels
    # Past the last pixel that one is read again: a mask would cost an instruction a read.
    offsets, weights = grid_taps(
        tl.minimum(pixel, pixels - 1),
        stride_row,
        stride_column,
        height,
        width,
        rows,
        columns,
        middle_rows,
        middle_columns,
        row_unit,
        column_unit,
        output_row_unit,
        output_column_unit,
        TAPS,
        WIDE,
    )
    largest = tl.full([BLOCK], START, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    winner = tl.zeros([BLOCK], tl.int32)
    for query in range(queries):
        source = tl.load(order + query) if CLASSES else tl.cast(query, tl.int64)
        plane = logits + image * stride_image + source * stride_query
        value = interpolate(plane, offsets, weights)
        largest, total, winner = fold(value, query, largest, total, winner, exponent_scale)
    store_result(
        probability,
        label,
        classes,
        image * pixels + pixel,
        inside,
        largest,
        total,
        winner,
        threshold,
        CLASSES,
        STORE_PROBABILITY,
    )


@triton.jit
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
    pixels,
    height,
    width,
    rows,
    columns,
    middle_rows,
    middle_columns,
    row_unit,
    column_unit,
    output_row_unit,
    output_column_unit,
    TAPS: tl.constexpr,
    WIDE: tl.constexpr,
    CLASSES: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some of a group's upsampled planes at a run of pixels; −inf becomes a finite number."""
    runs = tl.cdiv(pixels, BLOCK)
    parts = tl.cdiv(count, QUERIES)
    run = tl.program_id(0) % runs
    part = tl.program_id(0) // runs % parts
    image = (tl.program_id(0) // runs // parts).to(tl.int64)
    pixel = run * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    offsets, weights = grid_taps(
        tl.minimum(pixel, pixels - 1),
        stride_row,
        stride_column,
        height,
        width,
        rows,
        columns,
        middle_rows,
        middle_columns,
        row_unit,
        column_unit,
        output_row_unit,
        output_column_unit,
        TAPS,
        WIDE,
    )
    for member in tl.static_range(QUERIES):
        plane = part * QUERIES + member
        # Past the group's last plane that one is read again, and not written.
        source = (first + tl.minimum(plane, count - 1)).to(tl.int64)
        if CLASSES:
            source = tl.load(order + source)
        grid = logits + image * stride_image + source * stride_query
        value = interpolate(grid, offsets, weights)
        value = tl.maximum(value, LOWEST, propagate_nan=tl.PropagateNan.ALL)
        target = planes + (image * count + plane) * pixels + pixel
        tl.store(target, value, mask=pixel < tl.where(plane < count, pixels, 0))


@triton.jit
def fold_planes_kernel(
    planes,
    largest_plane,
    total_plane,
    winner_plane,
    classes,
    probability,
    label,
    first,
    count,
    pixels,
    exponent_scale,
    threshold,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CLASSES: tl.constexpr,
    STORE_PROBABILITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fold a group of planes into the running planes of a run of pixels; the last group writes the result."""
    runs = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // runs).to(tl.int64)
    pixel = (tl.program_id(0) % runs) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = pixel < pixels
    offset = image * pixels + pixel
    if FIRST:
        largest = tl.full([BLOCK], START, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        winner = tl.zeros([BLOCK], tl.int32)
    else:
        largest = tl.load(largest_plane + offset, mask=inside, other=0.0)
        total = tl.load(total_plane + offset, mask=inside, other=0.0)
        winner = tl.load(winner_plane + offset, mask=inside, other=0)
    group = planes + image * count * pixels
    for member in range(count):
        # Not a pointer that moves along: each address is then known before the one before it is read.
        plane = group + tl.cast(member, tl.int64) * pixels
        value = tl.load(plane + pixel, mask=inside, other=0.0)
        largest, total, winner = fold(value, first + member, largest, total, winner, exponent_scale)
    if LAST:
        store_result(
            probability,
            label,
            classes,
            offset,
            inside,
            largest,
            total,
            winner,
            threshold,
            CLASSES,
            STORE_PROBABILITY,
        )
    else:
        tl.store(largest_plane + offset, largest, mask=inside)
        tl.store(total_plane + offset, total, mask=inside)
        tl.store(winner_plane + offset, winner, mask=inside)


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
    def arguments(self) -> dict[str, Tensor | float]:
        """A tensor that is not there is replaced by one that no instruction reads."""
        return {
            "classes": self.label if self.classes is None else self.classes,
            "probability": self.label if self.probability is None else self.probability,
            "label": self.label,
            # The kernels' exponential is of base 2.
            "exponent_scale": self.logit_scale / math.log(2.0),
            "threshold": self.threshold,
        }

    @property
    def constants(self) -> dict[str, bool]:
        """The kernels' flags."""
        return {
            "CLASSES": self.classes is not None,
            "STORE_PROBABILITY": self.probability is not None,
        }


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
    geometry = sampling(logits, size, through)
    order = result.label if result.order is None else result.order
    if guide is not None and refine_iterations:
        refined_best(logits, geometry, order, result, guide, refine_iterations, dilations)
        return
    choice = pixel_launch(GATHER, logits)
    batch, queries = logits.shape[:2]
    launch(
        upsample_best_kernel,
        batch * triton.cdiv(size[0] * size[1], choice.block),
        {"logits": logits, "order": order, "queries": queries}
        | geometry.arguments
        | result.arguments,
        {"TAPS": geometry.taps, "WIDE": geometry.wide} | {"BLOCK": choice.block} | result.constants,
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


def refined_best(
    logits: Tensor,
    geometry: Sampling,
    order: Tensor,
    result: Result,
    guide: Tensor,
    iterations: int,
    dilations: tuple[int, ...],
) -> None:
    """`best_query` with PAMR: groups of planes are upsampled, refined and folded."""
    weights = pamr.pamr_weights(guide, dilations)
    batch, queries = logits.shape[:2]
    height, width = guide.shape[2:]
    pixels = height * width
    running = logits.new_empty((2, batch, pixels), dtype=torch.float32)
    winner = logits.new_empty((batch, pixels), dtype=torch.int32)
    group = planes_per_group(batch, queries, pixels, weights.shape[1])
    gather = pixel_launch(GATHER, logits)
    folding = pixel_launch(FOLD, logits)
    for first in range(0, queries, group):
        count = min(group, queries - first)
        planes = logits.new_empty((batch, count, height, width), dtype=torch.float32)
        parts = triton.cdiv(count, QUERIES_A_PROGRAM)
        launch(
            upsample_planes_kernel,
            batch * parts * triton.cdiv(pixels, gather.block),
            {"logits": logits, "order": order, "planes": planes, "first": first, "count": count}
            | geometry.arguments,
            {"TAPS": geometry.taps, "WIDE": geometry.wide, "CLASSES": result.classes is not None}
            | {"QUERIES": QUERIES_A_PROGRAM, "BLOCK": gather.block},
            gather.options,
            on=logits,
        )
        launch(
            fold_planes_kernel,
            batch * triton.cdiv(pixels, folding.block),
            {
                "planes": pamr.refine(planes, weights, iterations, dilations),
                "largest_plane": running[0],
                "total_plane": running[1],
                "winner_plane": winner,
                "first": first,
                "count": count,
                "pixels": pixels,
            }
            | result.arguments,
            {"FIRST": first == 0, "LAST": first + count == queries}
            | {"BLOCK": folding.block}
            | result.constants,
            folding.options,
            on=logits,
        )
