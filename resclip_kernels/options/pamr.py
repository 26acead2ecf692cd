"""The options of PAMR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from resclip_kernels.checks import check_count, check_type


def checked_dilations(dilations: Sequence[int], *, allow_none: bool = False) -> tuple[int, ...]:
    """As a tuple; an error unless it names at least one distance, and each is 1 or more."""
    check_type("dilations", dilations, (tuple, list), "a tuple of distances in pixels")
    if not (dilations or allow_none):
        raise ValueError("dilations must name at least one distance; use iterations=0 for none")
    for dilation in dilations:
        check_count("each of dilations", dilation, 1)
    return tuple(dilations)


@dataclass(frozen=True, kw_only=True)
class PamrOptions:
    """How often `pamr` averages, and over which pixels; the defaults are those of ResCLIP's released program.

    Raises:
        TypeError, ValueError: a count or distance that does not fit.
    """

    iterations: int = 10
    """How often the step runs; 0 leaves the planes as they are."""
    dilations: tuple[int, ...] = (8, 16)
    """Distances in pixels of the rings of 8 neighbours."""

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations, 0)
        object.__setattr__(self, "dilations", checked_dilations(self.dilations))


class PamrKeywords(TypedDict, total=False):
    """The fields of `PamrOptions` as keyword arguments."""

    iterations: int
    dilations: Sequence[int]
