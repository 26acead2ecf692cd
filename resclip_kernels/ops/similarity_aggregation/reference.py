"""The aggregation over similar tokens as its formula reads: the n × n similarities of each image in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.options.similarity_aggregation import SimilarityAggregationOptions


def similarity_aggregation(
    features: Tensor, value: Tensor, options: SimilarityAggregationOptions
) -> Tensor:
    """The formula of `resclip_kernels.similarity_aggregation`, materialised.

    Computes in float32 at least and rounds to `value`'s dtype once, at the end: rounded to float16, similarities would
    cross the threshold, where the weights jump.
    """
    dtype = torch.promote_types(torch.promote_types(features.dtype, value.dtype), torch.float32)
    weights = aggregation_weights(features.to(dtype), options)  # [B, n, n]
    return (weights @ value.to(dtype)).to(value.dtype)


def aggregation_weights(features: Tensor, options: SimilarityAggregationOptions) -> Tensor:
    """(B, n, C) → (B, n, n): what every token takes of the others."""
    similarity = token_similarity(features)
    weights = similarity.masked_fill(similarity < options.threshold, 0.0)
    if options.normalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
    return weights


def token_similarity(features: Tensor) -> Tensor:
    """U Uᵀ: (B, n, C) → (B, n, n)."""
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    unit = torch.where(length < 1e-12, 0.0, features / length)
    return unit @ unit.mT
