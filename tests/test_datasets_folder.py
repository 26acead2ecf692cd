"""Anyone's own images and masks."""

from __future__ import annotations

from pathlib import Path

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
