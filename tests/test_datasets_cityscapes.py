"""Cityscapes on disk: both encodings pixel by pixel, the official table of ids, and what can be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_support import check, laid_out, save_image, save_mask

from resclip.evaluation.datasets import DatasetError, open_dataset
from resclip.evaluation.datasets.base import IGNORED, Dataset
from resclip.io.images import ImageError
from resclip.text.class_names import dataset_classes

# cityscapesScripts, helpers/labels.py: the id of each label from 0 on, and which have a train id.
_OFFICIAL = """
unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road,
sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole,
polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck,
bus, caravan, trailer, train, motorcycle, bicycle
"""
OFFICIAL = _OFFICIAL.strip().replace("\n", " ").split(", ")
_EVALUATED = """
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain,
sky, person, rider, car, truck, bus, train, motorcycle, bicycle
"""
EVALUATED = _EVALUATED.strip().replace("\n", " ").split(", ")

IMAGES = {  # Odd sizes, two cities: the set's own images are 1024 x 2048.
    "frankfurt/frankfurt_000000_000294": (5, 9),
    "frankfurt/frankfurt_000001_000538": (7, 5),
    "lindau/lindau_000000_000019": (6, 7),
}


def expected(values: np.ndarray) -> np.ndarray:
    """Train ids by the table of names."""
    of_id = {
        number: EVALUATED.index(name) if name in EVALUATED else IGNORED
        for number, name in enumerate(OFFICIAL)
    }
    return np.vectorize({**of_id, 255: IGNORED}.__getitem__)(values)


def build(
    root: Path, converted: int = 0, ids: int = 3, split: str = "val"
) -> dict[str, np.ndarray]:
    """Images with the first `ids` masks as in the archive and the first `converted` as mmsegmentation's."""
    values: dict[str, np.ndarray] = {}
    for number, (name, (height, width)) in enumerate(IMAGES.items()):
        save_image(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", height, width)
        stem = root / "gtFine" / split / name
        values[name] = np.roll(laid_out([*range(34), 255], height, width), number)
        if number < ids:
            save_mask(Path(f"{stem}_gtFine_labelIds.png"), values[name])
            # The archive's other files are no masks of this kind.
            save_image(Path(f"{stem}_gtFine_color.png"), height, width)
            save_mask(Path(f"{stem}_gtFine_instanceIds.png"), values[name])
            Path(f"{stem}_gtFine_polygons.json").write_text("{}")
        if number < converted:
            save_mask(Path(f"{stem}_gtFine_labelTrainIds.png"), expected(values[name]))
    return values


def read(root: Path, split: str | None = None) -> Dataset:
    return open_dataset("cityscapes", root, split)


def test_names_are_in_the_order_of_the_train_ids() -> None:
    assert dataset_classes("cityscapes") == [name.replace(" ", "") for name in EVALUATED]


@pytest.mark.parametrize(
    ("converted", "ids", "ending"),
    [
        (0, 3, "_gtFine_labelIds.png"),  # the official archive
        (3, 3, "_gtFine_labelTrainIds.png"),  # mmsegmentation's, beside it
        (3, 0, "_gtFine_labelTrainIds.png"),  # and alone
        (2, 3, "_gtFine_labelIds.png"),  # a conversion that broke off
    ],
)
def test_labels_pixel_by_pixel(tmp_path: Path, converted: int, ids: int, ending: str) -> None:
    values = build(tmp_path, converted, ids)
    description = f"3 images of Cityscapes' val with masks *{ending}, which has 500"
    wanted = {name: expected(value) for name, value in values.items()}
    dataset = read(tmp_path)
    check(dataset, wanted, f"{description} (leftImg8bit/val)")
    assert dataset.palette is not None


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        # a folder an archive
        ("leftImg8bit_trainvaltest/leftImg8bit", "gtFine_trainvaltest/gtFine"),
        ("cityscapes/leftImg8bit", "cityscapes/gtFine"),  # mmsegmentation's folder "data"
    ],
)
def test_other_places(tmp_path: Path, images: str, masks: str) -> None:
    build(tmp_path / "made")
    for source, target in (("leftImg8bit", images), ("gtFine", masks)):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / source).rename(tmp_path / target)
    assert len(read(tmp_path)) == 3


def test_another_split(tmp_path: Path) -> None:
    build(tmp_path, split="train")
    assert "Cityscapes' train with" in read(tmp_path, "train").description
    with pytest.raises(DatasetError, match="split 'val', looked for 'val', found train/"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("leftImg8bit", "images of Cityscapes, looked for 'leftImg8bit' or .*, found elsewhere/"),
        ("gtFine", "masks of Cityscapes, looked for 'gtFine' or .*, found elsewhere/, leftImg8bit"),
        ("gtFine/val", "gtFine: expected the masks of the split 'val', looked for 'val', found no"),
        (
            "*_labelIds.png",
            r"called \*_gtFine_labelTrainIds.png or \*_gtFine_labelIds.png, found fr",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, missing: str, message: str) -> None:
    build(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for number, path in enumerate([*tmp_path.rglob(missing)]):
        path.rename(tmp_path / f"elsewhere/{number}")
    with pytest.raises(DatasetError, match=message):
        read(tmp_path)


def test_what_has_no_counterpart_is_a_problem(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png").unlink()
    (tmp_path / "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png").unlink()
    dataset = read(tmp_path)
    assert [sample.name for sample in dataset.samples] == ["frankfurt/frankfurt_000001_000538"]
    assert [(problem.name, problem.reason.split(": ")[1]) for problem in dataset.problems] == [
        ("frankfurt/frankfurt_000000_000294", "the mask has no image"),
        ("lindau/lindau_000000_000019", "the image has no mask"),
    ]


@pytest.mark.parametrize(
    ("converted", "ending", "bad"),
    [(0, "labelIds", 34), (3, "labelTrainIds", 19)],  # the first value past each encoding
)
def test_an_id_outside_the_range(tmp_path: Path, converted: int, ending: str, bad: int) -> None:
    build(tmp_path, converted)
    path = tmp_path / f"gtFine/val/lindau/lindau_000000_000019_gtFine_{ending}.png"
    save_mask(path, np.where(np.arange(42).reshape(6, 7) < 4, bad, 0))
    with pytest.raises(ImageError, match=f"{ending}.png: expected values among .*, got {bad} in 4"):
        read(tmp_path).samples[-1].truth.read()
