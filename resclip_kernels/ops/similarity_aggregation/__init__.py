"""Every token replaced by those that look like it: an average weighted by cosines above a threshold.

SC-CLIP: Bai et al., "Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation", arXiv 2411.15869; SFP (ICCV
2025), DIH-CLIP and RF-CLIP aggregate in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resclip_kernels.checks import check_float, check_same_images, merge_options
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.ops.similarity_aggregation import portable, reference
from resclip_kernels.options.similarity_aggregation import (
    SimilarityAggregationKeywords,
    SimilarityAggregationOptions,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SimilarityAggregationOptions", "similarity_aggregation"]

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.similarity_aggregation.triton", "similarity_aggregation"
    ),
    Implementation.TORCH: portable.similarity_aggregation,
    Implementation.REFERENCE: reference.similarity_aggregation,
}


def similarity_aggregation(
    features: Tensor,
    value: Tensor,
    options: SimilarityAggregationOptions | None = None,
    *,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[SimilarityAggregationKeywords],
) -> Tensor:
    """Weighted sums of the tokens that are similar, without the map of all pairs in memory.

    With U the rows of `features`, each of unit length (a row shorter than 1e-12 counts as 0), per image:

        S = U Uᵀ, entries below `threshold` as 0
        W = S with each row divided by (its sum + 1e-6) where `normalise`, else S
        out = W · value

    Memory is linear in n, except by "reference". The similarities are formed in float32 at least, from the features as
    they come, in every dtype. The map jumps where one passes the threshold: results of two dtypes are comparable only
    where none lies within rounding of it.

    Args:
        features: (B, n, C) tokens that are compared, of any length, any floating dtype and strides.
        value: (B, n, D) what is added up. Products accumulate in float32 at least; without `normalise` a result may be
            n times as large as the values, which float16 has to hold.
        options: the threshold and whether weights add up to 1; it or `threshold` has to be given.
        implementation: see `Implementation`.
        keywords: fields of `SimilarityAggregationOptions`, in place of those of `options`.

    Returns:
        (B, n, D) in `value`'s dtype.

    Raises:
        TypeError, ValueError: a shape, dtype or number that does not fit; the message says what was expected.
    """
    options = merge_options(SimilarityAggregationOptions, options, keywords)
    check_float("features", features, 3, "(B, n, C)")
    check_float("value", value, 3, "(B, n, D)")
    check_same_images("features", features, "value", value)
    if features.shape[1] != value.shape[1]:
        raise ValueError(
            "features (B, n, C) and value (B, n, D) must have the same number of tokens n; "
            f"got {features.shape[1]} and {value.shape[1]}"
        )
    if features.shape[2] < 1:
        raise ValueError(
            f"features must have at least one channel (B, n, C); got {tuple(features.shape)}"
        )
    return run(features, value, options, parse_implementation(implementation).value)


def fake(
    features: Tensor, value: Tensor, options: SimilarityAggregationOptions, implementation: str
) -> Tensor:
    """The shape that `run` returns."""
    return value.new_empty(value.shape)


def exported(
    features: Tensor, value: Tensor, options: SimilarityAggregationOptions, implementation: str
) -> Tensor:
    """What `run` gives, in plain operators: the reference's are."""
    return reference.similarity_aggregation(features, value, options)


@custom_op("similarity_aggregation", fake, exported)
def run(
    features: Tensor, value: Tensor, options: SimilarityAggregationOptions, implementation: str
) -> Tensor:
    """The chosen implementation's result."""
    function = resolve(
        implementation, IMPLEMENTATIONS, features, value, op="similarity_aggregation"
    ).function
    if value.numel() == 0:
        return value.new_empty(value.shape)
    result: Tensor = function(features, value, options)
    return result


@trial("similarity_aggregation")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """What a few tokens gather; see `resclip_kernels.first_use`."""
    features, value = sample(device, dtype, 2, 35, 24), sample(device, dtype, 2, 35, 70, seed=1)
    return [
        similarity_aggregation(
            features, value, threshold=0.2, normalise=normalise, implementation=implementation
        )
        for normalise in (True, False)
    ]
