"""Intersection over union, as segmentation benchmarks count it.

Knows arrays of class indices. Knows no picture, model or method.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["confusion", "intersection_over_union", "mean_iou"]


def confusion(
    truth: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """How often each class was taken for each; the sum over pictures is that of their set.

    Args:
        truth, labels: true and predicted class of every pixel, two arrays of one shape.
        classes: how many there are; both arrays hold 0 … classes − 1.

    Returns:
        (classes, classes): pixels by true class (row) and predicted class (column).

    Raises:
        ValueError: arrays of two shapes, or a value that is no class.
    """
    if truth.shape != labels.shape:
        raise ValueError(
            f"truth and labels must have one shape; got {truth.shape} and {labels.shape}"
        )
    for name, values in (("truth", truth), ("labels", labels)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"{name} must hold classes 0 to {classes - 1}; got {values.min()} to {values.max()}"
            )
    pairs = truth.ravel().astype(np.int64) * classes + labels.ravel().astype(np.int64)
    counts = np.bincount(pairs, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(classes,) in per cent from `confusion`'s counts of a whole set; NaN for a class neither there nor predicted.

    Areas are summed over the set before they are divided, as in mmsegmentation's IoUMetric.
    """
    hits = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hits
    shares = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return np.asarray(100 * shares)


def mean_iou(iou: NDArray[np.float64]) -> float:
    """Mean of the classes that are there or were predicted; NaN where there is none."""
    known = iou[~np.isnan(iou)]
    return float(known.mean()) if len(known) else float("nan")
