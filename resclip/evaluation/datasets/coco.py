"""COCO 2017 on disk and the ids of its classes: what COCO-Stuff and COCO-Object have in common.

Knows the folders that the official archives, COCO-Stuff's instructions and mmsegmentation unpack to:

    images/val2017/000000000139.jpg, or val2017/000000000139.jpg                   val2017.zip
    annotations/val2017/000000000139.png, or stuffthingmaps_trainval2017/val2017/  stuffthingmaps_trainval2017.zip
    annotations/instances_val2017.json                                             annotations_trainval2017.zip

each below the root, or below "coco_stuff164k" or "coco" in it. Opens no image, and does not know how a mask becomes
labels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    DatasetError,
    Encoding,
    ImageFile,
    Problem,
    Sample,
    Values,
    benchmark_palette,
    best_masks,
    describe,
    files_under,
    first_that_exists,
    pair_up,
    samples_of,
)
from resclip.io.files import read_text
from resclip.io.images import MAX_PIXELS, PixelArray
from resclip.text.class_names import dataset_classes, parse_entries


@dataclass(frozen=True)
class Instances:
    """The true classes of an image, as the regions of its instances; a pixel in none of them has class 0."""

    height: int
    width: int
    regions: tuple[tuple[int, bytes], ...]
    """The class and COCO's compressed run lengths of each, the topmost first: some 200 bytes a region."""

    def read(self) -> PixelArray:
        """(H, W) uint8."""
        mask = _pycocotools_mask()
        labels = np.zeros((self.height, self.width), np.uint8)
        for label, counts in reversed(self.regions):
            inside = mask.decode({"size": [self.height, self.width], "counts": counts})
            labels[inside.astype(bool)] = label
        return labels


def read_instances(
    path: Path, categories: Mapping[int, tuple[int, str]]
) -> tuple[dict[str, Instances], dict[str, str]]:
    """The instances of every image that a JSON file lists.

    Args:
        path: of a file in the format of instances_val2017.json.
        categories: the class and the name of each category that may occur, by its id.

    Returns:
        By the image's file name without its ending: the instances; and, of images with an annotation that cannot
        be drawn, the reason.

    Raises:
        DatasetError: the file is no JSON, holds something else, lists an image twice, or names its categories
            differently.
        ImportError: pycocotools is not installed.
    """
    mask = _pycocotools_mask()
    document = _load(path)
    truths: dict[str, Instances] = {}
    faults: dict[str, str] = {}
    try:
        _check_categories(path, document["categories"], categories)
        annotations = defaultdict(list)
        for annotation in document["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        for image in document["images"]:
            name = Path(image["file_name"]).stem
            if name in truths or name in faults:
                raise DatasetError(f"{path}: expected each image once, got {name!r} twice")
            height, width = image["height"], image["width"]
            try:
                _check_size(height, width)
                regions = [
                    _region(mask, annotation, categories, height, width)
                    for annotation in annotations[image["id"]]
                ]
            except ValueError as error:
                faults[name] = f"{path}: {error}"
            else:
                truths[name] = Instances(height, width, tuple(regions))
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(_unlike_coco(path, error)) from error
    return truths, faults


def _load(path: Path) -> Any:
    try:
        return json.loads(read_text(path, "COCO's instances as JSON"))
    except (ValueError, RecursionError, OSError) as error:
        raise DatasetError(_unlike_coco(path, error)) from error


def _unlike_coco(path: Path, error: Exception) -> str:
    return (
        f"{path}: expected COCO's instances, an object with lists of images, annotations and categories, got a file "
        f"that cannot be read so ({type(error).__name__}: {error}); get annotations_trainval2017.zip again"
    )


def _check_categories(
    path: Path, found: Sequence[Mapping[str, Any]], categories: Mapping[int, tuple[int, str]]
) -> None:
    """DatasetError where an id stands for something else than in COCO: all its labels would be wrong."""
    for category in found:
        number, name = category["id"], category["name"]
        if number not in categories or categories[number][1] != name:
            wanted = repr(categories[number][1]) if number in categories else "none"
            raise DatasetError(
                f"{path}: expected COCO's categories, of which {number} is {wanted}, got {name!r}; "
                "use COCO's own file"
            )


def _check_size(height: Any, width: Any) -> None:
    whole = isinstance(height, int) and isinstance(width, int)
    if not whole or min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"expected a height and a width in pixels, got {height!r} and {width!r}")


def _region(
    mask: ModuleType,
    annotation: Mapping[str, Any],
    categories: Mapping[int, tuple[int, str]],
    height: int,
    width: int,
) -> tuple[int, bytes]:
    """The class and the compressed run lengths of one annotation."""
    category, segmentation = annotation["category_id"], annotation["segmentation"]
    try:
        if category not in categories:
            raise ValueError(f"expected a category of a thing, got {category!r}")
        if isinstance(segmentation, list):
            counts = _polygons(mask, segmentation, height, width)
        else:
            counts = _run_lengths(mask, segmentation, height, width)
    except ValueError as error:
        raise ValueError(f"annotation {annotation.get('id')}: {error}") from None
    return categories[category][0], counts


def _polygons(mask: ModuleType, polygons: list[Any], height: int, width: int) -> bytes:
    # pycocotools walks along every edge, however long, and takes two corners for a box.
    reach = 2 * max(height, width)
    for polygon in polygons or [None]:
        if not (
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(isinstance(value, (int, float)) and abs(value) <= reach for value in polygon)
        ):
            raise ValueError(
                "expected polygons of at least 3 corners, x and y in turn and near the image, got "
                f"{str(polygon)[:60]}"
            )
    counts: bytes = mask.merge(mask.frPyObjects(polygons, height, width))["counts"]
    return counts


def _run_lengths(
    mask: ModuleType, segmentation: Mapping[str, Any], height: int, width: int
) -> bytes:
    counts = segmentation["counts"]
    lengths = _decompress(counts) if isinstance(counts, str) else counts
    if (
        segmentation["size"] != [height, width]
        or sum(lengths) != height * width
        or min(lengths) < 0
    ):
        raise ValueError(
            f"expected run lengths of {height} x {width} pixels, got {sum(lengths)} pixels of {segmentation['size']}"
        )
    compressed: bytes = mask.frPyObjects(
        {"size": [height, width], "counts": lengths}, height, width
    )["counts"]
    return compressed


def _decompress(counts: str) -> list[int]:
    """The run lengths that COCO packs into text.

    A character holds 5 bits above 48, the lowest first, and 32 where more follow; 16 in the last one is the sign. From
    the fourth on a number is the difference to the length two before it.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            signed = value - (1 << shift) if bits & 16 else value
            lengths.append(signed + lengths[-2] if len(lengths) > 2 else signed)
            value = shift = 0
    return lengths


def _pycocotools_mask() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(
            "drawing COCO's instances needs pycocotools, which is not installed; install it with "
            "`pip install 'resclip[eval]'`, or use COCO-Stuff's masks"
        ) from error
    module: ModuleType = mask
    return module


OFFICIAL = {"train2017": 118_287, "val2017": 5_000}
"""The number of images of each split."""

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


def find_images(root: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a split's images, and the images by name: "000000000139".

    Raises:
        DatasetError: there is none.
    """
    candidates = [f"{place}{folder}{split}" for place in _PLACES for folder in ("images/", "")]
    found = first_that_exists(root, f"the images of COCO's {split}", candidates)
    return found, files_under(found, [".jpg"])


def mask_folders(split: str) -> list[str]:
    """Where COCO-Stuff's masks may lie below the root."""
    folders = ("annotations", "stuffthingmaps_trainval2017", "stuffthingmaps")
    return [f"{place}{folder}/{split}" for place in _PLACES for folder in folders]


def instance_files(split: str) -> list[str]:
    """Where COCO's instances may lie below the root."""
    folders = ("annotations/", "annotations_trainval2017/annotations/", "")
    return [f"{place}{folder}instances_{split}.json" for place in _PLACES for folder in folders]


_NAME = "coco-stuff"

_STUFF_ENCODINGS = (
    Encoding("_labelTrainIds.png", Values({label: label for label in range(len(IDS))})),
    Encoding(".png", Values({value: label for label, value in enumerate(IDS)})),
)


def coco_stuff(root: Path, split: str | None) -> Dataset:
    """80 things and 91 kinds of stuff.

    Args:
        root: see `coco`.
        split: "train2017" instead of "val2017".

    Raises:
        DatasetError: a folder is missing, there is no mask, or no image has one.
    """
    split = split or "val2017"
    place, images = find_images(root, split)
    folder = first_that_exists(root, f"the masks of COCO-Stuff's {split}", mask_folders(split))
    encoding, masks = best_masks(folder, _STUFF_ENCODINGS, images)
    pairs, problems = pair_up(_NAME, images, masks)
    what = f"COCO-Stuff 164k's {split} with masks *{encoding.ending}"
    return Dataset(
        name=_NAME,
        description=describe(len(pairs), what, place, root, OFFICIAL.get(split)),
        entries=tuple(dataset_classes(_NAME)),
        samples=samples_of(pairs, encoding.values),
        problems=problems,
        palette=benchmark_palette(_NAME),
    )


_NAME = "coco-object"

# The label of each of COCO-Stuff's classes.
_LABELS = tuple(place + 1 if place < THINGS else 0 for place in range(len(IDS)))


def _values(labels: Mapping[int, int]) -> Values:
    """COCO-Stuff's values, with its unlabelled pixels as background."""
    return Values({**labels, IGNORED: 0}, ignored=frozenset())


_OBJECT_ENCODINGS = (
    Encoding("_instanceTrainIds.png", Values({label: label for label in range(THINGS + 1)})),
    Encoding(".png", _values(dict(zip(IDS, _LABELS, strict=True)))),
    Encoding("_labelTrainIds.png", _values(dict(enumerate(_LABELS)))),
)


def coco_object(root: Path, split: str | None) -> Dataset:
    """80 things and their background.

    Args:
        root: see `coco`.
        split: "train2017" instead of "val2017".

    Raises:
        DatasetError: a folder is missing, there is no mask, no image has one, or a JSON file is not COCO's.
        ImportError: there are instances alone, and pycocotools is not installed.
    """
    split = split or "val2017"
    place, images = find_images(root, split)
    truth = first_that_exists(
        root,
        f"COCO-Stuff's masks or COCO's instances of {split}",
        [*mask_folders(split), *instance_files(split)],
    )
    if truth.suffix == ".json":
        samples, problems = _from_instances(truth, images)
        kind = truth.name
    else:
        encoding, masks = best_masks(truth, _OBJECT_ENCODINGS, images)
        pairs, problems = pair_up(_NAME, images, masks)
        samples = samples_of(pairs, encoding.values)
        kind = f"masks *{encoding.ending}"
    what = f"COCO-Object's {split} with {kind}"
    return Dataset(
        name=_NAME,
        description=describe(len(samples), what, place, root, OFFICIAL.get(split)),
        entries=tuple(dataset_classes(_NAME)),
        samples=samples,
        problems=problems,
        palette=benchmark_palette(_NAME),
    )


def _from_instances(
    path: Path, images: Mapping[str, Path]
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    names = [entry.name for entry in parse_entries(dataset_classes(_NAME))]
    categories = {value + 1: (label, names[label]) for label, value in enumerate(IDS[:THINGS], 1)}
    truths, faults = read_instances(path, categories)
    pairs, problems = pair_up(_NAME, images, dict.fromkeys([*truths, *faults], path))
    samples = tuple(
        Sample(name, ImageFile(image), truths[name]) for name, image, _ in pairs if name in truths
    )
    faulty = [Problem(name, faults[name]) for name, _, _ in pairs if name in faults]
    if not samples:
        raise DatasetError(
            f"{_NAME}: expected images whose instances can be drawn, got none, such as {faulty[0].name!r}: "
            f"{faulty[0].reason}"
        )
    return samples, tuple(sorted([*problems, *faulty], key=lambda problem: problem.name))
