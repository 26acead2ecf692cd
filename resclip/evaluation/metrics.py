"""How well pixels are labelled, as segmentation benchmarks count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Figures of a whole dataset, in per cent: areas are summed over it, then divided, as in mmsegmentation.

    With TP, FP and FN a class's pixels that were found, wrongly named and missed. A class that is neither there nor
    predicted has no IoU, one that is not there no accuracy: None, and left out of the means. A mean of none is None.
    """

    miou: float | None
    """Mean of `iou`."""
    mean_accuracy: float | None
    """Mean of `accuracy`."""
    pixel_accuracy: float | None
    """Pixels rightly named, of all that count."""
    frequency_weighted_iou: float | None
    """`iou`, each class weighted by its share of the pixels."""
    iou: tuple[float | None, ...]
    """TP / (TP + FP + FN) of each class."""
    accuracy: tuple[float | None, ...]
    """TP / (TP + FN) of each class."""


def confusion(
    truth: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    classes: int,
    ignored: int | None = None,
) -> NDArray[np.int64]:
    """How often each class was taken for each; the sum over images is that of their dataset.

    Args:
        truth, labels: true and predicted class of every pixel, two arrays of one shape.
        classes: how many there are; both arrays hold 0 … classes − 1, and `labels` −1 at pixels without a class.
        ignored: value of `truth` at pixels that do not count; None: all count.

    Returns:
        (classes, classes + 1): pixels by true class (row) and predicted class (column); the last column has those
        without a predicted class.

    Raises:
        ValueError: arrays of two shapes, or a value that is no class.
    """
    if truth.shape != labels.shape:
        raise ValueError(
            f"truth and labels must have one shape; got {truth.shape} and {labels.shape}"
        )
    truth, labels = truth.ravel(), labels.ravel()
    if ignored is not None:
        counted = truth != ignored
        truth, labels = truth[counted], labels[counted]
    for name, values, least, none in (("truth", truth, 0, ""), ("labels", labels, -1, ", or -1")):
        if values.size and not least <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{name} must hold classes 0 to {classes - 1}{none}; got {values.min()} to {values.max()}"
            )
    columns = np.where(labels < 0, classes, labels).astype(np.int64)
    counts = np.bincount(
        truth.astype(np.int64) * (classes + 1) + columns, minlength=classes * (classes + 1)
    )
    return counts.reshape(classes, classes + 1).astype(np.int64)


def scores_of(counts: NDArray[np.int64]) -> Scores:
    """The figures of `confusion`'s counts of a whole dataset; a pixel without a predicted class is a miss."""
    hits = np.diag(counts).astype(np.float64)
    there = counts.sum(1).astype(np.float64)
    iou = shares(hits, counts[:, : len(counts)].sum(0) + there - hits)
    accuracy = shares(hits, there)
    total = there.sum()
    weighted = [
        value * pixels for value, pixels in zip(iou, there, strict=True) if value is not None
    ]
    return Scores(
        miou=mean(iou),
        mean_accuracy=mean(accuracy),
        pixel_accuracy=float(100 * hits.sum() / total) if total else None,
        frequency_weighted_iou=float(sum(weighted) / total) if total else None,
        iou=iou,
        accuracy=accuracy,
    )


def shares(part: NDArray[np.float64], whole: NDArray[np.float64]) -> tuple[float | None, ...]:
    """100 · part / whole, None where there is no whole."""
    return tuple(
        100 * float(some) / float(every) if every else None
        for some, every in zip(part, whole, strict=True)
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
