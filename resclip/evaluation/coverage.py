"""What part of a dataset's masks the figures are of, and signs that the masks' values mean something else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.checkpoint import DatasetResult
from resclip.evaluation.datasets.base import IGNORED, Dataset


@dataclass(frozen=True)
class Coverage:
    """Pixels of the ground truth of the images that were measured, and what they leave open."""

    counted: int
    """Pixels that have a true class: all figures are of them."""
    ignored: int
    """Pixels that do not count."""
    unlabelled: int
    """Of `counted`, the pixels where the image has no data and so no predicted class: each is a miss."""
    missing: tuple[str, ...]
    """The classes that no pixel of the ground truth has."""
    hint: str | None
    """What to look at if the masks seem to be read with another meaning than they were made with, as a sentence."""


def coverage_of(dataset: Dataset, result: DatasetResult) -> Coverage:
    """The coverage of what was measured on a dataset."""
    counts = result.confusion
    there = counts.sum(1)
    return Coverage(
        counted=int(there.sum()),
        ignored=result.ignored,
        unlabelled=int(counts[:, -1].sum()),
        missing=tuple(
            name for name, pixels in zip(dataset.classes, there, strict=True) if not pixels
        ),
        hint=hint_of(dataset, counts, result.ignored),
    )


def hint_of(dataset: Dataset, counts: NDArray[np.int64], ignored: int) -> str | None:
    """A sentence where masks whose values the user explains look misread; None where they do not.

    Args:
        dataset: with `mask_options`; others have masks of a known meaning, and no hint.
        counts: (C, C + 1), as `metrics.confusion` counts them.
        ignored: how many pixels do not count.
    """
    if not dataset.mask_options:
        return None
    offset, there = dataset.mask_options["label_offset"], counts.sum(1)
    usual = offset == 0 and dataset.mask_options["ignore_index"] == IGNORED
    if usual and ignored and there[0] and not there[1:].any() and len(there) > 1:
        return (
            f"Every mask holds 0 and {IGNORED} alone, and {IGNORED} does not count: if it is the foreground, the "
            "masks must hold that class's number, 1."
        )
    named = counts[:, : len(counts)]
    present = np.flatnonzero(named.any(1))
    # The class that most pixels of a class were taken for, less that class: 0 where the masks are read aright.
    shifts = named[present].argmax(1) - present
    for shift in (-1, 1):
        matches = int((shifts == shift).sum())
        # One class that is taken for its neighbour is a mistake of the method; several, and more than are rightly
        # named, are a pattern.
        if matches > max(1, int((shifts == 0).sum())):
            neighbour, right = ("before" if shift < 0 else "after"), offset - shift
            return (
                f"{matches} classes were mostly taken for the one {neighbour} them in the list: if the masks count the "
                f"classes from {right}, pass --label-offset {right}."
            )
    return None
