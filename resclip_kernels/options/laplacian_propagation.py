"""The options of the Laplacian propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from resclip_kernels.checks import check_count, check_flag


@dataclass(frozen=True, kw_only=True)
class LaplacianPropagationOptions:
    """How fine `laplacian_propagation` solves, and for how long; the defaults are those of PEARL's released program.

    Raises:
        TypeError, ValueError: a count that does not fit.
    """

    grid: int = 80
    """About how many cells the pooled grid has along each axis; PEARL takes 224 for Cityscapes."""
    iterations: int = 25
    """Steps of conjugate gradients; 0 pools and resizes, no more."""

    cells: bool = False
    """Whether the result is F on the pooled grid, which `upsample_argmax` resizes as this op does, and no more."""

    def __post_init__(self) -> None:
        check_flag("cells", self.cells)
        check_count("grid", self.grid, 1)
        check_count("iterations", self.iterations, 0)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the result for logits of this size."""
        down, across = self.pooling(height, width) if self.cells else (1, 1)
        return height // down, width // across

    def pooling(self, height: int, width: int) -> tuple[int, int]:
        """(s_h, s_w): pixels of a cell along each axis of an image, max(1, side / grid rounded half to even)."""
        return max(1, round(height / self.grid)), max(1, round(width / self.grid))


class LaplacianPropagationKeywords(TypedDict, total=False):
    """The fields of `LaplacianPropagationOptions` as keyword arguments."""

    grid: int
    iterations: int
    cells: bool
