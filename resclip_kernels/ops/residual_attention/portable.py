"""The residual attention in lean torch: one scaled_dot_product_attention per branch, the additive terms in row blocks.

S' + ω is a scaled score plus a term that all heads share, which is just what an attention mask is: the term's rows
are built a block at a time, (B, rows, L), and no heads × L × L map exists.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.deterministic import deterministic_attention
from resclip_kernels.ops.semantic_feedback.portable import feedback_rows, row_blocks
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.options.residual_attention import AttentionOptions, score_operands


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
    """The formula of `resclip_kernels.residual_attention`, branch by branch."""
    output = base_attention(query, key, value, options, projections, feedback)
    if cross_layer is None and cross_layers:
        cross_layer = deterministic_attention(*cross_layers[0], value)
        for layer_query, layer_key in cross_layers[1:]:
            cross_layer = cross_layer + deterministic_attention(layer_query, layer_key, value)
        cross_layer = cross_layer / len(cross_layers)
    return options.mixed(output, cross_layer), cross_layer


def base_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
) -> Tensor:
    """A_b · v: (B, A, L, d)."""
    scores = score_operands(options.correlation, query, key, projections)
    if not scores and not options.has_terms(feedback):
        return options.unattended(value)
    scale = options.scale(query.shape[-1], has_feedback=feedback is not None)
    everything = slice(None)
    if scores and not options.has_terms(feedback):
        output = sum_attention(scores, value, scale, None, everything, everything)
    else:
        output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        cls = options.cls_tokens(value.shape[2])
        if cls:
            # [CLS]'s row has no additive term.
            output[:, :, :1] = sum_attention(scores, value, scale, None, slice(0, 1), everything)
        # A patch with a window does not see [CLS]: its key and value are not even read.
        columns = everything if options.window is None else slice(cls, None)
        patches = math.prod(options.grid)
        maps = 1 if feedback is None else len(query)
        for first, last in row_blocks(patches, maps * patches):
            bias = additive_rows(options, feedback, first, last, query)
            if options.window is None:
                bias = F.pad(bias, (cls, 0))
            rows = slice(cls + first, cls + last)
            output[:, :, rows] = sum_attention(
                scores, value, scale, bias.unsqueeze(1), rows, columns
            )
    return output / len(scores) if options.correlation == "pp" else output


def sum_attention(
    scores: list[tuple[Tensor, Tensor]],
    value: Tensor,
    scale: float,
    bias: Tensor | None,
    rows: slice,
    columns: slice,
) -> Tensor:
    """Sum over scores (x, y) of softmax(scale·x yᵀ + bias)·v, for some rows of x and columns of y.

    Without scores the bias stands alone, (B or 1, 1, R, columns), and the heads share its softmax; without a bias too
    that is the mean.
    """
    value = value[:, :, columns]
    if not scores:
        if bias is None:
            return value.mean(dim=2, keepdim=True)
        return bias.softmax(dim=-1).to(value.dtype) @ value
    bias = None if bias is None else bias.to(value.dtype)
    branches = (
        deterministic_attention(
            left[:, :, rows], right[:, :, columns], value, attn_mask=bias, scale=scale
        )
        for left, right in scores
    )
    return functools.reduce(torch.add, branches)


def additive_rows(
    options: AttentionOptions,
    feedback: SemanticFeedback | None,
    first: int,
    last: int,
    like: Tensor,
) -> Tensor:
    """Rows of τ_s·λ_s·Ŝ + ω between patches, −∞ outside the window: (B or 1, last − first, n), float32 or wider."""
    rows: Tensor | None = None
    if feedback is not None:
        _, temperature = options.mixing
        rows = feedback_rows(feedback, first, last)
        rows = temperature * options.weighted(rows, feedback.options.normalise)
    if options.neighbourhood_std is not None:
        prior = neighbourhood_rows(options, first, last, like)
        rows = prior if rows is None else rows + prior
    if rows is None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        rows = like.new_zeros((1, last - first, math.prod(options.grid)), dtype=dtype)
    if options.window is not None:
        rows = rows.masked_fill(~window_rows(options, first, last, like.device), -torch.inf)
    return rows


def window_rows(options: AttentionOptions, first: int, last: int, device: torch.device) -> Tensor:
    """Which patches lie within the window of each of these: (last − first, n) bool, near along y and near along x."""
    near = []
    for size in options.grid:
        position = torch.arange(size, device=device)
        near.append((position[:, None] - position).abs() <= options.reach)
    row = torch.arange(first, last, device=device)
    width = options.grid[1]
    return (near[0][row // width, :, None] & near[1][row % width, None, :]).flatten(1)


def neighbourhood_rows(options: AttentionOptions, first: int, last: int, like: Tensor) -> Tensor:
    """Rows of ω: (1, last − first, n)."""
    vertical, horizontal = options.neighbourhood(like)
    row = torch.arange(first, last, device=like.device)
    width = options.grid[1]
    product = vertical[row // width, :, None] * horizontal[row % width, None, :]
    return product.flatten(1).unsqueeze(0)
