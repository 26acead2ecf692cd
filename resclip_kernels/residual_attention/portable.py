"""The residual attention in lean torch: one scaled_dot_product_attention a branch, the additive terms in row blocks.

S' + ω is a scaled score plus a term that all heads share, which is just what an attention mask is: the term's rows
are built a block at a time, (B, rows, L), and no heads × L × L map exists.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.residual_attention.terms import SCORES, Terms
from resclip_kernels.semantic_feedback.portable import feedback_rows, row_blocks


def residual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The formula of `resclip_kernels.residual_attention`, branch by branch."""
    output = base_attention(query, key, value, terms)
    if cross_layer is None and cross_layers:
        cross_layer = F.scaled_dot_product_attention(*cross_layers[0], value)
        for layer_query, layer_key in cross_layers[1:]:
            cross_layer = cross_layer + F.scaled_dot_product_attention(
                layer_query, layer_key, value
            )
        cross_layer = cross_layer / len(cross_layers)
    if cross_layer is not None:
        mixed = torch.lerp(output, cross_layer, terms.cross_weight)
        output = terms.cross_temperature * mixed
    return output, cross_layer


def base_attention(query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
    """A_b · v: (B, A, L, d)."""
    operands = (query, key)
    scores = [(operands[left], operands[right]) for left, right in SCORES[terms.correlation]]
    if not scores:
        return value
    scale = terms.scale(query.shape[-1])
    if terms.neighbourhood_std is None and terms.feedback is None:
        return sum_attention(scores, value, scale, None, slice(None))
    output = torch.empty(value.shape, dtype=value.dtype, device=value.device)
    # [CLS]'s row has no additive term.
    output[:, :, :1] = sum_attention(scores, value, scale, None, slice(0, 1))
    patches = math.prod(terms.grid)
    maps = 1 if terms.feedback is None else len(query)
    for first, last in row_blocks(patches, maps * patches):
        bias = F.pad(additive_rows(terms, first, last, query), (1, 0)).to(query.dtype)
        rows = slice(1 + first, 1 + last)
        output[:, :, rows] = sum_attention(scores, value, scale, bias.unsqueeze(1), rows)
    return output


def sum_attention(
    scores: list[tuple[Tensor, Tensor]],
    value: Tensor,
    scale: float,
    bias: Tensor | None,
    rows: slice,
) -> Tensor:
    """Sum over scores (x, y) of softmax(scale·x yᵀ + bias)·v, for some rows of x."""
    output: Tensor | None = None
    for left, right in scores:
        branch = F.scaled_dot_product_attention(
            left[:, :, rows], right, value, attn_mask=bias, scale=scale
        )
        output = branch if output is None else output + branch
    if output is None:
        raise ValueError("scores must name at least one product")
    return output


def additive_rows(terms: Terms, first: int, last: int, like: Tensor) -> Tensor:
    """Rows of τ_s·λ_s·Ŝ + ω between patches: (B or 1, last − first, n), float32 or wider."""
    rows: Tensor | None = None
    if terms.feedback is not None:
        rows = terms.feedback_weight * feedback_rows(terms.feedback, first, last)
        if terms.feedback.normalise:
            rows = rows.half().float()
        rows = rows * terms.feedback_temperature
    if terms.neighbourhood_std is not None:
        prior = neighbourhood_rows(terms, first, last, like)
        rows = prior if rows is None else rows + prior
    if rows is None:
        raise ValueError("these terms have neither a prior nor feedback")
    return rows


def neighbourhood_rows(terms: Terms, first: int, last: int, like: Tensor) -> Tensor:
    """Rows of ω: (1, last − first, n)."""
    vertical, horizontal = terms.neighbourhood(like)
    row = torch.arange(first, last, device=like.device)
    width = terms.grid[1]
    product = vertical[row // width, :, None] * horizontal[row % width, None, :]
    return product.flatten(1).unsqueeze(0)
