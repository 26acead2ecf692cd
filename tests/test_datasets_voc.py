"""PASCAL VOC 2012, from a replica of its development kit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_support import check, labels_of, save_image, truncate
from PIL import Image

from resclip.evaluation.datasets import (
    IGNORED,
    DatasetError,
    open_dataset,
)
from resclip.evaluation.datasets.base import benchmark_palette
from resclip.io.images import ImageError

SIZES = {"2007_000033": (6, 9), "2007_000042": (21, 4), "2007_000061": (1, 33)}
"""Oblong both ways, odd; 33 pixels hold every class, the background and borders."""


def save_paletted(path: Path, values: np.ndarray) -> None:
    """As the kit's masks are: an index a pixel, VOC's colours, and cream for the borders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.zeros((256, 3), np.uint8)
    colours[:21] = benchmark_palette("voc21")
    colours[255] = 224, 224, 192
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(colours.tobytes())
    assert image.mode == "P"
    image.save(path)


def values_of(height: int, width: int) -> np.ndarray:
    """Classes in turn within a border of 255 that is one pixel wide at the right."""
    values = np.arange(height * width).reshape(height, width) % 21
    values[:, -1] = 255
    return values


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    kit = tmp_path / "VOCdevkit/VOC2012"
    for name, (height, width) in SIZES.items():
        save_image(kit / f"JPEGImages/{name}.jpg", height, width)
        save_paletted(kit / f"SegmentationClass/{name}.png", values_of(height, width))
    save_image(kit / "JPEGImages/2007_000027.jpg", 4, 4)  # Most images are for detection alone.
    splits = kit / "ImageSets/Segmentation"
    splits.mkdir(parents=True)
    (splits / "val.txt").write_text("2007_000042\n2007_000033\n")
    (splits / "train.txt").write_text("2007_000061\n")
    return kit


def test_voc21_keeps_the_background(kit: Path) -> None:
    dataset = open_dataset("voc21", kit.parents[1])
    wanted = {name: values_of(*SIZES[name]) for name in ("2007_000033", "2007_000042")}
    described = "2 images of PASCAL VOC 2012's val, which has 1,449 (VOCdevkit/VOC2012)"
    check(dataset, wanted, described)
    assert dataset.classes[0] == "background"
    assert len(dataset.classes) == 21
    np.testing.assert_array_equal(dataset.palette, benchmark_palette("voc21"))


def test_voc20_leaves_the_background_out(kit: Path) -> None:
    dataset = open_dataset("voc20", kit.parents[1])
    for name, found in labels_of(dataset).items():
        values = values_of(*SIZES[name])
        wanted = np.where((values == 0) | (values == 255), IGNORED, values - 1)
        np.testing.assert_array_equal(found, wanted)
    assert dataset.classes[0] == "aeroplane"
    assert len(dataset.classes) == 20


@pytest.mark.parametrize(("below", "place"), [("VOCdevkit", "VOC2012"), ("VOCdevkit/VOC2012",) * 2])
def test_the_root_may_be_any_folder_of_the_kit(kit: Path, below: str, place: str) -> None:
    dataset = open_dataset("voc21", kit.parents[1] / below)
    assert len(dataset) == 2
    assert dataset.description.endswith(f"({Path(place).name})")


def test_another_split(kit: Path) -> None:
    dataset = open_dataset("voc21", kit, "train")
    assert [sample.name for sample in dataset.samples] == ["2007_000061"]
    assert "1 image of PASCAL VOC 2012's train, which has 1,464" in dataset.description
    with pytest.raises(DatasetError, match=r"test\.txt: .* in Segmentation: train\.txt, val\.txt"):
        open_dataset("voc21", kit, "test")


def test_a_missing_image_or_mask_is_a_problem(kit: Path) -> None:
    (kit / "ImageSets/Segmentation/val.txt").write_text("\n".join([*SIZES, "2011_003276"]))
    (kit / "JPEGImages/2007_000033.jpg").unlink()
    (kit / "SegmentationClass/2007_000042.png").unlink()
    dataset = open_dataset("voc21", kit)
    assert [sample.name for sample in dataset.samples] == ["2007_000061"]
    assert {problem.name: problem.reason for problem in dataset.problems} == {
        "2007_000033": f"{kit / 'SegmentationClass/2007_000033.png'}: the mask has no image",
        "2007_000042": f"{kit / 'JPEGImages/2007_000042.jpg'}: the image has no mask",
        "2011_003276": "listed in the split file, but there is neither image nor mask",
    }


def test_files_without_their_meaning(kit: Path) -> None:
    """An id that VOC does not have, half an image: each names its file."""
    path = kit / "SegmentationClass/2007_000033.png"
    save_paletted(path, np.array([[0, 20, 21, 255]]))
    truncate(kit / "JPEGImages/2007_000042.jpg")
    dataset = open_dataset("voc21", kit)
    assert dataset.problems == ()  # Listing opens no file.
    first, second = dataset.samples
    with pytest.raises(ImageError, match=r"33\.png: expected values among 0 to 20, 255, got 21 in"):
        first.truth.read()
    with pytest.raises(ImageError, match=r"2007_000042\.jpg: expected"):
        second.image.read()


def test_what_is_missing_is_said(kit: Path) -> None:
    (kit / "SegmentationClass").rename(kit / "SegmentationClassRaw")
    with pytest.raises(DatasetError, match="masks of PASCAL VOC 2012, looked for 'Segm.* found Im"):
        open_dataset("voc21", kit.parents[1])
    (kit / "JPEGImages").rename(kit / "Images")
    with pytest.raises(DatasetError, match="VOC2012/JPEGImages' or 'JPEGImages', found ImageSets/"):
        open_dataset("voc21", kit)
