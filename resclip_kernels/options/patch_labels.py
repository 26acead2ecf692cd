"""The options of patch labels."""

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
class PatchLabelsOptions:
    """How `patch_labels` reads labels from logits; but for the threshold the defaults are the released program's.

    Raises:
        TypeError, ValueError: a value out of its range.
    """

    patch_size: tuple[int, int]
    """(height, width) of a patch in pixels."""
    logit_scale: float = 40.0
    """Factor of the logits before the softmax over queries."""
    threshold: float = 0.0
    """Smallest probability that counts, in [0, 1]: a pixel under it gets query 0."""
    refine_iterations: int = 10
    """Iterations of PAMR on the resized logits; 0 for none."""
    dilations: tuple[int, ...] = (8, 16)
    """Of PAMR: distances in pixels."""

    def __post_init__(self) -> None:
        patch_size = check_pair("patch_size", self.patch_size, "(height, width) in pixels", 1)
        object.__setattr__(self, "patch_size", patch_size)
        check_positive("logit_scale", self.logit_scale)
        check_fraction("threshold", self.threshold)
        set_floats(self, "logit_scale", "threshold")
        check_count("refine_iterations", self.refine_iterations, 0)
        dilations = checked_dilations(self.dilations, allow_none=not self.refine_iterations)
        object.__setattr__(self, "dilations", dilations)


class PatchLabelsKeywords(TypedDict, total=False):
    """The fields of `PatchLabelsOptions` as keyword arguments."""

    patch_size: tuple[int, int]
    logit_scale: float
    threshold: float
    refine_iterations: int
    dilations: Sequence[int]
