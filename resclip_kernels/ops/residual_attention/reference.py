"""The residual attention as the released program computes it: every heads × L × L map in memory.

A map is formed for a `range` of token rows, all of them for the op's own result; `attention_maps` asks for one at a
time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.semantic_feedback import SemanticFeedback, feedback_matrix
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
    """The formula of `resclip_kernels.residual_attention`; computes in the tensors' own dtype."""
    rows = range(query.shape[2])
    output = (
        base_map(query, key, projections, options, rows, feedback_bonus(feedback, options, rows))
        @ value
    )
    if cross_layer is None and cross_layers:
        cross_layer = cross_layer_map(cross_layers, rows) @ value
    if cross_layer is not None:
        output = mixed(output, cross_layer, options)
    return output, cross_layer


def feedback_bonus(
    feedback: SemanticFeedback | None, options: AttentionOptions, rows: range
) -> Tensor | None:
    """λ_s·Ŝ among all tokens, (B, L, L); None for no SFR."""
    if feedback is None:
        return None
    everywhere = around_cls(feedback_matrix(feedback), options, rows, len(rows))
    return options.weighted(everywhere, feedback.options.normalise)


def mixed(base: Tensor, cross_layer: Tensor, options: AttentionOptions) -> Tensor:
    """τ_r · ((1 − λ_r) · A_b + λ_r · A_c), of maps or of what they make of the values."""
    both = (1 - options.cross_weight) * base + options.cross_weight * cross_layer
    return options.cross_temperature * both


def base_map(
    query: Tensor,
    key: Tensor,
    projections: tuple[Tensor, ...],
    options: AttentionOptions,
    rows: range,
    bonus: Tensor | None,
) -> Tensor:
    """A_b of these token rows: (B, A, R, L). `bonus` is λ_s·Ŝ of them, (B, R, L), or None for no SFR."""
    batch, heads, tokens, _ = query.shape
    if options.correlation == "identity":
        number = torch.arange(tokens, device=query.device)
        unit = number[rows.start : rows.stop, None] == number
        return unit.to(query.dtype).expand(batch, heads, len(rows), tokens)
    attention = torch.zeros((), dtype=query.dtype, device=query.device)
    for score in score_maps(query, key, projections, options, rows):
        attention = attention + with_terms(score, options, rows, bonus).softmax(dim=-1)
    return attention / len(projections) if options.correlation == "pp" else attention


def score_maps(
    query: Tensor,
    key: Tensor,
    projections: tuple[Tensor, ...],
    options: AttentionOptions,
    rows: range,
) -> list[Tensor]:
    """S of these rows, (B, A, R, L), one of each score of the correlation."""
    if options.correlation == "none":
        return [query.new_zeros(*query.shape[:2], len(rows), query.shape[2])]
    divisor = math.sqrt(query.shape[-1]) * options.score_temperature
    return [
        left[:, :, rows.start : rows.stop] @ right.transpose(-2, -1) / divisor
        for left, right in score_operands(options.correlation, query, key, projections)
    ]


def with_terms(
    score: Tensor, options: AttentionOptions, rows: range, bonus: Tensor | None
) -> Tensor:
    """S' + ω, −∞ outside the window."""
    tokens = score.shape[-1]
    if bonus is not None:
        weight, temperature = options.mixing
        score = temperature * ((1 - weight) * score + bonus.unsqueeze(1).to(score.dtype))
    if options.neighbourhood_std is not None:
        prior = neighbourhood_prior(options, score, patches_of(options, rows, tokens))
        score = score + around_cls(prior, options, rows, tokens).to(score.dtype)
    if options.window is not None:
        outside = outside_window(options, rows, tokens, score.device)
        score = score.masked_fill(outside, -torch.inf)
    return score


def neighbourhood_prior(
    options: AttentionOptions, like: Tensor, patches: range | None = None
) -> Tensor:
    """ω of these patches to all: (R, n); None: of all of them."""
    patches = range(math.prod(options.grid)) if patches is None else patches
    vertical, horizontal = options.neighbourhood(like)
    y, x = positions(options, patches, like.device)
    return (vertical[y, :, None] * horizontal[x, None, :]).flatten(1)


def outside_window(
    options: AttentionOptions, rows: range, tokens: int, device: torch.device
) -> Tensor:
    """Which tokens these rows do not attend to, (R, L) bool: distant patches and [CLS]; [CLS]'s own row sees all."""
    patches = patches_of(options, rows, tokens)
    row_y, row_x = positions(options, patches, device)
    y, x = positions(options, range(math.prod(options.grid)), device)
    distance = torch.maximum((row_y[:, None] - y).abs(), (row_x[:, None] - x).abs())
    outside = F.pad(distance > options.reach, (options.cls_tokens(tokens), 0), value=True)
    return F.pad(outside, (0, 0, len(rows) - len(patches), 0), value=False)


def patches_of(options: AttentionOptions, rows: range, tokens: int) -> range:
    """The patches among these token rows."""
    cls = options.cls_tokens(tokens)
    return range(max(rows.start - cls, 0), rows.stop - cls)


def positions(
    options: AttentionOptions, patches: range, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(y, x) of these patches in the grid: (R,) each."""
    number = torch.arange(patches.start, patches.stop, device=device)
    width = max(1, options.grid[1])
    return number // width, number % width


def around_cls(
    between_patches: Tensor, options: AttentionOptions, rows: range, tokens: int
) -> Tensor:
    """(…, patches among these rows, n) → (…, R, L): zeros in [CLS]'s row and column, where there is one."""
    above = len(rows) - between_patches.shape[-2]
    return F.pad(between_patches, (options.cls_tokens(tokens), 0, above, 0))


def cross_layer_map(cross_layers: tuple[tuple[Tensor, Tensor], ...], rows: range) -> Tensor:
    """A_c of these rows: mean over the middle blocks of softmax(q_i k_iᵀ / √d), (B, A, R, L)."""
    maps = [
        (
            query[:, :, rows.start : rows.stop] @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        ).softmax(dim=-1)
        for query, key in cross_layers
    ]
    return torch.stack(maps).mean(dim=0)
