"""The residual attention from PyTorch's own kernels alone, on any device that they support.

The middle blocks are plain `scaled_dot_product_attention`; the base is FlexAttention, whose `score_mod` adds prior,
window and a stored λ_s·Ŝ to each score. On a GPU FlexAttention is compiled at its first call; elsewhere it runs as it
is, and holds (B, A, L, L) scores.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch.nn.attention.flex_attention import flex_attention

from resclip_kernels.ops.semantic_feedback.portable import feedback_rows, row_blocks
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.options.residual_attention import AttentionOptions, score_operands

VARIANTS = 256
"""Most kernels that FlexAttention is compiled to in one process."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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
    scores = score_operands(options.correlation, query, key, projections)
    if cross_layer is None and cross_layers:
        cross_layer = layers_mean(cross_layers, value)
    if scores or options.has_terms(feedback):
        base = base_attention(scores, value, options, feedback)
    else:
        base = options.unattended(value)
    return options.mixed(base, cross_layer), cross_layer


def layers_mean(cross_layers: tuple[tuple[Tensor, Tensor], ...], value: Tensor) -> Tensor:
    """A_c·v: the mean of one plain attention a layer, summed in float32 at least."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    query, key = cross_layers[0]
    total = F.scaled_dot_product_attention(query, key, value).to(dtype)
    for query, key in cross_layers[1:]:
        total = total + F.scaled_dot_product_attention(query, key, value)
    return (total / len(cross_layers)).to(value.dtype)


def base_attention(
    scores: list[tuple[Tensor, Tensor]],
    value: Tensor,
    options: AttentionOptions,
    feedback: SemanticFeedback | None,
) -> Tensor:
    """A_b·v: (B, A, L, d). Without scores the additive terms stand alone."""
    width = scores[0][0].shape[-1] if scores else value.shape[-1]
    scale = options.scale(width, has_feedback=feedback is not None)
    # Terms are between patches. FlexAttention takes no empty tensor.
    patches: int = math.prod(options.grid)
    if options.has_terms(feedback) and patches and value.numel():
        change = score_mod(options, feedback, value, has_score=bool(scores))
        attend = functools.partial(flexible(value), score_mod=change, scale=scale)
    else:
        attend = functools.partial(F.scaled_dot_product_attention, scale=scale)
    # What stands for x and y where there is no score is multiplied, and the product not read.
    branches = (attend(left, right, value) for left, right in scores or [(value, value)])
    total: Tensor = functools.reduce(torch.add, branches)
    return total / len(scores) if options.correlation == "pp" else total


def score_mod(
    options: AttentionOptions, feedback: SemanticFeedback | None, value: Tensor, *, has_score: bool
) -> ScoreMod:
    """What changes a score by the places of its tokens."""
    cls, width = options.cls_tokens(value.shape[2]), options.grid[1]
    has_prior, window = options.neighbourhood_std is not None, options.window
    rate = -0.5 / options.prior_std**2 if has_prior else 0.0
    # Not that of the score, which is named by the query's while this is traced: bfloat16 holds no squared distance.
    dtype = torch.promote_types(value.dtype, torch.float32)
    bonus = None if feedback is None else stored_bonus(options, feedback)
    _, temperature = options.mixing

    def change(score: Tensor, image: Tensor, _: Tensor, row: Tensor, column: Tensor) -> Tensor:
        i, j = (row - cls).clamp(min=0), (column - cls).clamp(min=0)
        down = i // width - j // width
        across = i % width - j % width
        between_patches = (row >= cls) & (column >= cls)
        changed = score if has_score else torch.zeros_like(score)
        if has_prior:
            prior = torch.exp((down * down + across * across).to(dtype) * rate)
            changed = changed + torch.where(between_patches, prior, 0.0)
        if bonus is not None:
            added = temperature * bonus[image, i, j].to(dtype)
            changed = changed + torch.where(between_patches, added, 0.0)
        if window is not None:
            near = (down.abs() <= options.reach) & (across.abs() <= options.reach)
            changed = torch.where((row < cls) | (between_patches & near), changed, -math.inf)
        return changed

    return change


def stored_bonus(options: AttentionOptions, feedback: SemanticFeedback) -> Tensor:
    """λ_s·Ŝ, (B, n, n): float16 where Ŝ is normalised, which holds it exactly, else as it is computed."""
    patches, normalised = feedback.patches, feedback.options.normalise
    dtype = torch.float16 if normalised else feedback.row_sums.dtype
    shape = (len(feedback.labels), patches, patches)
    bonus = feedback.row_sums.new_empty(shape, dtype=dtype)
    for first, last in row_blocks(patches, len(bonus) * patches):
        rows = feedback_rows(feedback, first, last)
        bonus[:, first:last] = options.weighted(rows, normalised)
    return bonus


def flexible(value: Tensor) -> Callable[..., Any]:
    """FlexAttention for this tensor's device: compiled on a GPU, else as it is."""
    return compiled_flex() if value.is_cuda else plain_flex


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    """The fused kernel; one for every set of terms and dtypes.

    Of these there are more than torch compiles of one function by default, past which it would run as it is and hold
    (B, A, L, L) scores; with `fullgraph` that is an error.
    """
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
    name = "recompile_limit" if hasattr(dynamo_config, "recompile_limit") else "cache_size_limit"

    def attend(*arguments: Any, **keywords: Any) -> Any:
        with dynamo_config.patch({name: VARIANTS}):
            return compiled(*arguments, **keywords)

    return attend


def plain_flex(*tensors: Tensor, **keywords: Any) -> Any:
    """FlexAttention that is not compiled, without its advice to compile it.

    It refuses tensors that require a gradient even where none is followed.
    """
    attend: Callable[..., Any] = flex_attention
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return attend(*(tensor.detach() for tensor in tensors), **keywords)
