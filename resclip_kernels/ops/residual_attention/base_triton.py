"""A_b·v in Triton: self-correlation, what is added to its scores, and the mix with A_c·v in one pass.

A program owns a block of rows of one or two heads of an image. [CLS] starts every softmax as its first column; tiles
are of patches only, and begin one token into the keys where there is [CLS].
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch
from resclip_kernels.ops.residual_attention.additive_terms_triton import Block, blocks_of_rows
from resclip_kernels.ops.residual_attention.launch_table import Program
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
from resclip_kernels.options.residual_attention import AttentionOptions

# Stands for −∞ as the first score of a softmax: any real score shrinks its weight to exactly 0, where −∞ less −∞ would
# be NaN.
UNSEEN = tl.constexpr(-1e30)


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
    """`Heads` where the sum of the parts is to be written; None where there are none."""


class Weights(NamedTuple):
    """Factors; scores are in base 2."""

    score_scale: float
    own: float
    residual: float


class Plan(NamedTuple):
    """What is fixed when the kernel is compiled."""

    has_score: bool
    has_terms: bool
    hides_cls: bool
    """Whether patches do not see [CLS], which a window brings."""
    cls_tokens: int
    residuals: int
    """Parts of A_c·v: 0 for none of it, 1 for the whole."""
    width: int
    parts: tuple[int, ...]
    precision: str
    heads: int
    """A program's."""
    lean: bool
    """Whether a step forms again what all steps share, for fewer registers."""


@triton.jit
def cls_column(q, k_ptr, scale, offs_m, PLAN: tl.constexpr):
    """Base-2 score of the [CLS] column, with which every softmax starts: [BLOCK_M].

    0 without a score; UNSEEN without [CLS], and where it is hidden in every row but its own.
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
    if PLAN.hides_cls:
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
            if PLAN.hides_cls:
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
    stored,
    heads,
    tokens,
    first_row,
    rows,
    weights,
    PLAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M rows of `PLAN.heads` heads of one image, every score of the base, and the mix."""
    # Triton 3.6 takes a field for a constant only under a name of its own.
    HEADS: tl.constexpr = PLAN.heads
    RESIDUALS: tl.constexpr = PLAN.residuals
    PRECISION: tl.constexpr = PLAN.precision
    LEAN: tl.constexpr = PLAN.lean
    WIDTH: tl.constexpr = PLAN.width
    PARTS: tl.constexpr = PLAN.parts
    blocks = tl.cdiv(rows, BLOCK_M)
    groups = heads // HEADS
    program = tl.program_id(0)
    if PLAN.has_terms:
        # Heads of one block of rows follow each other, so that they find its terms in L2.
        first_head = program % groups * HEADS
        below = program // groups % blocks * BLOCK_M
    else:
        # Blocks of one head follow each other, so that they find its keys and values there.
        below = program % blocks * BLOCK_M
        first_head = program // blocks % groups * HEADS
    image = (program // groups // blocks).to(tl.int64)
    start = first_row + below
    offs_m = start + tl.arange(0, BLOCK_M)
    row_present = offs_m < first_row + rows
    patches = tokens - PLAN.cls_tokens
    term_ptrs = offs_m
    if PLAN.has_terms:
        # A row past the last one reads that one's.
        term_row = tl.minimum(below + tl.arange(0, BLOCK_M), rows - 1).to(tl.int64)
        term_ptrs = stored.data + image * stored.image + term_row * stored.columns
        term_ptrs = term_ptrs[:, None] + tl.arange(0, BLOCK_N)[None, :]

    q_offsets = tile_offsets(scores.strides.token, BLOCK_M, PARTS)
    k_offsets = tile_offsets(scores.strides.token, BLOCK_N, PARTS)
    v_offsets = tile_offsets(value.strides.token, BLOCK_N, PARTS)
    origin = head_origin(scores.strides, image, first_head)
    q_origin = origin + tl.cast(start, tl.int64) * scores.strides.token
    # Tiles begin behind [CLS].
    k_origin = origin + PLAN.cls_tokens * scores.strides.token
    v_ptr = value.data + head_origin(value.strides, image, first_head)
    totals = ()
    for _ in tl.static_range(HEADS):
        totals += (zero_tile(BLOCK_M, PARTS),)
    for score in tl.range(0, len(scores.lefts), disable_licm=True):
        q_ptr = pick(scores.lefts, score) + q_origin
        cls_ptr = pick(scores.rights, score) + origin
        k_ptr = pick(scores.rights, score) + k_origin
        q = ()
        cls_scores = ()
        l_i = ()
        acc = ()
        for head in tl.static_range(HEADS):
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
        for first in tl.range(0, patches, BLOCK_N, disable_licm=LEAN):
            present = first + tl.arange(0, BLOCK_N) < patches
            if PLAN.has_terms:
                # Past the last patch stands −∞.
                terms = tl.load(term_ptrs + first).to(tl.float32)
            else:
                nothing = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                terms = tl.where(present[None, :], nothing, -float("inf"))
            token = tl.cast(first, tl.int64)
            k_place = token * scores.strides.token
            v_place = (token + PLAN.cls_tokens) * value.strides.token
            new_m = ()
            new_l = ()
            new_acc = ()
            for head in tl.static_range(HEADS):
                qk = terms
                if PLAN.has_score:
                    head_k = k_ptr + k_place + tl.cast(head, tl.int64) * scores.strides.head
                    k = load_tile(head_k, k_offsets, present, WIDTH, PARTS)
                    qk = tl.fma(scores_of(q[head], k, PRECISION), weights.score_scale, terms)
                head_v = v_ptr + v_place + tl.cast(head, tl.int64) * value.strides.head
                v = load_tile(head_v, v_offsets, present, WIDTH, PARTS)
                m_ij, l_ij, acc_ij = softmax_step(
                    m_i[head], l_i[head], acc[head], qk, 1.0, v, PRECISION
                )
                new_m += (m_ij,)
                new_l += (l_ij,)
                new_acc += (acc_ij,)
            m_i = new_m
            l_i = new_l
            acc = new_acc
        summed = ()
        for head in tl.static_range(HEADS):
            cls_v = v_ptr + tl.cast(head, tl.int64) * value.strides.head
            attended = branch_result(m_i[head], l_i[head], acc[head], cls_scores[head], cls_v, PLAN)
            total = ()
            for part in tl.static_range(len(PARTS)):
                total += (totals[head][part] + weights.own * attended[part],)
            summed += (total,)
        totals = summed

    at = tl.cast(start, tl.int64)
    out_ptr = output.data + head_origin(output.strides, image, first_head)
    out_ptr += at * output.strides.token
    out_offsets = tile_offsets(output.strides.token, BLOCK_M, PARTS)
    for head in tl.static_range(HEADS):
        result = totals[head]
        if RESIDUALS > 0:
            place = head_origin(residual.strides, image, first_head + head)
            place += at * residual.strides.token
            offsets = tile_offsets(residual.strides.token, BLOCK_M, PARTS)
            mean = load_tile(residual.data + place, offsets, row_present, WIDTH, PARTS)
            for number in tl.static_range(1, RESIDUALS):
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
            if RESIDUALS > 1:
                kept_place = head_origin(residual.kept.strides, image, first_head + head)
                kept_place += at * residual.kept.strides.token
                kept_offsets = tile_offsets(residual.kept.strides.token, BLOCK_M, PARTS)
                kept_ptr = residual.kept.data + kept_place
                store_tile(kept_ptr, kept_offsets, row_present, mean, WIDTH, PARTS)
        head_out = out_ptr + tl.cast(head, tl.int64) * output.strides.head
        store_tile(head_out, out_offsets, row_present, result, WIDTH, PARTS)


def base_attention(
    scores: tuple[tuple[Tensor, Tensor], ...],
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
        kept: (B, A, L, d) with last stride 1, where the sum of the parts goes; None where there are none.
        program: how it is cut into programs.
        target: of the device.

    Returns:
        (B, A, L, d) in `value`'s dtype; in memory (B, L, A, d), as the merge of heads wants it.
    """
    batch, heads, tokens, width = value.shape
    output = value.new_empty((batch, tokens, heads, width)).transpose(1, 2)
    own, share = 1.0, 0.0
    if residual is not None:
        own = options.cross_temperature * (1.0 - options.cross_weight)
        share = options.cross_temperature * options.cross_weight
    if options.correlation == "pp":
        own /= len(scores)
    scale = options.scale(width, has_feedback=feedback is not None)
    weights = Weights(scale * math.log2(math.e), own, share)
    group = max(count for count in range(1, program.heads + 1) if heads % count == 0)
    for block in blocks_of_rows(options, feedback, value, target):
        plan = Plan(
            has_score=bool(scores),
            has_terms=block.stored is not None,
            hides_cls=options.window is not None,
            cls_tokens=options.cls_tokens(tokens),
            residuals=0 if residual is None else 1 if kept is None else len(residual),
            width=width,
            parts=parts_of(width),
            precision=target.dot_precision,
            heads=group,
            # Wide rows of q in three parts beside the sum over the scores would spill.
            lean=len(scores) > 1 and width > 64 and value.dtype == torch.float32,
        )
        attend_block(block, scores, value, output, residual, kept, weights, plan, program, target)
    return output


def attend_block(
    block: Block,
    scores: tuple[tuple[Tensor, Tensor], ...],
    value: Tensor,
    output: Tensor,
    residual: Tensor | None,
    kept: Tensor | None,
    weights: Weights,
    plan: Plan,
    program: Program,
    target: Target,
) -> None:
    """The rows of one block, into `output`."""
    images = block.images
    pairs = scores or ((value, value),)  # Without a score both are named and not read.
    lefts, rights = zip(*((left[images], right[images]) for left, right in pairs), strict=True)
    value, output = value[images], output[images]
    batch, heads, tokens, _ = value.shape
    if residual is None:
        mean = Residual(value, strides_of(value), 0, None)
    elif kept is None:
        mean = Residual(residual[images], strides_of(residual), 0, None)
    else:
        parts = residual[:, images]
        mean = Residual(parts, strides_of(parts[0]), parts.stride(0), heads_of(kept[images]))
    programs = batch * (heads // plan.heads) * triton.cdiv(block.rows, program.rows)
    # Fewer registers let two programs share a multiprocessor, if there are as many. Several scores, parts of A_c·v and
    # [CLS] behind a window want them all.
    is_simple = len(pairs) == 1 and kept is None and not plan.hides_cls
    shares = is_simple and programs > target.programs_at_once
    launch(
        base_kernel,
        programs,
        {
            "scores": Scores(lefts, rights, strides_of(lefts[0])),
            "value": heads_of(value),
            "residual": mean,
            "output": heads_of(output),
            "stored": block.stored,
            "heads": heads,
            "tokens": tokens,
            "first_row": block.first_row,
            "rows": block.rows,
            "weights": weights,
        },
        {"PLAN": plan, "BLOCK_M": program.rows, "BLOCK_N": program.columns},
        Options(
            program.num_warps, program.num_stages, registers=program.registers if shares else None
        ),
        on=value,
    )
