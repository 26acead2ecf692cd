"""The proxy attention's tensors as its kernels want them: positions in rows, their lengths and mean, values resized.

Two kernels: positions in rows, with their inverse lengths and the sums of which X Xᵀ's mean is made; values on the
features' grid, heads side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.bilinear_triton import bilinear
from resclip_kernels.launch import Options, launch

SHORTEST = tl.constexpr(1e-12)
# Stands where the inverse length of a position would, past the last one: no length is negative.
NO_POSITION = tl.constexpr(-1.0)
# Positions, channels and columns are laid out with zeros behind, up to whole tiles. The products then mask nothing on
# the way in, and a thread's addresses are one pointer and constants.
PAD_POSITIONS = 128
PAD_COLUMNS = 128
PAD_CHANNELS = 64


class Positions(NamedTuple):
    """Features as the kernels take them."""

    rows: Any
    """(B, padded n, padded C) in the features' dtype, of any length."""
    inverse_length: Any
    """(B, padded n) float32: 1 / length, 0 where there is none, `NO_POSITION` past the last position."""
    mean: Any
    """(B,) float32: the mean of X Xᵀ."""
    channels: int
    """Padded C."""


class FeatureStrides(NamedTuple):
    """Of (B, C, H_v, W_v), in elements."""

    image: int
    channel: int
    vertical: int
    horizontal: int


class ValueStrides(NamedTuple):
    """Of (B, A, h·w, d), in elements."""

    image: int
    head: int
    token: int
    column: int


class Resize(NamedTuple):
    """From one grid to another, bilinearly."""

    height: int
    width: int
    new_height: int
    new_width: int
    row_unit: float
    column_unit: float


def lay_out_positions(features: Tensor, multiple: int) -> Positions:
    """(B, C, H_v, W_v) → the same numbers in rows, a multiple of so many an image, and what their cosines need.

    mean(X Xᵀ) = ‖Σ X‖² / n²: every program adds up its own positions, and the programs' sums are added here, in
    float64, so that the order in which a device adds them decides nothing.
    """
    batch, channels, height, width = features.shape
    positions = height * width
    padded = round_up(positions, multiple)
    # 32 positions a program: 64 bytes of float16 a channel, two whole sectors, and programs enough for one image.
    block = 32
    rows = features.new_empty((batch, padded, round_up(channels, PAD_CHANNELS)))
    inverse_length = torch.empty((batch, padded), dtype=torch.float32, device=features.device)
    sums = inverse_length.new_empty((batch, padded // block, rows.shape[2]))
    launch(
        proxy_positions_kernel,
        batch * (padded // block),
        {
            "features": features,
            "strides": FeatureStrides(*features.stride()),
            "rows": rows,
            "inverse_length": inverse_length,
            "sums": sums,
            "channels": channels,
            "padded_channels": rows.shape[2],
            "width": width,
            "positions": positions,
            "padded_positions": padded,
        },
        {"BLOCK_N": block, "BLOCK_C": PAD_CHANNELS},
        Options(num_warps=4, num_stages=2),
        on=features,
    )
    total = sums.sum(dim=1, dtype=torch.float64)
    mean = (total.square().sum(dim=1) / positions**2).float()
    return Positions(rows, inverse_length, mean, rows.shape[2])


def round_up(size: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-size // multiple) * multiple


def resize_values(value: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, A, h·w, d) → (B, padded n, padded A·d): every position's values, heads side by side."""
    batch, heads, _, head_width = value.shape
    positions, columns = size[0] * size[1], heads * head_width
    values = value.new_empty(
        (batch, round_up(positions, PAD_POSITIONS), round_up(columns, PAD_COLUMNS))
    )
    block = 32
    launch(
        proxy_values_kernel,
        batch * (values.shape[1] // block) * (values.shape[2] // PAD_CHANNELS),
        {
            "value": value,
            "strides": ValueStrides(*value.stride()),
            "values": values,
            "resize": Resize(*grid, *size, 0.5 / size[0], 0.5 / size[1]),
            "positions": positions,
            "padded_positions": values.shape[1],
            "columns": columns,
            "padded_columns": values.shape[2],
            "head_width": head_width,
        },
        {"RESIZE": tuple(grid) != tuple(size), "BLOCK_N": block, "BLOCK_D": PAD_CHANNELS},
        # Of 4 warps a thread would hold 16 columns' addresses, in 64 bits each.
        Options(num_warps=8, num_stages=1),
        on=value,
    )
    return values


@triton.jit
def proxy_positions_kernel(
    features,
    strides,
    rows,
    inverse_length,
    sums,
    channels,
    padded_channels,
    width,
    positions,
    padded_positions,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Channels-first features in rows of one position each, the inverse length of each, and the sum of unit rows."""
    blocks = padded_positions // BLOCK_N
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    position = (program % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = position < positions
    y, x = (position // width).to(tl.int64), (position % width).to(tl.int64)
    source = features + image * strides.image + y * strides.vertical + x * strides.horizontal
    row = image * padded_positions + position  # [BLOCK_N]
    squares = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, padded_channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        tile = tl.load(
            source[:, None] + channel.to(tl.int64)[None, :] * strides.channel,
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
    # Read a second time, out of L1: all channels of a position would not fit in registers.
    for first in range(0, padded_channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        tile = tl.load(
            source[:, None] + channel.to(tl.int64)[None, :] * strides.channel,
            mask=inside[:, None] & (channel < channels)[None, :],
            other=0.0,
        )  # [BLOCK_N, BLOCK_C]
        total = tl.sum(tile.to(tl.float32) * inverse[:, None], axis=0)
        tl.store(sums + program.to(tl.int64) * padded_channels + channel, total)


@triton.jit
def proxy_values_kernel(
    value,
    strides,
    values,
    resize,
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
    source = (
        value + image * strides.image + (head * strides.head + within * strides.column)[None, :]
    )
    if RESIZE:
        top, bottom, down = bilinear(
            position // resize.new_width, resize.height, resize.new_height, resize.row_unit
        )
        left, right, across = bilinear(
            position % resize.new_width, resize.width, resize.new_width, resize.column_unit
        )
        tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for corner in tl.static_range(4):
            y, along_y = (bottom, down) if corner >= 2 else (top, 1.0 - down)
            x, along_x = (right, across) if corner % 2 == 1 else (left, 1.0 - across)
            token = (y * resize.width + x).to(tl.int64) * strides.token
            corner_tile = tl.load(source + token[:, None], mask=mask, other=0.0).to(tl.float32)
            tile += corner_tile * (along_y * along_x)[:, None]  # [BLOCK_N, BLOCK_D]
    else:
        token = position.to(tl.int64) * strides.token
        tile = tl.load(source + token[:, None], mask=mask, other=0.0)
    row = image * padded_positions + position
    tl.store(
        values + row[:, None] * padded_columns + column[None, :],
        tile.to(values.dtype.element_ty),
    )
