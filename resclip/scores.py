"""`ClassScores`: the probabilities of all classes over an image, kept small and enlarged when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray


class ClassScores(Mapping[str, NDArray[np.float32]]):
    """By class name its (H, W) float32 probabilities, from 0 to 1, enlarged bilinearly from the grid that is kept.

    They are those of the model's patches, before refinement by pixels, so that the largest one's class may differ from
    the label where a refinement or a boundary decided.

    Args:
        names: of the classes.
        grid: (classes, h, w) float32, the probabilities at the centres of cells.
        cell: (height, width) of a cell in pixels of the image; the first one begins at its top left.
        size: (H, W) of the image.
        absent: (H, W) bool, where the image has no pixel: all probabilities are 0 there; None: nowhere.

    Raises:
        ValueError: shapes that do not fit.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        grid: NDArray[np.float32],
        cell: tuple[float, float],
        size: tuple[int, int],
        absent: NDArray[np.bool_] | None = None,
    ) -> None:
        if grid.ndim != 3 or len(grid) != len(names):
            raise ValueError(
                f"expected a grid of shape ({len(names)}, h, w), one plane a class, got {grid.shape}"
            )
        self.names = names
        self.grid = grid
        self.cell = cell
        self.size = size
        self.absent = absent

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """(H, W).

        Raises:
            KeyError: no such class, with the names that there are.
        """
        plane = self.plane(name)
        upper, lower, weight = between(self.size[0], self.cell[0], plane.shape[0])
        rows = plane[upper] + (plane[lower] - plane[upper]) * weight[:, None]
        left, right, weight = between(self.size[1], self.cell[1], plane.shape[1])
        # Column by column of the small rows, then in place: three planes of the image's size would be held otherwise.
        scores: NDArray[np.float32] = rows[:, right]
        scores -= rows[:, left]
        scores *= weight
        scores += rows[:, left]
        np.clip(scores, 0.0, 1.0, out=scores)
        if self.absent is not None:
            scores[self.absent] = 0.0
        return scores

    def plane(self, name: str) -> NDArray[np.float32]:
        """(h, w): a class's probabilities as they are kept, one for each cell; KeyError for a name that is none."""
        if name not in self.names:
            near = get_close_matches(str(name), self.names, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(self.names[:12])}"
            )
            raise KeyError(f"no class {name!r} here: {hint}")
        found: NDArray[np.float32] = self.grid[self.names.index(name)]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        _, height, width = self.grid.shape
        return (
            f"ClassScores({len(self.names)} classes at {height} x {width} cells, "
            f"{self.grid.nbytes / 1e6:.1f} MB, for {self.size[1]} x {self.size[0]} pixels)"
        )


def between(
    length: int, cell: float, cells: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """(length,) each: the two cells whose centres a pixel's lies between, and the second one's weight."""
    position = ((np.arange(length) + 0.5) / cell - 0.5).clip(0, cells - 1)
    first = np.floor(position).astype(np.intp)
    return first, np.minimum(first + 1, cells - 1), (position - first).astype(np.float32)
