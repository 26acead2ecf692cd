"""Legends: every class is named, in columns that grow, and beside an overlay nothing covers the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resclip.result import Segmentation
from resclip.visualization.colours import palette
from resclip.visualization.legend import MOST_ENTRIES, LegendEntry, draw_legend, with_legend


def entries(count: int) -> list[LegendEntry]:
    return [(index, f"class number {index}", 1 / count) for index in range(count)]


def colours_of(count: int) -> np.ndarray:
    return palette([name for _, name, _ in entries(count)])


def shown(legend: Image.Image, colours: np.ndarray) -> int:
    """How many of the colours the picture has."""
    found = legend.getcolors(legend.width * legend.height)
    assert found is not None
    drawn = {colour for _, colour in found}
    return sum(tuple(colour) in drawn for colour in colours.tolist())


def test_a_legend_names_every_class_and_counts_what_is_beyond() -> None:
    for count in (1, 12, 13, 53, 130):
        colours = colours_of(count)
        assert shown(draw_legend(entries(count), colours, 380), colours) == count
    colours = colours_of(MOST_ENTRIES + 50)
    legends = [draw_legend(entries(MOST_ENTRIES + more), colours, 380) for more in (1, 50)]
    assert [shown(legend, colours) for legend in legends] == [MOST_ENTRIES - 1] * 2
    assert legends[0].size == legends[1].size
    assert legends[0].tobytes() != legends[1].tobytes()  # "and 2 more", "and 51 more"


def test_columns_come_before_height() -> None:
    sizes = [draw_legend(entries(count), colours_of(60), 300).size for count in (10, 20, 40, 60)]
    assert sizes[0][1] <= 380
    assert sizes[1][1] <= sizes[0][1]
    assert sizes[1][0] > 1.8 * sizes[0][0]
    assert sizes[2][0] > 3.5 * sizes[0][0]
    assert sizes[3][0] < 1.1 * sizes[2][0]
    assert sizes[3][1] == 15 * 30


@pytest.mark.parametrize(
    ("size", "beside"),
    [((300, 300), True), ((20, 900), True), ((900, 400), False), ((40, 10), False)],
)
def test_beside_or_below_nothing_covers_the_image(size: tuple[int, int], beside: bool) -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    )
    colours = colours_of(9)
    sheet = with_legend(image, entries(9), colours)
    np.testing.assert_array_equal(np.asarray(sheet.crop((0, 0, *size))), np.asarray(image))
    rest = (size[0], 0, *sheet.size) if beside else (0, size[1], *sheet.size)
    assert shown(sheet.crop(rest), colours) == 9
    # The rim on the right and below is white.
    assert (np.asarray(sheet)[:, -10:] == 255).all() or not beside
    assert (np.asarray(sheet)[-10:, size[0] if beside else 0 :] == 255).all()


def test_the_letters_grow_with_the_image() -> None:
    colours = colours_of(3)
    small, large = (
        with_legend(Image.new("RGB", (side, side)), entries(3), colours) for side in (800, 3300)
    )
    assert large.width - 3300 > 2.8 * (small.width - 800)


def test_without_a_class_there_is_no_legend() -> None:
    image = Image.new("RGB", (30, 20), "red")
    assert with_legend(image, [], colours_of(1)).tobytes() == image.tobytes()
    assert draw_legend([], colours_of(1), 100).size == (90, 30)


def test_names_in_any_script_and_of_any_length_are_drawn() -> None:
    names = (
        "猫",
        "чайка",
        "قطة",
        "बिल्ली",
        "cat\nand a line break",
        "🐈",
        "x" * 3000,
        "é",
        "\u200b",
    )
    labels = np.arange(200, dtype=np.int64).reshape(10, 20) % len(names)
    result = Segmentation(
        np.full((10, 20, 3), 100, np.uint8), labels, np.full((10, 20), 0.5, np.float32), names
    )
    assert 300 < result.legend().width < 900
    assert result.sheet().width < 2600
