"""ADE20K's 150 classes on disk: labels pixel by pixel, the official numbers, and what can be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_support import check, laid_out, save_image, save_mask

from resclip.evaluation.datasets import DatasetError, open_dataset
from resclip.evaluation.datasets.base import IGNORED
from resclip.io.images import ImageError
from resclip.text.class_names import dataset_classes

# The challenge's objectInfo150.txt counts from 1; the first of each class's names, here without spaces.
ANCHORS = {
    1: "wall", 13: "person", 45: "chestofdrawers", 57: "pooltable", 91: "airplane", 117: "minibike",
    128: "bicycle", 137: "trafficlight", 142: "crtscreen", 150: "flag",
}  # fmt: skip
SIZES = {"ADE_val_00000001": (13, 17), "ADE_val_00000002": (11, 14), "ADE_val_00000003": (151, 1)}


def build(root: Path, split: str = "validation") -> dict[str, np.ndarray]:
    values = {}
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        save_image(root / "images" / split / f"{name}.jpg", height, width)
        values[name] = np.roll(laid_out(list(range(151)), height, width), number)
        save_mask(root / "annotations" / split / f"{name}.png", values[name])
    return values


def test_the_names_follow_the_challenge() -> None:
    names = dataset_classes("ade20k")
    assert len(names) == 150
    assert {number: names[number - 1] for number in ANCHORS} == ANCHORS


@pytest.mark.parametrize(
    ("below", "shown"),
    [
        (".", "images/validation"),  # the archive's own folder
        ("ADEChallengeData2016", "ADEChallengeData2016/images/validation"),  # the one above
        # mmsegmentation's
        ("ade/ADEChallengeData2016", "ade/ADEChallengeData2016/images/validation"),
    ],
)
def test_labels_pixel_by_pixel(tmp_path: Path, below: str, shown: str) -> None:
    values = build(tmp_path / below)
    dataset = open_dataset("ade20k", tmp_path)
    wanted = {name: np.where(value == 0, IGNORED, value - 1) for name, value in values.items()}
    check(dataset, wanted, f"3 images of ADE20K's validation, which has 2,000 ({shown})")
    assert dataset.palette is not None
    assert dataset.palette[[0, 149]].tolist() == [[120, 120, 120], [92, 0, 255]]


def test_another_split_and_missing_folders(tmp_path: Path) -> None:
    build(tmp_path, "training")
    dataset = open_dataset("ade20k", tmp_path, "training")
    assert "ADE20K's training, which has 20,210" in dataset.description
    with pytest.raises(DatasetError, match="looked for 'annotations/validation' or .*, found anno"):
        open_dataset("ade20k", tmp_path)
    (tmp_path / "images/training").rename(tmp_path / "images/train")
    with pytest.raises(DatasetError, match="images of ADE20K's training, looked for 'images/train"):
        open_dataset("ade20k", tmp_path, "training")


FULL_RELEASE = [
    "index_ade20k.pkl",
    "index_ade20k.mat",
    "images/ADE/validation",
    "ADE20K_2021_17_01",
    "ADE20K_2016_07_26",
]


def test_the_full_release_is_refused(tmp_path: Path) -> None:
    for found in FULL_RELEASE:
        (tmp_path / found / found).mkdir(parents=True)
        with pytest.raises(DatasetError, match="ADE20K's full release, .* get ADEChallengeData20"):
            open_dataset("ade20k", tmp_path / found)
    build(tmp_path / found / "ADEChallengeData2016")  # Beside it there may be the right one.
    assert len(open_dataset("ade20k", tmp_path / found)) == 3


def test_a_missing_mask_and_one_without_meaning(tmp_path: Path) -> None:
    build(tmp_path)
    masks = tmp_path / "annotations/validation"
    save_mask(masks / "ADE_val_00000001.png", np.full((13, 17), 151))
    (masks / "ADE_val_00000002.png").unlink()
    dataset = open_dataset("ade20k", tmp_path)
    assert [problem.name for problem in dataset.problems] == ["ADE_val_00000002"]
    with pytest.raises(ImageError, match="00000001.png: expected values among 0 to 150, got 151"):
        dataset.samples[0].truth.read()
