"""The options of one residual attention, and what each correlation compares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from resclip_kernels.checks import (
    check_choice,
    check_count,
    check_fraction,
    check_grid,
    check_positive,
    set_floats,
)
from resclip_kernels.options.semantic_feedback import FeedbackMixing, MixingKeywords

if TYPE_CHECKING:
    from torch import Tensor

    from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback

Correlation = Literal["qk", "qq", "kk", "qq+kk", "pp", "pp-sum", "none", "identity"]
CORRELATIONS: tuple[str, ...] = get_args(Correlation)
# Which of (query, key) stand left and right in each score. "pp" and "pp-sum" correlate the call's projections, "none"
# has one score of zeros, and with "identity" the map is the unit matrix.
SCORES: dict[str, tuple[tuple[int, int], ...]] = {
    "qk": ((0, 1),),
    "qq": ((0, 0),),
    "kk": ((1, 1),),
    "qq+kk": ((0, 0), (1, 1)),
    "pp": (),
    "pp-sum": (),
    "none": (),
    "identity": (),
}
PROJECTED = ("pp", "pp-sum")


def score_operands(
    correlation: Correlation, query: Tensor, key: Tensor, projections: tuple[Tensor, ...]
) -> list[tuple[Tensor, Tensor]]:
    """(x, y) of every score x yᵀ of a correlation; empty for "none" and "identity"."""
    if correlation in PROJECTED:
        return [(projection, projection) for projection in projections]
    return [((query, key)[left], (query, key)[right]) for left, right in SCORES[correlation]]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(FeedbackMixing):
    """Everything that decides `residual_attention` beside its tensors.

    The weights and temperatures of feedback and cross-layer residual are the released program's; the paper's equations
    have 0.7 and 1 for the feedback (`FeedbackMixing`), and 0.5 and 1 for the residual.

    Raises:
        TypeError, ValueError: a value out of its range.
    """

    grid: tuple[int, int]
    """(h, w) in patches."""
    correlation: Correlation = "kk"
    """What is compared: "qk", "qq", "kk", "qq+kk" (the sum: rows add to 2), "pp" (the mean over the call's
    projections), "pp-sum" (their sum), "none" (the prior, the feedback and the window alone; query and key are not
    read) or "identity" (no score: takes none of these, and no score temperature)."""
    score_temperature: float = 1.0
    """τ > 0 of the base's own scores, before the feedback, not of A_c's; under 1 it sharpens."""
    window: int | None = None
    """Odd side of the square in patches that a patch attends to; 1 leaves each patch to itself, None is no limit."""
    neighbourhood_std: float | None = None
    """σ of the neighbourhood prior ω in patches; None for no prior."""
    cross_weight: float = 0.4
    """λ_r in [0, 1]: the share of the middle blocks' attention."""
    cross_temperature: float = 2.0
    """τ_r > 0: factor of the mixed attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # A list or a torch.Size does as well.
        object.__setattr__(self, "grid", check_grid(self.grid))
        check_choice("correlation", self.correlation, CORRELATIONS)
        check_positive("score_temperature", self.score_temperature)
        if self.window is not None:
            check_count("window", self.window, 1)
            if self.window % 2 == 0:
                raise ValueError(
                    f"window must be odd, for the patch to stand in its middle; got {self.window}"
                )
        check_fraction("cross_weight", self.cross_weight)
        check_positive("cross_temperature", self.cross_temperature)
        set_floats(self, "score_temperature", "cross_weight", "cross_temperature")
        if self.neighbourhood_std is not None:
            check_positive("neighbourhood_std", self.neighbourhood_std)
            set_floats(self, "neighbourhood_std")

    def cls_tokens(self, tokens: int) -> int:
        """1 where a sequence of this length begins with [CLS], 0 where it holds patches alone."""
        return tokens - math.prod(self.grid)

    @property
    def reach(self) -> int:
        """Chebyshev distance in patches as far as which a patch sees: (`window` − 1)/2."""
        if self.window is None:
            raise ValueError("these options have no window")
        return (self.window - 1) // 2

    @property
    def prior_std(self) -> float:
        """σ where its square can be computed with: below and above, ω is the unit matrix and 1 in any dtype."""
        if self.neighbourhood_std is None:
            raise ValueError("these options have no neighbourhood prior")
        return min(max(self.neighbourhood_std, 1e-9), 1e9)

    def neighbourhood(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """ω's factors along y and x, (h, h) and (w, w): the Gaussian of two axes is the product of both."""
        import torch

        factors = []
        for size in self.grid:
            position = torch.arange(size, dtype=torch.float64)
            offset = position[:, None] - position[None, :]
            factors.append(torch.exp(-offset.square() / (2 * self.prior_std**2)))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return factors[0].to(like.device, dtype), factors[1].to(like.device, dtype)

    def scale(self, width: int, has_feedback: bool) -> float:
        """The whole factor of x yᵀ for heads of `width`: τ_s·(1 − λ_s) with feedback, else 1, over √d·τ."""
        weight, temperature = self.mixing if has_feedback else (0.0, 1.0)
        return temperature * (1.0 - weight) / (math.sqrt(width) * self.score_temperature)

    def has_terms(self, feedback: SemanticFeedback | None) -> bool:
        """Whether anything but a factor changes the scores between patches."""
        terms = (self.neighbourhood_std, feedback, self.window)
        return any(term is not None for term in terms)

    def unattended(self, value: Tensor) -> Tensor:
        """A_b·v where nothing is compared and nothing added: the tokens' values ("identity"), or their mean."""
        if self.correlation == "identity":
            return value
        return value.mean(dim=2, keepdim=True).repeat(1, 1, value.shape[2], 1)

    def mixed(self, base: Tensor, cross_layer: Tensor | None) -> Tensor:
        """τ_r · ((1 − λ_r) · A_b·v + λ_r · A_c·v), or A_b·v where there is no RCS."""
        if cross_layer is None:
            return base
        return self.cross_temperature * base.lerp(cross_layer, self.cross_weight)


class AttentionKeywords(MixingKeywords, total=False):
    """The fields of `AttentionOptions` as keyword arguments."""

    grid: tuple[int, int]
    correlation: Correlation
    score_temperature: float
    window: int | None
    neighbourhood_std: float | None
    cross_weight: float
    cross_temperature: float
