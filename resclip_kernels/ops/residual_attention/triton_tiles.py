"""Streaming softmax in Triton, tile by tile: what every branch of the residual attention is made of.

Scores are in base 2. A branch starts with [CLS]'s score and ends with [CLS]'s value; its tiles are of patches only.
Where [CLS] is not seen, or not there, it starts with UNSEEN. `shared_tile` adds the prior, Ŝ and the window, once for
several heads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    finished_tile,
    patch_positions,
    smoothed_tile,
)

# Stands for −∞ as the first score of a softmax: any real score shrinks its weight to exactly 0, where −∞ less −∞ would
# be NaN.
UNSEEN = tl.constexpr(-1e30)


@triton.jit
def pick(pointers, number):
    """pointers[number] for a number that is known at run time only."""
    chosen = pointers[0]
    for other in tl.static_range(1, len(pointers)):
        chosen = tl.where(number == other, pointers[other], chosen)
    return chosen


@triton.jit
def tile_offsets(stride_row, ROWS: tl.constexpr, PARTS: tl.constexpr):
    """Where a tile's entries lie from its first one: a tuple of [ROWS, PARTS[i]].

    A head's width is cut into powers of two, 80 into 64 + 16, so that no product runs over 48 columns of nothing.
    32 bits suffice inside a tile and take half the registers; where a tile begins is one 64-bit number.
    """
    offsets = ()
    for part in tl.static_range(len(PARTS)):
        dimension = part * PARTS[0] + tl.arange(0, PARTS[part])
        offsets += (tl.arange(0, ROWS)[:, None] * stride_row + dimension[None, :],)
    return offsets


@triton.jit
def load_tile(
    pointer, offsets, used, MASKED: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr
):
    """Rows of q, k, v or a result, zero where a row is not `used` and past the head's width: a tuple of tiles."""
    tile = ()
    for part in tl.static_range(len(PARTS)):
        dimension = part * PARTS[0] + tl.arange(0, PARTS[part])
        if MASKED:
            mask = used[:, None] & (dimension < WIDTH)[None, :]
            tile += (tl.load(pointer + offsets[part], mask=mask, other=0.0),)
        elif part * PARTS[0] + PARTS[part] > WIDTH:
            tile += (
                tl.load(pointer + offsets[part], mask=(dimension < WIDTH)[None, :], other=0.0),
            )
        else:
            tile += (tl.load(pointer + offsets[part]),)
    return tile


@triton.jit
def store_tile(pointer, offsets, used, tile, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """The inverse of a masked `load_tile`."""
    for part in tl.static_range(len(PARTS)):
        dimension = part * PARTS[0] + tl.arange(0, PARTS[part])
        mask = used[:, None] & (dimension < WIDTH)[None, :]
        tl.store(pointer + offsets[part], tile[part].to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def scores_of(query, keys, PRECISION: tl.constexpr):
    """q kᵀ, [BLOCK_M, BLOCK_N]."""
    score = tl.dot(query[0], keys[0].T, input_precision=PRECISION)
    for part in tl.static_range(1, len(query)):
        score = tl.dot(query[part], keys[part].T, score, input_precision=PRECISION)
    return score


@triton.jit
def score_of_cls(
    query,
    key,
    scale,
    row,
    HAS_CLS: tl.constexpr,
    HAS_SCORE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Base-2 score of the [CLS] column, with which every softmax starts: [BLOCK_M].

    0 without a score; UNSEEN without [CLS], and with a window in every row but its own.
    """
    if not HAS_CLS:
        return tl.full(row.shape, UNSEEN, tl.float32)
    score = tl.zeros(row.shape, tl.float32)
    if HAS_SCORE:
        for part in tl.static_range(len(PARTS)):
            dimension = part * PARTS[0] + tl.arange(0, PARTS[part])
            cls_key = tl.load(key + dimension, mask=dimension < WIDTH, other=0.0).to(tl.float32)
            score += tl.sum(query[part].to(tl.float32) * cls_key[None, :], 1)
        score = score * scale
    if HAS_WINDOW:
        score = tl.where(row == 0, score, UNSEEN)
    return score


@triton.jit
def zeros_of_part(ROWS: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr):
    """[ROWS, PARTS[PART]]; a function because an unrolled loop may not give a constant another value."""
    COLUMNS: tl.constexpr = PARTS[PART]
    return tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def begin_branch(cls_score, PARTS: tl.constexpr):
    """A softmax that knows [CLS]'s score and none of the values: (largest score, sum of weights, values' sum)."""
    ROWS: tl.constexpr = cls_score.shape[0]
    output = ()
    for part in tl.static_range(len(PARTS)):
        output += (zeros_of_part(ROWS, part, PARTS),)
    return cls_score, tl.full(cls_score.shape, 1.0, tl.float32), output


@triton.jit
def close_branch(
    state,
    cls_score,
    value,
    HAS_CLS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The branch's result once all patches are in: [CLS]'s value joins, then all is divided by the weights' sum.

    [CLS]'s value joins last because in the running sum it would hold registers all the way.
    """
    inverse = 1.0 / state[1]
    result = ()
    for part in tl.static_range(len(PARTS)):
        attended = state[2][part] * inverse[:, None]
        if HAS_CLS:
            cls_weight = tl.exp2(cls_score - state[0]) * inverse
            dimension = part * PARTS[0] + tl.arange(0, PARTS[part])
            cls_value = tl.load(value + dimension, mask=dimension < WIDTH, other=0.0).to(tl.float32)
            cls_part = cls_weight[:, None] * cls_value[None, :]
            if HAS_WINDOW:
                # Not a product with 0: the value may be NaN.
                cls_part = tl.where((cls_score > UNSEEN)[:, None], cls_part, 0.0)
            attended += cls_part
        result += (attended,)
    return result


@triton.jit
def absorb(state, score, scale, values, PRECISION: tl.constexpr):
    """Fold a tile of scores [BLOCK_M, BLOCK_N] and its values into a running softmax.

    score · scale (> 0) is in base 2; the product joins the subtraction below in one instruction.
    """
    largest = tl.maximum(state[0], tl.max(score, 1) * scale)
    weight = tl.exp2(score * scale - largest[:, None])
    shrink = tl.exp2(state[0] - largest)
    total = state[1] * shrink + tl.sum(weight, 1)
    weight = weight.to(values[0].dtype)
    output = ()
    for part in tl.static_range(len(values)):
        scaled = state[2][part] * shrink[:, None]
        output += (tl.dot(weight, values[part], scaled, input_precision=PRECISION),)
    return largest, total, output


@triton.jit
def plain_tile(
    state,
    query,
    key,
    value,
    offsets,
    first,
    patches,
    stride_token,
    scale,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold the patches from `first` into softmax(q kᵀ)·v of one head, no additive terms."""
    present = first + tl.arange(0, BLOCK_N) < patches
    place = tl.cast(first, tl.int64) * stride_token
    keys = load_tile(key + place, offsets, present, MASKED, WIDTH, PARTS)
    score = scores_of(query, keys, PRECISION)
    if MASKED:
        score = tl.where(present[None, :], score, -float("inf"))
    values = load_tile(value + place, offsets, present, MASKED, WIDTH, PARTS)
    return absorb(state, score, scale, values, PRECISION)


@triton.jit
def shared_tile(
    states,
    carried,
    queries,
    keys,
    values,
    offsets,
    first,
    patches,
    stride_token,
    stride_head,
    scale,
    labels,
    row_far,
    row_label,
    row_scale,
    row_y,
    row_x,
    row_reach,
    taps,
    grid_width,
    inverse_width,
    decay,
    feedback_weight,
    feedback_temperature,
    prior_rate,
    HAS_SCORE: tl.constexpr,
    HAS_FEEDBACK: tl.constexpr,
    HAS_FAR: tl.constexpr,
    NORMALISE: tl.constexpr,
    MARGIN: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    TILE_PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold the patches from `first` into softmax(x yᵀ + additive terms)·v of all the program's heads.

    Without a score nothing reads `queries` and `keys`.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    LOG2_LOG2_E: tl.constexpr = 0.5287663729448977
    column = first + tl.arange(0, BLOCK_N)
    present = column < patches
    if HAS_FEEDBACK:
        smooth, carried = smoothed_tile(
            carried, labels, row_far, row_label, row_y, row_x, taps, first, patches, grid_width, inverse_width, decay,
            HAS_FAR, MARGIN, BLOCK_N, TILE_PRECISION,
        )  # fmt: skip
        bonus = feedback_weight * finished_tile(smooth, row_scale, NORMALISE)
        if NORMALISE:
            bonus = bonus.to(tl.float16).to(tl.float32)
        bias = bonus * (feedback_temperature * LOG2_E)  # [BLOCK_M, BLOCK_N]
    if HAS_PRIOR or HAS_WINDOW:
        y, x = patch_positions(column, grid_width, inverse_width)
        vertical = row_y[:, None] - y[None, :]
        horizontal = row_x[:, None] - x[None, :]
    if HAS_PRIOR:
        squared = vertical * vertical + horizontal * horizontal
        # 2^(rate · r² + log2(log2 e)): the base-2 score's factor costs nothing in the exponent.
        prior = tl.exp2(prior_rate * squared + LOG2_LOG2_E)
        if HAS_FEEDBACK:
            bias += prior
        else:
            bias = prior
    elif not HAS_FEEDBACK and (HAS_WINDOW or not HAS_SCORE):
        ROWS: tl.constexpr = row_y.shape[0]
        bias = tl.zeros([ROWS, BLOCK_N], tl.float32)
    if HAS_WINDOW:
        distance = tl.maximum(tl.abs(vertical), tl.abs(horizontal))
        bias = tl.where(distance <= row_reach[:, None], bias, -float("inf"))
    if MASKED and (HAS_FEEDBACK or HAS_PRIOR or HAS_WINDOW or not HAS_SCORE):
        bias = tl.where(present[None, :], bias, -float("inf"))
    origin = tl.cast(first, tl.int64) * stride_token
    new_states = ()
    for head in tl.static_range(len(states)):
        place = origin + tl.cast(head, tl.int64) * stride_head
        left_scale = scale
        if HAS_SCORE:
            head_keys = load_tile(keys + place, offsets, present, MASKED, WIDTH, PARTS)
            score = scores_of(queries[head], head_keys, PRECISION)
            if HAS_FEEDBACK or HAS_PRIOR or HAS_WINDOW:
                score = score * scale + bias
                left_scale = 1.0
            elif MASKED:
                score = tl.where(present[None, :], score, -float("inf"))
        else:
            score = bias
            left_scale = 1.0
        head_values = load_tile(values + place, offsets, present, MASKED, WIDTH, PARTS)
        new_states += (absorb(states[head], score, left_scale, head_values, PRECISION),)
    return new_states, carried
