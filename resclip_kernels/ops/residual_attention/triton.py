"""The residual attention by two Triton kernels: the middle blocks' mean, then the base with all its terms.

Apart, each has the tiles that suit it, and the first can be computed once for both passes. What attends to nothing, the
unit matrix and the mean of all tokens, is no attention kernel.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.launch import Target, target_of
from resclip_kernels.ops.residual_attention import library
from resclip_kernels.ops.residual_attention.base_triton import base_attention
from resclip_kernels.ops.residual_attention.cross_layer_triton import cross_layer_sums
from resclip_kernels.ops.residual_attention.launch_table import Program, layers_apart, row_for
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
    *,
    mixed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The formula of `resclip_kernels.residual_attention` by this project's kernels alone.

    `mixed` leaves the middle blocks' mean to PyTorch's attention where the launch table says that it is faster.
    """
    batch, heads, tokens, width = value.shape
    target = target_of(value)
    row = row_for(target, value.dtype, width, tokens)
    scores = score_operands(options.correlation, query, key, projections)
    attends = bool(scores) or options.has_terms(feedback)
    dense_value = with_common_strides([value])[0]
    parts = None
    if cross_layer is None and cross_layers:
        if mixed and row.library_layers:
            cross_layer = library.layers_mean(cross_layers, value)
        else:
            apart = attends and layers_apart(row, target, batch * heads, tokens, len(cross_layers))
            widths = {x.shape[3] for pair in cross_layers for x in pair}
            apart = apart and widths == {width} == {query.shape[3]}
            layers = in_pairs(with_common_strides([x for pair in cross_layers for x in pair]))
            if widths == {width}:
                sums = cross_layer_sums(layers, dense_value, row.layers, target, apart=apart)
            else:
                sums = layers_of_unequal_widths(layers, dense_value, target)
            if apart:
                parts, cross_layer = sums, value.new_empty(value.shape)
            else:
                cross_layer = sums
    if not attends:
        return options.mixed(options.unattended(value), cross_layer), cross_layer
    residual = None if cross_layer is None else with_common_strides([cross_layer])[0]
    pairs = in_pairs(with_common_strides([x for pair in scores for x in pair]))
    if query.shape[3] != width:
        wide = row_for(target, value.dtype, max(query.shape[3], width), tokens)
        base = unequal_widths(pairs, dense_value, options, feedback, wide.base, target)
        return options.mixed(base, cross_layer), cross_layer
    output = base_attention(
        pairs,
        dense_value,
        options,
        feedback,
        residual if parts is None else parts,
        None if parts is None else residual,
        row.base,
        target,
    )
    return output, cross_layer


def unequal_widths(
    scores: tuple[tuple[Tensor, Tensor], ...],
    value: Tensor,
    options: AttentionOptions,
    feedback: SemanticFeedback | None,
    program: Program,
    target: Target,
) -> Tensor:
    """A_b·v where x and y have another width than the values: the narrower are filled up with zeros."""
    score_width, width = scores[0][0].shape[3] if scores else value.shape[3], value.shape[3]
    widest = max(score_width, width)
    filled = tuple(
        (F.pad(left, (0, widest - score_width)), F.pad(right, (0, widest - score_width)))
        for left, right in scores
    )
    # Scores are over the root of the width that they had.
    scale = options.score_temperature * (score_width / widest) ** 0.5
    attended = base_attention(
        filled,
        F.pad(value, (0, widest - width)),
        replace(options, score_temperature=scale),
        feedback,
        None,
        None,
        program,
        target,
    )
    return attended[..., :width]


def layers_of_unequal_widths(
    layers: tuple[tuple[Tensor, Tensor], ...], value: Tensor, target: Target
) -> Tensor:
    """A_c·v where queries and keys have another width than the values: the narrower are filled up with zeros."""
    width = value.shape[3]
    total = value.new_zeros(value.shape, dtype=torch.float32)
    for score_width in sorted({query.shape[3] for query, _ in layers}):
        alike = [pair for pair in layers if pair[0].shape[3] == score_width]
        widest = max(score_width, width)
        filled = in_pairs([F.pad(x, (0, widest - score_width)) for pair in alike for x in pair])
        padded = F.pad(value, (0, widest - width))
        program = row_for(target, value.dtype, widest, value.shape[2]).layers
        mean = cross_layer_sums(
            filled, padded, program, target, apart=False, score_width=score_width
        )
        total += mean[..., :width] * (len(alike) / len(layers))
    return total.to(value.dtype)


fastest_attention = functools.partial(residual_attention, mixed=True)
"""What "auto" takes."""


def in_pairs(tensors: list[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
    """Neighbours of a list together: the first with the second, the third with the fourth."""
    return tuple(zip(tensors[::2], tensors[1::2], strict=True))


def with_common_strides(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as they are where all share one layout with dense heads, as views of one projection do.

    Else copies: one set of strides serves every q and k of a kernel.
    """
    if all(tensor.stride(-1) == 1 and tensor.stride() == tensors[0].stride() for tensor in tensors):
        return tensors
    # Each once: a self-correlation names the same tensor twice.
    different = {id(tensor): tensor for tensor in tensors}
    copies = {name: tensor.contiguous() for name, tensor in different.items()}
    return [copies[id(tensor)] for tensor in tensors]
