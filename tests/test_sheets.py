"""Heat maps over an image: the colours, what a panel shows where, and a sheet that is legible at any size."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resclip.visualization.sheets import (
    GAP,
    LINE,
    NARROWEST,
    PANEL,
    HeatMap,
    PointMaps,
    Scale,
    draw_heat_maps,
    heat_colours,
    scaled,
    strongest_share,
)
from resclip.visualization.style import MARGIN

TOP = MARGIN + LINE + GAP  # of the first row's panels
STEP = PANEL + MARGIN  # from one panel to the next, where panels are as wide as they may be


def one_row(*maps: HeatMap, point: tuple[float, float] = (5.0, 5.0)) -> PointMaps:
    return PointMaps(point, ("x 5, y 5", "patch row 0, column 0"), maps)


def panel(sheet: Image.Image, number: int, height: int, width: int) -> NDArray[np.uint8]:
    """The pixels of a panel of the first row; 0 is the image."""
    left = MARGIN + number * (max(width, NARROWEST) + MARGIN)
    return np.asarray(sheet)[TOP : TOP + height, left : left + width]


def test_colours_grow_lighter_and_end_where_the_range_does() -> None:
    brightness = heat_colours(np.linspace(0, 1, 21)).astype(int).sum(axis=1)
    assert (np.diff(brightness) > 0).all()
    colours = heat_colours(np.array([[-3.0, 0.0], [1.0, 7.0]]))
    assert (colours.shape, colours.dtype) == ((2, 2, 3), np.uint8)
    np.testing.assert_array_equal(colours[:, 0], colours[:, 1])


def test_scales_by_hand() -> None:
    values = np.array([[0.0, 0.01], [0.04, 4.0]])
    np.testing.assert_allclose(scaled(values, "linear"), [[0, 0.0025], [0.01, 1]])
    np.testing.assert_allclose(scaled(values, "root"), [[0, 0.05], [0.1, 1]])
    np.testing.assert_allclose(scaled(values, "percentile"), [[0, 1 / 3], [2 / 3, 1]])
    for scale in get_args(Scale):
        assert (scaled(np.zeros((2, 2)), scale) == 0).all()
        assert scaled(np.full((3, 3), 0.2), scale).max() in (0.0, 1.0)


def test_every_scale_goes_to_the_largest_value_and_keeps_the_order(seed: int) -> None:
    values = np.random.default_rng(seed).random((7, 9)) ** 8
    order = np.argsort(values, axis=None)
    for scale in get_args(Scale):
        shares = scaled(values, scale)
        assert (shares.min() >= 0, shares.max()) == (True, 1)
        assert (np.diff(shares.ravel()[order]) >= 0).all()
        np.testing.assert_allclose(scaled(40 * values, scale), shares)


def test_small_structures_are_seen_by_the_root_and_by_percentiles() -> None:
    """A patch with a fiftieth of the peak's value: of the linear scale it is as dark as nothing."""
    values = np.zeros((4, 8), np.float32)
    values[3, 7], values[1, 2] = 1.0, 0.02
    image = np.zeros((40, 80, 3), np.uint8)

    def contrast(scale: Scale) -> int:
        heat = panel(draw_heat_maps(image, [one_row(HeatMap("m", values))], "", scale), 1, 200, 400)
        return int(np.abs(heat[75, 125].astype(int) - heat[25, 325]).max())

    assert contrast("linear") < 8
    assert contrast("root") > 25
    assert contrast("percentile") > 100


def test_a_sheet_names_the_scale() -> None:
    row = [one_row(HeatMap("map", np.eye(5, dtype=np.float32)))]
    image = np.zeros((50, 50, 3), np.uint8)
    below = [
        np.asarray(draw_heat_maps(image, row, "", scale))[TOP + PANEL + GAP + LINE :]
        for scale in get_args(Scale)
    ]
    assert len({part.tobytes() for part in below}) == 3
    with pytest.raises(ValueError, match='scale must be one of .*"log"|scale .*log'):
        draw_heat_maps(image, row, "", "log")


def test_share_of_the_strongest_tenth() -> None:
    for values, share in (
        (np.ones((4, 5)), 0.1),
        (np.eye(10), 1.0),  # Ten of a hundred entries hold everything.
        (np.arange(20.0).reshape(4, 5), (19 + 18) / 190),
        (np.ones((1, 1)), 1.0),  # A tenth of one patch is still a patch.
        (np.zeros((3, 3)), 0.0),
    ):
        assert strongest_share(values) == pytest.approx(share)


def test_share_grows_with_the_part_and_does_not_depend_on_the_scale(seed: int) -> None:
    values = np.random.default_rng(seed).random((13, 17))
    shares = [strongest_share(values, part) for part in (0.1, 0.3, 0.9, 1.0)]
    assert shares == sorted(shares)
    assert strongest_share(40 * values) == pytest.approx(shares[0])


def test_heat_lies_over_the_patch_that_has_it() -> None:
    """A black image of 40 × 80 pixels, whose panel is 200 × 400: a patch of a 4 × 8 grid takes 50 × 50."""
    values = np.zeros((4, 8), np.float32)
    values[2, 5] = 0.25
    black = np.zeros((40, 80, 3), np.uint8)
    sheet = draw_heat_maps(black, [one_row(HeatMap("map", values))], scale="linear")
    heat = panel(sheet, 1, 200, 400)
    lightest = heat.astype(int).sum(axis=2)
    # The mark is white: it is at pixel (5, 5), which is (25, 25) here.
    lightest[:60, :60] = 0
    row, column = np.unravel_index(lightest.argmax(), lightest.shape)
    assert (row // 50, column // 50) == (2, 5)
    # Half a pixel off the patch's centre in both directions, bilinear has 0.98 of the value.
    np.testing.assert_allclose(heat[125, 275], 0.9 * heat_colours(np.array(0.98)), atol=6)
    np.testing.assert_allclose(heat[125, 75], 0.6 * heat_colours(np.array(0.0)), atol=1)


def test_what_a_map_does_not_reach_is_grey() -> None:
    """A rest that no patch holds has no value, not the smallest."""
    vivid = np.full((100, 100, 3), (200, 100, 0), np.uint8)
    heat_map = HeatMap("map", np.ones((2, 2), np.float32), cover=(0.5, 0.75))
    heat = panel(draw_heat_maps(vivid, [one_row(heat_map)]), 1, 400, 400).astype(int)
    spread = heat.max(axis=2) - heat.min(axis=2)
    assert (spread[200:] == 0).all()
    assert (spread[:, 300:] == 0).all()
    assert (spread[60:200, :300] > 0).all()
    grey = 0.62 * (0.299 * 200 + 0.587 * 100)
    assert np.abs(heat[200:] - grey).max() < 1


def test_each_panel_has_a_scale_of_its_own(seed: int) -> None:
    values = np.random.default_rng(seed).random((6, 6)).astype(np.float32)
    maps = (HeatMap("small", values / 1024), HeatMap("large", values))
    sheet = draw_heat_maps(np.zeros((60, 60, 3), np.uint8), [one_row(*maps)])
    small, large = (panel(sheet, number, 400, 400) for number in (1, 2))
    np.testing.assert_array_equal(small, large)
    below = np.asarray(sheet)[TOP + PANEL :]
    left, right = (below[:, MARGIN + number * STEP :][:, :PANEL] for number in (1, 2))
    assert (left != right).any()


def test_a_map_of_zeros_is_drawn() -> None:
    zeros = HeatMap("nothing fed back", np.zeros((3, 3), np.float32))
    heat = panel(draw_heat_maps(np.zeros((60, 60, 3), np.uint8), [one_row(zeros)]), 1, 400, 400)
    np.testing.assert_allclose(heat[200:], 0.6 * heat_colours(np.zeros((200, 400))), atol=1)


def test_the_mark_is_a_ring_round_the_point_and_whole_in_a_corner() -> None:
    grey = np.full((100, 200, 3), 100, np.uint8)
    zeros = HeatMap("map", np.zeros((2, 4), np.float32))
    sheet = np.asarray(draw_heat_maps(grey, [one_row(zeros, point=(150.0, 30.0))])).astype(int)
    for number in (0, 1):
        x, y = MARGIN + number * STEP + 300, TOP + 60
        round_it = [sheet[y + 7, x], sheet[y - 8, x], sheet[y, x + 7], sheet[y, x - 8]]
        assert min(pixel.min() for pixel in round_it) > 200
    corner = np.asarray(draw_heat_maps(grey, [one_row(zeros, point=(199.5, 99.5))]))
    outside = corner[TOP + 200 : TOP + 208, MARGIN + PANEL :][:, :8]
    assert (outside < 100).any()


@pytest.mark.parametrize(
    "size",
    [
        (30, 20),  # enlarged: its pixels are shown as they are
        (1200, 60),  # narrower than its captions
        (1, 3000),  # the panel is one pixel high, flatter than the text under it
    ],
)
def test_sheet_is_legible_at_any_size(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    middle = (size[1] / 2, size[0] / 2)
    maps = [HeatMap(name, np.eye(5, dtype=np.float32)) for name in ("base", "x" * 300, "final")]
    rows = [one_row(*maps, point=middle)] * 2
    sheet = draw_heat_maps(image, rows, footer="a long line of small print " * 20)
    assert sheet.mode == "RGB"
    assert sheet.width <= MARGIN + 4 * STEP
    pixels = np.asarray(sheet)
    column = max(NARROWEST, round(size[1] * PANEL / max(size)))
    for number in range(5):  # Captions keep to their columns; the first line has no mark near it.
        gap = pixels[: TOP - 10, number * (column + MARGIN) :][:, : MARGIN - 1]
        assert (gap == 255).all()
    assert (pixels[-MARGIN:] == 255).all()  # The small print is above the margin, and there.
    assert (pixels[-MARGIN - LINE : -MARGIN] != 255).any()
    assert (
        sheet.height > draw_heat_maps(image, rows).height > draw_heat_maps(image, rows[:1]).height
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one"),
        ([one_row(HeatMap("a", np.ones((2, 2)))), one_row()], "same maps"),
        ([one_row(HeatMap("a", np.ones(4)))], r"'a' .*\(4,\)"),
        ([one_row(HeatMap("a", -np.ones((2, 2))))], "'a' "),
        ([one_row(HeatMap("a", np.full((2, 2), np.nan)))], "'a' "),
    ],
)
def test_what_cannot_be_drawn_is_said(rows: list[PointMaps], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw_heat_maps(np.zeros((8, 8, 3), np.uint8), rows)
