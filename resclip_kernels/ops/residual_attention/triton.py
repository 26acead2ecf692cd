"""The residual attention as one Triton kernel: every branch streams over the keys, no L × L map exists.

A program owns a block of rows of some heads of one image. It averages the middle blocks' attention head by head, then
walks over the patches once for all of its heads: Ŝ's tile and the prior's are the same for every head, so they are
formed once per tile and not once per head. [CLS] starts every softmax as its first column; the tiles are of patches
only, and begin CLS_TOKENS tokens (0 or 1) into the keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, launch, target_of
from resclip_kernels.ops.residual_attention.options import AttentionOptions, score_operands
from resclip_kernels.ops.residual_attention.tile_configs import (
    choose_config,
    layers_apart,
    parts_of,
)
from resclip_kernels.ops.residual_attention.triton_tiles import (
    begin_branch,
    close_branch,
    load_tile,
    pick,
    plain_tile,
    score_of_cls,
    shared_tile,
    store_tile,
    tile_offsets,
)
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.ops.semantic_feedback.triton import feedback_arguments, tile_constant
from resclip_kernels.ops.semantic_feedback.triton_tiles import (
    first_entries,
    label_rows,
    patch_positions,
    row_scales,
    smoothing_taps,
)


@triton.jit
def average_layers(
    cross_queries,
    cross_keys,
    value,
    cross_layer,
    offsets,
    row_offsets,
    dense_offsets,
    row,
    row_used,
    origin,
    below,
    whole,
    patches,
    stride_token,
    stride_head,
    stride_dense,
    cross_scale,
    CLS_TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A_c·v of the program's rows, head by head, into `cross_layer`: mean over the layers of softmax(q_i k_iᵀ)·v.

    Loops at run time, and nothing hoisted out of them: unrolled, the compiler starts every layer's loads at once, and
    hoisted addresses alone filled the registers.
    """
    for head in tl.range(0, HEADS, disable_licm=True):
        place = tl.cast(head, tl.int64) * stride_head
        kept = cross_layer + tl.cast(head, tl.int64) * stride_dense
        for layer in tl.range(0, len(cross_queries), disable_licm=True):
            query = pick(cross_queries, layer) + origin + place + below
            query = load_tile(query, row_offsets, row_used, True, WIDTH, PARTS)
            key = pick(cross_keys, layer) + origin + place
            cls_score = score_of_cls(
                query, key, cross_scale, row, CLS_TOKENS, True, False, WIDTH, PARTS
            )
            state = begin_branch(cls_score, PARTS)
            patch_keys = key + CLS_TOKENS * stride_token
            patch_values = value + place + CLS_TOKENS * stride_token
            for first in tl.range(0, whole, BLOCK_N, disable_licm=True):
                state = plain_tile(
                    state, query, patch_keys, patch_values, offsets, first, patches, stride_token, cross_scale, False,
                    BLOCK_N, WIDTH, PARTS, PRECISION,
                )  # fmt: skip
            if whole < patches:
                state = plain_tile(
                    state, query, patch_keys, patch_values, offsets, whole, patches, stride_token, cross_scale, True,
                    BLOCK_N, WIDTH, PARTS, PRECISION,
                )  # fmt: skip
            attended = close_branch(
                state, cls_score, value + place, CLS_TOKENS, False, WIDTH, PARTS
            )
            # The sum waits in memory, L · d a branch: in registers it would be with every tile of every layer.
            before = load_tile(kept, dense_offsets, row_used & (layer > 0), True, WIDTH, PARTS)
            mean = ()
            for part in tl.static_range(len(PARTS)):
                mean += (before[part].to(tl.float32) + attended[part] * (1.0 / len(cross_queries)),)
            store_tile(kept, dense_offsets, row_used, mean, WIDTH, PARTS)
            # What one thread stored another may load.
            tl.debug_barrier()


@triton.jit
def residual_attention_kernel(
    lefts,
    rights,
    cross_queries,
    cross_keys,
    value,
    cross_layer,
    output,
    labels,
    far,
    row_sums,
    maximum,
    stride_image,
    stride_head,
    stride_token,
    far_stride,
    heads,
    tokens,
    grid_width,
    inverse_width,
    score_scale,
    cross_scale,
    decay,
    reach,
    spread,
    peak,
    feedback_weight,
    feedback_temperature,
    prior_rate,
    window_reach,
    cross_weight,
    cross_temperature,
    CLS_TOKENS: tl.constexpr,
    HAS_SCORE: tl.constexpr,
    IS_MEAN: tl.constexpr,
    HAS_FEEDBACK: tl.constexpr,
    HAS_FAR: tl.constexpr,
    NORMALISE: tl.constexpr,
    MARGIN: tl.constexpr,
    TILE_DTYPE: tl.constexpr,
    TILE_PRECISION: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CROSS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M rows of HEADS heads of one image, all branches; neighbours in the grid share keys."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    groups = heads // HEADS
    image = (tl.program_id(0) // (blocks * groups)).to(tl.int64)
    first_head = (tl.program_id(0) // blocks) % groups * HEADS
    start = (tl.program_id(0) % blocks) * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    row_used = row < tokens
    patches = tokens - CLS_TOKENS
    whole = patches // BLOCK_N * BLOCK_N
    row_offsets = tile_offsets(stride_token, BLOCK_M, PARTS)
    offsets = tile_offsets(stride_token, BLOCK_N, PARTS)
    origin = image * stride_image + tl.cast(first_head, tl.int64) * stride_head
    below = tl.cast(start, tl.int64) * stride_token
    # The results lie densely: (B, A, L, d).
    dense = ((image * heads + first_head) * tokens + start) * WIDTH
    dense_offsets = tile_offsets(WIDTH, BLOCK_M, PARTS)

    if len(cross_queries) > 0:
        average_layers(
            cross_queries, cross_keys, value + origin, cross_layer + dense, offsets, row_offsets, dense_offsets,
            row, row_used, origin, below, whole, patches, stride_token, stride_head, tokens * WIDTH, cross_scale,
            CLS_TOKENS, HEADS, BLOCK_N, WIDTH, PARTS, PRECISION,
        )  # fmt: skip

    row_patch = tl.maximum(row - CLS_TOKENS, 0)
    row_y, row_x = patch_positions(row_patch, grid_width, inverse_width)
    row_reach = row_y
    if CLS_TOKENS:
        # [CLS]'s row has neither prior nor feedback: it is far from everything and of no class.
        row_y = tl.where(row > 0, row_y, 1e18)
    if HAS_WINDOW:
        # All the same [CLS]'s row sees as far as that.
        row_reach = tl.where(row < CLS_TOKENS, 1e30, window_reach)
    row_far = far
    row_label = row_patch
    row_scale = score_scale
    taps = ()
    if HAS_FEEDBACK:
        taps = smoothing_taps(reach, spread, peak, MARGIN, BLOCK_N, TILE_DTYPE)
        row_inside = (row >= CLS_TOKENS) & (row < tokens)
        labels += image * patches
        row_label, row_far = label_rows(
            labels, far, far_stride, image, row_patch, row_inside, patches, HAS_FAR
        )
        row_scale = row_scales(
            row_sums + image * patches, maximum, row_patch, row_inside, image, NORMALISE
        )

    own_weight = 1.0
    residual_weight = 0.0
    if HAS_CROSS:
        own_weight = cross_temperature * (1.0 - cross_weight)
        residual_weight = cross_temperature * cross_weight
    if IS_MEAN:
        own_weight *= 1.0 / len(lefts)
    if len(lefts) == 0:
        # The unit matrix: every token keeps its own value.
        for head in tl.range(0, HEADS, disable_licm=True):
            own = value + origin + tl.cast(head, tl.int64) * stride_head + below
            own = load_tile(own, row_offsets, row_used, True, WIDTH, PARTS)
            place = dense + tl.cast(head, tl.int64) * tokens * WIDTH
            if HAS_CROSS:
                residual = load_tile(
                    cross_layer + place, dense_offsets, row_used, True, WIDTH, PARTS
                )
                mixed = ()
                for part in tl.static_range(len(PARTS)):
                    mixed += (
                        own_weight * own[part].to(tl.float32)
                        + residual_weight * residual[part].to(tl.float32),
                    )
                own = mixed
            store_tile(output + place, dense_offsets, row_used, own, WIDTH, PARTS)
    else:
        for score in tl.range(0, len(lefts), disable_licm=True):
            left = pick(lefts, score) + origin
            right = pick(rights, score) + origin
            queries = ()
            cls_scores = ()
            states = ()
            for head in tl.static_range(HEADS):
                place = tl.cast(head, tl.int64) * stride_head
                query = ()
                if HAS_SCORE:
                    query = load_tile(
                        left + place + below, row_offsets, row_used, True, WIDTH, PARTS
                    )
                    queries += (query,)
                cls_score = score_of_cls(
                    query, right + place, score_scale, row, CLS_TOKENS, HAS_SCORE, HAS_WINDOW, WIDTH, PARTS
                )  # fmt: skip
                cls_scores += (cls_score,)
                states += (begin_branch(cls_score, PARTS),)
            keys = right + CLS_TOKENS * stride_token
            values = value + origin + CLS_TOKENS * stride_token
            carried = ()
            if HAS_FEEDBACK:
                carried = first_entries(
                    labels, row_far, row_label, row_y, row_x, 0, patches, grid_width, inverse_width, decay, HAS_FAR,
                    MARGIN, TILE_DTYPE
                )  # fmt: skip
            for first in tl.range(0, whole, BLOCK_N, disable_licm=True):
                states, carried = shared_tile(
                    states, carried, queries, keys, values, offsets, first, patches, stride_token, stride_head,
                    score_scale, labels, row_far, row_label, row_scale, row_y, row_x, row_reach, taps, grid_width,
                    inverse_width, decay, feedback_weight, feedback_temperature, prior_rate, HAS_SCORE, HAS_FEEDBACK,
                    HAS_FAR, NORMALISE, MARGIN, HAS_PRIOR, HAS_WINDOW, TILE_PRECISION, False, BLOCK_N, WIDTH,
                    PARTS, PRECISION,
                )  # fmt: skip
            if whole < patches:
                states, carried = shared_tile(
                    states, carried, queries, keys, values, offsets, whole, patches, stride_token, stride_head,
                    score_scale, labels, row_far, row_label, row_scale, row_y, row_x, row_reach, taps, grid_width,
                    inverse_width, decay, feedback_weight, feedback_temperature, prior_rate, HAS_SCORE, HAS_FEEDBACK,
                    HAS_FAR, NORMALISE, MARGIN, HAS_PRIOR, HAS_WINDOW, TILE_PRECISION, True, BLOCK_N, WIDTH,
                    PARTS, PRECISION,
                )  # fmt: skip
            for head in tl.static_range(HEADS):
                head_value = value + origin + tl.cast(head, tl.int64) * stride_head
                attended = close_branch(
                    states[head], cls_scores[head], head_value, CLS_TOKENS, HAS_WINDOW, WIDTH, PARTS
                )
                place = dense + tl.cast(head, tl.int64) * tokens * WIDTH
                before = load_tile(
                    output + place, dense_offsets, row_used & (score > 0), True, WIDTH, PARTS
                )
                result = ()
                for part in tl.static_range(len(PARTS)):
                    result += (before[part].to(tl.float32) + own_weight * attended[part],)
                if HAS_CROSS:
                    residual = load_tile(
                        cross_layer + place, dense_offsets, row_used & (score == 0), True, WIDTH, PARTS
                    )  # fmt: skip
                    mixed = ()
                    for part in tl.static_range(len(PARTS)):
                        mixed += (result[part] + residual_weight * residual[part].to(tl.float32),)
                    result = mixed
                store_tile(output + place, dense_offsets, row_used, result, WIDTH, PARTS)
            tl.debug_barrier()


def residual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The formula of `resclip_kernels.residual_attention` in one launch; in two where one kernel would spill."""
    batch, heads, tokens, width = query.shape
    target = target_of(query)
    # "identity" is the middle blocks' own launch, which has no base to be kept apart from.
    has_base = options.correlation != "identity"
    apart = has_base and layers_apart(target, query.dtype, width, feedback is not None)
    if apart and cross_layers and cross_layer is None:
        alone = AttentionOptions(grid=options.grid, correlation="identity")
        cross_layer = residual_attention(query, key, value, alone, (), None, cross_layers, None)[1]
    if cross_layer is not None:
        cross_layers = ()
    # Without a score there still is a softmax: its operands are named and not read.
    has_score = options.correlation != "none"
    scores = [(value, value)]
    if has_score:
        scores = score_operands(options.correlation, query, key, projections)
    branches = len(scores)
    flat = [tensor for pair in (*scores, *cross_layers) for tensor in pair]
    value, *flat = with_common_strides([value, *flat])
    left, right = tuple(flat[::2]), tuple(flat[1::2])
    output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    if cross_layer is not None:
        average = cross_layer.contiguous()
    elif cross_layers:
        average = cross_layer = torch.empty_like(output)
    else:
        average = output  # Neither read nor written.
    config = choose_config(
        target, value.dtype, width, feedback is not None, options.window is not None, branches
    )
    group = max(count for count in range(1, config.heads + 1) if heads % count == 0)
    arguments, constants = option_arguments(options, feedback, value)
    launch(
        residual_attention_kernel,
        batch * (heads // group) * triton.cdiv(tokens, config.rows),
        {
            "lefts": left[:branches],
            "rights": right[:branches],
            "cross_queries": left[branches:],
            "cross_keys": right[branches:],
            "value": value,
            "cross_layer": average,
            "output": output,
            "stride_image": value.stride(0),
            "stride_head": value.stride(1),
            "stride_token": value.stride(2),
            "heads": heads,
            "tokens": tokens,
            "cross_scale": math.log2(math.e) / math.sqrt(width),
            **arguments,
        },
        {
            **constants,
            "CLS_TOKENS": options.cls_tokens(tokens),
            "HAS_SCORE": has_score,
            "IS_MEAN": options.correlation == "pp",
            "HAS_CROSS": cross_layer is not None,
            "WIDTH": width,
            "PARTS": parts_of(width),
            "PRECISION": "ieee",
            "TILE_PRECISION": target.dot_precision,
            "HEADS": group,
            "BLOCK_M": config.rows,
            "BLOCK_N": config.columns,
        },
        Options(config.num_warps, config.num_stages),
        on=value,
    )
    return output, cross_layer


def option_arguments(
    options: AttentionOptions, feedback: SemanticFeedback | None, value: Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments, constants) of the additive terms and weights; scores are in base 2."""
    constants: dict[str, Any]
    if feedback is None:
        arguments: dict[str, Any] = dict.fromkeys(("labels", "far", "row_sums", "maximum"))
        arguments |= {"far_stride": 0, "decay": 0.0, "reach": 0, "spread": 0.0, "peak": 1.0}
        constants = {"HAS_FAR": False, "NORMALISE": False, "MARGIN": 0}
    else:
        arguments, constants = feedback_arguments(feedback)
    std = options.neighbourhood_std
    scale = options.scale(value.shape[-1], has_feedback=feedback is not None)
    arguments |= {
        "grid_width": float(max(1, options.grid[1])),
        "inverse_width": 1.0 / max(1, options.grid[1]),
        "score_scale": scale * math.log2(math.e),
        "feedback_weight": options.feedback_weight,
        "feedback_temperature": options.feedback_temperature,
        "prior_rate": 0.0 if std is None else -math.log2(math.e) / (2 * std**2),
        "window_reach": 0.0 if options.window is None else float(options.reach),
        "cross_weight": options.cross_weight,
        "cross_temperature": options.cross_temperature,
    }
    constants |= {
        "HAS_FEEDBACK": feedback is not None,
        "HAS_PRIOR": std is not None,
        "HAS_WINDOW": options.window is not None,
        "TILE_DTYPE": tile_constant(value.dtype),
    }
    return arguments, constants


def with_common_strides(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as they are where all share one layout with dense heads' widths, as views of one projection do.

    Else copies: one set of strides serves every q, k and v of the kernel.
    """
    strides = tensors[0].stride()
    if strides[-1] == 1 and all(tensor.stride() == strides for tensor in tensors):
        return tensors
    different = {id(tensor): tensor for tensor in tensors}
    copies = {name: tensor.contiguous() for name, tensor in different.items()}
    return [copies[id(tensor)] for tensor in tensors]
