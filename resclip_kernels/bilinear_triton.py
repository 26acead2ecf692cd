# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
"""Bilinear resizing inside Triton kernels: which cells of a coarse grid a pixel reads, and their weights.

The coordinates are those of F.interpolate, for one resize or two in a row.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

INT32_LIMIT = 1 << 31

SIZES = ("height", "width", "rows", "columns", "middle_rows", "middle_columns")
"""Kernel parameters that Triton is not to specialise: each picture has its own."""


class Sizes(NamedTuple):
    """From a coarse grid to an image, in kernels and on the host."""

    height: int
    width: int
    """Of the image."""
    rows: int
    columns: int
    """Of the grid."""
    middle_rows: int
    middle_columns: int
    """Of the planes in between; the image's where there are none."""


class Sampling(NamedTuple):
    """Geometry of one resize of (B, Q, h, w) logits."""

    sizes: Sizes
    taps: int
    """Neighbours that a pixel reads along each axis; see `taps`."""
    is_wide: bool
    """Whether offsets inside a plane of the grid need 64 bits."""


def sampling(logits: Tensor, size: tuple[int, int], through: tuple[int, int] | None) -> Sampling:
    """A step that changes nothing is left out.

    Two steps are composed, not materialised: a pixel then makes 9 reads per query (16 where the first step shrinks),
    from a grid that stays in L1, where a plane in between costs 4 reads and 1 write at its own size beside 4 reads
    through L2, two launches a group, and the memory.
    """
    grid = (logits.shape[2], logits.shape[3])
    if through in (grid, size):
        through = None
    if through is None:
        taps_an_axis = 1 if grid == size else 2
    else:
        taps_an_axis = 3 if grid[0] <= through[0] and grid[1] <= through[1] else 4
    row, column = logits.stride()[2:]
    is_wide = (grid[0] - 1) * row + (grid[1] - 1) * column >= INT32_LIMIT
    return Sampling(Sizes(*size, *grid, *(through or size)), taps_an_axis, is_wide)


@triton.jit
def bilinear(position, size, output, unit):
    """Neighbours of an output position and the second one's weight, as F.interpolate(align_corners=False).

    Position p lies at ((2p + 1) · size − output) / (2 · output), and `unit` is 1 / (2 · output). The whole part is
    guessed in float32, never too high, and put right by the remainder, which is small, so that its bits hold where the
    products overflow. Rounded to float32, a position from 4 on is off by up to 2.4e-7, and at 40 times the logits a
    probability by 2e-6.

    A second neighbour of weight 0 is replaced by the first one: 0 · −inf would be no number.
    """
    guess = (position.to(tl.float32) + 0.5) * (2.0 * size * unit) - 0.75
    before = tl.maximum(guess, 0.0).to(tl.int32)
    rest = (2 * position + 1) * size - output - 2 * output * before
    low = rest >= 2 * output
    before = tl.where(low, before + 1, before)
    rest = tl.where(low, rest - 2 * output, rest)
    after = tl.where(rest > 0, tl.minimum(before + 1, size - 1), before)
    return before, after, tl.where(rest > 0, rest.to(tl.float32) * unit, 0.5)


@triton.jit
def split(first, other):
    """Move half of the first weight to the other one where that is 0."""
    empty = other == 0.0
    half = 0.5 * first
    return tl.where(empty, half, first), tl.where(empty, half, other)


@triton.jit
def unit_of(output):
    """1 / (2 · output), correctly rounded."""
    return tl.div_rn(0.5, output.to(tl.float32))


@triton.jit
def taps(position, size, middle, output, TAPS: tl.constexpr):
    """Indices and weights on the coarse axis for output positions; all weights are above 0.

    1 tap: the axis is kept. 2: bilinear. 4: bilinear of bilinear, through an axis of `middle`. 3: the same where
    the first step does not shrink: neighbours on the middle axis then lie at most one coarse cell apart.
    """
    if TAPS == 1:
        indices = (position,)
        weights = (tl.full(position.shape, 1.0, tl.float32),)
    elif TAPS == 2:
        before, after, weight = bilinear(position, size, middle, unit_of(middle))
        indices = (before, after)
        weights = (1.0 - weight, weight)
    else:
        unit = unit_of(middle)
        middle_before, middle_after, weight = bilinear(position, middle, output, unit_of(output))
        before_0, after_0, weight_0 = bilinear(middle_before, size, middle, unit)
        before_1, after_1, weight_1 = bilinear(middle_after, size, middle, unit)
        share_0 = (1.0 - weight) * (1.0 - weight_0)
        share_1 = (1.0 - weight) * weight_0
        share_2 = weight * (1.0 - weight_1)
        share_3 = weight * weight_1
        if TAPS == 4:
            indices = (before_0, after_0, before_1, after_1)
            weights = (share_0, share_1, share_2, share_3)
        else:
            # Indices before_0, + 1 and + 2; one that nothing falls on becomes the first, with half of its weight.
            first = share_0
            first += tl.where(after_0 == before_0, share_1, 0.0)
            first += tl.where(before_1 == before_0, share_2, 0.0)
            first += tl.where(after_1 == before_0, share_3, 0.0)
            second = tl.where(after_0 == before_0 + 1, share_1, 0.0)
            second += tl.where(before_1 == before_0 + 1, share_2, 0.0)
            second += tl.where(after_1 == before_0 + 1, share_3, 0.0)
            third = tl.where(before_1 == before_0 + 2, share_2, 0.0)
            third += tl.where(after_1 == before_0 + 2, share_3, 0.0)
            index_1 = tl.where(second > 0.0, before_0 + 1, before_0)
            index_2 = tl.where(third > 0.0, before_0 + 2, before_0)
            first, second = split(first, second)
            first, third = split(first, third)
            indices = (before_0, index_1, index_2)
            weights = (first, second, third)
    return indices, weights


@triton.jit
def grid_taps(offs_p, sizes, stride_row, stride_column, TAPS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets into a coarse plane and weights for pixels: TAPS² of each."""
    row_index, row_weight = taps(
        offs_p // sizes.width, sizes.rows, sizes.middle_rows, sizes.height, TAPS
    )
    column_index, column_weight = taps(
        offs_p % sizes.width, sizes.columns, sizes.middle_columns, sizes.width, TAPS
    )
    offsets = ()
    weights = ()
    for row in tl.static_range(TAPS):
        for column in tl.static_range(TAPS):
            if WIDE:
                offset = row_index[row].to(tl.int64) * stride_row
                offset += column_index[column].to(tl.int64) * stride_column
            else:
                offset = row_index[row] * stride_row + column_index[column] * stride_column
            offsets = offsets + (offset,)  # noqa: RUF005  Triton has no starred tuples.
            weights = weights + (row_weight[row] * column_weight[column],)  # noqa: RUF005
    return offsets, weights


@triton.jit
def interpolate(plane, offsets, weights):
    """Weighted sum of a plane's values: the logit of one query at every pixel. The offsets all lie inside."""
    value = tl.load(plane + offsets[0]).to(tl.float32) * weights[0]
    for tap in tl.static_range(1, len(offsets)):
        value += tl.load(plane + offsets[tap]).to(tl.float32) * weights[tap]
    return value
