"""COCO-Stuff and COCO-Object from masks: every encoding pixel by pixel, the official ids, and what can be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_support import check, laid_out, save_image, save_mask

from resclip.evaluation.datasets import DatasetError, open_dataset
from resclip.evaluation.datasets.base import IGNORED
from resclip.evaluation.datasets.coco import IDS
from resclip.io.images import ImageError
from resclip.text.class_names import dataset_classes, parse_entries

# COCO-Stuff's labels.txt counts from 1, its masks from 0. These 11 were never segmented.
NO_MASKS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
ANCHORS = {  # the neighbours of each gap, and some stuff
    1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack", 31: "handbag",
    44: "bottle", 46: "wine glass", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv",
    82: "refrigerator", 84: "book", 90: "toothbrush", 92: "banner", 157: "sky-other", 182: "wood",
}  # fmt: skip
VALUES = [number - 1 for number in range(1, 183) if number not in NO_MASKS]
SIZES = {"000000000139": (13, 17), "000000000285": (29, 7), "000000000632": (173, 1)}


def stuff_labels(values: np.ndarray) -> np.ndarray:
    table = {255: IGNORED, **{value: label for label, value in enumerate(VALUES)}}
    return np.vectorize(table.__getitem__)(values)


def object_labels(values: np.ndarray) -> np.ndarray:
    """By COCO-Stuff's README: things are 1 … 91, so 0 … 90 in the masks; all else is background."""
    things = [value for value in VALUES if value <= 90]
    table = {value: things.index(value) + 1 if value in things else 0 for value in [*VALUES, 255]}
    return np.vectorize(table.__getitem__)(values)


def save_images(folder: Path) -> None:
    for name, (height, width) in SIZES.items():
        save_image(folder / f"{name}.jpg", height, width)


def save_masks(folder: Path, *endings: str, count: int = 3) -> dict[str, np.ndarray]:
    """The first `count` masks in each of some encodings; returns the archive's values of all."""
    values = {
        name: np.roll(laid_out([*VALUES, 255], height, width), number)
        for number, (name, (height, width)) in enumerate(SIZES.items())
    }
    encoded = {
        ".png": np.copy,
        "_labelTrainIds.png": stuff_labels,
        "_instanceTrainIds.png": object_labels,
    }
    for ending in endings:
        for name in list(SIZES)[:count]:
            save_mask(folder / f"{name}{ending}", encoded[ending](values[name]))
    return values


def test_the_171_classes_follow_coco_stuffs_list() -> None:
    assert list(IDS) == VALUES
    names = dataset_classes("coco-stuff")
    assert len(names) == len(VALUES) == 171
    found = {number: names[VALUES.index(number - 1)] for number in ANCHORS}
    assert found == {number: name.replace(" ", "") for number, name in ANCHORS.items()}


def test_the_things_follow_cocos_list() -> None:
    names = [entry.name for entry in parse_entries(dataset_classes("coco-object"))]
    assert len(names) == 81
    assert names[0] == "background"
    things = {number: name for number, name in ANCHORS.items() if number <= 90}
    assert {number: names[VALUES.index(number - 1) + 1] for number in things} == things
    stuff = dataset_classes("coco-stuff")
    assert [name.replace(" ", "") for name in names[1:]] == stuff[:80]


@pytest.mark.parametrize(
    ("images", "masks", "endings", "taken"),
    [
        ("val2017", "stuffthingmaps_trainval2017/val2017", [".png"], ".png"),  # the archives
        ("val2017", "stuffthingmaps/val2017", [".png"], ".png"),
        ("images/val2017", "annotations/val2017", [".png"], ".png"),  # COCO-Stuff's instructions
        # mmsegmentation's, and after GroupViT's conversion
        *(
            (f"{folder}/images/val2017", f"{folder}/annotations/val2017", endings, endings[taken])
            for folder, endings, taken in (
                ("coco_stuff164k", [".png", "_labelTrainIds.png"], 1),
                ("coco", [".png", "_instanceTrainIds.png"], 0),
            )
        ),
    ],
)
def test_coco_stuff(
    tmp_path: Path, images: str, masks: str, endings: list[str], taken: str
) -> None:
    save_images(tmp_path / images)
    values = save_masks(tmp_path / masks, *endings)
    wanted = {name: stuff_labels(value) for name, value in values.items()}
    assert set(np.unique(wanted["000000000632"])) == {*range(171), IGNORED}
    description = f"3 images of COCO-Stuff 164k's val2017 with masks *{taken}, which has 5,000"
    check(open_dataset("coco-stuff", tmp_path), wanted, f"{description} ({images})")


@pytest.mark.parametrize(
    ("endings", "taken"),
    [
        ([".png"], ".png"),
        (["_labelTrainIds.png"], "_labelTrainIds.png"),
        ([".png", "_labelTrainIds.png"], ".png"),
        ([".png", "_labelTrainIds.png", "_instanceTrainIds.png"], "_instanceTrainIds.png"),
    ],
)
def test_coco_object_from_masks(tmp_path: Path, endings: list[str], taken: str) -> None:
    save_images(tmp_path / "images/val2017")
    values = save_masks(tmp_path / "annotations/val2017", *endings)
    dataset = open_dataset("coco-object", tmp_path)
    wanted = {name: object_labels(value) for name, value in values.items()}
    assert set(np.unique(wanted["000000000632"])) == set(range(81))  # Unlabelled pixels count too.
    description = f"3 images of COCO-Object's val2017 with masks *{taken}, which has 5,000"
    check(dataset, wanted, f"{description} (images/val2017)")
    assert dataset.palette is not None
    assert dataset.palette[0].tolist() == [0, 0, 0]


def test_a_conversion_that_broke_off_gives_way_to_the_archive(tmp_path: Path) -> None:
    save_images(tmp_path / "images/val2017")
    masks = tmp_path / "annotations/val2017"
    save_masks(masks, ".png")
    save_masks(masks, "_labelTrainIds.png", "_instanceTrainIds.png", count=2)
    for name in ("coco-stuff", "coco-object"):
        dataset = open_dataset(name, tmp_path)
        assert len(dataset) == 3
        assert "masks *.png," in dataset.description


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco-stuff", "the masks of COCO-Stuff's val2017, looked for 'annotations/val2017' or"),
        ("coco-object", "masks or COCO's instances of val2017, .* or 'annotations/instances_val"),
    ],
)
def test_missing_folders_and_another_split(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DatasetError, match="images of COCO's val2017, looked for 'images/val2017'"):
        open_dataset(name, tmp_path)
    save_images(tmp_path / "images/val2017")
    with pytest.raises(DatasetError, match=f"{message}.* found images/; name the folder"):
        open_dataset(name, tmp_path)
    save_masks(tmp_path / "annotations/train2017", ".png")
    save_images(tmp_path / "images/train2017")
    described = open_dataset(name, tmp_path, "train2017").description
    assert "train2017 with masks *.png, which has 118,287" in described


def test_masks_that_only_coco_object_can_use(tmp_path: Path) -> None:
    save_images(tmp_path / "images/val2017")
    save_masks(tmp_path / "annotations/val2017", "_instanceTrainIds.png")
    with pytest.raises(DatasetError, match=r"called \*_labelTrainIds.png or \*.png, found 0"):
        open_dataset("coco-stuff", tmp_path)


@pytest.mark.parametrize("name", ["coco-stuff", "coco-object"])
def test_a_missing_mask_and_one_without_meaning(tmp_path: Path, name: str) -> None:
    save_images(tmp_path / "val2017")
    masks = tmp_path / "stuffthingmaps_trainval2017/val2017"
    save_masks(masks, ".png")
    (masks / "000000000139.png").unlink()
    save_mask(masks / "000000000632.png", np.full((173, 1), 11))  # "street sign" has no masks
    dataset = open_dataset(name, tmp_path)
    assert [problem.name for problem in dataset.problems] == ["000000000139"]
    with pytest.raises(ImageError, match="among 0 to 10, 12 to 24, .* 255, got 11 in 173 pixels"):
        dataset.samples[1].truth.read()
