"""What semantic feedback adds to the proxy attention's score, bundled for the implementations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback


@dataclass(frozen=True)
class FeedbackTerm:
    """Ŝ with its weight and temperature: S' = τ_s · ((1 − λ_s) · S + λ_s · Ŝ)."""

    state: SemanticFeedback
    """For the features' grid, (H_v, W_v)."""
    weight: float
    """λ_s in [0, 1]."""
    temperature: float
    """τ_s above 0."""

    def bonus(self, rows: Tensor) -> Tensor:
        """λ_s times rows of Ŝ, rounded to float16 where Ŝ is normalised, as in ResCLIP's released program."""
        weighted = self.weight * rows
        return weighted.half().to(rows.dtype) if self.state.normalise else weighted
