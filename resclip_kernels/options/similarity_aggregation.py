"""The options of one aggregation over similar tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from resclip_kernels.checks import check_flag, check_range, set_floats


@dataclass(frozen=True, kw_only=True)
class SimilarityAggregationOptions:
    """Which tokens `similarity_aggregation` takes for similar, and what their weights add up to.

    Raises:
        TypeError, ValueError: a value out of its range.
    """

    threshold: float
    """Smallest cosine that counts, from −1 to 1: entries below it are 0. SC-CLIP, SFP, DIH-CLIP and RF-CLIP: 0.4."""
    normalise: bool = True
    """Whether a token's weights are divided by their sum, as in SC-CLIP; RF-CLIP leaves them as they are."""

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, -1.0, 1.0)
        check_flag("normalise", self.normalise)
        set_floats(self, "threshold")


class SimilarityAggregationKeywords(TypedDict, total=False):
    """The fields of `SimilarityAggregationOptions` as keyword arguments."""

    threshold: float
    normalise: bool
