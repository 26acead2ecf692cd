"""Ŝ's tiles in Triton, from labels and bits: the only code that forms Ŝ on a GPU.

The state's kernels, the residual attention and the proxy attention carry these functions inside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# 1.5 · 2^23: a float32 of less than 2^22 that is added to it loses its fraction, rounded half to even.
ROUNDER = tl.constexpr(12582912.0)


class GridArguments(NamedTuple):
    """A grid of patches, as kernels take it."""

    width: float
    inverse_width: float


class FeedbackArguments(NamedTuple):
    """What kernels read of a state of semantic feedback; n = h·w."""

    labels: Any
    """(B, n) int32: equal where the labels are."""
    far: Any
    """(B, n, pieces) int16: the packed bits, rows on 4 bytes; None where the state has none."""
    far_stride: int
    """Pieces from one row of `far` to the next."""
    row_sums: Any
    """(B, n) float32."""
    maximum: Any
    """(B,) float32."""
    decay: float
    """Exponent (base 2) of the path decay for one patch of Chebyshev distance."""
    reach: int
    """Taps of the Gaussian on each side."""
    spread: float
    peak: float
    """tap(o) = peak · 2^(spread · o²) for |o| ≤ reach, else 0."""


class FeedbackTiles(NamedTuple):
    """What is fixed when a kernel that forms Ŝ's tiles is compiled."""

    has_far: bool
    normalise: bool
    margin: int
    """Columns that a tile reads on each side: `reach` in whole chunks."""
    dtype: Any
    """What the smoothing multiplies."""
    precision: str
    """How it multiplies float32."""


class Rows(NamedTuple):
    """What Ŝ's tiles need of their rows, [BLOCK_M] each."""

    labels: Any
    """The image's labels: a pointer."""
    label: Any
    """−2 for a row that is no patch."""
    far: Any
    """Pointers to where their bits begin."""
    y: Any
    x: Any
    scale: Any
    """1 / ((row sum + 1e-8) · maximum)."""


@triton.jit
def patch_positions(patch, grid):
    """(y, x) of flattened patch indices, as float32, in five additions and products and no conversion an entry.

    y = ⌊p / w⌋ is p / w + 1/(2w) − 1/2 rounded: the quotient stays 1/(2w) away from the halves, further than two
    roundings reach while n < 2 million.
    """
    number = patch.to(tl.float32)
    shifted = number * grid.inverse_width + (0.5 * grid.inverse_width - 0.5)
    y = (shifted + ROUNDER) - ROUNDER
    return y, number - y * grid.width


@triton.jit
def feedback_rows(feedback, image, patch, inside, y, x, patches, TILES: tl.constexpr):
    """`Rows` of these patches [BLOCK_M] of one image; `inside` marks those that are patches."""
    labels = feedback.labels + image * patches
    label = tl.load(labels + patch, mask=inside, other=-2)
    if TILES.has_far:  # noqa: SIM108 (only the branch taken is compiled)
        far = feedback.far + (image * patches + patch) * feedback.far_stride
    else:
        # There is no pointer then, and nobody reads what stands in for it.
        far = label
    scale = tl.full(patch.shape, 1.0, tl.float32)
    if TILES.normalise:
        sums = tl.load(feedback.row_sums + image * patches + patch, mask=inside, other=1.0)
        scale = 1.0 / ((sums + 1e-8) * tl.load(feedback.maximum + image))
    return Rows(labels, label, far, y, x, scale)


@triton.jit
def raw_tile(feedback, grid, rows, first, patches, TILES: tl.constexpr):
    """Same-class entries of the 32 columns from `first` (a multiple of 16, maybe negative), path decay applied.

    Transposed, [32, BLOCK_M]: a warp's lanes then hold 32 rows of one column, so that a thread needs the labels,
    positions and bits of few rows. The other way round it would hold those of many, in registers.
    Zero outside 0 … patches − 1, which is the smoothing's zero padding.
    """
    place = tl.arange(0, 32)
    column = first + place
    label = tl.load(rows.labels + column, mask=(column >= 0) & (column < patches), other=-1)
    same = label[:, None] == rows.label[None, :]  # [32, BLOCK_M]
    if TILES.has_far:
        # 32 bits of a row in two loads: rows start on a word, columns of tiles on half a word. With a wide Gaussian
        # the tiles begin and end more than a word outside the row, where the neighbouring rows' bits are, or nothing.
        half = tl.zeros(rows.label.shape, tl.int32) + (first >> 4)
        labelled = rows.label >= 0
        low = tl.load(rows.far + half, mask=labelled & (half >= 0) & (half * 16 < patches), other=0)
        high = tl.load(
            rows.far + half + 1,
            mask=labelled & (half >= -1) & ((half + 1) * 16 < patches),
            other=0,
        )
        word = (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)
        is_far = ((word[None, :] >> place[:, None]) & 1) != 0
        y, x = patch_positions(column, grid)
        distance = tl.maximum(
            tl.abs(y[:, None] - rows.y[None, :]), tl.abs(x[:, None] - rows.x[None, :])
        )
        # Bits past the last patch are not written: only those of one label count.
        return tl.where(same, tl.where(is_far, tl.exp2(feedback.decay * distance), 1.0), 0.0)
    return tl.where(same, 1.0, 0.0)


@triton.jit
def smoothing_taps(feedback, TILES: tl.constexpr, BLOCK_N: tl.constexpr):
    """The banded Toeplitz matrix of the Gaussian in slices of 32 columns read: a tuple of [32, BLOCK_N].

    Formed once, before the walk over the tiles: the slices then stay in shared memory.
    """
    taps = ()
    for part in tl.static_range((BLOCK_N + 2 * TILES.margin) // 32):
        read = 32 * part - TILES.margin + tl.arange(0, 32)
        apart = tl.arange(0, BLOCK_N)[None, :] - read[:, None]
        tap = tl.exp2(feedback.spread * (apart * apart).to(tl.float32)) * feedback.peak
        taps += (tl.where(tl.abs(apart) <= feedback.reach, tap, 0.0).to(TILES.dtype),)
    return taps


@triton.jit
def first_entries(feedback, grid, rows, first, patches, TILES: tl.constexpr):
    """What `smoothed_tile` carries from tile to tile, before the one at `first`: the entries around its left edge."""
    carried = ()
    for part in tl.static_range(2 * TILES.margin // 32):
        raw = raw_tile(feedback, grid, rows, first - TILES.margin + 32 * part, patches, TILES)
        carried += (raw.to(TILES.dtype),)
    return carried


@triton.jit
def smoothed_tile(
    carried,
    feedback,
    grid,
    rows,
    taps,
    first,
    patches,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gaussian along the columns, Σ raw[:, j + o] · tap(o), for BLOCK_N columns from `first`.

    Returns ([BLOCK_M, BLOCK_N], entries that the next tile reads as well): each entry is formed once a row.
    """
    entries = carried
    for part in tl.static_range(BLOCK_N // 32):
        raw = raw_tile(feedback, grid, rows, first + TILES.margin + 32 * part, patches, TILES)
        entries += (raw.to(TILES.dtype),)
    ROWS: tl.constexpr = rows.label.shape[0]
    smooth = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for part in tl.static_range(len(taps)):
        smooth = tl.dot(
            tl.trans(entries[part]), taps[part], smooth, input_precision=TILES.precision
        )
    kept = ()
    for part in tl.static_range(2 * TILES.margin // 32):
        kept += (entries[BLOCK_N // 32 + part],)
    return smooth, kept


@triton.jit
def finished_tile(smooth, rows, TILES: tl.constexpr):
    """Ŝ from smoothed entries: divided by row sum and maximum and rounded to float16, or as they are."""
    if TILES.normalise:
        return (smooth * rows.scale[:, None]).to(tl.float16).to(tl.float32)
    return smooth


@triton.jit
def weighted_tile(smooth, rows, weight, TILES: tl.constexpr):
    """λ_s·Ŝ from smoothed entries, rounded to float16 where Ŝ is normalised."""
    bonus = weight * finished_tile(smooth, rows, TILES)
    if TILES.normalise:
        bonus = bonus.to(tl.float16).to(tl.float32)
    return bonus
