"""The bootstrap over images: its arithmetic against counting each draw anew, and what it compares draw by draw."""

from __future__ import annotations

import numpy as np
import pytest

from resclip.evaluation.bootstrap import ImageCounts, draws, halves, interval, mious, share_ahead
from resclip.evaluation.metrics import scores_of

CLASSES = 5


def random_counts(seed: int, images: int) -> ImageCounts:
    """Of images in which most cells are 0; class 4 is in no image, and only image 0 has class 3."""
    generator = np.random.default_rng(seed)
    counts = ImageCounts.empty(CLASSES)
    for image in range(images):
        cells = generator.integers(0, 200, (CLASSES, CLASSES + 1))
        cells[generator.random(cells.shape) < 0.6] = 0
        cells[4], cells[:, 4] = 0, 0
        if image:
            cells[3], cells[:, 3] = 0, 0
        counts.add(image, cells)
    return counts


def test_each_draw_has_the_miou_of_the_images_that_it_drew() -> None:
    counts, images = random_counts(0, 7), [0, 2, 3, 5, 6]
    drawn = draws(len(images), 40)
    found = mious(counts.areas(images), drawn)
    for times, miou in zip(drawn, found, strict=True):
        again = [
            image for image, count in zip(images, times, strict=True) for _ in range(int(count))
        ]
        assert len(again) == len(images)
        assert miou == pytest.approx(scores_of(counts.confusion(again)).miou, abs=1e-9)
    # A draw without image 0 has no class 3, which then counts in no mean.
    assert {bool(times[0]) for times in drawn} == {False, True}


def test_no_class_gives_no_figure() -> None:
    counts = ImageCounts.empty(CLASSES)
    counts.add(0, np.zeros((CLASSES, CLASSES + 1), np.int64))
    assert np.isnan(mious(counts.areas([0]), draws(1, 3))).all()


def test_counts_come_back_from_json_and_others_are_refused() -> None:
    counts = random_counts(1, 4)
    again = ImageCounts.from_json(CLASSES, counts.as_json(), 4)
    for image in range(4):
        np.testing.assert_array_equal(again.confusion([image]), counts.confusion([image]))
    good = counts.as_json()[0]
    for bad in (
        [4, *good[1:]], [0, [30], [1]], [0, [1, 1], [2, 2]], [0, [1], [2, 3]], [0, [-1], [2]], [0, [1]], 3,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected counts of images"):
            ImageCounts.from_json(CLASSES, [bad], 4)


@pytest.mark.parametrize("count", [2, 7, 10])
def test_halves_are_disjoint_hold_all_and_stay(count: int) -> None:
    first, second = halves(count)
    assert sorted([*first, *second]) == list(range(count))
    assert len(first) - len(second) == count % 2
    assert halves(count) == (first, second)
    assert count < 10 or halves(count, 1) != (first, second)


def test_draws_hold_as_many_images_as_there_are() -> None:
    drawn = draws(9, 500)
    assert (drawn.sum(1) == 9).all()
    assert len(np.unique(drawn, axis=0)) > 400
    # An image is left out of a draw in (1 - 1/9)^9 of all.
    assert (drawn == 0).mean() == pytest.approx((8 / 9) ** 9, abs=0.02)
    np.testing.assert_array_equal(drawn, draws(9, 500))


def test_a_small_gain_on_every_image_is_sure_though_the_intervals_overlap() -> None:
    """What pairing by image is for: images differ by far more than the two compositions do."""
    generator = np.random.default_rng(3)
    better, worse = ImageCounts.empty(2), ImageCounts.empty(2)
    for image in range(12):
        right = int(generator.integers(100, 900))
        for counts, hits in ((better, right + 5), (worse, right)):
            counts.add(image, np.array([[hits, 1000 - hits, 0], [1000 - hits, hits, 0]]))
    drawn, images = draws(12), list(range(12))
    above, below = (mious(counts.areas(images), drawn) for counts in (better, worse))
    assert share_ahead(above, below) == 1.0
    assert share_ahead(below, above) == 0.0
    assert share_ahead(above, above) == 0.5
    assert interval(above)[0] < interval(below)[1]
    # Drawn each for itself they would not be told apart.
    apart = mious(worse.areas(images), draws(12, seed=1))
    assert 0.3 < share_ahead(above, apart) < 0.7


def test_the_interval_holds_95_per_cent() -> None:
    values = np.random.default_rng(0).permutation(np.arange(2001.0))
    assert interval(values) == pytest.approx((50.0, 1950.0))
