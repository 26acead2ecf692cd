"""Intersection over union against a count by hand, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from resclip.evaluation.metrics import confusion, intersection_over_union, mean_iou

CLASSES = 5


def by_hand(pictures: list[tuple[np.ndarray, np.ndarray]]) -> list[float | None]:
    """Areas of both and of either, summed over the pictures, then divided; sets of pixels in place of counts."""
    values: list[float | None] = []
    for label in range(CLASSES):
        both = either = 0
        for truth, labels in pictures:
            there = {(y, x) for y, x in np.ndindex(truth.shape) if truth[y, x] == label}
            said = {(y, x) for y, x in np.ndindex(truth.shape) if labels[y, x] == label}
            both += len(there & said)
            either += len(there | said)
        values.append(100 * both / either if either else None)
    return values


def drawn(
    seed: int, sizes: list[tuple[int, int]], used: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        (
            generator.integers(used, size=size).astype(np.uint8),  # as scenes are drawn
            generator.integers(used, size=size),  # as segmenters answer
        )
        for size in sizes
    ]


@pytest.mark.parametrize(
    ("sizes", "used"),
    [
        ([(7, 9)], CLASSES),  # one oblong picture, every class
        ([(4, 4), (11, 3), (1, 1)], CLASSES),  # areas are summed over a set, whatever the sizes
        ([(6, 5), (5, 6)], 3),  # two classes neither there nor predicted
        ([(0, 4), (2, 2)], CLASSES),  # a picture without pixels counts nothing
    ],
)
def test_as_counted_by_hand(seed: int, sizes: list[tuple[int, int]], used: int) -> None:
    pictures = drawn(seed, sizes, used)
    counts = sum(confusion(truth, labels, CLASSES) for truth, labels in pictures)
    iou = intersection_over_union(counts)
    wanted = by_hand(pictures)
    assert [None if np.isnan(value) else value for value in iou] == pytest.approx(wanted)
    known = [value for value in wanted if value is not None]
    assert mean_iou(iou) == pytest.approx(sum(known) / len(known))


def test_rows_are_the_truth_and_columns_what_was_said() -> None:
    counts = confusion(np.array([[0, 0], [1, 1]]), np.array([[0, 1], [1, 1]]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    iou = intersection_over_union(counts)
    np.testing.assert_allclose(iou[:2], [50.0, 200 / 3])
    assert np.isnan(iou[2])
    assert mean_iou(iou) == pytest.approx((50 + 200 / 3) / 2)


def test_a_class_that_is_only_predicted_counts_as_nought() -> None:
    counts = confusion(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]), 3)
    iou = intersection_over_union(counts)
    assert iou[:2].tolist() == [75.0, 0.0]
    assert mean_iou(iou) == 37.5


def test_a_set_is_not_the_mean_of_its_pictures() -> None:
    """A large right picture and a small wrong one: 8 of 10 pixels in all, 50 % in the mean."""
    large = confusion(np.zeros(8, int), np.zeros(8, int), 2)
    small = confusion(np.zeros(2, int), np.ones(2, int), 2)
    assert intersection_over_union(large + small)[0] == 80.0


def test_nothing_seen_has_no_mean() -> None:
    assert np.isnan(mean_iou(intersection_over_union(np.zeros((3, 3), np.int64))))


@pytest.mark.parametrize(
    ("truth", "labels", "said"),
    [
        ([0, 1], [0, 1, 1], r"one shape; got \(2,\) and \(3,\)"),
        ([0, 3], [0, 1], "truth must hold classes 0 to 2; got 0 to 3"),
        ([0, 1], [-1, 1], "labels must hold classes 0 to 2; got -1 to 1"),
    ],
)
def test_what_is_no_class_is_refused(truth: list[int], labels: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        confusion(np.array(truth), np.array(labels), 3)
