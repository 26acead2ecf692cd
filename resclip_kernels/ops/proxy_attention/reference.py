"""The proxy attention as its formula reads: the n × n map of each image in memory, its mean taken over all pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.semantic_feedback import SemanticFeedback, feedback_matrix
from resclip_kernels.options.proxy_attention import ProxyAttentionOptions


def proxy_attention(
    features: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    options: ProxyAttentionOptions,
    feedback: SemanticFeedback | None = None,
) -> Tensor:
    """The formula of `resclip_kernels.proxy_attention`, materialised.

    Computes in float32 at least and rounds to `value`'s dtype once, at the end: rounded to float16, the map's entries
    would cross 0, where it jumps, by the dozen.
    """
    dtype = torch.promote_types(torch.promote_types(features.dtype, value.dtype), torch.float32)
    weights = proxy_map(features.to(dtype), options, feedback)  # [B, n, n]
    planes = value.to(dtype).mT.unflatten(-1, grid).flatten(0, 1)  # [B * A, d, h, w]
    resized = F.interpolate(
        planes, size=features.shape[-2:], mode="bilinear", align_corners=False
    ).flatten(2)
    resized = resized.mT.unflatten(0, value.shape[:2])  # [B, A, n, d]
    output: Tensor = weights.unsqueeze(1) @ resized
    return output.to(value.dtype)


def proxy_map(
    features: Tensor, options: ProxyAttentionOptions, feedback: SemanticFeedback | None = None
) -> Tensor:
    """softmax(S' where S' ≥ 0): (B, C, H_v, W_v) → (B, n, n), rows sum to 1."""
    score = proxy_score(features, options.beta, options.gamma, options.cut)
    if feedback is not None:
        weight, temperature = options.mixing
        bonus = options.weighted(feedback_matrix(feedback), feedback.options.normalise)
        score = temperature * ((1 - weight) * score + bonus)
    score = score.masked_fill(score < 0, -torch.inf)
    alone = score.isneginf().all(dim=-1)
    unit = torch.eye(score.shape[-1], dtype=torch.bool, device=score.device)
    return score.masked_fill(alone.unsqueeze(-1) & unit, 0.0).softmax(dim=-1)


def proxy_score(features: Tensor, beta: float, gamma: float, cut: float | None = None) -> Tensor:
    """S, before its entries under 0 are dropped: (B, n, n)."""
    positions = features.flatten(2).mT  # [B, n, C]
    length = torch.linalg.vector_norm(positions, dim=-1, keepdim=True)
    unit = torch.where(length < 1e-12, 0.0, positions / length)
    similarity = unit @ unit.mT
    if cut is not None:
        similarity = similarity.masked_fill(similarity < cut, 0.0)
    return gamma * (similarity - beta * similarity.mean(dim=(-2, -1), keepdim=True))
