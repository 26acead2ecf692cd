"""Ŝ's tiles in Triton, from labels and bits: the only code that forms Ŝ on a GPU.

The state's kernels and the residual attention carry these functions inside.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def patch_positions(patch, grid_width, inverse_width):
    """(y, x) of flattened patch indices, as float32, in five additions and products and no conversion an entry.

    y = ⌊p / w⌋ is p / w + 1/(2w) − 1/2 rounded, by adding and subtracting 1.5·2^23: the quotient stays 1/(2w) away
    from the halves, further than two roundings reach while n < 2 million.
    """
    number = patch.to(tl.float32)
    shifted = number * inverse_width + (0.5 * inverse_width - 0.5)
    y = (shifted + 12582912.0) - 12582912.0
    return y, number - y * grid_width


@triton.jit
def label_rows(labels, far, far_stride, image, row, inside, patches, HAS_FAR: tl.constexpr):
    """What `raw_tile` needs of its rows: (labels, −2 for none; where their bits begin). `labels` is the image's."""
    row_label = tl.load(labels + row, mask=inside, other=-2)
    if HAS_FAR:  # noqa: SIM108 (only the branch taken is compiled)
        row_far = far + image * patches * far_stride + row.to(tl.int64) * far_stride
    else:
        # `far` is None then, which a compiled function cannot return; nobody reads what stands in for it.
        row_far = row_label
    return row_label, row_far


@triton.jit
def raw_tile(
    labels,
    row_far,
    row_label,
    row_y,
    row_x,
    first,
    patches,
    grid_width,
    inverse_width,
    decay,
    HAS_FAR: tl.constexpr,
):
    """Same-class entries of the 32 columns from `first` (a multiple of 16, maybe negative), path decay applied.

    Transposed, [32, BLOCK_M]: a warp's lanes then hold 32 rows of one column, so that a thread needs the labels,
    positions and bits of two rows. The other way round it would hold those of sixteen, 80 registers of them.
    Zero outside 0 … patches − 1, which is the smoothing's zero padding.
    """
    place = tl.arange(0, 32)
    column = first + place
    label = tl.load(labels + column, mask=(column >= 0) & (column < patches), other=-1)
    same = label[:, None] == row_label[None, :]  # [32, BLOCK_M]
    if HAS_FAR:
        # 32 bits of a row in two loads: rows start on a word, columns of tiles on half a word. With a wide Gaussian
        # the tiles begin and end more than a word outside the row, where the neighbouring rows' bits are, or nothing.
        half = tl.zeros(row_label.shape, tl.int32) + (first >> 4)
        labelled = row_label >= 0
        low = tl.load(row_far + half, mask=labelled & (half >= 0) & (half * 16 < patches), other=0)
        high = tl.load(
            row_far + half + 1, mask=labelled & (half >= -1) & ((half + 1) * 16 < patches), other=0
        )
        word = (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)
        is_far = ((word[None, :] >> place[:, None]) & 1) != 0
        y, x = patch_positions(column, grid_width, inverse_width)
        distance = tl.maximum(
            tl.abs(y[:, None] - row_y[None, :]), tl.abs(x[:, None] - row_x[None, :])
        )
        # Bits past the last patch are not written: only those of one label count.
        return tl.where(same, tl.where(is_far, tl.exp2(decay * distance), 1.0), 0.0)
    return tl.where(same, 1.0, 0.0)


@triton.jit
def smoothing_taps(
    reach,
    spread,
    peak,
    MARGIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE_DTYPE: tl.constexpr,
):
    """The banded Toeplitz matrix of the Gaussian in slices of 32 columns read: a tuple of [32, BLOCK_N].

    Formed once, before the walk over the tiles: the slices then stay in shared memory.
    """
    taps = ()
    for offset in tl.static_range(-MARGIN, BLOCK_N + MARGIN, 32):
        apart = tl.arange(0, BLOCK_N)[None, :] - (offset + tl.arange(0, 32))[:, None]
        tap = tl.exp2(spread * (apart * apart).to(tl.float32)) * peak
        taps += (tl.where(tl.abs(apart) <= reach, tap, 0.0).to(TILE_DTYPE),)
    return taps


@triton.jit
def first_entries(
    labels,
    row_far,
    row_label,
    row_y,
    row_x,
    first,
    patches,
    grid_width,
    inverse_width,
    decay,
    HAS_FAR: tl.constexpr,
    MARGIN: tl.constexpr,
    TILE_DTYPE: tl.constexpr,
):
    """What `smoothed_tile` carries from tile to tile, before the tile at `first`: the entries around its left edge."""
    carried = ()
    for part in tl.static_range(2 * MARGIN // 32):
        raw = raw_tile(
            labels, row_far, row_label, row_y, row_x, first - MARGIN + 32 * part, patches, grid_width, inverse_width,
            decay, HAS_FAR
        )  # fmt: skip
        carried += (raw.to(TILE_DTYPE),)
    return carried


@triton.jit
def smoothed_tile(
    carried,
    labels,
    row_far,
    row_label,
    row_y,
    row_x,
    taps,
    first,
    patches,
    grid_width,
    inverse_width,
    decay,
    HAS_FAR: tl.constexpr,
    MARGIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gaussian along the columns, Σ raw[:, j + o] · tap(o), for BLOCK_N columns from `first`.

    Returns ([BLOCK_M, BLOCK_N], entries that the next tile reads as well): each entry is formed once a row.
    """
    entries = carried
    for part in tl.static_range(BLOCK_N // 32):
        raw = raw_tile(
            labels, row_far, row_label, row_y, row_x, first + MARGIN + 32 * part, patches, grid_width, inverse_width,
            decay, HAS_FAR
        )  # fmt: skip
        entries += (raw.to(taps[0].dtype),)
    ROWS: tl.constexpr = row_label.shape[0]
    smooth = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for part in tl.static_range(len(taps)):
        smooth = tl.dot(tl.trans(entries[part]), taps[part], smooth, input_precision=PRECISION)
    kept = ()
    for part in tl.static_range(2 * MARGIN // 32):
        kept += (entries[BLOCK_N // 32 + part],)
    return smooth, kept


@triton.jit
def finished_tile(smooth, row_scale, NORMALISE: tl.constexpr):
    """Ŝ from smoothed entries: divided by row sum and maximum and rounded to float16, or as they are."""
    if NORMALISE:
        return (smooth * row_scale[:, None]).to(tl.float16).to(tl.float32)
    return smooth


@triton.jit
def row_scales(row_sums, maximum, row, inside, image, NORMALISE: tl.constexpr):
    """1 / ((row sum + 1e-8) · maximum) of one image's rows."""
    if NORMALISE:
        sums = tl.load(row_sums + row, mask=inside, other=1.0)
        return 1.0 / ((sums + 1e-8) * tl.load(maximum + image))
    return tl.full(row.shape, 1.0, tl.float32)
