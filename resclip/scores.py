"""`ClassScores`: the probabilities of all classes over an image, kept small and enlarged when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

STRIP_BYTES = 1 << 25
"""Bytes of enlarged planes that are held at a time."""


class ClassScores(Mapping[str, NDArray[np.float32]]):
    """By class name its (H, W) float32 probabilities, from 0 to 1, enlarged from the grid that is kept.

    What the model gives for its patches is enlarged bilinearly, and then made probabilities of, as labels are; but
    before refinement by pixels, and where windows overlap by their mean at patches, so that the most probable class may
    differ from the label at a border. The first class that is asked for takes longest: all others are gone through.

    Args:
        names: of the classes.
        planes: (Q, h, w) float32 at the centres of cells, of each query the logarithm of its probability.
        query_to_class: of each query the number of its class; a class scores as the best of its queries.
        cell: (height, width) of a cell in pixels of the image; the first one begins at its top left.
        size: (H, W) of the image.
        absent: (H, W) bool, where the image has no pixel: all probabilities are 0 there; None: nowhere.
        are_logarithms: False for planes of values from 0 to 1 that are no probabilities.

    Raises:
        ValueError: shapes that do not fit.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        planes: NDArray[np.float32],
        query_to_class: Sequence[int],
        cell: tuple[float, float],
        size: tuple[int, int],
        absent: NDArray[np.bool_] | None = None,
        *,
        are_logarithms: bool = True,
    ) -> None:
        if planes.ndim != 3 or len(planes) != len(query_to_class):
            raise ValueError(
                f"expected planes of shape ({len(query_to_class)}, h, w), one a query, got {planes.shape}"
            )
        if set(query_to_class) != set(range(len(names))):
            raise ValueError(f"expected at least one query for each of {len(names)} classes")
        self.names = names
        self.planes = planes
        self.cell = cell
        self.size = size
        self.absent = absent
        self.query_to_class = np.asarray(query_to_class)
        self.are_logarithms = are_logarithms
        self._total: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that are kept, with what the first class that was asked for has left."""
        return self.planes.nbytes + (0 if self._total is None else self._total.nbytes)

    @property
    def grid(self) -> NDArray[np.float32]:
        """(classes, h, w): the probabilities at the centres of cells, as they were kept."""
        best = np.stack([self._of(number).max(axis=0) for number in range(len(self.names))])
        return np.exp(best) if self.are_logarithms else best

    def _of(self, number: int) -> NDArray[np.float32]:
        """The planes of a class's queries."""
        found: NDArray[np.float32] = self.planes[self.query_to_class == number]
        return found

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """(H, W).

        Raises:
            KeyError: no such class, with the names that there are.
        """
        if name not in self.names:
            near = get_close_matches(str(name), self.names, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(self.names[:12])}"
            )
            raise KeyError(f"no class {name!r} here: {hint}")
        queries = self._of(self.names.index(name))
        scores = np.empty(self.size, np.float32)
        total = self._totals() if self.are_logarithms else None
        for rows in self._strips(len(queries)):
            plane = self._enlarged(queries, rows).max(axis=0)
            scores[rows] = plane if total is None else np.exp(plane - total[rows])
        np.clip(scores, 0.0, 1.0, out=scores)
        if self.absent is not None:
            scores[self.absent] = 0.0
        return scores

    def _totals(self) -> NDArray[np.float32]:
        """(H, W): the logarithm of what the enlarged probabilities of all queries sum to."""
        if self._total is None:
            total = np.empty(self.size, np.float32)
            for rows in self._strips(len(self.planes)):
                planes = self._enlarged(self.planes, rows)
                # Less the largest: where queries change sharply from patch to patch all of them are tiny in between.
                largest = planes.max(axis=0)
                planes -= largest
                total[rows] = largest + np.log(np.exp(planes, out=planes).sum(axis=0))
            self._total = total
        return self._total

    def _strips(self, planes: int) -> Iterator[slice]:
        """Rows of the image, as many at a time as `STRIP_BYTES` hold of so many planes."""
        height, width = self.size
        step = max(1, STRIP_BYTES // (4 * planes * width))
        for first in range(0, height, step):
            yield slice(first, min(height, first + step))

    def _enlarged(self, planes: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
        """(N, n, W): some rows of planes (N, h, w) at the image's size."""
        upper, lower, down = between(self.size[0], self.cell[0], planes.shape[1])
        left, right, across = between(self.size[1], self.cell[1], planes.shape[2])
        upper, lower, down = upper[rows], lower[rows], down[rows, None]
        tall = planes[:, upper] * (1 - down) + planes[:, lower] * down
        wide: NDArray[np.float32] = tall[:, :, right]
        beginning = tall[:, :, left]
        wide -= beginning
        wide *= across
        wide += beginning
        return wide

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        _, height, width = self.planes.shape
        return (
            f"ClassScores({len(self.names)} classes at {height} x {width} cells, "
            f"{self.nbytes / 1e6:.1f} MB, for {self.size[1]} x {self.size[0]} pixels)"
        )


def between(
    length: int, cell: float, cells: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """(length,) each: the two cells whose centres a pixel's lies between, and the second one's weight."""
    position = ((np.arange(length) + 0.5) / cell - 0.5).clip(0, cells - 1)
    first = np.floor(position).astype(np.intp)
    return first, np.minimum(first + 1, cells - 1), (position - first).astype(np.float32)
