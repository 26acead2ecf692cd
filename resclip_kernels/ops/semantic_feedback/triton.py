"""Semantic feedback in Triton: the state's row sums and maxima in one pass over Ŝ's tiles, and Ŝ itself on request.

Also what other kernels need to form those tiles (`feedback_arguments`). `triton_connectivity` finds which pairs are
far, `triton_tiles` forms a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch, target_of
from resclip_kernels.ops.semantic_feedback.state import (
    ROW_SUM_EPSILON,
    SemanticFeedback,
    gaussian_kernel,
)
from resclip_kernels.ops.semantic_feedback.triton_connectivity import far_pairs
from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    FeedbackArguments,
    FeedbackTiles,
    GridArguments,
    feedback_rows,
    finished_tile,
    first_entries,
    patch_positions,
    smoothed_tile,
    smoothing_taps,
)
from resclip_kernels.options.semantic_feedback import FeedbackOptions


@dataclass(frozen=True)
class Blocks:
    """Rows and columns of a tile. One program holds a block of rows and walks along the columns."""

    rows: int
    columns: int


# Few rows in float32, since a product on matrix units takes a tile in three parts: more spill with a wide Gaussian.
# Float16 goes through Hopper's warpgroup instructions from 64 rows on.
FLOAT_BLOCKS = Blocks(16, 32)
HALF_BLOCKS = Blocks(64, 32)


def tile_blocks(dtype: torch.dtype, target: Target) -> Blocks:
    """How Ŝ is cut for attention in `dtype`.

    Large tiles spill on AMD's devices and Blackwell's of the data centre in half precision too.
    """
    spills = target.backend == "hip" or target.architecture in (100, 103)
    is_small = dtype == torch.float32 or spills
    return FLOAT_BLOCKS if is_small else HALF_BLOCKS


@dataclass(frozen=True)
class Smoothing:
    """The Gaussian as the kernels take it: tap(o) = peak · 2^(spread · o²) for |o| ≤ reach, else 0."""

    reach: int
    spread: float
    peak: float

    @property
    def margin(self) -> int:
        """Columns that a tile reads on each side: `reach` rounded up to whole chunks of 32 on both sides together.

        σ = 5 has 31 taps and a margin of 16: 96 entries are formed for 64.
        """
        return -(-self.reach // 16) * 16


def smoothing_of(feedback: SemanticFeedback) -> Smoothing:
    """The kernels' view of `gaussian_kernel`."""
    std = feedback.options.smoothing_std
    if std == 0:
        return Smoothing(0, 0.0, 1.0)
    kernel = gaussian_kernel(std, feedback.patches)
    reach = len(kernel) // 2
    return Smoothing(reach, -math.log2(math.e) / (2 * std**2), float(kernel[reach]))


def feedback_arguments(
    feedback: SemanticFeedback, dtype: torch.dtype, target: Target
) -> tuple[FeedbackArguments, FeedbackTiles]:
    """What every kernel that forms Ŝ's tiles takes, for attention in `dtype`."""
    smoothing = smoothing_of(feedback)
    far = None if feedback.far is None else far_words(feedback.far)
    arguments = FeedbackArguments(
        labels=class_numbers(feedback.labels),
        far=far,
        far_stride=0 if far is None else far.stride(1),
        row_sums=feedback.row_sums.float().contiguous(),
        maximum=feedback.maximum.float().contiguous(),
        decay=-math.log2(math.e) / max(1, max(feedback.grid) - 1),
        reach=smoothing.reach,
        spread=smoothing.spread,
        peak=smoothing.peak,
    )
    tiles = FeedbackTiles(
        has_far=far is not None,
        normalise=feedback.options.normalise,
        margin=smoothing.margin,
        # Entries and taps lie in [0, 1], where float16 keeps three bits more than bfloat16, and Ŝ is rounded to it
        # anyway.
        dtype=tl.float32 if dtype == torch.float32 else tl.float16,
        precision=target.dot_precision,
    )
    return arguments, tiles


def grid_arguments(grid: tuple[int, int]) -> GridArguments:
    """A grid of (h, w) patches."""
    return GridArguments(float(max(1, grid[1])), 1.0 / max(1, grid[1]))


def far_words(far: Tensor) -> Tensor:
    """The packed bits as (B, n, 16-bit pieces) int16, rows starting on 4 bytes.

    A view of what `far_pairs` made; a padded copy of what the torch implementation made.
    """
    row_bytes = far.shape[2]
    padded = -(-row_bytes // 4) * 4
    if far.stride() != (far.shape[1] * padded, padded, 1):
        far = F.pad(far, (0, padded - row_bytes))
    return far.as_strided((*far.shape[:2], padded), (far.shape[1] * padded, padded, 1)).view(
        torch.int16
    )


def class_numbers(labels: Tensor) -> Tensor:
    """(B, h, w) labels of any value → (B, n) int32: the first patch that bears the same label.

    Equal exactly where the labels are, and half as wide, so that the kernels compare 32 bits per pair and not 64.
    """
    batch, patches = len(labels), labels[0].numel() if len(labels) else 0
    numbers = torch.empty(batch, patches, dtype=torch.int32, device=labels.device)
    launch(
        class_numbers_kernel,
        batch * triton.cdiv(patches, FLOAT_BLOCKS.rows) if patches else 0,
        {"labels": labels.contiguous(), "numbers": numbers, "patches": patches},
        {"BLOCK_M": FLOAT_BLOCKS.rows, "BLOCK_N": FLOAT_BLOCKS.columns},
        Options(num_warps=4, num_stages=1),
        on=labels,
    )
    return numbers


@triton.jit
def program_rows(patches, BLOCK_M: tl.constexpr):
    """(image, patches [BLOCK_M], which of them exist) of a program that owns a block of one image's rows."""
    blocks = tl.cdiv(patches, BLOCK_M)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    return image, row, row < patches


@triton.jit
def class_numbers_kernel(labels, numbers, patches, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Smallest patch of equal label, one program a block of patches."""
    image, row, inside = program_rows(patches, BLOCK_M)
    labels += image * patches
    row_label = tl.load(labels + row, mask=inside, other=0)
    smallest = row
    # A patch is its own candidate, so that only those before it matter.
    blocks = tl.cdiv(patches, BLOCK_M)
    for first in range(0, (tl.program_id(0) % blocks + 1) * BLOCK_M, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        present = column < patches
        label = tl.load(labels + column, mask=present, other=0)
        same = (row_label[:, None] == label[None, :]) & present[None, :]
        candidate = tl.where(same, column[None, :], patches)  # [BLOCK_M, BLOCK_N]
        smallest = tl.minimum(smallest, tl.min(candidate, 1))
    tl.store(numbers + image * patches + row, smallest, mask=inside)


@triton.jit
def feedback_sums_kernel(
    feedback,
    patch_grid,
    sums,
    peaks,
    patches,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sum and largest entry of every smoothed row, (B, n) each: one program per row block."""
    image, row, inside = program_rows(patches, BLOCK_M)
    y, x = patch_positions(row, patch_grid)
    rows = feedback_rows(feedback, image, row, inside, y, x, patches, TILES)
    taps = smoothing_taps(feedback, TILES, BLOCK_N)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.zeros([BLOCK_M], tl.float32)
    carried = first_entries(feedback, patch_grid, rows, 0, patches, TILES)
    for first in range(0, patches, BLOCK_N):
        smooth, carried = smoothed_tile(
            carried, feedback, patch_grid, rows, taps, first, patches, TILES, BLOCK_N
        )
        present = first + tl.arange(0, BLOCK_N) < patches
        smooth = tl.where(present[None, :], smooth, 0.0)
        total += tl.sum(smooth, 1)
        largest = tl.maximum(largest, tl.max(smooth, 1))
    tl.store(sums + image * patches + row, total, mask=inside)
    tl.store(peaks + image * patches + row, largest, mask=inside)


@triton.jit
def feedback_matrix_kernel(
    feedback,
    patch_grid,
    matrix,
    patches,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Ŝ itself, (B, n, n) float32, from the tiles that the attentions form."""
    image, row, inside = program_rows(patches, BLOCK_M)
    y, x = patch_positions(row, patch_grid)
    rows = feedback_rows(feedback, image, row, inside, y, x, patches, TILES)
    taps = smoothing_taps(feedback, TILES, BLOCK_N)
    row_ptrs = matrix + (image * patches + row) * patches
    carried = first_entries(feedback, patch_grid, rows, 0, patches, TILES)
    for first in range(0, patches, BLOCK_N):
        smooth, carried = smoothed_tile(
            carried, feedback, patch_grid, rows, taps, first, patches, TILES, BLOCK_N
        )
        column = first + tl.arange(0, BLOCK_N)
        mask = inside[:, None] & (column < patches)[None, :]
        entries = finished_tile(smooth, rows, TILES)
        tl.store(row_ptrs[:, None] + column[None, :], entries, mask=mask)


def semantic_feedback(labels: Tensor, options: FeedbackOptions) -> SemanticFeedback:
    """The formula of `resclip_kernels.semantic_feedback`: bits of far pairs, then one pass for sums and maxima."""
    batch, height, width = labels.shape
    patches = height * width
    labels = labels.contiguous()
    far = None
    if options.connectivity is not None and patches > 1 and batch > 0:
        far = far_pairs(labels, options.connectivity)
    sums = torch.zeros(batch, patches, device=labels.device)
    state = SemanticFeedback(labels, options, far, sums, sums.new_ones(batch))
    if not options.normalise or batch == 0:
        return state
    peaks = torch.empty_like(sums)
    # The sums are what this kernel makes: it reads none.
    arguments, tiles = feedback_arguments(state, torch.float32, target_of(labels))
    launch(
        feedback_sums_kernel,
        batch * triton.cdiv(patches, FLOAT_BLOCKS.rows),
        {
            "feedback": arguments,
            "patch_grid": grid_arguments(state.grid),
            "sums": sums,
            "peaks": peaks,
            "patches": patches,
        },
        {
            "TILES": tiles._replace(normalise=False),
            "BLOCK_M": FLOAT_BLOCKS.rows,
            "BLOCK_N": FLOAT_BLOCKS.columns,
        },
        Options(num_warps=4, num_stages=2),
        on=labels,
    )
    maximum = (peaks / (sums + ROW_SUM_EPSILON)).amax(dim=1)
    return SemanticFeedback(labels, options, far, sums, maximum)


def feedback_matrix(feedback: SemanticFeedback, tile_dtype: torch.dtype = torch.float32) -> Tensor:
    """Ŝ as (B, n, n) float32; `tile_dtype` is that of the q, k, v for which it is smoothed."""
    batch, patches = len(feedback.labels), feedback.patches
    matrix = torch.empty(batch, patches, patches, device=feedback.labels.device)
    target = target_of(matrix)
    arguments, tiles = feedback_arguments(feedback, tile_dtype, target)
    blocks = tile_blocks(tile_dtype, target)
    launch(
        feedback_matrix_kernel,
        batch * triton.cdiv(patches, blocks.rows),
        {
            "feedback": arguments,
            "patch_grid": grid_arguments(feedback.grid),
            "matrix": matrix,
            "patches": patches,
        },
        {"TILES": tiles, "BLOCK_M": blocks.rows, "BLOCK_N": blocks.columns},
        Options(num_warps=4, num_stages=2),
        on=matrix,
    )
    return matrix
