"""A_b·v in Triton: self-correlation, neighbourhood prior, Ŝ, window and the mix with A_c·v in one pass.

A program owns a block of rows of one or two heads of an image: what is added to the scores is the same for every head,
so that two heads share each tile of it. [CLS] starts every softmax as its first column; tiles are of patches only, and
begin CLS_TOKENS tokens (0 or 1) into the keys. λ_s·Ŝ is read as it was stored in float16, or formed tile by tile.
"""

# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch
from resclip_kernels.ops.residual_attention.launch_table import Program
from resclip_kernels.ops.residual_attention.options import AttentionOptions
from resclip_kernels.ops.residual_attention.triton_tiles import (
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
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.ops.semantic_feedback.triton import (
    feedback_arguments,
    fill_matrix,
    grid_arguments,
)
from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    FeedbackTiles,
    feedback_rows,
    first_entries,
    patch_positions,
    smoothed_tile,
    smoothing_taps,
    weighted_tile,
)

BONUS_BYTES = 1 << 27
"""λ_s·Ŝ is stored while that takes no more memory than this: one image of 8,000 patches, 1,700 of 196."""
# Columns of a stored λ_s·Ŝ are a multiple of this, which no program's columns exceed: tiles need no mask.
BONUS_PADDING = 128
# Stands for −∞ as the first score of a softmax: any real score shrinks its weight to exactly 0, where −∞ less −∞ would
# be NaN.
UNSEEN = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_LOG2_E = tl.constexpr(0.5287663729448977)
# Where [CLS] stands among the patches: so far away that no prior reaches it.
NOWHERE = tl.constexpr(1e18)


class Scores(NamedTuple):
    """x and y of every score x yᵀ; all share their strides. Without a score they are named and not read."""

    lefts: tuple[Any, ...]
    rights: tuple[Any, ...]
    strides: Strides


class Residual(NamedTuple):
    """A_c·v, or the layers' parts of it."""

    data: Any
    """(B, A, L, d); in parts, (layers, B, A, L, d) float32."""
    strides: Strides
    part: int
    """Elements from one layer's part to the next."""
    kept: Any
    """(B, A, L, d), dense, where the sum of the parts is to be written; None where there are none."""


class Weights(NamedTuple):
    """Factors and rates; scores are in base 2."""

    score_scale: float
    feedback: float
    """λ_s."""
    feedback_scale: float
    """τ_s · log2 e."""
    prior_rate: float
    window_reach: float
    own: float
    residual: float


class Plan(NamedTuple):
    """What is fixed when the kernel is compiled."""

    has_score: bool
    feedback: str
    """"none", "stored" or "formed"."""
    has_prior: bool
    has_window: bool
    cls_tokens: int
    residuals: int
    """Parts of A_c·v: 0 for none of it, 1 for the whole."""
    width: int
    parts: tuple[int, ...]
    precision: str
    heads: int
    """A program's."""


class Geometry(NamedTuple):
    """Where a program's rows stand on the grid, and how far they see: [BLOCK_M] each."""

    y: Any
    x: Any
    reach: Any


@triton.jit
def row_geometry(offs_m, grid, weights, PLAN: tl.constexpr):
    """`Geometry` of these tokens; [CLS] is far from every patch, and sees as far."""
    y, x = patch_positions(tl.maximum(offs_m - PLAN.cls_tokens, 0), grid)
    reach = tl.zeros(offs_m.shape, tl.float32) + weights.window_reach
    if PLAN.cls_tokens > 0:
        y = tl.where(offs_m > 0, y, NOWHERE)
        reach = tl.where(offs_m > 0, reach, 1e30)
    return Geometry(y, x, reach)


@triton.jit
def placed_terms(rows, grid, weights, column, PLAN: tl.constexpr):
    """The prior, and −∞ outside the window: [BLOCK_M, BLOCK_N]; 0 without either."""
    y, x = patch_positions(column, grid)
    down = rows.y[:, None] - y[None, :]
    across = rows.x[:, None] - x[None, :]
    bias = tl.zeros(down.shape, tl.float32)
    if PLAN.has_prior:
        # 2^(rate · r² + log2(log2 e)): the base-2 score's factor costs nothing in the exponent.
        bias = tl.exp2(weights.prior_rate * (down * down + across * across) + LOG2_LOG2_E)
    if PLAN.has_window:
        distance = tl.maximum(tl.abs(down), tl.abs(across))
        bias = tl.where(distance <= rows.reach[:, None], bias, -float("inf"))
    return bias


@triton.jit
def cls_column(q, k_ptr, scale, offs_m, PLAN: tl.constexpr):
    """Base-2 score of the [CLS] column, with which every softmax starts: [BLOCK_M].

    0 without a score; UNSEEN without [CLS], and with a window in every row but its own.
    """
    if PLAN.cls_tokens == 0:
        return tl.full(offs_m.shape, UNSEEN, tl.float32)
    score = tl.zeros(offs_m.shape, tl.float32)
    if PLAN.has_score:
        for part in tl.static_range(len(PLAN.parts)):
            offs_d = part * PLAN.parts[0] + tl.arange(0, PLAN.parts[part])
            k = tl.load(k_ptr + offs_d, mask=offs_d < PLAN.width, other=0.0).to(tl.float32)
            score += tl.sum(q[part].to(tl.float32) * k[None, :], 1)
        score = score * scale
    if PLAN.has_window:
        score = tl.where(offs_m == 0, score, UNSEEN)
    return score


@triton.jit
def branch_result(m_i, l_i, acc, cls_score, v_ptr, PLAN: tl.constexpr):
    """softmax·v once all patches are in: [CLS]'s value joins, then all is divided by the weights' sum.

    [CLS]'s value joins last because in the running sum it would hold registers all the way.
    """
    inverse = 1.0 / l_i
    result = ()
    for part in tl.static_range(len(PLAN.parts)):
        attended = acc[part] * inverse[:, None]
        if PLAN.cls_tokens > 0:
            weight = tl.exp2(cls_score - m_i) * inverse
            offs_d = part * PLAN.parts[0] + tl.arange(0, PLAN.parts[part])
            v = tl.load(v_ptr + offs_d, mask=offs_d < PLAN.width, other=0.0).to(tl.float32)
            share = weight[:, None] * v[None, :]
            if PLAN.has_window:
                # Not a product with 0: the value may be NaN.
                share = tl.where((cls_score > UNSEEN)[:, None], share, 0.0)
            attended += share
        result += (attended,)
    return result


@triton.jit
def base_kernel(
    scores,
    value,
    residual,
    output,
    feedback,
    bonus,
    patch_grid,
    heads,
    tokens,
    weights,
    PLAN: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M rows of `PLAN.heads` heads of one image, every score of the base, and the mix."""
    WIDTH: tl.constexpr = PLAN.width
    PARTS: tl.constexpr = PLAN.parts
    blocks = tl.cdiv(tokens, BLOCK_M)
    groups = heads // PLAN.heads
    program = tl.program_id(0)
    if PLAN.feedback == "stored":
        # Heads of one block of rows follow each other, so that they find its λ_s·Ŝ in L2.
        first_head = program % groups * PLAN.heads
        start = program // groups % blocks * BLOCK_M
    else:
        # Blocks of one head follow each other, so that they find its keys and values there.
        start = program % blocks * BLOCK_M
        first_head = program // blocks % groups * PLAN.heads
    image = (program // groups // blocks).to(tl.int64)
    offs_m = start + tl.arange(0, BLOCK_M)
    row_present = offs_m < tokens
    patches = tokens - PLAN.cls_tokens
    rows = row_geometry(offs_m, patch_grid, weights, PLAN)
    bonus_ptrs = bonus
    feedback_of_rows = rows
    taps = ()
    if PLAN.feedback == "stored":
        padded = tl.cdiv(patches, BONUS_PADDING) * BONUS_PADDING
        bonus_row = image * tokens + tl.minimum(offs_m, tokens - 1)
        bonus_ptrs = (bonus + bonus_row * padded)[:, None] + tl.arange(0, BLOCK_N)[None, :]
    if PLAN.feedback == "formed":
        inside = row_present & (offs_m >= PLAN.cls_tokens)
        patch = tl.maximum(offs_m - PLAN.cls_tokens, 0)
        feedback_of_rows = feedback_rows(
            feedback, image, patch, inside, rows.y, rows.x, patches, TILES
        )
        taps = smoothing_taps(feedback, TILES, BLOCK_N)

    q_offsets = tile_offsets(scores.strides.token, BLOCK_M, PARTS)
    k_offsets = tile_offsets(scores.strides.token, BLOCK_N, PARTS)
    v_offsets = tile_offsets(value.strides.token, BLOCK_N, PARTS)
    origin = head_origin(scores.strides, image, first_head)
    q_origin = origin + tl.cast(start, tl.int64) * scores.strides.token
    # Tiles begin behind [CLS].
    k_origin = origin + PLAN.cls_tokens * scores.strides.token
    v_ptr = value.data + head_origin(value.strides, image, first_head)
    totals = ()
    for _ in tl.static_range(PLAN.heads):
        totals += (zero_tile(BLOCK_M, PARTS),)
    for score in tl.range(0, len(scores.lefts), disable_licm=True):
        q_ptr = pick(scores.lefts, score) + q_origin
        cls_ptr = pick(scores.rights, score) + origin
        k_ptr = pick(scores.rights, score) + k_origin
        q = ()
        cls_scores = ()
        l_i = ()
        acc = ()
        for head in tl.static_range(PLAN.heads):
            place = tl.cast(head, tl.int64) * scores.strides.head
            if PLAN.has_score:
                q += (load_tile(q_ptr + place, q_offsets, row_present, WIDTH, PARTS),)
                own_q = q[head]
            else:
                own_q = ()
            cls_scores += (cls_column(own_q, cls_ptr + place, weights.score_scale, offs_m, PLAN),)
            l_i += (tl.full([BLOCK_M], 1.0, tl.float32),)
            acc += (zero_tile(BLOCK_M, PARTS),)
        m_i = cls_scores
        carried = ()
        if PLAN.feedback == "formed":
            carried = first_entries(feedback, patch_grid, feedback_of_rows, patches, TILES)
        for first in tl.range(0, patches, BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            present = column < patches
            bias = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if PLAN.has_prior or PLAN.has_window:
                bias = placed_terms(rows, patch_grid, weights, column, PLAN)
            if PLAN.feedback == "stored":
                stored = tl.load(bonus_ptrs + first).to(tl.float32)
                # Past the last patch stands −∞.
                bias = tl.fma(stored, weights.feedback_scale, bias)
            else:
                if PLAN.feedback == "formed":
                    smooth, carried = smoothed_tile(
                        carried, feedback, patch_grid, feedback_of_rows, taps, first, patches, TILES, BLOCK_N
                    )  # fmt: skip
                    formed = weighted_tile(smooth, feedback_of_rows, weights.feedback, TILES)
                    bias = tl.fma(formed, weights.feedback_scale, bias)
                bias = tl.where(present[None, :], bias, -float("inf"))
            token = tl.cast(first, tl.int64)
            k_place = token * scores.strides.token
            v_place = (token + PLAN.cls_tokens) * value.strides.token
            new_m = ()
            new_l = ()
            new_acc = ()
            for head in tl.static_range(PLAN.heads):
                qk = bias
                if PLAN.has_score:
                    head_k = k_ptr + k_place + tl.cast(head, tl.int64) * scores.strides.head
                    k = load_tile(head_k, k_offsets, present, WIDTH, PARTS)
                    qk = tl.fma(scores_of(q[head], k, PLAN.precision), weights.score_scale, bias)
                head_v = v_ptr + v_place + tl.cast(head, tl.int64) * value.strides.head
                v = load_tile(head_v, v_offsets, present, WIDTH, PARTS)
                m_ij, l_ij, acc_ij = softmax_step(
                    m_i[head], l_i[head], acc[head], qk, 1.0, v, PLAN.precision
                )
                new_m += (m_ij,)
                new_l += (l_ij,)
                new_acc += (acc_ij,)
            m_i = new_m
            l_i = new_l
            acc = new_acc
        summed = ()
        for head in tl.static_range(PLAN.heads):
            cls_v = v_ptr + tl.cast(head, tl.int64) * value.strides.head
            attended = branch_result(m_i[head], l_i[head], acc[head], cls_scores[head], cls_v, PLAN)
            total = ()
            for part in tl.static_range(len(PARTS)):
                total += (totals[head][part] + weights.own * attended[part],)
            summed += (total,)
        totals = summed

    below = tl.cast(start, tl.int64)
    out_ptr = output.data + head_origin(output.strides, image, first_head)
    out_ptr += below * output.strides.token
    out_offsets = tile_offsets(output.strides.token, BLOCK_M, PARTS)
    for head in tl.static_range(PLAN.heads):
        result = totals[head]
        if PLAN.residuals > 0:
            place = head_origin(residual.strides, image, first_head + head)
            place += below * residual.strides.token
            offsets = tile_offsets(residual.strides.token, BLOCK_M, PARTS)
            mean = load_tile(residual.data + place, offsets, row_present, WIDTH, PARTS)
            for number in tl.static_range(1, PLAN.residuals):
                part_ptr = residual.data + place + tl.cast(number, tl.int64) * residual.part
                more = load_tile(part_ptr, offsets, row_present, WIDTH, PARTS)
                added = ()
                for part in tl.static_range(len(PARTS)):
                    added += (mean[part] + more[part],)
                mean = added
            mixed = ()
            for part in tl.static_range(len(PARTS)):
                # Rounded as where the layers were summed before: A_c·v is the same for the call that takes it over.
                share = mean[part].to(output.data.dtype.element_ty).to(tl.float32)
                mixed += (result[part] + weights.residual * share,)
            result = mixed
            if PLAN.residuals > 1:
                store_tile(residual.kept + place, offsets, row_present, mean, WIDTH, PARTS)
        head_out = out_ptr + tl.cast(head, tl.int64) * output.strides.head
        store_tile(head_out, out_offsets, row_present, result, WIDTH, PARTS)


def base_attention(
    scores: list[tuple[Tensor, Tensor]],
    value: Tensor,
    options: AttentionOptions,
    feedback: SemanticFeedback | None,
    residual: Tensor | None,
    kept: Tensor | None,
    program: Program,
    target: Target,
) -> Tensor:
    """A_b·v, mixed with A_c·v where it is given.

    Args:
        scores: (x, y) of each score, (B, A, L, d); all share their strides, the last of which is 1. Empty for a
            softmax of the additive terms alone.
        value: (B, A, L, d), last stride 1.
        options: the additive terms and weights; not "identity".
        feedback: of SFR.
        residual: A_c·v, (B, A, L, d) with last stride 1, or its parts, (layers, B, A, L, d); None without RCS.
        kept: (B, A, L, d), dense: where the sum of the parts goes; None where there are none.
        program: how it is cut into programs.
        target: of the device.

    Returns:
        (B, A, L, d) in `value`'s dtype; in memory (B, L, A, d), as the merge of heads wants it.
    """
    batch, heads, tokens, width = value.shape
    output = value.new_empty((batch, tokens, heads, width)).transpose(1, 2)
    cls_tokens = options.cls_tokens(tokens)
    mode, arguments, tiles, bonus = feedback_terms(feedback, options, value, cls_tokens, target)
    own, rest = 1.0, 0.0
    if residual is not None:
        own = options.cross_temperature * (1.0 - options.cross_weight)
        rest = options.cross_temperature * options.cross_weight
    if options.correlation == "pp":
        own /= len(scores)
    std = options.neighbourhood_std
    scale = options.scale(width, has_feedback=feedback is not None)
    group = max(count for count in range(1, program.heads + 1) if heads % count == 0)
    lefts, rights = zip(*(scores or [(value, value)]), strict=True)
    parts = 0 if residual is None else len(residual) if kept is not None else 1
    whole = value if residual is None else residual[0] if kept is not None else residual
    launch(
        base_kernel,
        batch * (heads // group) * triton.cdiv(tokens, program.rows),
        {
            "scores": Scores(lefts, rights, strides_of(lefts[0])),
            "value": heads_of(value),
            "residual": Residual(whole, strides_of(whole), whole.numel(), kept),
            "output": heads_of(output),
            "feedback": arguments,
            "bonus": bonus,
            "patch_grid": grid_arguments(options.grid),
            "heads": heads,
            "tokens": tokens,
            "weights": Weights(
                score_scale=scale * math.log2(math.e),
                feedback=options.feedback_weight,
                feedback_scale=options.feedback_temperature * math.log2(math.e),
                prior_rate=0.0 if std is None else -math.log2(math.e) / (2 * std**2),
                window_reach=0.0 if options.window is None else float(options.reach),
                own=own,
                residual=rest,
            ),
        },
        {
            "PLAN": Plan(
                has_score=bool(scores),
                feedback=mode,
                has_prior=std is not None,
                has_window=options.window is not None,
                cls_tokens=cls_tokens,
                residuals=parts,
                width=width,
                parts=parts_of(width),
                precision=target.dot_precision,
                heads=group,
            ),
            "TILES": tiles,
            "BLOCK_M": program.rows,
            "BLOCK_N": program.columns,
        },
        Options(program.num_warps, program.num_stages),
        on=value,
    )
    return output


def is_stored(feedback: SemanticFeedback, tokens: int) -> bool:
    """Whether λ_s·Ŝ of these images is stored; float16 holds it exactly only where Ŝ is normalised."""
    padded = -(-feedback.patches // BONUS_PADDING) * BONUS_PADDING
    needed = 2 * len(feedback.labels) * tokens * padded
    return feedback.options.normalise and needed <= BONUS_BYTES


def feedback_terms(
    feedback: SemanticFeedback | None,
    options: AttentionOptions,
    value: Tensor,
    cls_tokens: int,
    target: Target,
) -> tuple[str, Any, FeedbackTiles | None, Tensor | None]:
    """(`Plan.feedback`, the kernel's `feedback`, TILES and `bonus`)."""
    if feedback is None:
        return "none", None, None, None
    arguments, tiles = feedback_arguments(feedback, value.dtype, target)
    tokens = cls_tokens + feedback.patches
    if not is_stored(feedback, tokens):
        return "formed", arguments, tiles, None
    padded = -(-feedback.patches // BONUS_PADDING) * BONUS_PADDING
    bonus = value.new_empty((len(value), tokens, padded), dtype=torch.float16)
    fill_matrix(
        bonus,
        feedback.grid,
        arguments,
        tiles,
        weight=options.feedback_weight,
        cls_tokens=cls_tokens,
    )
    return "stored", None, None, bonus
