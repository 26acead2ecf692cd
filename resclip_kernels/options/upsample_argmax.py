"""The options of the label map at full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from resclip_kernels.checks import (
    check_count,
    check_fraction,
    check_pair,
    check_positive,
    set_floats,
)
from resclip_kernels.options.pamr import checked_dilations


@dataclass(frozen=True, kw_only=True)
class UpsampleOptions:
    """How `upsample_argmax` makes labels of logits.

    Raises:
        TypeError, ValueError: a value out of its range.
    """

    logit_scale: float = 40.0
    """Factor of the logits before the softmax over queries."""
    threshold: float = 0.0
    """Smallest probability that counts, in [0, 1]: a pixel under it gets class 0."""
    through: tuple[int, int] | None = None
    """(H', W') to which the logits are resized first; None: straight to the output's size."""
    refine_iterations: int = 0
    """Iterations of PAMR on the resized logits; 0 for none."""
    dilations: tuple[int, ...] = (8, 16)
    """Of PAMR: distances in pixels."""

    def __post_init__(self) -> None:
        check_positive("logit_scale", self.logit_scale)
        check_fraction("threshold", self.threshold)
        set_floats(self, "logit_scale", "threshold")
        if self.through is not None:
            through = check_pair("through", self.through, "(height, width) in pixels", 1)
            object.__setattr__(self, "through", through)
        check_count("refine_iterations", self.refine_iterations, 0)
        dilations = checked_dilations(self.dilations, allow_none=not self.refine_iterations)
        object.__setattr__(self, "dilations", dilations)


class UpsampleKeywords(TypedDict, total=False):
    """The fields of `UpsampleOptions` as keyword arguments."""

    logit_scale: float
    threshold: float
    through: tuple[int, int] | None
    refine_iterations: int
    dilations: Sequence[int]
