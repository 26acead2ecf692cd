"""Figures of labelled pixels, against scikit-learn's and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from resclip.evaluation.datasets.base import IGNORED
from resclip.evaluation.metrics import confusion, scores_of

CLASSES = 5
LABELS = list(range(CLASSES))
Images = list[tuple[np.ndarray, np.ndarray]]


def drawn(seed: int, sizes: list[tuple[int, int]], used: int, ignored: float) -> Images:
    """Truth as masks are read, and labels as segmenters answer, right at about half of the pixels."""
    generator = np.random.default_rng(seed)
    images = []
    for size in sizes:
        truth = generator.integers(used, size=size).astype(np.uint8)
        guesses = generator.integers(used, size=size)
        labels = np.where(generator.random(size) < 0.5, truth, guesses).astype(np.int64)
        truth[generator.random(size) < ignored] = IGNORED
        images.append((truth, labels))
    return images


def counted(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Truth and labels of all pixels that count, in one row."""
    truth = np.concatenate([truth.ravel() for truth, _ in images])
    labels = np.concatenate([labels.ravel() for _, labels in images])
    return truth[truth != IGNORED], labels[truth != IGNORED]


SETS = pytest.mark.parametrize(
    ("sizes", "used", "ignored"),
    [
        ([(7, 9)], CLASSES, 0.0),  # one oblong image, every class, every pixel
        ([(40, 40), (11, 30), (1, 1)], CLASSES, 0.3),  # areas are summed, whatever the sizes
        ([(6, 5), (5, 6)], 3, 0.1),  # two classes neither there nor predicted
        ([(0, 4), (20, 20)], CLASSES, 0.2),  # an image without pixels counts nothing
        ([(3, 3), (20, 20)], CLASSES, 0.95),  # an image, or nearly, of which nothing counts
    ],
)


@SETS
def test_figures_are_scikit_learns(
    seed: int, sizes: list[tuple[int, int]], used: int, ignored: float
) -> None:
    images = drawn(seed, sizes, used, ignored)
    truth, labels = counted(images)
    counts = sum(confusion(*image, CLASSES, IGNORED) for image in images)
    assert counts.dtype == np.int64
    assert np.array_equal(counts[:, :-1], confusion_matrix(truth, labels, labels=LABELS))
    assert not counts[:, -1].any()
    scores = scores_of(counts)
    options = {"labels": LABELS, "average": None, "zero_division": np.nan}
    iou, accuracy = jaccard_of(truth, labels), recall_score(truth, labels, **options)
    there = np.bincount(truth, minlength=CLASSES) / truth.size
    assert as_floats(scores.iou) == pytest.approx(100 * iou, nan_ok=True)
    assert as_floats(scores.accuracy) == pytest.approx(100 * accuracy, nan_ok=True)
    assert scores.miou == pytest.approx(100 * np.nanmean(iou))
    assert scores.mean_accuracy == pytest.approx(100 * np.nanmean(accuracy))
    assert scores.pixel_accuracy == pytest.approx(100 * accuracy_score(truth, labels))
    assert scores.frequency_weighted_iou == pytest.approx(100 * np.nansum(there * iou))


def jaccard_of(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """scikit-learn's IoU; NaN, which it cannot say, where a class is neither there nor predicted."""
    iou = jaccard_score(truth, labels, labels=LABELS, average=None, zero_division=0)
    seen = np.isin(LABELS, np.concatenate([truth, labels]))
    return np.where(seen, iou, np.nan)


def as_floats(values: tuple[float | None, ...]) -> list[float]:
    return [np.nan if value is None else value for value in values]


def test_what_is_ignored_counts_nowhere_whatever_was_said_of_it() -> None:
    truth = np.array([0, IGNORED, 1, IGNORED], np.uint8)
    assert confusion(truth, np.array([0, 0, 1, 1]), 2, IGNORED).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert confusion(truth, np.array([0, -1, 1, 0]), 2, IGNORED).tolist() == [[1, 0, 0], [0, 1, 0]]
    # Also where it is a class's number: the caller's word counts.
    assert confusion(np.array([0, 1]), np.array([0, 1]), 2, 0).tolist() == [[0, 0, 0], [0, 1, 0]]


def test_what_got_no_class_is_a_miss_of_its_true_class_and_of_no_other() -> None:
    counts = confusion(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, -1, 1, -1, 0]), 2)
    assert counts.tolist() == [[2, 0, 1], [1, 1, 1]]
    scores = scores_of(counts)
    assert scores.iou == pytest.approx((50.0, 100 / 3))
    assert scores.accuracy == pytest.approx((200 / 3, 100 / 3))
    assert scores.pixel_accuracy == 50.0


def test_a_class_that_is_only_predicted_counts_as_nought_in_the_iou_alone() -> None:
    scores = scores_of(confusion(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]), 3))
    assert scores.iou == (75.0, 0.0, None)
    assert scores.miou == 37.5
    assert scores.accuracy == (75.0, None, None)
    assert scores.mean_accuracy == 75.0
    assert scores.frequency_weighted_iou == 75.0  # Its weight is nought.


def test_nothing_seen_has_no_figures() -> None:
    nothing = confusion(np.full((3, 4), IGNORED, np.uint8), np.zeros((3, 4), int), 3, IGNORED)
    scores = scores_of(nothing)
    assert scores.iou == scores.accuracy == (None, None, None)
    means = (scores.miou, scores.mean_accuracy, scores.pixel_accuracy)
    assert (*means, scores.frequency_weighted_iou) == (None,) * 4


def test_counts_of_large_sets_do_not_overflow() -> None:
    """5,000 images of 2048 × 1024 are 10^10 pixels, beyond 32 bits."""
    scores = scores_of(np.array([[3 * 10**10, 10**10], [0, 10**10]]))
    assert scores.iou == (75.0, 50.0)
    assert scores.pixel_accuracy == 80.0
    assert scores.frequency_weighted_iou == pytest.approx((4 * 75 + 50) / 5)


@pytest.mark.parametrize(
    ("truth", "labels", "said"),
    [
        ([0, 1], [0, 1, 1], r"one shape; got \(2,\) and \(3,\)"),
        ([0, 1], [-2, 1], "labels must hold classes 0 to 2, or -1; got -2 to 1"),
        ([-1, 1], [0, 1], "truth must hold classes 0 to 2; got -1 to 1"),
        ([0, 3], [0, 1], "truth must hold classes 0 to 2; got 0 to 3"),
    ],
)
def test_what_is_no_class_is_refused(truth: list[int], labels: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        confusion(np.array(truth), np.array(labels), 3)
