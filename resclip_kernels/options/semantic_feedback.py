"""Options of semantic feedback: how a state is made of labels, and how Ŝ joins an attention's score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from resclip_kernels.checks import (
    check_choice,
    check_flag,
    check_fraction,
    check_not_negative,
    check_positive,
    set_floats,
)

if TYPE_CHECKING:
    from torch import Tensor

Connectivity = Literal["prefix", "line", "component"]
CONNECTIVITIES: tuple[str, ...] = get_args(Connectivity)


@dataclass(frozen=True)
class FeedbackOptions:
    """How `semantic_feedback` makes a state; the defaults are the released program's.

    Raises:
        TypeError, ValueError: an unknown connectivity, a standard deviation that is no finite number of at least 0, or
            a `normalise` that is no bool.
    """

    connectivity: Connectivity | None = "prefix"
    """How patch j can be connected to patch i, which spares the pair from path decay:
    "prefix", the released program's test of the first d/M of the segment from i to j;
    "line", the whole segment (the paper's equation);
    "component", the same 8-connected component of equal label;
    None, no path decay."""
    smoothing_std: float = 5.0
    """σ of the Gaussian along the flattened patch index, in patches; 0 turns smoothing off."""
    normalise: bool = True
    """Rows divided by their sums, the matrix by its largest entry, rounded to float16: the released program has this
    step, the paper's equations do not."""

    def __post_init__(self) -> None:
        if self.connectivity is not None:
            check_choice(
                "connectivity", self.connectivity, CONNECTIVITIES, ", or None for no decay"
            )
        check_not_negative("smoothing_std", self.smoothing_std)
        check_flag("normalise", self.normalise)
        set_floats(self, "smoothing_std")


class FeedbackKeywords(TypedDict, total=False):
    """The fields of `FeedbackOptions` as keyword arguments."""

    connectivity: Connectivity | None
    smoothing_std: float
    normalise: bool


@dataclass(frozen=True, kw_only=True)
class FeedbackMixing:
    """How Ŝ joins a score S: S' = τ_s · ((1 − λ_s) · S + λ_s · Ŝ), for every attention that takes feedback.

    λ_s·Ŝ is rounded to float16 where Ŝ is normalised, as in the released program. The defaults are the released
    program's; the paper's equation has 0.7 and 1.
    """

    feedback_weight: float = 0.6
    """λ_s in [0, 1]."""
    feedback_temperature: float = 2.1
    """τ_s > 0."""

    def __post_init__(self) -> None:
        check_fraction("feedback_weight", self.feedback_weight)
        check_positive("feedback_temperature", self.feedback_temperature)
        set_floats(self, "feedback_weight", "feedback_temperature")

    @property
    def mixing(self) -> tuple[float, float]:
        """(λ_s, τ_s)."""
        return self.feedback_weight, self.feedback_temperature

    def weighted(self, rows: Tensor, normalised: bool) -> Tensor:
        """λ_s times rows of Ŝ, in their dtype."""
        product = self.feedback_weight * rows
        return product.half().to(rows.dtype) if normalised else product


class MixingKeywords(TypedDict, total=False):
    """The fields of `FeedbackMixing` as keyword arguments."""

    feedback_weight: float
    feedback_temperature: float
