"""The proxy attention's tensors as its kernel wants them: positions in rows, their lengths and mean, values resized.

Three kernels: positions in rows with their inverse lengths; ‖Σ X‖² for the mean of X Xᵀ; values on the features' grid,
heads side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.bilinear_triton import bilinear
from resclip_kernels.launch import Options, launch

SHORTEST = tl.constexpr(1e-12)
# Stands where the inverse length of a position would, past the last one: no length is negative.
NO_POSITION = tl.constexpr(-1.0)
# Features and values are laid out with zeros behind, up to whole tiles: positions to a multiple of `PAD_POSITIONS`,
# channels to one of `PAD`. The attention then masks nothing on the way in, and a thread's addresses are one pointer and
# constants.
PAD_POSITIONS = 128
PAD = 64


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
            "new_height": size[0],
            "new_width": size[1],
            "row_unit": 0.5 / size[0],
            "column_unit": 0.5 / size[1],
            "positions": positions,
            "padded_positions": padded,
            "columns": columns,
            "padded_columns": padded_columns,
            "head_width": head_width,
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
    new_height,
    new_width,
    row_unit,
    column_unit,
    positions,
    padded_positions,
    columns,
    padded_columns,
    head_width,
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
        top, bottom, down = bilinear(position // new_width, height, new_height, row_unit)
        left, right, across = bilinear(position % new_width, width, new_width, column_unit)
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
