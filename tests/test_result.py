"""Segmentation: what it accepts, what it measures, what it draws and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resclip.io.picture import NO_PLACE, Georeference
from resclip.result import Segmentation, comparison_sheet
from resclip.visualization.colours import palette
from resclip.visualization.overlay import PANELS_A_ROW, draw_overlay

NAMES = ("sky", "tree", "house", "unused")


def fields(height: int = 10, width: int = 20) -> dict[str, Any]:
    """Half sky, three tenths tree, two tenths house; class 3 is nowhere."""
    labels = np.zeros((height, width), np.int64)
    labels[height // 2 :] = 1
    labels[height * 8 // 10 :] = 2
    return {
        "image": np.full((height, width, 3), 100, np.uint8),
        "labels": labels,
        "probabilities": np.where(labels == 1, 0.25, 0.75).astype(np.float32),
        "names": NAMES,
        "settings": {"model": "builtin", "method": "resclip"},
    }


def make(**changes: Any) -> Segmentation:
    return Segmentation(**{**fields(), **changes})


def test_areas_and_probabilities_are_those_of_present_classes_largest_first() -> None:
    result = make()
    assert list(result.areas().items()) == [("sky", 0.5), ("tree", 0.3), ("house", 0.2)]
    assert list(result.mean_probabilities()) == ["sky", "tree", "house"]
    assert result.mean_probabilities() == pytest.approx({"sky": 0.75, "tree": 0.25, "house": 0.75})
    assert "20 x 10 pixels: sky 50%, tree 30%" in repr(result)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"image": np.zeros((10, 20, 3), np.float32)}, TypeError, "image of dtype uint8"),
        ({"image": [[0]]}, TypeError, "image to be a numpy array"),
        ({"image": np.zeros((10, 20), np.uint8)}, ValueError, "shape"),
        ({"labels": np.zeros((10, 20), np.int32)}, TypeError, "labels of dtype int64"),
        ({"labels": np.zeros((20, 10), np.int64)}, ValueError, "labels of the image's shape"),
        ({"labels": np.full((10, 20), 4)}, ValueError, "labels from 0 to 3"),
        ({"labels": np.full((10, 20), -2)}, ValueError, "labels from 0 to 3"),
        ({"probabilities": np.zeros((10, 20))}, TypeError, "probabilities of dtype float32"),
        ({"probabilities": np.zeros((1, 2), np.float32)}, ValueError, "probabilities of the image"),
        ({"probabilities": np.full((10, 20), np.nan, np.float32)}, ValueError, "finite"),
        ({"probabilities": np.full((10, 20), 1.1, np.float32)}, ValueError, "from 0 to 1"),
        ({"probabilities": np.full((10, 20), -0.1, np.float32)}, ValueError, "from 0 to 1"),
        ({"names": list(NAMES)}, TypeError, "tuple of str"),
        ({"names": ("a", "b", 3)}, TypeError, "tuple of str"),
        ({"names": ("a", "b", "c", "a")}, ValueError, "distinct names"),
    ],
)
def test_fields_are_checked(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(**changes)


@pytest.mark.parametrize("count", [255, 256, 65535])
def test_label_image_holds_the_class_indices(tmp_path: Path, count: int) -> None:
    labels = np.arange(200).reshape(10, 20) % count
    labels[0, 0] = count - 1
    result = make(labels=labels, names=tuple(map(str, range(count))))
    image = result.label_image()
    assert image.mode == ("P" if count <= 255 else "I;16")
    image.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.png")), labels)


def test_label_image_has_the_overlay_s_colours_and_a_limit() -> None:
    shown = np.asarray(make().label_image().convert("RGB"))
    np.testing.assert_array_equal(shown[0, 0], palette(NAMES)[0])
    with pytest.raises(ValueError, match="65,535"):
        make(names=tuple(map(str, range(65536)))).label_image()


@pytest.mark.parametrize(("count", "value"), [(3, 255), (300, 65535)])
def test_unlabelled_pixels_are_left_out_of_everything(
    tmp_path: Path, count: int, value: int
) -> None:
    labels = fields()["labels"]
    labels[labels == 1] = -1
    names = tuple(map(str, range(count)))
    result = make(labels=labels, names=names)
    assert result.areas() == pytest.approx({"0": 5 / 7, "2": 2 / 7})
    assert result.mean_probabilities() == pytest.approx({"0": 0.75, "2": 0.75})
    assert result.unlabelled == pytest.approx(0.3)
    assert result.to_dict()["unlabelled"] == pytest.approx(0.3)
    paths = result.save(tmp_path, "x")
    with Image.open(paths[0]) as image:
        np.testing.assert_array_equal(np.asarray(image), np.where(labels < 0, value, labels))
        assert image.info["transparency"] is not None
    shown = np.asarray(result.overlay())[labels < 0]
    np.testing.assert_array_equal(shown, result.image[labels < 0])
    assert result.sheet().width > 0
    empty = make(labels=np.full((10, 20), -1), names=names)
    assert (empty.areas(), empty.mean_probabilities(), empty.unlabelled) == ({}, {}, 1.0)
    assert empty.sheet().width > 0


def test_overlay_is_the_image_the_colours_or_between() -> None:
    result = make()
    edges = np.zeros((10, 20), bool)
    edges[[4, 7]] = True  # The last row of a region, where the next one is another class.
    for opacity, wanted in (
        (0.0, result.image.astype(float)),
        (1.0, palette(NAMES)[result.labels].astype(float)),
        (0.5, (result.image + palette(NAMES)[result.labels].astype(float)) / 2),
    ):
        overlay = np.asarray(result.overlay(opacity))
        assert overlay.shape == (10, 20, 3)
        assert (overlay[edges] == 255).all()
        assert np.abs(overlay - wanted)[~edges].max() <= 1
    with pytest.raises(ValueError, match="opacity from 0 to 1"):
        result.overlay(1.5)


def test_overlay_takes_the_image_s_own_colour_back() -> None:
    """Over a vivid image the tint still looks like the legend's."""
    vivid = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    labels = np.zeros((4, 4), np.int64)
    blue = np.array([[0, 0, 255]], np.uint8)
    red, _, came = np.asarray(draw_overlay(vivid, labels, blue, 0.55)).astype(int)[0, 0]
    plain_mix = 0.45 * 255
    assert red < 0.5 * plain_mix
    assert came > 0.55 * 255


def test_borders_are_thicker_on_large_images_and_absent_on_one_region() -> None:
    labels = np.zeros((720, 800), np.int64)
    grey = np.full((720, 800, 3), 100, np.uint8)
    colours = palette(["a", "b"])
    assert not (np.asarray(draw_overlay(grey, labels, colours, 0.5)) == 255).all(axis=2).any()
    labels[:, 400:] = 1
    white = (np.asarray(draw_overlay(grey, labels, colours, 0.5)) == 255).all(axis=2)
    np.testing.assert_array_equal(np.flatnonzero(white.all(axis=0)), [398, 399])


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (1500, 1000)])
def test_sheet_is_legible_at_any_size(size: tuple[int, int]) -> None:
    data = fields(*size)
    data["labels"][0, 0] = 2
    sheet = Segmentation(**data).sheet()
    assert sheet.mode == "RGB"
    assert 400 < max(sheet.size) < 2600
    assert sheet.height > 150  # Room for the legend, however flat the image.


def test_sheet_shows_image_and_overlay_enlarged_by_a_whole_factor() -> None:
    pixels = np.asarray(Segmentation(**fields(44, 55)).sheet())
    factor, rest = divmod((pixels == 100).all(axis=2).any(axis=1).sum(), 44)
    assert factor > 1
    assert rest == 0


def test_save_writes_labels_overlay_and_json(tmp_path: Path) -> None:
    result = make(names=("sky", "tree", "猫", "unused"))
    paths = result.save(tmp_path / "new" / "folder", "a.b")
    assert [path.name for path in paths] == ["a.b_labels.png", "a.b_overlay.png", "a.b.json"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(p.name for p in paths)
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), result.labels)
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), np.asarray(result.overlay()))
    text = paths[2].read_text(encoding="utf-8")
    assert "猫" in text
    stored = json.loads(text)
    assert stored == result.to_dict()
    assert (stored["width"], stored["height"]) == (20, 10)
    assert stored["classes"][2] == {"index": 2, "name": "猫", "area": 0.2, "score": 0.75}
    assert stored["settings"] == {"model": "builtin", "method": "resclip"}


def test_a_place_that_is_not_written_is_said() -> None:
    assert make(record={"format": "TIFF"}).to_dict()["input"] == {"format": "TIFF"}
    placed = make(record={"format": "TIFF"}, georeference=Georeference(crs="EPSG:32632"))
    assert placed.to_dict()["input"] == {"format": "TIFF", "georeference": NO_PLACE}


def test_save_without_overlay_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        paths = make().save(tmp_path, "x", overlay=False)
        assert [path.name for path in paths] == ["x_labels.png", "x.json"]
        assert len(list(tmp_path.iterdir())) == 2
    assert "\n" not in make().to_json(indent=None)


@pytest.mark.parametrize("stem", ["", "a/b", "."])
def test_save_refuses_a_stem_that_is_no_name(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ValueError, match="stem without directories"):
        make().save(tmp_path / "out", stem)
    assert not list(tmp_path.iterdir())


def test_a_comparison_shows_one_image_by_one_list_of_names() -> None:
    first = make()
    other = make(names=tuple(reversed(first.names)))
    sheet = comparison_sheet({"one": first, "two": first})
    assert sheet.width > comparison_sheet({"one": first}).width
    tallest = comparison_sheet({"one": first})
    many = comparison_sheet({str(number): first for number in range(2 * PANELS_A_ROW)})
    assert many.height > 2.5 * tallest.height
    assert many.width < 4 * tallest.width
    elsewhere = make(labels=np.where(first.labels == 1, 3, first.labels))
    for shown in ({"one": first, "two": elsewhere}, {"two": elsewhere, "one": first}):
        drawn = {bytes(pixel) for pixel in np.asarray(comparison_sheet(shown, 0.0)).reshape(-1, 3)}
        assert {bytes(colour) for colour in palette(NAMES)} <= drawn  # In the legend alone.
    with pytest.raises(ValueError, match="one image by one list of names"):
        comparison_sheet({"one": first, "two": other})
    with pytest.raises(ValueError, match="at least one segmentation"):
        comparison_sheet({})
