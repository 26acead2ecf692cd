"""Anyone's own images and masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_support import check, labels_of, laid_out, save_image, save_mask
from PIL import Image

from resclip.evaluation.datasets import DatasetError, open_dataset
from resclip.io.images import ImageError

CLASSES = "background: sky, wall\ncat, kitten\ndog\n"
SHAPES = {"a": (5, 7), "street/night/b": (9, 2), "street/c": (1, 4)}
"""Odd and oblong sizes, in folders two deep."""
ENDINGS = {"a": ".jpg", "street/night/b": ".PNG", "street/c": ".webp"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, shape in SHAPES.items():
        save_image(tmp_path / f"images/{name}{ENDINGS[name]}", *shape)
        save_mask(tmp_path / f"masks/{name}.png", laid_out([0, 1, 2, 255], *shape))
    (tmp_path / "classes.txt").write_text(CLASSES)
    return tmp_path


def test_values_are_places_in_the_list(root: Path) -> None:
    dataset = open_dataset("folder", root)
    wanted = {name: laid_out([0, 1, 2, 255], *shape) for name, shape in SHAPES.items()}
    check(dataset, wanted, f"3 images of 3 classes ({root.name})")
    assert dataset.entries == ("background: sky, wall", "cat, kitten", "dog")
    assert dataset.palette is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", '{"background": ["sky", "wall"], "cat": ["cat", "kitten"], "dog": null}'),
        ("classes.yaml", "- {background: [sky, wall]}\n- [cat, kitten]\n- dog\n"),
    ],
)
def test_other_lists_of_classes(root: Path, name: str, text: str) -> None:
    expected = open_dataset("folder", root).entries
    (root / "classes.txt").unlink()
    (root / name).write_text(text)
    assert open_dataset("folder", root).entries == expected


def test_masks_of_any_depth_and_with_colours_of_their_own(root: Path) -> None:
    values = laid_out([2, 0, 255], *SHAPES["a"]).astype(np.uint8)
    image = Image.fromarray(values)
    image.putpalette([7] * 768)
    image.save(root / "masks/a.png")
    Image.fromarray(laid_out([1], 9, 2).astype(np.uint16)).save(root / "masks/street/night/b.png")
    labels = labels_of(open_dataset("folder", root))
    np.testing.assert_array_equal(labels["a"], values)
    np.testing.assert_array_equal(labels["street/night/b"], np.ones((9, 2)))


def test_what_has_no_counterpart_is_a_problem(root: Path) -> None:
    (root / "images/a.jpg").unlink()
    (root / "masks/street/c.png").unlink()
    dataset = open_dataset("folder", root)
    assert [sample.name for sample in dataset.samples] == ["street/night/b"]
    first, second = dataset.problems
    assert (first.name, second.name) == ("a", "street/c")
    assert first.reason.endswith("masks/a.png: the mask has no image")
    assert second.reason.endswith("images/street/c.webp: the image has no mask")
    (root / "masks/street/night/b.png").unlink()
    with pytest.raises(DatasetError, match="got 2 images and 1 masks, of which no two belong"):
        open_dataset("folder", root)


def test_a_value_without_a_class(root: Path) -> None:
    save_mask(root / "masks/a.png", laid_out([0, 3], *SHAPES["a"]))
    with pytest.raises(ImageError, match=r"a\.png: expected values among 0 to 2, 255, got 3 in 17"):
        open_dataset("folder", root).samples[0].truth.read()


def test_lists_and_splits_that_cannot_be_used(root: Path) -> None:
    with pytest.raises(DatasetError, match="expected no split for a folder of your own, got 'val'"):
        open_dataset("folder", root, "val")
    (root / "classes.txt").write_text("cat\ndog\nCat\n")
    with pytest.raises(DatasetError, match=r"classes\.txt: expected each class once"):
        open_dataset("folder", root)


@pytest.mark.parametrize("missing", ["images", "masks", "classes.txt"])
def test_what_is_missing_is_said(root: Path, missing: str) -> None:
    (root / missing).rename(root / "gone")
    with pytest.raises(
        DatasetError, match=f"expected a .*, looked for '{missing}'.*, found .*gone"
    ):
        open_dataset("folder", root)


@pytest.mark.parametrize(
    ("options", "values", "labels"),
    [
        ({}, [0, 1, 2, 255], [0, 1, 2, 255]),
        ({"label_offset": 1}, [0, 1, 2, 3, 255], [255, 0, 1, 2, 255]),
        ({"label_offset": 1, "ignore_index": 3}, [0, 1, 2, 3], [255, 0, 1, 255]),
        ({"label_offset": 254}, [254, 255], [0, 255]),
        ({"label_offset": -1}, [0, 1, 255], [1, 2, 255]),
        ({"ignore_index": 0}, [0, 1, 2], [255, 1, 2]),
    ],
)
def test_what_values_mean_can_be_said(
    root: Path, options: dict[str, int], values: list[int], labels: list[int]
) -> None:
    shape = SHAPES["a"]
    save_mask(root / "masks/a.png", laid_out(values, *shape))
    dataset = open_dataset("folder", root, **options)
    assert dataset.mask_options == {"ignore_index": 255, "label_offset": 0, **options}
    np.testing.assert_array_equal(dataset.samples[0].truth.read(), laid_out(labels, *shape))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ignore_index": -1}, "ignore_index= from 0 to 65535, got -1"),
        ({"ignore_index": "255"}, "ignore_index= as a whole number, got 255"),
        ({"label_offset": 65_534}, "label_offset= from -2 to 65533 for 3 classes, got 65534"),
        ({"label_offset": -3}, "label_offset= from -2 to"),
        ({"label_offset": 1.0}, "label_offset= as a whole number"),
        ({"count": 3}, "folder: unknown option 'count'; it has ignore_index, label_offset"),
    ],
)
def test_options_that_make_no_sense(root: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        open_dataset("folder", root, **options)


def test_a_list_of_classes_that_is_no_file(root: Path) -> None:
    (root / "classes.txt").unlink()
    os.mkfifo(root / "classes.txt")
    with pytest.raises(DatasetError, match="expected a file of class names"):
        open_dataset("folder", root)
