"""Rows of the maps that `residual_attention` never holds: for looking at what a token attends to.

They are formed a row at a time with the reference's formulas, so that no more than the requested rows are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from resclip_kernels.checks import check_float, merge_options, row_numbers
from resclip_kernels.ops.residual_attention.arguments import (
    as_tuples,
    check_arguments,
    check_like,
    check_values,
    named_tensors,
)
from resclip_kernels.ops.residual_attention.reference import (
    around_cls,
    base_map,
    cross_layer_map,
    mixed,
    patches_of,
)
from resclip_kernels.ops.semantic_feedback.portable import feedback_rows
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.options.residual_attention import AttentionKeywords, AttentionOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AttentionMaps(NamedTuple):
    """What `attention_maps` returns: rows of each map, float32 or float64."""

    base: Tensor
    """(B, A, R, L): A_b without feedback; rows add to 1, to 2 for "qq+kk"."""
    cross_layer: Tensor | None
    """(B, A, R, L): A_c, the mean over the middle blocks; None without RCS."""
    feedback: Tensor | None
    """(B, R, L): Ŝ, which all heads share, 0 in [CLS]'s row and column; None without SFR."""
    final: Tensor
    """(B, A, R, L): everything together: final @ value are these rows of `residual_attention`'s output."""


@torch.no_grad()
def attention_maps(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    options: AttentionOptions | None = None,
    *,
    projections: Sequence[Tensor] = (),
    feedback: SemanticFeedback | None = None,
    cross_layers: Sequence[tuple[Tensor, Tensor]] = (),
    **keywords: Unpack[AttentionKeywords],
) -> AttentionMaps:
    """Some rows of the attention of `residual_attention`, and of the maps that it is made of.

    The formula, the terms and their sources are `residual_attention`'s, whose arguments these are. Memory grows with
    R · L, and every row costs one product per head and map.

    Args:
        query, key: (B, A, L, d), any strides, one floating dtype; float16 and bfloat16 are widened to float32.
        rows: (R,) int64 token indices, 0 ≤ row < L, in any order; with [CLS] in front, patch p is row 1 + p.
        options, projections, feedback, cross_layers, keywords: of `residual_attention`.

    Returns:
        The rows of each map, without gradients.

    Raises:
        TypeError, ValueError: as `residual_attention`; rows that are no indices of tokens.
    """
    projections, cross_layers = as_tuples(projections, cross_layers)
    options = merge_options(AttentionOptions, options, keywords)
    others = [("key", key), *named_tensors(projections, ())]
    check_arguments(options, query, others, projections, feedback)
    if cross_layers:
        check_values(query, query, cross_layers, None)
    numbers = row_numbers(rows, query.shape[2])
    query, key = wide(query), wide(key)
    projections = tuple(wide(projection) for projection in projections)
    layers = tuple((wide(layer_query), wide(layer_key)) for layer_query, layer_key in cross_layers)
    maps = [
        one_row(query, key, options, projections, feedback, layers, number) for number in numbers
    ]
    base, cross_layer, semantic, final = zip(*maps, strict=True)
    return AttentionMaps(
        torch.cat(base, dim=2),
        torch.cat(cross_layer, dim=2) if layers else None,
        torch.cat(semantic, dim=1) if feedback is not None else None,
        torch.cat(final, dim=2),
    )


@torch.no_grad()
def cross_layer_rows(cross_layers: Sequence[tuple[Tensor, Tensor]], rows: Tensor) -> Tensor:
    """A_c alone, for a base whose maps are formed elsewhere.

    Args:
        cross_layers: (q_i, k_i) of the middle blocks, each (B, A, L, d), at least one.
        rows: (R,) int64 token indices.

    Returns:
        (B, A, R, L), float32 or float64: these rows of the mean of softmax(q_i k_iᵀ / √d).

    Raises:
        TypeError, ValueError: tensors of different kinds; rows that are no indices of tokens.
    """
    _, cross_layers = as_tuples((), cross_layers)
    if not cross_layers:
        raise ValueError("cross_layers must hold at least one (query, key); got none")
    query = cross_layers[0][0]
    check_float("cross_layers[0]'s query", query, 4, "(B, A, L, d)")
    for name, tensor in named_tensors((), cross_layers):
        check_like(name, tensor, query)
    layers = tuple((wide(layer_query), wide(layer_key)) for layer_query, layer_key in cross_layers)
    numbers = row_numbers(rows, query.shape[2])
    return torch.cat([cross_layer_map(layers, range(row, row + 1)) for row in numbers], dim=2)


def wide(tensor: Tensor) -> Tensor:
    """Float16 and bfloat16 as float32, float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def one_row(
    query: Tensor,
    key: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    number: int,
) -> AttentionMaps:
    """The maps of one token."""
    row = range(number, number + 1)
    base = base_map(query, key, projections, options, row, None)
    final, semantic, cross_layer = base, None, None
    if feedback is not None:
        patches = patches_of(options, row, query.shape[2])
        between = feedback_rows(feedback, patches.start, patches.stop)
        semantic = around_cls(between, options, row, query.shape[2])
        bonus = options.weighted(semantic, feedback.options.normalise)
        final = base_map(query, key, projections, options, row, bonus)
    if cross_layers:
        cross_layer = cross_layer_map(cross_layers, row)
        final = mixed(final, cross_layer, options)
    return AttentionMaps(base, cross_layer, semantic, final)
