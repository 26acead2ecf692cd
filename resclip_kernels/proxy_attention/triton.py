"""The proxy attention on a GPU: positions and values laid out once, then one pass over the pairs without a map.

Four kernels: positions in rows with their inverse lengths; ‖Σ X‖² for the mean; values resized, heads side by side;
and the attention, whose softmax knows its largest entry beforehand (a unit row is most like itself), so that it
carries a sum and no maximum. Features stay as they came: the inverse lengths multiply the finished products, so
float16 and bfloat16 features lose nothing by being made unit rows. Knows no head: a column is a column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels._bilinear_triton import bilinear
from resclip_kernels._launch import Options, Target, launch, target_of

SHORTEST = tl.constexpr(1e-12)
# Stands where the inverse length of a position would, past the last one: no length is negative.
NO_POSITION = tl.constexpr(-1.0)
# Features and values are laid out with zeros behind, up to whole tiles: positions to a multiple of `PAD_POSITIONS`,
# channels to one of `PAD`. The attention then masks nothing on the way in, and a thread's addresses are one pointer and
# constants: 246 registers against 254 with clamped rows and masks (sm_90, float16).
PAD_POSITIONS = 128
PAD = 64


@dataclass(frozen=True)
class Blocks:
    """Tile sizes of the attention, and what a program carries."""

    rows: int
    keys: int
    channels: int
    columns: int
    """Width of one accumulator."""
    tiles: int
    """Accumulators a program may carry; the scores are computed again for each further group of columns."""
    options: Options


def attention_blocks(
    value_dtype: torch.dtype, feature_dtype: torch.dtype, target: Target
) -> Blocks:
    """Tiles by dtype and target, counted in registers: none of these spills for C and A·d up to 1,280.

    64 × 384 accumulators take 96 registers of each of 256 threads, so that 768 columns need the scores twice, not the
    six times of 64 × 128. 128 keys a step share one start-up of the loads, and fit (247 registers) where products
    accumulate out of shared memory; where operands pass through registers, 32 fit (234). Three TF32 products hold six
    operand tiles: a third of the columns.
    """
    from_shared_memory = target.backend != "cuda" or target.architecture in (90, 100, 103)
    if torch.float32 in (value_dtype, feature_dtype):
        if from_shared_memory:
            return Blocks(64, 32, 32, 128, 1, Options(num_warps=8, num_stages=2))
        tiles = 2 if value_dtype == feature_dtype else 1  # Mixed, two would spill 8 bytes.
        return Blocks(64, 32, 32, 64, tiles, Options(num_warps=8, num_stages=2))
    keys = 128 if from_shared_memory else 32
    return Blocks(64, keys, 64, 128, 3, Options(num_warps=8, num_stages=3))


def proxy_attention(
    features: Tensor, value: Tensor, grid: tuple[int, int], beta: float, gamma: float
) -> Tensor:
    """The formula of `resclip_kernels.proxy_attention`; no map, O(B·n·(C + A·d)) of memory beside the arguments."""
    batch, heads, _, head_width = value.shape
    positions, columns = features.shape[2] * features.shape[3], heads * head_width
    rows, inverse_length = lay_out_positions(features)
    sum_squares = squared_sums(rows, inverse_length, positions)
    output = value.new_empty((batch, heads, positions, head_width))
    target = target_of(features)
    blocks = attention_blocks(value.dtype, features.dtype, target)
    groups = triton.cdiv(triton.cdiv(columns, blocks.columns), blocks.tiles)
    tiles = triton.cdiv(triton.cdiv(columns, blocks.columns), groups)
    values = resize_values(
        value, grid, (features.shape[2], features.shape[3]), groups * tiles * blocks.columns
    )
    launch(
        proxy_attention_kernel,
        batch * triton.cdiv(positions, blocks.rows) * groups,
        {
            "rows": rows,
            "inverse_length": inverse_length,
            "sum_squares": sum_squares,
            "values": values,
            "output": output,
            "positions": positions,
            "padded_positions": rows.shape[1],
            "channels": rows.shape[2],
            "columns": columns,
            "head_width": head_width,
            "threshold_scale": beta / positions**2,
            "sharpness": gamma / math.log(2.0),
        },
        {
            "CHANNELS": rows.shape[2],
            "VALUE_COLUMNS": values.shape[2],
            "TILES": tiles,
            "PARTS": sum_squares.shape[1],
            "MOST_PARTS": triton.next_power_of_2(sum_squares.shape[1]),
            "DOT_PRECISION": target.dot_precision,
            "BLOCK_M": blocks.rows,
            "BLOCK_N": blocks.keys,
            "BLOCK_C": blocks.channels,
            "BLOCK_D": blocks.columns,
        },
        blocks.options,
        on=features,
    )
    return output


def lay_out_positions(features: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H_v, W_v) → the same numbers as (B, padded n, padded C), and 1 / length as (B, padded n) float32."""
    batch, channels, height, width = features.shape
    positions = height * width
    padded = round_up(positions, PAD_POSITIONS)
    rows = features.new_empty((batch, padded, round_up(channels, PAD)))
    inverse_length = torch.empty((batch, padded), dtype=torch.float32, device=features.device)
    # 32 positions a program: 64 bytes of float16 a channel, two whole sectors, and programs enough for one image.
    block = 32
    launch(
        proxy_positions_kernel,
        batch * (padded // block),
        {
            "features": features,
            "rows": rows,
            "inverse_length": inverse_length,
            "image_stride": features.stride(0),
            "channel_stride": features.stride(1),
            "vertical_stride": features.stride(2),
            "horizontal_stride": features.stride(3),
            "channels": channels,
            "padded_channels": rows.shape[2],
            "width": width,
            "positions": positions,
            "padded_positions": padded,
        },
        {"BLOCK_N": block, "BLOCK_C": PAD},
        Options(num_warps=4, num_stages=2),
        on=features,
    )
    return rows, inverse_length


def round_up(size: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-size // multiple) * multiple


def squared_sums(rows: Tensor, inverse_length: Tensor, positions: int) -> Tensor:
    """‖Σ X‖² of each image, in parts: (B, padded C / 64) float32."""
    batch, padded, channels = rows.shape
    sum_squares = torch.empty((batch, channels // PAD), dtype=torch.float32, device=rows.device)
    launch(
        proxy_mean_kernel,
        sum_squares.numel(),
        {
            "rows": rows,
            "inverse_length": inverse_length,
            "sum_squares": sum_squares,
            "positions": positions,
            "padded_positions": padded,
            "channels": channels,
        },
        {"BLOCK_N": 64, "BLOCK_C": PAD},
        Options(num_warps=4, num_stages=2),
        on=rows,
    )
    return sum_squares


def resize_values(
    value: Tensor, grid: tuple[int, int], size: tuple[int, int], padded_columns: int
) -> Tensor:
    """(B, A, h·w, d) → (B, padded n, padded A·d): every position's values, heads side by side."""
    batch, heads, _, head_width = value.shape
    positions, columns = size[0] * size[1], heads * head_width
    padded = round_up(positions, PAD_POSITIONS)
    values = value.new_empty((batch, padded, padded_columns))
    block = 32
    launch(
        proxy_values_kernel,
        batch * (padded // block) * (padded_columns // PAD),
        {
            "value": value,
            "values": values,
            "image_stride": value.stride(0),
            "head_stride": value.stride(1),
            "token_stride": value.stride(2),
            "column_stride": value.stride(3),
            "height": grid[0],
            "width": grid[1],
            "new_width": size[1],
            "positions": positions,
            "padded_positions": padded,
            "columns": columns,
            "padded_columns": padded_columns,
            "head_width": head_width,
            "vertical_scale": grid[0] / size[0],
            "horizontal_scale": grid[1] / size[1],
        },
        {"RESIZE": tuple(grid) != tuple(size), "BLOCK_N": block, "BLOCK_D": PAD},
        Options(num_warps=4, num_stages=1),
        on=value,
    )
    return values


@triton.jit
def proxy_positions_kernel(
    features,
    rows,
    inverse_length,
    image_stride,
    channel_stride,
    vertical_stride,
    horizontal_stride,
    channels,
    padded_channels,
    width,
    positions,
    padded_positions,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Channels-first features in rows of one position each, and the inverse length of each."""
    blocks = padded_positions // BLOCK_N
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    position = (program % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = position < positions
    y, x = (position // width).to(tl.int64), (position % width).to(tl.int64)
    source = features + image * image_stride + y * vertical_stride + x * horizontal_stride
    row = image * padded_positions + position  # [BLOCK_N]
    squares = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, padded_channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        tile = tl.load(
            source[:, None] + channel.to(tl.int64)[None, :] * channel_stride,
            mask=inside[:, None] & (channel < channels)[None, :],
            other=0.0,
        )  # [BLOCK_N, BLOCK_C]
        wide = tile.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        tl.store(rows + row[:, None] * padded_channels + channel[None, :], tile)
    length = tl.sqrt_rn(squares)
    short = length < SHORTEST
    inverse = tl.where(short, 0.0, tl.div_rn(1.0, tl.where(short, 1.0, length)))
    tl.store(inverse_length + row, tl.where(inside, inverse, NO_POSITION))


@triton.jit
def proxy_mean_kernel(
    rows,
    inverse_length,
    sum_squares,
    positions,
    padded_positions,
    channels,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Σ over some channels of (Σ over positions of X)²."""
    blocks = channels // BLOCK_C
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    channel = (program % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for first in range(0, positions, BLOCK_N):
        row = image * padded_positions + first + tl.arange(0, BLOCK_N)
        # Past the last position stand zeros to be multiplied.
        inverse = tl.load(inverse_length + row)
        tile = tl.load(rows + row[:, None] * channels + channel[None, :])  # [BLOCK_N, BLOCK_C]
        total += tile.to(tl.float32) * inverse[:, None]
    summed = tl.sum(total, axis=0)
    tl.store(sum_squares + program, tl.sum(summed * summed, axis=0))


@triton.jit
def proxy_values_kernel(
    value,
    values,
    image_stride,
    head_stride,
    token_stride,
    column_stride,
    height,
    width,
    new_width,
    positions,
    padded_positions,
    columns,
    padded_columns,
    head_width,
    vertical_scale,
    horizontal_scale,
    RESIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Values on the features' grid, heads side by side."""
    position_blocks, column_blocks = padded_positions // BLOCK_N, padded_columns // BLOCK_D
    program = tl.program_id(0)
    column = (program % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    block = program // column_blocks
    image = (block // position_blocks).to(tl.int64)
    position = (block % position_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = position < positions
    mask = inside[:, None] & (column < columns)[None, :]
    head, within = (column // head_width).to(tl.int64), (column % head_width).to(tl.int64)
    source = value + image * image_stride + (head * head_stride + within * column_stride)[None, :]
    if RESIZE:
        top, bottom, down = bilinear(position // new_width, vertical_scale, height)
        left, right, across = bilinear(position % new_width, horizontal_scale, width)
        tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for corner in tl.static_range(4):
            y, along_y = (bottom, down) if corner >= 2 else (top, 1.0 - down)
            x, along_x = (right, across) if corner % 2 == 1 else (left, 1.0 - across)
            token = (y * width + x).to(tl.int64) * token_stride
            corner_tile = tl.load(source + token[:, None], mask=mask, other=0.0).to(tl.float32)
            tile += corner_tile * (along_y * along_x)[:, None]  # [BLOCK_N, BLOCK_D]
    else:
        token = position.to(tl.int64) * token_stride
        tile = tl.load(source + token[:, None], mask=mask, other=0.0)
    row = image * padded_positions + position
    tl.store(
        values + row[:, None] * padded_columns + column[None, :],
        tile.to(values.dtype.element_ty),
    )


@triton.jit
def proxy_attention_kernel(
    rows,
    inverse_length,
    sum_squares,
    values,
    output,
    positions,
    padded_positions,
    channels,
    columns,
    head_width,
    threshold_scale,
    sharpness,
    CHANNELS: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    PARTS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """softmax(A where A ≥ 0) · v for some rows and columns of one image."""
    groups: tl.constexpr = VALUE_COLUMNS // (TILES * BLOCK_D)
    row_blocks = tl.cdiv(positions, BLOCK_M)
    program = tl.program_id(0)
    first_column = (program % groups) * (TILES * BLOCK_D)
    block = program // groups
    image = (block // row_blocks).to(tl.int64)
    part = tl.arange(0, MOST_PARTS)
    parts = tl.load(sum_squares + image * PARTS + part, mask=part < PARTS, other=0.0)
    threshold = tl.sum(parts, axis=0) * threshold_scale
    rows += image * padded_positions * CHANNELS
    values += image * padded_positions * VALUE_COLUMNS
    inverse_length += image * padded_positions

    first_row = (block % row_blocks) * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_C)
    column = first_column + tl.arange(0, BLOCK_D)
    row_inverse = tl.load(inverse_length + first_row + row)
    # The largest entry of a row is its own: 1, or 0 where the position has no length and all entries are equal. It is
    # set, not computed: exp(γ·(s − largest)) is then exactly 1 somewhere in a row, whatever γ makes of a rounding of s.
    largest = tl.where(tl.abs(row_inverse) > 0.0, 1.0, row_inverse)  # A NaN stays.
    own_rows = rows + tl.cast(first_row, tl.int64) * CHANNELS
    left = own_rows + row[:, None] * CHANNELS + channel[None, :]  # [BLOCK_M, BLOCK_C]

    mass = tl.zeros([BLOCK_M], tl.float32)
    sums = ()
    for _ in tl.static_range(TILES):
        sums += (tl.zeros([BLOCK_M, BLOCK_D], tl.float32),)
    for first in range(0, positions, BLOCK_N):
        key = tl.arange(0, BLOCK_N)
        key_rows = rows + tl.cast(first, tl.int64) * CHANNELS
        right = key_rows + key[None, :] * CHANNELS + channel[:, None]  # [BLOCK_C, BLOCK_N]
        key_values = values + tl.cast(first, tl.int64) * VALUE_COLUMNS
        score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first_channel in range(0, channels, BLOCK_C):
            score = tl.dot(
                tl.load(left + first_channel, cache_modifier=".ca"),
                tl.load(right + first_channel),
                score,
                input_precision=DOT_PRECISION,
            )
        key_inverse = tl.load(inverse_length + first + key)
        score = score * row_inverse[:, None] * key_inverse[None, :]
        score = tl.where(score > 1.0, 1.0, score)  # Rounding aside none is; a NaN stays.
        itself = (first_row + row)[:, None] == (first + key)[None, :]
        score = tl.where(itself, largest[:, None], score)  # [BLOCK_M, BLOCK_N]
        dropped = (score < threshold) | (key_inverse < 0.0)[None, :]  # NaN is not dropped.
        weight = tl.where(dropped, 0.0, tl.exp2((score - largest[:, None]) * sharpness))
        mass += tl.sum(weight, axis=1)
        weight = weight.to(values.dtype.element_ty)
        further = ()
        for tile in tl.static_range(TILES):
            value = tl.load(
                key_values + key[:, None] * VALUE_COLUMNS + (column + tile * BLOCK_D)[None, :]
            )  # [BLOCK_N, BLOCK_D]
            product = tl.dot(weight, value, sums[tile], input_precision=DOT_PRECISION)
            further += (product,)
        sums = further

    alone = mass == 0.0
    own_values = values + tl.cast(first_row, tl.int64) * VALUE_COLUMNS
    position = first_row + row
    output += image * positions * columns
    for tile in tl.static_range(TILES):
        column_here = column + tile * BLOCK_D
        mask = (position < positions)[:, None] & (column_here < columns)[None, :]
        own = tl.load(
            own_values + row[:, None] * VALUE_COLUMNS + column_here[None, :],
            mask=mask & alone[:, None],
            other=0.0,
        )
        mean = sums[tile] / tl.where(alone, 1.0, mass)[:, None]
        result = tl.where(alone[:, None], own.to(tl.float32), mean)
        head = (column_here // head_width).to(tl.int64)
        place = (head * positions)[None, :] * head_width + (column_here % head_width)[None, :]
        tl.store(
            output + place + position.to(tl.int64)[:, None] * head_width,
            result.to(output.dtype.element_ty),
            mask=mask,
        )
