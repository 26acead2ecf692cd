"""COCO 2017 on disk and the ids of its classes: what COCO-Stuff and COCO-Object have in common.

Knows the folders that the official archives, COCO-Stuff's instructions and mmsegmentation unpack to:

    images/val2017/000000000139.jpg, or val2017/000000000139.jpg                   val2017.zip
    annotations/val2017/000000000139.png, or stuffthingmaps_trainval2017/val2017/  stuffthingmaps_trainval2017.zip
    annotations/instances_val2017.json                                             annotations_trainval2017.zip

each below the root, or below "coco_stuff164k" or "coco" in it. Opens no picture, and does not know how a mask becomes
labels.
"""

from __future__ import annotations

from pathlib import Path

from resclip.evaluation.datasets.layout import files_under, first_that_exists


OFFICIAL = {"train2017": 118_287, "val2017": 5_000}
"""The number of pictures of each split."""

_WITHOUT_MASKS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)

IDS = tuple(value for value in range(182) if value not in _WITHOUT_MASKS)
"""The value of each of 171 classes in COCO-Stuff's masks (its README, "Labels"; its labels.txt counts from 1).

COCO's first list has 91 things, of which 11 were never segmented: street sign, hat, shoe, eye glasses, plate, mirror,
window, desk, door, blender and hair brush. Their values do not occur. 80 things and 91 kinds of stuff are left, in this
order. In COCO's JSON files a thing's category is one more than its value here.
"""

THINGS = 80
"""How many of `IDS` are things: the first ones."""

_PLACES = ("", "coco_stuff164k/", "coco/")


def find_pictures(root: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a split's pictures, and the pictures by name: "000000000139".

    Raises:
        DatasetError: there is none.
    """
    candidates = [f"{place}{folder}{split}" for place in _PLACES for folder in ("images/", "")]
    found = first_that_exists(root, f"the pictures of COCO's {split}", candidates)
    return found, files_under(found, [".jpg"])


def mask_folders(split: str) -> list[str]:
    """Where COCO-Stuff's masks may lie below the root."""
    folders = ("annotations", "stuffthingmaps_trainval2017", "stuffthingmaps")
    return [f"{place}{folder}/{split}" for place in _PLACES for folder in folders]


def instance_files(split: str) -> list[str]:
    """Where COCO's instances may lie below the root."""
    folders = ("annotations/", "annotations_trainval2017/annotations/", "")
    return [f"{place}{folder}instances_{split}.json" for place in _PLACES for folder in folders]
