"""The proxy attention on a GPU: a chunk of the map's rows at a time, its scores formed once for all heads.

What is computed where:

* `triton_layout` puts positions in rows, with their inverse lengths and mean(X Xᵀ), and values on the features' grid.
  Where entries are cut, `proxy_cut_sums_kernel` adds up what is left of them, tile by tile.
* `proxy_weights_kernel` forms a tile of X Xᵀ, with feedback the tile of Ŝ that belongs to it, and writes the softmax's
  weights in the values' dtype. Features stay as they came: inverse lengths multiply the finished products, so that
  float16 and bfloat16 features lose nothing by being made unit rows. The softmax knows a row's largest entry beforehand
  (a unit row is most like itself), so that tiles need not wait for each other and only their sums are added later.
* `proxy_product_kernel` multiplies the weights by the values and divides by the sums. Heads lie side by side: a column
  is a column. Where CLIP's grid is small, the weights are multiplied by the matrix of the bilinear resizing instead,
  n × h·w, and the product by CLIP's own values: resizing is linear, and h·w columns are fewer than A·d.

Every sum is formed in an order that neither the batch nor the chunks change.
"""

# Tuples grow by tensors while a kernel is traced; mypy would hold them to their first, empty type.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch, target_of
from resclip_kernels.ops.proxy_attention.triton_layout import (
    Positions,
    lay_out_positions,
    resize_values,
    round_up,
)
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.ops.semantic_feedback.triton import feedback_arguments, grid_arguments
from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    feedback_rows,
    patch_positions,
    raw_tile,
    smoothed_tile,
    smoothing_taps,
    weighted_tile,
)
from resclip_kernels.options.proxy_attention import ProxyAttentionOptions

CHUNK_BYTES = 1 << 27
"""Weights held at a time, in whole blocks of `CHUNK_ROWS` rows: 4,096 rows of 16,384 positions in float16.

Not what L2 holds: a float16 weight is written and read once for about 2,000 operations, which memory keeps up with, but
an L2's fill of rows would leave the second product too few programs.
"""
CHUNK_ROWS = 128
# Blocks of rows whose programs follow each other column by column, so that they find their rows and columns in L2.
GROUP_ROWS = tl.constexpr(16)
# Tiles' sums that are read at a time.
SUMS_AT_ONCE = tl.constexpr(16)


@dataclass(frozen=True)
class Blocks:
    """Tile of a product, and how it is compiled."""

    rows: int
    columns: int
    depth: int
    """Of what is multiplied at a time."""
    options: Options


# The interpreter's time goes by instructions, whatever their width.
INTERPRETED = Blocks(128, 128, 64, Options())


class Scores(NamedTuple):
    """Factors of the scores; exponents are in base 2."""

    cut: float
    """Entries of X Xᵀ below it are 0, where the plan has a cut."""
    beta: float
    sharpness: float
    """Of a cosine in the exponent."""
    weight: float
    """Of a cosine beside λ_s·Ŝ."""
    feedback: float
    """λ_s."""
    feedback_sharpness: float
    """τ_s · log2 e."""


class Matrices(NamedTuple):
    """left · right → output, row by row of `left`."""

    left: Any
    """(rows, columns), some or all rows of all images, one image after the other."""
    left_row: int
    right: Any
    """(images, padded keys, columns)."""
    right_image: int
    """0 where all images share one."""
    output: Any
    """(B, rows of an image, columns)."""
    output_rows: int
    output_image: int
    output_row: int
    sums: Any
    """(tiles, rows) float32, what the weights of a row are divided by; None for 1."""
    sums_tile: int


class Plan(NamedTuple):
    """What is fixed when the scores' kernel is compiled."""

    row_stride: int
    """Elements from one position to the next: `Positions.channels`."""
    has_feedback: bool
    has_cut: bool
    precision: str


def score_blocks(dtype: torch.dtype, target: Target, feedback: bool) -> Blocks:
    """The scores' tiles by the features' dtype and the target, chosen so that none spills in the kernels' report.

    The wider a tile, the fewer bytes an operation takes out of L2, which is what limits a product of this size. Ŝ's
    tile beside the scores leaves room for half as much.
    """
    if target.backend == "interpreter":
        return INTERPRETED
    shared = reads_shared_memory(target)
    if dtype == torch.float32:
        if feedback:
            return Blocks(64, 32, 32, Options(num_warps=8, num_stages=3))
        rows = 64 if target.backend == "cuda" and not shared else 128
        return Blocks(rows, rows, 32, Options(num_warps=8, num_stages=3))
    if target.backend == "hip":
        if feedback:
            return Blocks(64, 32, 64, Options(num_warps=8, num_stages=1))
        return Blocks(128, 128, 64, Options(num_warps=8, num_stages=2))
    if feedback:
        return Blocks(128, 64, 64, Options(num_warps=8, num_stages=3))
    return Blocks(128, 256 if shared else 128, 64, Options(num_warps=8, num_stages=3))


def product_blocks(dtype: torch.dtype, target: Target) -> Blocks:
    """The second product's tiles: small enough for two programs a multiprocessor, since there are few."""
    if target.backend == "interpreter":
        return INTERPRETED
    if dtype == torch.float32:
        return Blocks(64, 64, 32, Options(num_warps=8, num_stages=3))
    stages = 2 if target.backend == "hip" else 3
    return Blocks(128, 128, 64, Options(num_warps=8, num_stages=stages))


def reads_shared_memory(target: Target) -> bool:
    """Whether matrix units take their operands out of shared memory, not through registers."""
    return target.backend == "cuda" and target.architecture in (90, 100, 103)


def proxy_attention(
    features: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None = None,
) -> Tensor:
    """The formula of `resclip_kernels.proxy_attention`; in memory (B, H_v·W_v, A, d), as the merge of heads wants it.

    Beside the arguments it takes O(B·n·(C + A·d)) of memory, and `CHUNK_BYTES` for the map.
    """
    batch, heads, cells, head_width = value.shape
    size = (features.shape[2], features.shape[3])
    count, columns = size[0] * size[1], heads * head_width
    blocks = score_blocks(features.dtype, target_of(features), feedback is not None)
    positions = lay_out_positions(features, max(CHUNK_ROWS, blocks.columns))
    if options.cut is not None:
        positions = positions._replace(mean=cut_mean(positions, count, blocks, options.cut))
    output = value.new_empty((batch, count, columns))
    if tuple(grid) != size and cells * (count + columns) < count * columns:
        unit = torch.eye(cells, dtype=value.dtype, device=value.device)
        resizing = resize_values(unit[None, None], grid, size)
        gathered = value.new_empty((batch, positions.rows.shape[1], resizing.shape[2]))
        multiply_map(positions, size, blocks, resizing, gathered, options, feedback)
        multiply(gathered.flatten(0, 1), resize_values(value, grid, grid), output, cells)
    else:
        values = resize_values(value, grid, size)
        multiply_map(positions, size, blocks, values, output, options, feedback)
    result: Tensor = output.unflatten(2, (heads, head_width)).transpose(1, 2)
    return result


def cut_mean(positions: Positions, count: int, blocks: Blocks, cut: float) -> Tensor:
    """(B,) float32: the mean of X Xᵀ over the pairs of `count` positions, entries below the cut as 0.

    A pass over all tiles of the map, each of which leaves one number; these are added in float64, so that the order in
    which a device adds them decides nothing.
    """
    batch, padded = positions.inverse_length.shape
    if target_of(positions.rows).backend == "hip":
        # Of 128 rows two masks beside the tile would spill.
        blocks = replace(blocks, rows=64)
    tiles = padded // blocks.rows * (padded // blocks.columns)
    sums = positions.inverse_length.new_empty((batch, tiles))
    launch(
        proxy_cut_sums_kernel,
        batch * tiles,
        {"data": positions, "sums": sums, "cut": cut, "padded_positions": padded},
        {
            "PLAN": Plan(
                positions.rows.shape[2],
                has_feedback=False,
                has_cut=True,
                precision=target_of(sums).dot_precision,
            ),
            "BLOCK_M": blocks.rows,
            "BLOCK_N": blocks.columns,
            "BLOCK_C": blocks.depth,
        },
        blocks.options,
        on=sums,
    )
    mean: Tensor = sums.sum(dim=1, dtype=torch.float64) / count**2
    return mean.float()


def multiply_map(
    positions: Positions,
    size: tuple[int, int],
    blocks: Blocks,
    right: Tensor,
    output: Tensor,
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None,
) -> None:
    """The map times `right`, chunk by chunk.

    Args:
        positions: of the features.
        size: (H_v, W_v).
        blocks: the scores' tiles.
        right: (B, padded n, padded columns), or one for all images.
        output: (B, n or padded n, columns).
        options, feedback: of the map.
    """
    batch, padded = positions.inverse_length.shape
    count = size[0] * size[1]
    target = target_of(output)
    tiles, terms = None, None
    weight, temperature = 0.0, 1.0
    if feedback is not None:
        terms, tiles = feedback_arguments(feedback, positions.rows.dtype, target)
        weight, temperature = options.mixing
    scores = Scores(
        cut=0.0 if options.cut is None else options.cut,
        beta=options.beta,
        sharpness=temperature * (1.0 - weight) * options.gamma / math.log(2.0),
        weight=(1.0 - weight) * options.gamma,
        feedback=weight,
        feedback_sharpness=temperature / math.log(2.0),
    )
    rows = batch * padded
    # One after the other, they share their buffers.
    chunk = chunk_rows(rows, padded * output.element_size())
    weights = output.new_empty((min(chunk, rows), padded))
    column_blocks = padded // blocks.columns
    sums = positions.inverse_length.new_empty((column_blocks, len(weights)))
    for first in range(0, rows, chunk):
        held = min(chunk, rows - first)
        launch(
            proxy_weights_kernel,
            held // blocks.rows * column_blocks,
            {
                "data": positions,
                "weights": weights,
                "sums": sums,
                "feedback": terms,
                "patch_grid": grid_arguments(size),
                "scores": scores,
                "positions": count,
                "padded_positions": padded,
                "first_row": first,
                "held_rows": held,
                "sums_tile": len(weights),
            },
            {
                "PLAN": Plan(
                    positions.rows.shape[2],
                    has_feedback=feedback is not None,
                    has_cut=options.cut is not None,
                    precision=target.dot_precision,
                ),
                "TILES": tiles,
                "BLOCK_M": blocks.rows,
                "BLOCK_N": blocks.columns,
                "BLOCK_C": blocks.depth,
            },
            blocks.options,
            on=output,
        )
        multiply(weights[:held], right, output, count, padded, first, sums)


def chunk_rows(rows: int, row_bytes: int) -> int:
    """Rows of a chunk: as even as whole blocks can be, one block at least."""
    blocks = rows // CHUNK_ROWS
    chunks = -(-blocks // max(1, CHUNK_BYTES // (CHUNK_ROWS * row_bytes)))
    return CHUNK_ROWS * round_up(blocks, chunks) // chunks


def multiply(
    left: Tensor,
    right: Tensor,
    output: Tensor,
    keys: int,
    padded_positions: int | None = None,
    first_row: int = 0,
    sums: Tensor | None = None,
    epsilon: float | None = None,
) -> None:
    """left · right into rows of the images.

    Args:
        left: (rows, padded keys), rows from `first_row` on of all images, one after the other.
        right: (B or 1, padded keys, padded columns).
        output: (B, n or more, columns).
        keys: how many of the keys there are.
        padded_positions: rows of an image; None: all of them are in `left`.
        first_row: of `left` among the rows of all images.
        sums: (tiles, rows): the sum of every row's weights, in parts, by which the row is divided.
        epsilon: what is added to every sum. None: nothing, and a row of the sum 0 takes its own row of `right`.
    """
    target = target_of(output)
    blocks = product_blocks(output.dtype, target)
    padded = padded_positions or len(left) // len(output)
    column_blocks = triton.cdiv(output.shape[2], blocks.columns)
    launch(
        proxy_product_kernel,
        triton.cdiv(len(left), blocks.rows) * column_blocks,
        {
            "matrices": Matrices(
                left,
                left.stride(0),
                right,
                right.stride(0) if len(right) > 1 else 0,
                output,
                output.shape[1],
                output.stride(0),
                output.stride(1),
                sums,
                0 if sums is None else sums.stride(0),
            ),
            "first_row": first_row,
            "padded_positions": padded,
            "keys": keys,
            "columns": output.shape[2],
            "tiles": 0 if sums is None else len(sums),
        },
        {
            "RIGHT_COLUMNS": right.shape[2],
            "NORMALISE": sums is not None,
            "EPSILON": epsilon,
            "PRECISION": target.dot_precision,
            "BLOCK_M": blocks.rows,
            "BLOCK_N": blocks.depth,
            "BLOCK_D": blocks.columns,
        },
        blocks.options,
        on=output,
    )


@triton.jit
def feedback_tile(
    feedback, patch_grid, rows, first, positions, TILES: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Smoothed entries of BLOCK_N columns from `first`: [BLOCK_M, BLOCK_N]."""
    taps = smoothing_taps(feedback, TILES, BLOCK_N)
    entries = ()
    for part in tl.static_range(2 * TILES.margin // 32):
        raw = raw_tile(
            feedback, patch_grid, rows, first + 32 * part - TILES.margin, positions, TILES
        )
        entries += (raw.to(TILES.dtype),)
    smooth, _ = smoothed_tile(
        entries, feedback, patch_grid, rows, taps, first, positions, TILES, BLOCK_N
    )
    return smooth


@triton.jit
def grouped_tile(program, row_blocks, column_blocks):
    """(block of rows, block of columns) of a program, groups of `GROUP_ROWS` blocks of rows after each other."""
    in_group = GROUP_ROWS * column_blocks
    first_block = program // in_group * GROUP_ROWS
    group_rows = tl.minimum(row_blocks - first_block, GROUP_ROWS)
    return first_block + program % in_group % group_rows, program % in_group // group_rows


@triton.jit
def similarity_tile(
    data,
    image,
    start,
    first,
    padded_positions,
    cut,
    PLAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of X Xᵀ, its rows' largest entries before a cut, and the inverse lengths of its rows and columns."""
    inverse_length = data.inverse_length + image * padded_positions
    row = tl.arange(0, BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    rows = data.rows + image * padded_positions * PLAN.row_stride
    left = rows + tl.cast(start, tl.int64) * PLAN.row_stride
    left += row[:, None] * PLAN.row_stride + channel[None, :]  # [BLOCK_M, BLOCK_C]
    right = rows + tl.cast(first, tl.int64) * PLAN.row_stride
    right += key[None, :] * PLAN.row_stride + channel[:, None]  # [BLOCK_C, BLOCK_N]
    score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_channel in range(0, data.channels, BLOCK_C):
        score = tl.dot(
            tl.load(left + first_channel),
            tl.load(right + first_channel),
            score,
            input_precision=PLAN.precision,
        )

    row_inverse = tl.load(inverse_length + start + row)
    key_inverse = tl.load(inverse_length + first + key)
    # The largest entry of a row is its own: 1, or 0 where the position has no length and all entries are equal. It is
    # set, not computed: exp(γ·(s − largest)) is then exactly 1 somewhere in a row, whatever γ makes of a rounding of s.
    largest = tl.where(tl.abs(row_inverse) > 0.0, 1.0, row_inverse)  # A NaN stays.
    score = score * row_inverse[:, None] * key_inverse[None, :]
    score = tl.where(score > 1.0, 1.0, score)  # Rounding aside none is; a NaN stays.
    itself = (start + row)[:, None] == (first + key)[None, :]
    score = tl.where(itself, largest[:, None], score)  # [BLOCK_M, BLOCK_N]
    if PLAN.has_cut:
        score = tl.where(score < cut, 0.0, score)
    return score, largest, row_inverse, key_inverse


@triton.jit
def proxy_cut_sums_kernel(
    data,
    sums,
    cut,
    padded_positions,
    PLAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sum of one tile of X Xᵀ, entries below the cut as 0."""
    row_blocks = padded_positions // BLOCK_M
    column_blocks = padded_positions // BLOCK_N
    tiles = row_blocks * column_blocks
    program = tl.program_id(0)
    block, column_block = grouped_tile(program % tiles, row_blocks, column_blocks)
    score, _, row_inverse, key_inverse = similarity_tile(
        data,
        (program // tiles).to(tl.int64),
        block * BLOCK_M,
        column_block * BLOCK_N,
        padded_positions,
        cut,
        PLAN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_C,
    )
    outside = (row_inverse < 0.0)[:, None] | (key_inverse < 0.0)[None, :]
    total = tl.sum(tl.sum(tl.where(outside, 0.0, score), 1), 0)
    tl.store(sums + program, total)


@triton.jit
def proxy_weights_kernel(
    data,
    weights,
    sums,
    feedback,
    patch_grid,
    scores,
    positions,
    padded_positions,
    first_row,
    held_rows,
    sums_tile,
    PLAN: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of exp(S' − the row's largest) where S' ≥ 0, else 0, and its rows' sums."""
    row_blocks = held_rows // BLOCK_M
    # Past the last position too: the second product reads whatever stands there.
    column_blocks = padded_positions // BLOCK_N
    block, column_block = grouped_tile(tl.program_id(0), row_blocks, column_blocks)
    held_row = block * BLOCK_M
    first = column_block * BLOCK_N
    image = ((first_row + held_row) // padded_positions).to(tl.int64)
    start = (first_row + held_row) % padded_positions
    threshold = tl.load(data.mean + image) * scores.beta
    row = tl.arange(0, BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    score, largest, _, key_inverse = similarity_tile(
        data, image, start, first, padded_positions, scores.cut, PLAN, BLOCK_M, BLOCK_N, BLOCK_C
    )
    exponent = (score - largest[:, None]) * scores.sharpness
    if PLAN.has_feedback:
        position = start + row
        y, x = patch_positions(position, patch_grid)
        inside = position < positions
        of_rows = feedback_rows(feedback, image, position, inside, y, x, positions, TILES)
        smooth = feedback_tile(feedback, patch_grid, of_rows, first, positions, TILES, BLOCK_N)
        bonus = weighted_tile(smooth, of_rows, scores.feedback, TILES)
        # No entry of Ŝ is over 1: smoothed, it is a mean of values up to 1 and of the zeros around; normalised, it is
        # divided by the largest. The bound may be too high by τ_s·λ_s, of which `LARGEST_FEEDBACK` takes care.
        exponent += (bonus - scores.feedback) * scores.feedback_sharpness
        below = (score - threshold) * scores.weight + bonus < 0.0
    else:
        below = score < threshold
    dropped = below | (key_inverse < 0.0)[None, :]  # NaN is not dropped.
    weight = tl.where(dropped, 0.0, tl.exp2(exponent)).to(weights.dtype.element_ty)
    target = weights + tl.cast(held_row, tl.int64) * padded_positions + first
    tl.store(target + row[:, None] * padded_positions + key[None, :], weight)
    # Of the weights as they were rounded: what they are divided by is what they add up to.
    tl.store(
        sums + tl.cast(column_block, tl.int64) * sums_tile + held_row + row,
        tl.sum(weight.to(tl.float32), 1),
    )


@triton.jit
def proxy_product_kernel(
    matrices,
    first_row,
    padded_positions,
    keys,
    columns,
    tiles,
    RIGHT_COLUMNS: tl.constexpr,
    NORMALISE: tl.constexpr,
    EPSILON: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of left · right, divided by the rows' sums."""
    # Tiles of the same rows follow each other, so that they find them in L2.
    column_blocks = tl.cdiv(columns, BLOCK_D)
    held_row = tl.program_id(0) // column_blocks * BLOCK_M
    first_column = tl.program_id(0) % column_blocks * BLOCK_D
    image = ((first_row + held_row) // padded_positions).to(tl.int64)
    start = (first_row + held_row) % padded_positions
    row = tl.arange(0, BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    left = matrices.left + tl.cast(held_row, tl.int64) * matrices.left_row
    left += row[:, None] * matrices.left_row + key[None, :]  # [BLOCK_M, BLOCK_N]
    whole = matrices.right + image * matrices.right_image + first_column
    right = whole + key[:, None] * RIGHT_COLUMNS + column[None, :]  # [BLOCK_N, BLOCK_D]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, keys, BLOCK_N):
        acc = tl.dot(
            tl.load(left + first),
            tl.load(right + tl.cast(first, tl.int64) * RIGHT_COLUMNS),
            acc,
            input_precision=PRECISION,
        )
    stored = (start + row < matrices.output_rows)[:, None] & (first_column + column < columns)[
        None, :
    ]
    if NORMALISE:
        l_i = tl.zeros([BLOCK_M], tl.float32)
        sums = matrices.sums + held_row
        for first in range(0, tiles, SUMS_AT_ONCE):
            tile = first + tl.arange(0, SUMS_AT_ONCE)
            part = tl.load(
                sums + tile[:, None].to(tl.int64) * matrices.sums_tile + row[None, :],
                mask=(tile < tiles)[:, None],
                other=0.0,
            )
            l_i += tl.sum(part, 0)
        if EPSILON is None:
            alone = l_i == 0.0
            own = tl.load(
                whole
                + tl.cast(start, tl.int64) * RIGHT_COLUMNS
                + row[:, None] * RIGHT_COLUMNS
                + column[None, :],
                mask=stored & (alone & (start + row < keys))[:, None],
                other=0.0,
            )
            acc /= tl.where(alone, 1.0, l_i)[:, None]
            acc = tl.where(alone[:, None], own.to(tl.float32), acc)
        else:
            acc /= (l_i + EPSILON)[:, None]
    target = matrices.output + image * matrices.output_image + first_column
    target += tl.cast(start, tl.int64) * matrices.output_row
    target += row[:, None] * matrices.output_row + column[None, :]
    tl.store(target, acc.to(matrices.output.dtype.element_ty), mask=stored)
