"""The options of one residual attention, checked and bundled for the implementations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback

Correlation = Literal["qk", "qq", "kk", "qq+kk", "pp", "none", "identity"]
# Which of (query, key) stand left and right in each score. "pp" correlates the call's projections, "none" has one score
# of zeros, and with "identity" the map is the unit matrix.
SCORES: dict[str, tuple[tuple[int, int], ...]] = {
    "qk": ((0, 1),),
    "qq": ((0, 0),),
    "kk": ((1, 1),),
    "qq+kk": ((0, 0), (1, 1)),
    "pp": (),
    "none": (),
    "identity": (),
}


def score_operands(
    correlation: Correlation, query: Tensor, key: Tensor, projections: tuple[Tensor, ...]
) -> list[tuple[Tensor, Tensor]]:
    """(x, y) of every score x yᵀ of a correlation; empty for "none" and "identity"."""
    if correlation == "pp":
        return [(projection, projection) for projection in projections]
    return [((query, key)[left], (query, key)[right]) for left, right in SCORES[correlation]]


@dataclass(frozen=True)
class Terms:
    """Arguments of `residual_attention` beside its tensors, under the names used there."""

    grid: tuple[int, int]
    correlation: Correlation
    neighbourhood_std: float | None
    feedback: SemanticFeedback | None
    feedback_weight: float
    feedback_temperature: float
    cross_weight: float
    cross_temperature: float
    score_temperature: float = 1.0
    window: int | None = None

    def cls_tokens(self, tokens: int) -> int:
        """1 where a sequence of this length begins with [CLS], 0 where it holds patches alone."""
        return tokens - math.prod(self.grid)

    @property
    def reach(self) -> int:
        """Chebyshev distance in patches as far as which a patch sees: (`window` − 1)/2."""
        if self.window is None:
            raise ValueError("these terms have no window")
        return (self.window - 1) // 2

    def neighbourhood(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """ω's factors along y and x, (h, h) and (w, w): the Gaussian of two axes is the product of both."""
        if self.neighbourhood_std is None:
            raise ValueError("these terms have no neighbourhood prior")
        factors = []
        for size in self.grid:
            position = torch.arange(size, dtype=torch.float64)
            offset = position[:, None] - position[None, :]
            factors.append(torch.exp(-offset.square() / (2 * self.neighbourhood_std**2)))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return factors[0].to(like.device, dtype), factors[1].to(like.device, dtype)

    @property
    def score_scale(self) -> float:
        """What S is multiplied by: τ_s·(1 − λ_s) with feedback, else 1."""
        if self.feedback is None:
            return 1.0
        return self.feedback_temperature * (1.0 - self.feedback_weight)

    def scale(self, width: int) -> float:
        """The whole factor of x yᵀ for heads of `width`."""
        return self.score_scale / (math.sqrt(width) * self.score_temperature)
