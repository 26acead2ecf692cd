"""Prototype of the base branch alone, which reads the feedback's additive term from memory.

λ_s·Ŝ is stored once per image as float16, which is exact: the formula rounds it so. The fused op forms each tile of it
anew from labels and bits, which takes most of its instructions.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu.prototype_layers import Program
from resclip_kernels.ops.semantic_feedback.triton_tiles import patch_positions

PADDING = 128
"""Columns of a stored bonus are a multiple of this, which every `Program.columns` must divide."""
# log2(log2(e)): 2^(x + this) is log2(e)·2^x, the prior's exponential in the base of the scores.
LOG2_LOG2_E = tl.constexpr(0.5287663729448977)


@triton.jit
def base_kernel(
    left,
    right,
    value,
    bonus,
    residual,
    output,
    stride_image,
    stride_head,
    stride_token,
    bonus_image,
    bonus_row,
    heads,
    tokens,
    grid_width,
    inverse_width,
    score_scale,
    bonus_scale,
    prior_rate,
    own_weight,
    residual_weight,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_M rows of one head of one image; the heads of these rows are neighbours in the grid."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    # Heads of one block of rows follow each other, so that they find its bonus in L2.
    head = tl.program_id(0) % heads
    block = tl.program_id(0) // heads % blocks
    image = (tl.program_id(0) // heads // blocks).to(tl.int64)
    origin = image * stride_image + head.to(tl.int64) * stride_head
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row_used = (row < tokens)[:, None]
    column = tl.arange(0, BLOCK_N)
    dimension = tl.arange(0, WIDTH)
    row_offsets = row[:, None] * stride_token + dimension[None, :]  # [BLOCK_M, WIDTH]
    column_offsets = column[:, None] * stride_token + dimension[None, :]  # [BLOCK_N, WIDTH]
    query = tl.load(left + origin + row_offsets, mask=row_used, other=0.0)
    row_y, row_x = patch_positions(row - 1, grid_width, inverse_width)
    # [CLS] is far from every patch, as a row and, on the other side, as a column.
    row_y = tl.where(row > 0, row_y, 1e18)
    bonus += image * bonus_image
    bonus_offsets = tl.minimum(row, tokens - 1)[:, None].to(tl.int64) * bonus_row + column[None, :]
    largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for first in tl.range(0, tokens, BLOCK_N, num_stages=STAGES):
        present = first + column < tokens
        offsets = tl.cast(first, tl.int64) * stride_token + column_offsets
        tile = tl.load(right + origin + offsets, mask=present[:, None], other=0.0)
        score = tl.dot(query, tile.T) * score_scale  # [BLOCK_M, BLOCK_N]
        # Rows of the bonus are padded with −∞ past the last token: no mask here.
        score += tl.load(bonus + first + bonus_offsets).to(tl.float32) * bonus_scale
        patch = first + column - 1
        y, x = patch_positions(patch, grid_width, inverse_width)
        y = tl.where(patch < 0, -1e18, y)
        dy = row_y[:, None] - y[None, :]
        dx = row_x[:, None] - x[None, :]
        score += tl.exp2(prior_rate * (dy * dy + dx * dx) + LOG2_LOG2_E)
        peak = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp2(score - peak[:, None])
        shrink = tl.exp2(largest - peak)
        total = total * shrink + tl.sum(weight, 1)
        tile = tl.load(value + origin + offsets, mask=present[:, None], other=0.0)
        sums = tl.dot(weight.to(tile.dtype), tile, sums * shrink[:, None])
        largest = peak
    result = sums * (own_weight / total)[:, None]
    # Residual and result lie densely: (B, A, L, d).
    dense = ((image * heads + head) * tokens).to(tl.int64) * WIDTH
    dense += row[:, None] * WIDTH + dimension[None, :]
    result += residual_weight * tl.load(residual + dense, mask=row_used, other=0.0).to(tl.float32)
    tl.store(output + dense, result.to(output.dtype.element_ty), mask=row_used)


def stored_bonus(matrix: Tensor, feedback_weight: float) -> Tensor:
    """λ_s·Ŝ in the layout that `base_branch` reads.

    Args:
        matrix: Ŝ, (B, n, n) float32.
        feedback_weight: λ_s.

    Returns:
        (B, 1 + n, P) float16, P the next multiple of `PADDING`: 0 for [CLS], −∞ past the last token.
    """
    batch, patches, _ = matrix.shape
    tokens = 1 + patches
    padded = triton.cdiv(tokens, PADDING) * PADDING
    bonus = torch.full(
        (batch, tokens, padded), -math.inf, dtype=torch.float16, device=matrix.device
    )
    bonus[:, :, :tokens] = 0
    bonus[:, 1:, 1:tokens] = (feedback_weight * matrix).half()
    return bonus


def base_branch(
    key: Tensor,
    value: Tensor,
    bonus: Tensor,
    residual: Tensor,
    program: Program,
    *,
    grid: tuple[int, int],
    neighbourhood_std: float,
    feedback_weight: float,
    feedback_temperature: float,
    cross_weight: float,
    cross_temperature: float,
) -> Tensor:
    """`residual_attention` of correlation "kk" with prior and feedback, given the cross layers' mean.

    Args:
        key, value: (B, A, L, d) of the same strides; d is a power of two of at least 16.
        bonus: of `stored_bonus`.
        residual: the cross layers' mean, (B, A, L, d), contiguous.
        program: shape of one program.
        grid, neighbourhood_std, feedback_weight, feedback_temperature, cross_weight, cross_temperature:
            as of `resclip_kernels.residual_attention`.

    Returns:
        (B, A, L, d) in the dtype of `value`.
    """
    batch, heads, tokens, width = value.shape
    output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    log2_e = math.log2(math.e)
    base_kernel[(batch * heads * triton.cdiv(tokens, program.rows),)](
        key,
        key,
        value,
        bonus,
        residual,
        output,
        *value.stride()[:3],
        *bonus.stride()[:2],
        heads,
        tokens,
        float(grid[1]),
        1 / grid[1],
        feedback_temperature * (1 - feedback_weight) * log2_e / math.sqrt(width),
        feedback_temperature * log2_e,
        -log2_e / (2 * neighbourhood_std**2),
        cross_temperature * (1 - cross_weight),
        cross_temperature * cross_weight,
        WIDTH=width,
        BLOCK_M=program.rows,
        BLOCK_N=program.columns,
        STAGES=program.num_stages,
        num_warps=program.num_warps,
    )
    return output
