"""The aggregation over similar tokens in lean torch: a block of rows of the similarities at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.options.similarity_aggregation import SimilarityAggregationOptions

# Bytes of similarities held at a time: all of those of 1,448 tokens in float32, and 128 rows of 16,384 tokens, enough
# for both products to be bound by arithmetic.
ROW_BYTES = 1 << 23
# Length under which a token counts as 0.
SHORTEST = 1e-12
# Added to a row's sum.
EPSILON = 1e-6


def similarity_aggregation(
    features: Tensor, value: Tensor, options: SimilarityAggregationOptions
) -> Tensor:
    """The formula of `resclip_kernels.similarity_aggregation`; float16 and bfloat16 compute in float32."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, value.dtype), torch.float32)
    output = value.new_empty(value.shape)
    for number, (image, values) in enumerate(zip(features, value, strict=True)):
        unit = unit_rows(image.to(dtype))
        wide = values.to(dtype)
        rows = max(1, ROW_BYTES // (len(unit) * unit.element_size()))
        for first in range(0, len(unit), rows):
            last = min(first + rows, len(unit))
            output[number, first:last] = aggregate(unit, wide, first, last, options)
    return output


def aggregate(
    unit: Tensor, values: Tensor, first: int, last: int, options: SimilarityAggregationOptions
) -> Tensor:
    """Rows `first` to `last` of one image's result, of its unit rows (n, C) and values (n, D)."""
    weights = unit[first:last] @ unit.mT
    weights = weights.masked_fill_(weights < options.threshold, 0.0)
    gathered = weights @ values
    if options.normalise:
        # D numbers a row are divided, not n.
        gathered = gathered.div_(weights.sum(dim=1, keepdim=True).add_(EPSILON))
    return gathered


def unit_rows(features: Tensor) -> Tensor:
    """(n, C) → (n, C), every token of unit length, or 0 where it has no length."""
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    unit: Tensor = features * ((length >= SHORTEST) / length.clamp_min(SHORTEST))
    return unit
