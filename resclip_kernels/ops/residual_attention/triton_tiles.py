"""Tiles of q, k, v and the streaming softmax over them in Triton, for both kernels of the residual attention.

Scores are in base 2. A head's width is cut into powers of two, 80 into 64 + 16, so that no product runs over 48 columns
of nothing: a tile is a tuple of one tensor a part, `PARTS` the tuple of their widths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Strides(NamedTuple):
    """Of (B, A, L, d) with dense heads, in elements."""

    image: int
    head: int
    token: int


class Heads(NamedTuple):
    """One (B, A, L, d) tensor as a kernel takes it."""

    data: Any
    strides: Strides


def heads_of(tensor: Tensor) -> Heads:
    """The kernels' view of (B, A, L, d), whose last stride is 1."""
    return Heads(tensor, strides_of(tensor))


def strides_of(tensor: Tensor) -> Strides:
    """Of (B, A, L, d), whose last stride is 1."""
    return Strides(*tensor.stride()[:3])


def parts_of(width: int) -> tuple[int, ...]:
    """A head's width in powers of two of at least 16: 64 → (64,), 80 → (64, 16), 88 → (64, 32), 128 → (64, 64)."""
    if width <= 64:
        return (max(16, triton.next_power_of_2(width)),)
    return (64, max(16, triton.next_power_of_2(width - 64)))


@triton.jit
def pick(pointers, number):
    """pointers[number] for a number that is known at run time only."""
    chosen = pointers[0]
    for other in tl.static_range(1, len(pointers)):
        chosen = tl.where(number == other, pointers[other], chosen)
    return chosen


@triton.jit
def head_origin(strides, image, head):
    """Where a head of an image begins, in elements: int64."""
    return image * strides.image + head.to(tl.int64) * strides.head


@triton.jit
def tile_offsets(stride_token, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """Where a tile's entries lie from its first one: a tuple of [ROWS, PARTS[i]].

    32 bits suffice inside a tile and take half the registers; where a tile begins is one 64-bit number.
    """
    offsets = ()
    for part in tl.static_range(len(PARTS)):
        offs_d = part * PARTS[0] + tl.arange(0, PARTS[part])
        offsets += (tl.arange(0, ROWS)[:, None] * stride_token + offs_d[None, :],)
    return offsets


@triton.jit
def load_tile(ptr, offsets, present, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Rows of q, k, v or a result, zero where a row is not `present` and past the head's width: a tuple of tiles."""
    tile = ()
    for part in tl.static_range(len(PARTS)):
        mask = present[:, None]
        if part * PARTS[0] + PARTS[part] > WIDTH:
            offs_d = part * PARTS[0] + tl.arange(0, PARTS[part])
            mask = mask & (offs_d < WIDTH)[None, :]
        tile += (tl.load(ptr + offsets[part], mask=mask, other=0.0),)
    return tile


@triton.jit
def store_tile(ptr, offsets, present, tile, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """The inverse of `load_tile`."""
    for part in tl.static_range(len(PARTS)):
        offs_d = part * PARTS[0] + tl.arange(0, PARTS[part])
        mask = present[:, None] & (offs_d < WIDTH)[None, :]
        tl.store(ptr + offsets[part], tile[part].to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def zero_tile(ROWS: tl.constexpr, PARTS: tl.constexpr):
    """Zeros in float32: a tuple of [ROWS, PARTS[i]]."""
    # Written out: an unrolled loop may not give a constant, here a shape, another value.
    ONE: tl.constexpr = PARTS[0]
    tile = (tl.zeros([ROWS, ONE], tl.float32),)
    if len(PARTS) > 1:
        TWO: tl.constexpr = PARTS[len(PARTS) - 1]
        tile += (tl.zeros([ROWS, TWO], tl.float32),)
    return tile


@triton.jit
def scores_of(q, k, PRECISION: tl.constexpr):
    """q kᵀ, [BLOCK_M, BLOCK_N]."""
    qk = tl.dot(q[0], k[0].T, input_precision=PRECISION)
    for part in tl.static_range(1, len(q)):
        qk = tl.dot(q[part], k[part].T, qk, input_precision=PRECISION)
    return qk


@triton.jit
def softmax_step(m_i, l_i, acc, qk, scale, v, PRECISION: tl.constexpr):
    """Fold scores qk · scale [BLOCK_M, BLOCK_N] and their values into a running softmax.

    `m_i` is the largest score so far, `l_i` the sum of the weights, `acc` that of the weighted values. The scale is
    positive; as a fused multiply-add its product and the difference to the maximum are one instruction.
    """
    m_ij = tl.maximum(m_i, tl.max(qk, 1) * scale)
    p = tl.exp2(tl.fma(qk, scale, -m_ij[:, None]))
    alpha = tl.exp2(m_i - m_ij)
    l_i = l_i * alpha + tl.sum(p, 1)
    p = p.to(v[0].dtype)
    out = ()
    for part in tl.static_range(len(v)):
        out += (tl.dot(p, v[part], acc[part] * alpha[:, None], input_precision=PRECISION),)
    return m_ij, l_i, out
