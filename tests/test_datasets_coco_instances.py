"""COCO-Object from COCO's instances: polygons, both kinds of run lengths, overlaps, and files that are not COCO's."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_support import check, labels_of, save_image, save_mask
from pycocotools import mask as coco_mask

from resclip.evaluation.datasets import DatasetError, open_dataset
from resclip.evaluation.datasets.base import Dataset

# pycocotools' own, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# Instances: a person in two polygons lies on a bed, both on a crowd of people; on the right, apart, a toothbrush.
HEIGHT, WIDTH = 11, 19
PERSON, BED, CROWD = slice(2, 5), slice(1, 8), slice(0, 9)


def rectangle(left: int, top: int, right: int, bottom: int) -> list[float]:
    """Covers columns left … right − 1 and rows top … bottom − 1."""
    return [left, top, right, top, right, bottom, left, bottom]


def run_lengths(inside: np.ndarray) -> list[int]:
    """Down the columns, beginning with pixels outside: as COCO's site has it."""
    flat = [0, *inside.T.ravel().astype(int), -1]
    edges = [place for place in range(1, len(flat)) if flat[place] != flat[place - 1]]
    return [int(length) for length in np.diff([1, *edges])]


def instances() -> dict[str, Any]:
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[CROWD, 0:10] = True
    brush = np.zeros((HEIGHT, WIDTH), bool)
    brush[[1, 3, 4, 9], 15] = True
    packed = coco_mask.encode(np.asfortranarray(brush.astype(np.uint8)))
    regions: list[tuple[int, Any, int]] = [
        (1, [rectangle(2, 2, 5, 5), rectangle(6, 2, 8, 5)], 0),
        (65, [rectangle(1, 1, 9, 8)], 0),
        (1, {"size": [HEIGHT, WIDTH], "counts": run_lengths(crowd)}, 1),
        (90, {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}, 0),
    ]
    return {
        "info": {},
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 285, "file_name": "000000000285.jpg", "height": 5, "width": 3},
        ],
        "annotations": [
            {
                "id": number,
                "image_id": 139,
                "category_id": category,
                "segmentation": segmentation,
                "iscrowd": crowd,
            }
            for number, (category, segmentation, crowd) in enumerate(regions, 100)
        ],
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 13, "name": "stop sign", "supercategory": "outdoor"},
            {"id": 65, "name": "bed", "supercategory": "furniture"},
            {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
        ],
    }


def open_instances(root: Path, document: object, place: str = "annotations") -> Dataset:
    save_image(root / "val2017/000000000139.jpg", HEIGHT, WIDTH)
    save_image(root / "val2017/000000000285.jpg", 5, 3)
    path = root / place / "instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return open_dataset("coco-object", root)


@pytest.mark.parametrize("place", ["annotations", "annotations_trainval2017/annotations", "."])
def test_coco_object_from_instances(tmp_path: Path, place: str) -> None:
    dataset = open_instances(tmp_path, instances(), place)
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[CROWD, 0:10] = 1
    wanted[BED, 1:9] = 60
    wanted[PERSON, 2:5] = wanted[PERSON, 6:8] = 1
    wanted[[1, 3, 4, 9], 15] = 80
    assert dataset.entries[60] == "bed"
    description = "2 images of COCO-Object's val2017 with instances_val2017.json, which has 5,000"
    labels = {"000000000139": wanted, "000000000285": np.zeros((5, 3), np.uint8)}
    check(dataset, labels, f"{description} (val2017)")


def test_instances_are_small_and_picklable(tmp_path: Path) -> None:
    sample = open_instances(tmp_path, instances()).samples[0]
    stored = pickle.dumps(sample)
    assert len(stored) < 2000
    np.testing.assert_array_equal(pickle.loads(stored).truth.read(), sample.truth.read())


def test_run_lengths_of_any_shape(tmp_path: Path, seed: int) -> None:
    """Packed and plain ones give the mask that they were made of: long runs, short ones, none, all."""
    generator = np.random.default_rng(seed)
    document = instances()
    annotation = document["annotations"][3]
    document["annotations"] = [annotation]
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        inside = generator.random((HEIGHT, WIDTH)) < density
        packed = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
        for lengths in (run_lengths(inside), packed):
            annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": lengths}
            found = open_instances(tmp_path, document).samples[0].truth.read()
            np.testing.assert_array_equal(found, np.where(inside, 80, 0))


def test_masks_are_preferred_to_instances(tmp_path: Path) -> None:
    open_instances(tmp_path, instances())
    save_mask(tmp_path / "annotations/val2017/000000000139.png", np.full((HEIGHT, WIDTH), 64))
    dataset = open_dataset("coco-object", tmp_path)
    assert (labels_of(dataset)["000000000139"] == 60).all()
    assert "masks *.png" in dataset.description


def counts(*lengths: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"segmentation": {"size": [*size], "counts": [*lengths]}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 12}, "annotation 101: expected a category of a thing, got 12"),
        ({"segmentation": []}, "annotation 101: expected polygons of at least 3 corners.*got None"),
        ({"segmentation": [[1, 1, 5, 5]]}, "expected polygons of at least 3 corners"),
        ({"segmentation": [[1, 1, 5, 5, 6, 6, 7]]}, "x and y in turn"),
        ({"segmentation": [[1, 1, 5, 5, 1e9, 6]]}, "near the image"),
        ({"segmentation": [[1, 1, 5, 5, float("nan"), 6]]}, "near the image, got .*nan"),
        ({"segmentation": [[1, 1, 5, 5, "6", 6]]}, "near the image"),
        (counts(3, 4), "lengths of 11 x 19 pixels, got 7 pixels"),
        (counts(210, -1), r"got 209 pixels of \[11, 19\]"),
        (counts(209, size=(19, 11)), r"got 209 pixels of \[19, 11\]"),
        ({"segmentation": {"size": [11, 19], "counts": "34"}}, "got 7 pixels"),
        (
            {"segmentation": {"size": [11, 19], "counts": "o" * 10**6}},
            "packed run lengths, got 'ooo",
        ),
        ({"segmentation": {"size": [11, 19], "counts": "é\n"}}, "packed run lengths"),
        ({"segmentation": {"size": [11, 19], "counts": ""}}, "got 0 pixels"),
        (counts(), "got 0 pixels"),
        ({"segmentation": {"size": [11, 19], "counts": [209.0]}}, r"run lengths, got \[209.0\]"),
        ({"segmentation": {"counts": [209]}}, "101: expected a category and a segmentation$"),
        ({"segmentation": None}, "101: expected a category and a segmentation$"),
        ({"category_id": [1]}, "101: expected a category and a segmentation$"),
        (
            {"segmentation": [[0, 0, 19, 11] * 40_000]},
            "outline of at most 1,000,000 pixels, got 1,5",
        ),
        ({"segmentation": [[10**400, 1, 5, 5, 1, 6]]}, "near the image"),
    ],
)
def test_an_instance_that_cannot_be_drawn(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    document = instances()
    document["annotations"][1].update(change)
    dataset = open_instances(tmp_path, document)
    assert [sample.name for sample in dataset.samples] == ["000000000285"]
    [problem] = dataset.problems
    assert problem.name == "000000000139"
    assert re.search(reason, problem.reason)


def test_images_without_a_size_or_without_instances(tmp_path: Path) -> None:
    """And images that the file does not list."""
    for height, width in ((0, 3), (5, None), (5.0, 3), (10**6, 10**6)):
        document = instances()
        document["images"][1].update(height=height, width=width)
        [problem] = open_instances(tmp_path, document).problems
        assert problem.name == "000000000285"
        assert "expected a height and a width in pixels" in problem.reason
    document["images"][1]["file_name"] = "000000000724.jpg"
    dataset = open_instances(tmp_path, document)
    assert [(problem.name, problem.reason.split(": ")[1]) for problem in dataset.problems] == [
        ("000000000285", "the image has no mask"),
        ("000000000724", "the mask has no image"),
    ]


BANNER = {"id": 92, "name": "banner"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it["categories"][1].update(name="street sign"), "13 is 'stop sign', got 'str"),
        (lambda it: it["categories"].append(BANNER), "of which 92 is none, got 'banner'"),
        (
            lambda it: it["images"].append(it["images"][0]),
            "each image once, got two of the same name or id",
        ),
        (
            lambda it: [image.update(height=0) for image in it["images"]],
            "whose instances can be drawn, got none, such as '000000000139': .*got 0 and 19",
        ),
        (
            lambda it: it["images"][1].update(file_name="000000000139.jpg"),
            "each image once, got '000000000139' twice",
        ),
        (lambda it: it["annotations"][0].update(image_id="139"), "annotations of the images that"),
        (lambda it: it["images"][0].update(id=1.5), "cannot be read so;"),
        (lambda it: it.pop("annotations"), "cannot be read so;"),
        (lambda it: it["categories"].append([]), "cannot be read so;"),
        (lambda it: it.pop("images"), "expected COCO's instances, .* cannot be read so;"),
        (lambda it: it.update(annotations=7), "expected COCO's instances, .* cannot be read so;"),
    ],
)
def test_files_that_are_not_cocos(tmp_path: Path, change: Any, message: str) -> None:
    document = instances()
    change(document)
    with pytest.raises(DatasetError, match=message):
        open_instances(tmp_path, document)


@pytest.mark.parametrize("text", ["", "[1, 2]", "[" * 100_000])
def test_files_that_are_no_json_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match="instances_val2017.json: expected COCO's instances"):
        open_instances(tmp_path, text)


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resclip.evaluation.datasets.coco.find_spec", lambda _: None)
    with pytest.raises(
        ImportError,
        match=r"needs pycocotools, .* `pip install 'resclip\[eval\]'`, or use COCO-Stuff's",
    ):
        open_instances(tmp_path, instances())
    save_mask(tmp_path / "annotations/val2017/000000000285.png", np.zeros((5, 3)))
    assert len(open_dataset("coco-object", tmp_path)) == 1  # Masks need no such thing.
