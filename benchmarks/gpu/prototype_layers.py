"""Prototype of the cross layers' mean alone: mean over the layers of softmax(q_i k_iᵀ / √d)·v, in one launch.

It differs from the fused op's first half in two ways: [CLS] is a column like any other, and the mean over the layers
stays in registers. Several tiles of keys and values are in flight at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.ops.residual_attention.triton_tiles import pick


@dataclass(frozen=True)
class Program:
    """Shape of one program of a prototype, and how it is compiled."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int = 3
    """Tiles of keys and values in flight."""


@triton.jit
def layers_mean_kernel(
    queries,
    keys,
    value,
    output,
    stride_image,
    stride_head,
    stride_token,
    heads,
    tokens,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_M rows of one head of one image, all layers; neighbours in the grid share keys."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks % heads
    image = (tl.program_id(0) // blocks // heads).to(tl.int64)
    origin = image * stride_image + head.to(tl.int64) * stride_head
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row_used = (row < tokens)[:, None]
    column = tl.arange(0, BLOCK_N)
    dimension = tl.arange(0, WIDTH)
    row_offsets = row[:, None] * stride_token + dimension[None, :]  # [BLOCK_M, WIDTH]
    column_offsets = column[:, None] * stride_token + dimension[None, :]  # [BLOCK_N, WIDTH]
    mean = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for layer in tl.range(0, len(queries), disable_licm=True):
        query = tl.load(pick(queries, layer) + origin + row_offsets, mask=row_used, other=0.0)
        key = pick(keys, layer) + origin
        largest = tl.full([BLOCK_M], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        sums = tl.zeros([BLOCK_M, WIDTH], tl.float32)
        for first in tl.range(0, tokens, BLOCK_N, num_stages=STAGES):
            present = first + column < tokens
            offsets = tl.cast(first, tl.int64) * stride_token + column_offsets
            tile = tl.load(key + offsets, mask=present[:, None], other=0.0)
            score = tl.dot(query, tile.T)  # [BLOCK_M, BLOCK_N]
            score = tl.where(present[None, :], score, -float("inf"))
            peak = tl.maximum(largest, tl.max(score, 1) * scale)
            weight = tl.exp2(score * scale - peak[:, None])
            shrink = tl.exp2(largest - peak)
            total = total * shrink + tl.sum(weight, 1)
            tile = tl.load(value + origin + offsets, mask=present[:, None], other=0.0)
            sums = tl.dot(weight.to(tile.dtype), tile, sums * shrink[:, None])
            largest = peak
        mean += sums * (1.0 / (len(queries) * total))[:, None]
    # The result lies densely: (B, A, L, d).
    dense = ((image * heads + head) * tokens).to(tl.int64) * WIDTH
    dense += row[:, None] * WIDTH + dimension[None, :]
    tl.store(output + dense, mean.to(output.dtype.element_ty), mask=row_used)


def layers_mean(
    cross_layers: Sequence[tuple[Tensor, Tensor]], value: Tensor, program: Program
) -> Tensor:
    """The mean over the layers of softmax(q_i k_iᵀ / √d)·v.

    Args:
        cross_layers: (query, key) of each layer, (B, A, L, d), all with the strides of `value`.
        value: (B, A, L, d); d is a power of two of at least 16.
        program: shape of one program.

    Returns:
        (B, A, L, d) in the dtype of `value`.
    """
    batch, heads, tokens, width = value.shape
    output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    layers_mean_kernel[(batch * heads * triton.cdiv(tokens, program.rows),)](
        tuple(query for query, _ in cross_layers),
        tuple(key for _, key in cross_layers),
        value,
        output,
        *value.stride()[:3],
        heads,
        tokens,
        math.log2(math.e) / math.sqrt(width),
        WIDTH=width,
        BLOCK_M=program.rows,
        BLOCK_N=program.columns,
        STAGES=program.num_stages,
        num_warps=program.num_warps,
    )
    return output
