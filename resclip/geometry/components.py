"""Connected components of a label map, found by runs: stretches of one label in a row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONNECTIVITIES = (4, 8)
"""A pixel's neighbours: 4 share an edge with it, 8 an edge or a corner."""


@dataclass(frozen=True, eq=False)
class Components:
    """The connected components of a label map, each of one class.

    A component by 8 neighbours consists of parts by 4 neighbours, which touch at corners; by 4 neighbours each
    component is one part. Components are numbered in the order of their first pixels, row by row, and so are parts.

    Attributes:
        parts: (H, W) int32, the number of each pixel's part; −1 where the label is negative.
        part_of: (P + 1,) int32, the component of each part; −1 at its end, so that part −1 is of none.
        classes: (N,) int64, the label of each component.
        areas: (N,) int64, in pixels.
        boxes: (N, 4) int64, the least box of whole pixels around each: x, y, width and height.
    """

    parts: NDArray[np.int32]
    part_of: NDArray[np.int32]
    classes: NDArray[np.int64]
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.areas)

    def crop(self, number: int) -> NDArray[np.bool_]:
        """(height, width) of the component's box, true on its pixels."""
        x, y, width, height = self.boxes[number].tolist()
        return np.asarray(self.part_of[self.parts[y : y + height, x : x + width]] == number)

    @cached_property
    def part_areas(self) -> NDArray[np.int64]:
        """(P,): pixels of each part."""
        counts = np.bincount(self.parts.ravel() + 1, minlength=len(self.part_of))
        return counts[1:].astype(np.int64)

    def sums(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """(N,): the sum over each component's pixels of `values`, (H, W)."""
        flat = self.parts.ravel()
        starts = _starts(self.parts)
        runs = np.add.reduceat(values.ravel(), starts, dtype=np.float64)
        owners = self.part_of[flat[starts]]
        sums = np.bincount(owners + 1, weights=runs, minlength=len(self) + 1)[1:]
        return sums.astype(np.float64, copy=False)


def find_components(labels: NDArray[Any], connectivity: int = 8) -> Components:
    """The components of a label map, (H, W) of any integer dtype; negative labels belong to none.

    Memory: 8 bytes a pixel, beside some 100 bytes a run. He, Chao and Suzuki, "A Run-Based Two-Scan Labeling
    Algorithm" (2008), with all pairs of neighbouring runs joined at once in place of a second scan.

    Raises:
        ValueError: `connectivity` is neither 4 nor 8.
    """
    check_connectivity(connectivity)
    height, width = labels.shape
    starts = _starts(labels)
    flat = labels.ravel()
    run_labels = flat[starts].astype(np.int64)
    run_of = np.zeros(flat.size, np.int32)
    run_of[starts[1:]] = 1
    np.cumsum(run_of, out=run_of)

    # Runs that overlap meet at the start of one of them: a run starts below, or above, the other.
    inner = starts[starts >= width]
    above = starts[starts < flat.size - width]
    pairs = [(run_of[inner - width], run_of[inner]), (run_of[above], run_of[above + width])]
    roots = _roots(len(starts), _alike(pairs, run_labels))
    # A run's root is its component's first run.
    is_labelled = run_labels >= 0
    is_first = (roots == np.arange(len(roots))) & is_labelled
    number = np.cumsum(is_first, dtype=np.int32) - np.int32(1)
    run_parts = np.where(is_labelled, number[roots], np.int32(-1))
    count = int(is_first.sum())
    part_labels = run_labels[is_first]

    owners = np.arange(count, dtype=np.int32)
    if connectivity == 8 and count:
        # Runs that touch at a corner alone: the one above starts, or the one before it ends, there.
        corners = above[above % width > 0]
        diagonal = [
            (run_of[corners], run_of[corners - 1 + width]),
            (run_of[corners - 1], run_of[corners + width]),
        ]
        first, second = _alike(diagonal, run_labels)
        first, second = run_parts[first], run_parts[second]
        is_labelled_pair = first >= 0
        part_roots = _roots(count, (first[is_labelled_pair], second[is_labelled_pair]))
        is_first_part = part_roots == np.arange(count)
        owners = (np.cumsum(is_first_part, dtype=np.int32) - np.int32(1))[part_roots]
        classes = part_labels[is_first_part]
    else:
        classes = part_labels

    part_of = np.append(owners, np.int32(-1))
    parts = run_parts[run_of].reshape(height, width)
    del run_of
    kept = is_labelled.nonzero()[0]
    lengths = np.diff(starts, append=flat.size)[kept]
    rows, lefts = np.divmod(starts[kept], width)
    areas, boxes = _measure(part_of[run_parts[kept]], rows, lefts, lengths, len(classes))
    return Components(parts, part_of, classes, areas, boxes)


def check_connectivity(connectivity: int) -> None:
    """ValueError unless it is 4 or 8."""
    if isinstance(connectivity, bool) or connectivity not in CONNECTIVITIES:
        raise ValueError(
            "connectivity must be 4, where pixels of an instance share edges, or 8, where corners suffice; got "
            f"{connectivity!r:.80}"
        )


def _starts(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Where in the flattened map each run starts, in order."""
    is_start = np.ones(labels.shape, np.bool_)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=is_start[:, 1:])
    return np.flatnonzero(is_start)


def _alike(
    pairs: list[tuple[NDArray[np.int32], NDArray[np.int32]]], run_labels: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The pairs of runs of one label."""
    first = np.concatenate([one for one, _ in pairs])
    second = np.concatenate([other for _, other in pairs])
    same = run_labels[first] == run_labels[second]
    return first[same], second[same]


def _roots(count: int, pairs: tuple[NDArray[np.int32], NDArray[np.int32]]) -> NDArray[np.int32]:
    """(count,): the least number that each of `count` things is joined with by pairs, directly or not."""
    parents = np.arange(count, dtype=np.int32)
    first, second = pairs
    while len(first):
        # Every root with a smaller neighbour hangs itself below the smallest; then all paths are made short.
        np.minimum.at(parents, np.maximum(first, second), np.minimum(first, second))
        while True:
            shorter = parents[parents]
            if np.array_equal(shorter, parents):
                break
            parents = shorter
        first, second = parents[first], parents[second]
        different = first != second
        first, second = first[different], second[different]
    return parents


def _measure(
    owners: NDArray[np.int32],
    rows: NDArray[np.int64],
    lefts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Areas and boxes of components from their runs."""
    areas = np.zeros(count, np.int64)
    np.add.at(areas, owners, lengths)
    least = np.full((2, count), np.iinfo(np.int64).max)
    most = np.zeros((2, count), np.int64)
    np.minimum.at(least[0], owners, lefts)
    np.minimum.at(least[1], owners, rows)
    np.maximum.at(most[0], owners, lefts + lengths)
    np.maximum.at(most[1], owners, rows + 1)
    return areas, np.concatenate([least, most - least]).T.copy()
