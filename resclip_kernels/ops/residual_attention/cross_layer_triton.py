"""A_c·v in Triton: the mean over the middle blocks of softmax(q_i k_iᵀ / √d)·v (RCS, arXiv 2411.15851, section 3.2).

[CLS] is a column like any other and the mean stays in registers, so that between one layer and the next there is
nothing but the next q. Where an image has few rows of few heads a program takes one layer, and whoever reads the result
adds the layers' parts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch
from resclip_kernels.ops.residual_attention.launch_table import Program
from resclip_kernels.ops.residual_attention.triton_tiles import (
    Heads,
    Strides,
    head_origin,
    heads_of,
    load_tile,
    parts_of,
    pick,
    scores_of,
    softmax_step,
    store_tile,
    strides_of,
    tile_offsets,
    zero_tile,
)


class Layers(NamedTuple):
    """The middle blocks' q and k, which share their strides."""

    queries: tuple[Any, ...]
    keys: tuple[Any, ...]
    strides: Strides


@triton.jit
def cross_layer_kernel(
    layers,
    value,
    output,
    heads,
    tokens,
    programs_a_layer,
    score_scale,
    APART: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    LEAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M rows of one head of one image, all layers, or with APART one; neighbours share keys."""
    COUNT: tl.constexpr = len(layers.queries)
    program = tl.program_id(0)
    first_layer = 0
    last_layer = COUNT
    out_ptr = output.data
    if APART:
        first_layer = program // programs_a_layer
        last_layer = first_layer + 1
        program = program % programs_a_layer
        # The layers' parts lie one behind the other, each as large as all images.
        images = programs_a_layer // tl.cdiv(tokens, BLOCK_M) // heads
        out_ptr += first_layer.to(tl.int64) * images * output.strides.image
    blocks = tl.cdiv(tokens, BLOCK_M)
    start = program % blocks * BLOCK_M
    head = program // blocks % heads
    image = (program // blocks // heads).to(tl.int64)
    row_present = start + tl.arange(0, BLOCK_M) < tokens
    q_offsets = tile_offsets(layers.strides.token, BLOCK_M, PARTS)
    k_offsets = tile_offsets(layers.strides.token, BLOCK_N, PARTS)
    v_offsets = tile_offsets(value.strides.token, BLOCK_N, PARTS)
    origin = head_origin(layers.strides, image, head)
    q_origin = origin + tl.cast(start, tl.int64) * layers.strides.token
    v_ptr = value.data + head_origin(value.strides, image, head)
    mean = zero_tile(BLOCK_M, PARTS)
    # Nothing hoisted out of this loop: the addresses of all layers alone would fill the registers.
    for layer in tl.range(first_layer, last_layer, disable_licm=True):
        q = load_tile(pick(layers.queries, layer) + q_origin, q_offsets, row_present, WIDTH, PARTS)
        k_ptr = pick(layers.keys, layer) + origin
        m_i = tl.full([BLOCK_M], -float("inf"), tl.float32)
        l_i = tl.zeros([BLOCK_M], tl.float32)
        acc = zero_tile(BLOCK_M, PARTS)
        for first in tl.range(0, tokens, BLOCK_N, disable_licm=LEAN):
            present = first + tl.arange(0, BLOCK_N) < tokens
            place = tl.cast(first, tl.int64)
            k = load_tile(k_ptr + place * layers.strides.token, k_offsets, present, WIDTH, PARTS)
            qk = scores_of(q, k, PRECISION)
            qk = tl.where(present[None, :], qk, -float("inf"))
            v = load_tile(v_ptr + place * value.strides.token, v_offsets, present, WIDTH, PARTS)
            m_i, l_i, acc = softmax_step(m_i, l_i, acc, qk, score_scale, v, PRECISION)
        share = 1.0 / (COUNT * l_i)
        summed = ()
        for part in tl.static_range(len(PARTS)):
            summed += (mean[part] + acc[part] * share[:, None],)
        mean = summed
    out_ptr += head_origin(output.strides, image, head)
    out_ptr += tl.cast(start, tl.int64) * output.strides.token
    out_offsets = tile_offsets(output.strides.token, BLOCK_M, PARTS)
    store_tile(out_ptr, out_offsets, row_present, mean, WIDTH, PARTS)


def cross_layer_sums(
    layers: tuple[tuple[Tensor, Tensor], ...],
    value: Tensor,
    program: Program,
    target: Target,
    *,
    apart: bool,
    score_width: int | None = None,
) -> Tensor:
    """The mean over the layers of softmax(q_i k_iᵀ / √d)·v.

    Args:
        layers: (q_i, k_i), each (B, A, L, d); all share their strides, the last of which is 1.
        value: (B, A, L, d), last stride 1.
        program: how it is cut into programs.
        target: of the device.
        apart: whether a program takes one layer.
        score_width: d under the root, where the heads were filled up with zeros; None: as they are.

    Returns:
        (B, A, L, d) in `value`'s dtype; `apart`, (layers, B, A, L, d) float32, whose sum it is.
    """
    batch, heads, tokens, width = value.shape
    shape = (len(layers), *value.shape) if apart else value.shape
    dtype = torch.float32 if apart else value.dtype
    output = torch.empty(shape, dtype=dtype, device=value.device)
    programs = batch * heads * triton.cdiv(tokens, program.rows)
    queries, keys = zip(*layers, strict=True)
    launch(
        cross_layer_kernel,
        programs * (len(layers) if apart else 1),
        {
            "layers": Layers(queries, keys, strides_of(queries[0])),
            "value": heads_of(value),
            "output": Heads(output, strides_of(output[0] if apart else output)),
            "heads": heads,
            "tokens": tokens,
            "programs_a_layer": programs,
            "score_scale": math.log2(math.e) / math.sqrt(score_width or width),
        },
        {
            "APART": apart,
            "WIDTH": width,
            "PARTS": parts_of(width),
            "PRECISION": target.dot_precision,
            # A step forms again what all share: wide rows of q in three parts beside the mean would spill.
            "LEAN": width > 64 and value.dtype == torch.float32,
            "BLOCK_M": program.rows,
            "BLOCK_N": program.columns,
        },
        # What is fused is written so: one layer a program, and all of them, then round alike.
        Options(program.num_warps, program.num_stages, fp_fusion=False),
        on=value,
    )
    return output
