"""Semantic feedback in Triton: the state's row sums and maxima in one pass over Ŝ's tiles, and Ŝ itself on request.

Also what other kernels need to form those tiles (`feedback_arguments`). `triton_connectivity` finds which pairs are
far, `triton_tiles` forms a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, launch, target_of
from resclip_kernels.ops.semantic_feedback.options import FeedbackOptions
from resclip_kernels.ops.semantic_feedback.state import (
    ROW_SUM_EPSILON,
    SemanticFeedback,
    gaussian_kernel,
)
from resclip_kernels.ops.semantic_feedback.triton_connectivity import far_pairs
from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    finished_tile,
    first_entries,
    label_rows,
    patch_positions,
    row_scales,
    smoothed_tile,
    smoothing_taps,
)


@dataclass(frozen=True)
class Blocks:
    """Rows and columns of a tile. One program holds a block of rows and walks along the columns."""

    rows: int
    columns: int


# Few rows in float32, since a product on matrix units takes a tile in three parts: 32 spill 100 to 200 bytes per thread
# with a Gaussian of σ = 8 (triton 3.8.0, sm_80 to sm_120). Float16 goes through Hopper's warpgroup instructions from 64
# rows on.
FLOAT_BLOCKS = Blocks(16, 32)
HALF_BLOCKS = Blocks(64, 32)


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


def feedback_arguments(feedback: SemanticFeedback) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments, constants) of every kernel that forms Ŝ's tiles, but the precision and the tile's shape."""
    height, width = feedback.grid
    smoothing = smoothing_of(feedback)
    far = None if feedback.far is None else far_words(feedback.far)
    arguments = {
        "labels": class_numbers(feedback.labels),
        "far": far,
        "far_stride": 0 if far is None else far.stride(1),
        "row_sums": feedback.row_sums.float().contiguous(),
        "maximum": feedback.maximum.float().contiguous(),
        "grid_width": float(width),
        "inverse_width": 1.0 / width,
        "decay": -math.log2(math.e) / max(1, max(height, width) - 1),
        "reach": smoothing.reach,
        "spread": smoothing.spread,
        "peak": smoothing.peak,
    }
    constants = {
        "HAS_FAR": far is not None,
        "NORMALISE": feedback.options.normalise,
        "MARGIN": smoothing.margin,
    }
    return arguments, constants


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
    labels,
    far,
    sums,
    peaks,
    far_stride,
    patches,
    grid_width,
    inverse_width,
    decay,
    reach,
    spread,
    peak,
    HAS_FAR: tl.constexpr,
    MARGIN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sum and largest entry of every smoothed row, (B, n) each: one program per row block."""
    image, row, inside = program_rows(patches, BLOCK_M)
    labels += image * patches
    row_label, row_far = label_rows(labels, far, far_stride, image, row, inside, patches, HAS_FAR)
    row_y, row_x = patch_positions(row, grid_width, inverse_width)
    taps = smoothing_taps(reach, spread, peak, MARGIN, BLOCK_N, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    largest = tl.zeros([BLOCK_M], tl.float32)
    carried = first_entries(
        labels, row_far, row_label, row_y, row_x, 0, patches, grid_width, inverse_width, decay, HAS_FAR, MARGIN,
        tl.float32
    )  # fmt: skip
    for first in range(0, patches, BLOCK_N):
        smooth, carried = smoothed_tile(
            carried, labels, row_far, row_label, row_y, row_x, taps, first, patches, grid_width, inverse_width, decay,
            HAS_FAR, MARGIN, BLOCK_N, PRECISION,
        )  # fmt: skip
        present = first + tl.arange(0, BLOCK_N) < patches
        smooth = tl.where(present[None, :], smooth, 0.0)
        total += tl.sum(smooth, 1)
        largest = tl.maximum(largest, tl.max(smooth, 1))
    tl.store(sums + image * patches + row, total, mask=inside)
    tl.store(peaks + image * patches + row, largest, mask=inside)


@triton.jit
def feedback_matrix_kernel(
    labels,
    far,
    row_sums,
    maximum,
    matrix,
    far_stride,
    patches,
    grid_width,
    inverse_width,
    decay,
    reach,
    spread,
    peak,
    HAS_FAR: tl.constexpr,
    NORMALISE: tl.constexpr,
    MARGIN: tl.constexpr,
    TILE_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Ŝ itself, (B, n, n) float32, from the tiles that the residual attention forms."""
    image, row, inside = program_rows(patches, BLOCK_M)
    labels += image * patches
    row_label, row_far = label_rows(labels, far, far_stride, image, row, inside, patches, HAS_FAR)
    row_y, row_x = patch_positions(row, grid_width, inverse_width)
    scale = row_scales(row_sums + image * patches, maximum, row, inside, image, NORMALISE)
    taps = smoothing_taps(reach, spread, peak, MARGIN, BLOCK_N, TILE_DTYPE)
    target = matrix + (image * patches + row) * patches
    carried = first_entries(
        labels, row_far, row_label, row_y, row_x, 0, patches, grid_width, inverse_width, decay, HAS_FAR, MARGIN,
        TILE_DTYPE
    )  # fmt: skip
    for first in range(0, patches, BLOCK_N):
        smooth, carried = smoothed_tile(
            carried, labels, row_far, row_label, row_y, row_x, taps, first, patches, grid_width, inverse_width, decay,
            HAS_FAR, MARGIN, BLOCK_N, PRECISION,
        )  # fmt: skip
        column = first + tl.arange(0, BLOCK_N)
        tl.store(
            target[:, None] + column[None, :],
            finished_tile(smooth, scale, NORMALISE),
            mask=inside[:, None] & (column < patches)[None, :],
        )


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
    arguments, constants = feedback_arguments(state)
    del arguments["row_sums"], arguments["maximum"], constants["NORMALISE"]
    launch(
        feedback_sums_kernel,
        batch * triton.cdiv(patches, FLOAT_BLOCKS.rows),
        {**arguments, "sums": sums, "peaks": peaks, "patches": patches},
        {
            **constants,
            "PRECISION": target_of(labels).dot_precision,
            "BLOCK_M": FLOAT_BLOCKS.rows,
            "BLOCK_N": FLOAT_BLOCKS.columns,
        },
        Options(num_warps=4, num_stages=2),
        on=labels,
    )
    maximum = (peaks / (sums + ROW_SUM_EPSILON)).amax(dim=1)
    return SemanticFeedback(labels, options, far, sums, maximum)


def feedback_matrix(feedback: SemanticFeedback, tile_dtype: torch.dtype = torch.float32) -> Tensor:
    """Ŝ as (B, n, n) float32; `tile_dtype` is what its smoothing multiplies, as for q, k, v of that dtype."""
    batch, patches = len(feedback.labels), feedback.patches
    matrix = torch.empty(batch, patches, patches, device=feedback.labels.device)
    arguments, constants = feedback_arguments(feedback)
    blocks = FLOAT_BLOCKS if tile_dtype == torch.float32 else HALF_BLOCKS
    launch(
        feedback_matrix_kernel,
        batch * triton.cdiv(patches, blocks.rows),
        {**arguments, "matrix": matrix, "patches": patches},
        {
            **constants,
            "TILE_DTYPE": tile_constant(tile_dtype),
            "PRECISION": target_of(matrix).dot_precision,
            "BLOCK_M": blocks.rows,
            "BLOCK_N": blocks.columns,
        },
        Options(num_warps=4, num_stages=2),
        on=matrix,
    )
    return matrix


def tile_constant(dtype: torch.dtype) -> Any:
    """What the smoothing multiplies for q, k, v of `dtype`: float32 as it is, else float16.

    Entries and taps lie in [0, 1], where float16 keeps three bits more than bfloat16, and Ŝ is rounded to it anyway.
    """
    return tl.float32 if dtype == torch.float32 else tl.float16
