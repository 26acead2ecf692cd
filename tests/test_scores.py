"""Probabilities of all classes: small, at the image's size when asked for, and those that labels are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import random_image, toy_segmenter

from resclip import RCS, Segmenter
from resclip.inference import pipeline as pipelines
from resclip.scores import ClassScores


def make(**arguments: Any) -> Segmenter:
    return toy_segmenter({"rcs": RCS()}, **arguments)


@pytest.mark.parametrize("window", (0, 32))
@pytest.mark.parametrize("size", ((60, 90), (7, 50), (61, 47)))
def test_they_agree_with_the_labels(window: int, size: tuple[int, int]) -> None:
    image = random_image(*size)
    result = make(window=window).segment(image, keep="scores")
    planes = np.stack([result.scores[name] for name in result.names])
    assert planes.shape == (3, *size)
    assert list(result.scores) == list(result.names)
    assert (result.scores.grid.shape[0], len(result.scores)) == (3, 3)
    assert result.scores.grid.shape[1:] == result.scores.planes.shape[1:]
    # The means of overlapping windows are formed at patches, not at pixels.
    agreement = (planes.argmax(axis=0) == result.labels).mean()
    assert agreement > (0.9 if window else 0.99)
    assert np.abs(planes.max(axis=0) - result.probabilities).mean() < (0.1 if window else 0.02)


def test_a_grid_lies_where_its_patches_do() -> None:
    """A cell of 8 pixels of the image at the model, whatever is left over at the right and at the bottom."""
    result = make(short_side=0, window=32, stride=16).segment(random_image(60, 91), keep="scores")
    scores = result.scores
    assert scores.cell == (8, 8)
    assert scores.grid.shape == (3, 7, 11)
    plane = np.log(scores["cat"])
    for row, column in ((0, 0), (3, 5), (6, 10)):
        # A cell's centre lies between four pixels.
        y, x = 8 * row + 3, 8 * column + 3
        np.testing.assert_allclose(
            plane[y : y + 2, x : x + 2].mean(), np.log(scores.grid[0, row, column]), atol=0.1
        )


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_image(200, 90)
    own = make(short_side=0)
    whole = own.segment(image, keep="scores").scores.grid
    monkeypatch.setitem(pipelines.STRIP_BYTES, "cpu", 16 * 90 * 60)
    np.testing.assert_array_equal(own.segment(image, keep="scores").scores.grid, whole)
    (alone, _) = own.segment([image, random_image(40, 40)], keep="scores")
    np.testing.assert_allclose(alone.scores.grid, whole, atol=1e-5)


def test_absent_pixels_have_no_probability() -> None:
    pixels = np.dstack([random_image(40, 60), np.full((40, 60), 255, np.uint8)])
    pixels[:10, :, 3] = 0
    result = make().segment(Image.fromarray(pixels), keep="scores")
    assert (result.scores["dog"][:10] == 0).all()
    assert (result.scores["dog"][10:] > 0).all()


def test_a_heat_map_is_as_large_as_the_image() -> None:
    result = make().segment(random_image(40, 60), keep="scores")
    heat = result.heatmap("grass")
    assert (heat.mode, heat.size) == ("RGB", (60, 40))
    assert heat.tobytes() != result.heatmap("cat").tobytes()
    with pytest.raises(ValueError, match="opacity from 0 to 1"):
        result.heatmap("cat", opacity=3)


def test_what_is_not_there() -> None:
    own = make()
    with pytest.raises(ValueError, match='keep="scores"'):
        _ = own.segment(random_image(20, 20)).scores
    with pytest.raises(ValueError, match="keep must be 'scores'|keep must be one of"):
        own.segment(random_image(20, 20), keep="features")
    result = own.segment(random_image(20, 20), keep="scores")
    with pytest.raises(ValueError, match="did you mean 'cat'"):
        result.heatmap("cta")
    with pytest.raises(KeyError, match="did you mean 'cat'"):
        result.scores["cta"]
    with pytest.raises(ValueError, match="one a query"):
        ClassScores(("a", "b"), np.zeros((1, 2, 2), np.float32), [0, 1], (8, 8), (16, 16))
    with pytest.raises(ValueError, match="at least one query for each of 2 classes"):
        ClassScores(("a", "b"), np.zeros((2, 2, 2), np.float32), [0, 0], (8, 8), (16, 16))


def test_a_large_image_keeps_few_bytes() -> None:
    """150 classes at a patch of 16: a 16th of 4,000 × 3,000 pixels in a 16th of 100 MB."""
    scores = ClassScores(
        tuple(map(str, range(150))),
        np.full((150, 750 // 16, 1000 // 16), np.log(1 / 150), np.float32),
        range(150),
        (16, 16),
        (750, 1000),
    )
    np.testing.assert_allclose(scores["7"], np.float32(1 / 150), rtol=1e-5)
    assert scores.nbytes < 100e6 / 16
