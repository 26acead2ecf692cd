"""The residual attention as the released program computes it: every heads × L × L map in memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.residual_attention.terms import SCORES, Terms
from resclip_kernels.semantic_feedback import feedback_matrix


def residual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Terms,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The formula of `resclip_kernels.residual_attention`; computes in the tensors' own dtype."""
    output = base_map(query, key, terms) @ value
    if cross_layer is None and cross_layers:
        cross_layer = cross_layer_map(cross_layers) @ value
    if cross_layer is not None:
        mixed = (1 - terms.cross_weight) * output + terms.cross_weight * cross_layer
        output = terms.cross_temperature * mixed
    return output, cross_layer


def base_map(query: Tensor, key: Tensor, terms: Terms) -> Tensor:
    """A_b: (B, A, L, L)."""
    batch, heads, tokens, width = query.shape
    if not SCORES[terms.correlation]:
        unit = torch.eye(tokens, dtype=query.dtype, device=query.device)
        return unit.expand(batch, heads, tokens, tokens)
    attention = torch.zeros((), dtype=query.dtype, device=query.device)
    for left, right in SCORES[terms.correlation]:
        score = (query, key)[left] @ (query, key)[right].transpose(-2, -1) / math.sqrt(width)
        if terms.feedback is not None:
            score = with_feedback(score, terms)
        if terms.neighbourhood_std is not None:
            score = score + around_cls(neighbourhood_prior(terms, query)).to(score.dtype)
        attention = attention + score.softmax(dim=-1)
    return attention


def with_feedback(score: Tensor, terms: Terms) -> Tensor:
    """τ_s · ((1 − λ_s) · S + λ_s · Ŝ)."""
    if terms.feedback is None:
        return score
    bonus = terms.feedback_weight * feedback_matrix(terms.feedback)
    if terms.feedback.normalise:
        bonus = bonus.half()
    bonus = around_cls(bonus).unsqueeze(1).to(score.dtype)
    return terms.feedback_temperature * ((1 - terms.feedback_weight) * score + bonus)


def neighbourhood_prior(terms: Terms, like: Tensor) -> Tensor:
    """ω between patches: (n, n)."""
    vertical, horizontal = terms.neighbourhood(like)
    return torch.kron(vertical, horizontal)


def around_cls(patches: Tensor) -> Tensor:
    """(…, n, n) → (…, 1 + n, 1 + n) with a first row and column of zeros."""
    return F.pad(patches, (1, 0, 1, 0))


def cross_layer_map(cross_layers: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    """A_c: mean over the middle blocks of softmax(q_i k_iᵀ / √d), (B, A, L, L)."""
    maps = [
        (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        for query, key in cross_layers
    ]
    return torch.stack(maps).mean(dim=0)
