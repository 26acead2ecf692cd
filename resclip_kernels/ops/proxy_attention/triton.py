"""The proxy attention on a GPU: positions and values laid out once, then one pass over the pairs without a map.

Four kernels, three of which lay out (`triton_layout`). The attention's softmax knows its largest entry beforehand (a
unit row is most like itself), so that it carries a sum and no maximum. Features stay as they came: the inverse lengths
multiply the finished products, so float16 and bfloat16 features lose nothing by being made unit rows. Heads lie
side by side: a column is a column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch, target_of
from resclip_kernels.ops.proxy_attention.options import ProxyAttentionOptions
from resclip_kernels.ops.proxy_attention.triton_layout import (
    lay_out_positions,
    resize_values,
    squared_sums,
)
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.ops.semantic_feedback.triton import feedback_arguments, grid_arguments
from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    feedback_rows,
    first_entries,
    patch_positions,
    smoothed_tile,
    smoothing_taps,
    weighted_tile,
)


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
    value_dtype: torch.dtype, feature_dtype: torch.dtype, target: Target, feedback: bool
) -> Blocks:
    """Tiles by dtype and target, chosen so that none spills in benchmarks/kernels_report.py.

    64 × 384 accumulators take 96 registers of each of 256 threads, so that 768 columns need the scores twice, not the
    six times of 64 × 128. 128 keys a step share one start-up of the loads, and fit where products accumulate out of
    shared memory; where operands pass through registers, 32 fit. On AMD more keys, and tiles in flight, exceed the
    scalar registers. Three TF32 products hold six operand tiles: a third of the columns.
    """
    if feedback:
        return feedback_blocks(value_dtype, feature_dtype, target)
    if torch.float32 in (value_dtype, feature_dtype):
        if reads_shared_memory(target):
            return Blocks(64, 32, 32, 128, 1, Options(num_warps=8, num_stages=2))
        tiles = 2 if value_dtype == feature_dtype else 1  # Mixed, two would spill.
        return Blocks(64, 32, 32, 64, tiles, Options(num_warps=8, num_stages=2))
    if target.backend == "hip":
        return Blocks(64, 32, 64, 128, 3, Options(num_warps=8, num_stages=1))
    keys = 128 if reads_shared_memory(target) else 32
    return Blocks(64, keys, 64, 128, 3, Options(num_warps=8, num_stages=3))


def feedback_blocks(value_dtype: torch.dtype, feature_dtype: torch.dtype, target: Target) -> Blocks:
    """Tiles where a program forms Ŝ's too, chosen so that none spills with σ up to 8.

    32 keys a step, which is what the smoothing's products are made of. Ŝ's tile is formed again for each further group
    of columns: three accumulators, two where operands pass through registers. In float32 half as many rows.
    """
    if torch.float32 in (value_dtype, feature_dtype):
        return Blocks(32, 32, 32, 64, 2, Options(num_warps=8, num_stages=1))
    tiles = 3 if reads_shared_memory(target) else 2
    return Blocks(64, 32, 64, 128, tiles, Options(num_warps=8, num_stages=3))


def reads_shared_memory(target: Target) -> bool:
    """Whether matrix units take their operands out of shared memory, not through registers."""
    return target.backend != "cuda" or target.architecture in (90, 100, 103)


def proxy_attention(
    features: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None = None,
) -> Tensor:
    """The formula of `resclip_kernels.proxy_attention`; no map, O(B·n·(C + A·d)) of memory beside the arguments."""
    batch, heads, _, head_width = value.shape
    positions, columns = features.shape[2] * features.shape[3], heads * head_width
    rows, inverse_length = lay_out_positions(features)
    sum_squares = squared_sums(rows, inverse_length, positions)
    output = value.new_empty((batch, heads, positions, head_width))
    target = target_of(features)
    blocks = attention_blocks(value.dtype, features.dtype, target, feedback is not None)
    groups = triton.cdiv(triton.cdiv(columns, blocks.columns), blocks.tiles)
    tiles = triton.cdiv(triton.cdiv(columns, blocks.columns), groups)
    values = resize_values(
        value, grid, (features.shape[2], features.shape[3]), groups * tiles * blocks.columns
    )
    arguments, constants = feedback_terms(options, feedback, features, target)
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
            "threshold_scale": options.beta / positions**2,
            **arguments,
        },
        {
            **constants,
            "CHANNELS": rows.shape[2],
            "VALUE_COLUMNS": values.shape[2],
            "TILES": tiles,
            "PARTS": sum_squares.shape[1],
            "MAX_PARTS": triton.next_power_of_2(sum_squares.shape[1]),
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


def feedback_terms(
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None,
    features: Tensor,
    target: Target,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments, constants) of the score's scale and of the feedback; exponents are in base 2."""
    terms, tiles = None, None
    weight, temperature = 0.0, 1.0
    if feedback is not None:
        terms, tiles = feedback_arguments(feedback, features.dtype, target)
        weight, temperature = options.mixing
    arguments = {
        "feedback": terms,
        "patch_grid": grid_arguments((features.shape[2], features.shape[3])),
        "sharpness": temperature * (1.0 - weight) * options.gamma / math.log(2.0),
        "score_weight": (1.0 - weight) * options.gamma,
        "feedback_weight": weight,
        "feedback_sharpness": temperature / math.log(2.0),
    }
    return arguments, {"HAS_FEEDBACK": feedback is not None, "FEEDBACK_TILES": tiles}


@triton.jit
def proxy_attention_kernel(
    rows,
    inverse_length,
    sum_squares,
    values,
    output,
    feedback,
    patch_grid,
    positions,
    padded_positions,
    channels,
    columns,
    head_width,
    threshold_scale,
    sharpness,
    score_weight,
    feedback_weight,
    feedback_sharpness,
    HAS_FEEDBACK: tl.constexpr,
    FEEDBACK_TILES: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    PARTS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """softmax(S' where S' ≥ 0) · v for some rows and columns of one image."""
    groups: tl.constexpr = VALUE_COLUMNS // (TILES * BLOCK_D)
    row_blocks = tl.cdiv(positions, BLOCK_M)
    program = tl.program_id(0)
    first_column = (program % groups) * (TILES * BLOCK_D)
    block = program // groups
    image = (block // row_blocks).to(tl.int64)
    part = tl.arange(0, MAX_PARTS)
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

    position = first_row + row
    feedback_of_rows = row_inverse
    taps = ()
    carried = ()
    if HAS_FEEDBACK:
        inside = position < positions
        y, x = patch_positions(position, patch_grid)
        feedback_of_rows = feedback_rows(
            feedback, image, position, inside, y, x, positions, FEEDBACK_TILES
        )
        taps = smoothing_taps(feedback, FEEDBACK_TILES, BLOCK_N)
        carried = first_entries(feedback, patch_grid, feedback_of_rows, positions, FEEDBACK_TILES)

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
        exponent = (score - largest[:, None]) * sharpness
        if HAS_FEEDBACK:
            smooth, carried = smoothed_tile(
                carried, feedback, patch_grid, feedback_of_rows, taps, first, positions, FEEDBACK_TILES, BLOCK_N
            )  # fmt: skip
            bonus = weighted_tile(smooth, feedback_of_rows, feedback_weight, FEEDBACK_TILES)
            # No entry of Ŝ is over 1: smoothed, it is a mean of values up to 1 and of the zeros around; normalised, it
            # is divided by the largest. The bound may be too high by τ_s·λ_s, of which `LARGEST_FEEDBACK` takes care.
            exponent += (bonus - feedback_weight) * feedback_sharpness
            below = (score - threshold) * score_weight + bonus < 0.0
        else:
            below = score < threshold
        dropped = below | (key_inverse < 0.0)[None, :]  # NaN is not dropped.
        weight = tl.where(dropped, 0.0, tl.exp2(exponent))
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
