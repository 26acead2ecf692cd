"""COCO-Stuff 164k and COCO-Object: COCO 2017 with masks of things and stuff, or with the instances of things alone.

The folders that the official archives, COCO-Stuff's instructions and mmsegmentation unpack to:

    images/val2017/000000000139.jpg, or val2017/000000000139.jpg                   val2017.zip
    annotations/val2017/000000000139.png, or stuffthingmaps_trainval2017/val2017/  stuffthingmaps_trainval2017.zip
    annotations/instances_val2017.json                                             annotations_trainval2017.zip

each below the root, or below "coco_stuff164k" or "coco" in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from resclip.errors import reason
from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    DatasetError,
    Encoding,
    ImageFile,
    Problem,
    Sample,
    Values,
    benchmark,
    best_masks,
    check_regular,
    cut,
    files_under,
    first_that_exists,
    pair_up,
    samples_of,
)
from resclip.io.files import read_text
from resclip.io.images import MAX_PIXELS, PixelArray
from resclip.text.class_names import dataset_classes, parse_entries

_OFFICIAL = {"train2017": 118_287, "val2017": 5_000}
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

_FOLDERS = ("", "coco_stuff164k/", "coco/")


def find_images(root: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a split's images, and the images by name: "000000000139".

    Raises:
        DatasetError: there is none.
    """
    candidates = [f"{parent}{folder}{split}" for parent in _FOLDERS for folder in ("images/", "")]
    folder = first_that_exists(root, f"the images of COCO's {split}", candidates)
    return folder, files_under(folder, [".jpg"])


def mask_folders(split: str) -> list[str]:
    """Where COCO-Stuff's masks may lie below the root."""
    folders = ("annotations", "stuffthingmaps_trainval2017", "stuffthingmaps")
    return [f"{parent}{folder}/{split}" for parent in _FOLDERS for folder in folders]


def instance_files(split: str) -> list[str]:
    """Where COCO's instances may lie below the root."""
    folders = ("annotations/", "annotations_trainval2017/annotations/", "")
    return [f"{parent}{folder}instances_{split}.json" for parent in _FOLDERS for folder in folders]


_STUFF_ENCODINGS = (
    Encoding("_labelTrainIds.png", Values({label: label for label in range(len(IDS))})),
    Encoding(".png", Values({value: label for label, value in enumerate(IDS)})),
)


def coco_stuff(root: Path, split: str | None) -> Dataset:
    """80 things and 91 kinds of stuff.

    Args:
        root: see the module's docstring.
        split: "train2017" instead of "val2017".

    Raises:
        DatasetError: a folder is missing, there is no mask, or no image has one.
    """
    split = split or "val2017"
    folder, images = find_images(root, split)
    mask_folder = first_that_exists(root, f"the masks of COCO-Stuff's {split}", mask_folders(split))
    encoding, masks = best_masks(mask_folder, _STUFF_ENCODINGS, images)
    pairs, problems = pair_up("coco-stuff", images, masks)
    what = f"COCO-Stuff 164k's {split} with masks *{encoding.ending}"
    samples = samples_of(pairs, encoding.values)
    return benchmark("coco-stuff", what, folder, root, _OFFICIAL.get(split), samples, problems)


# The label of each of COCO-Stuff's classes.
_LABELS = tuple(index + 1 if index < THINGS else 0 for index in range(len(IDS)))


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
        root: see the module's docstring.
        split: "train2017" instead of "val2017".

    Raises:
        DatasetError: a folder is missing, there is no mask, no image has one, or a JSON file is not COCO's.
        ImportError: there are instances alone, and pycocotools is not installed.
    """
    split = split or "val2017"
    folder, images = find_images(root, split)
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
        pairs, problems = pair_up("coco-object", images, masks)
        samples = samples_of(pairs, encoding.values)
        kind = f"masks *{encoding.ending}"
    what = f"COCO-Object's {split} with {kind}"
    return benchmark("coco-object", what, folder, root, _OFFICIAL.get(split), samples, problems)


def _from_instances(
    path: Path, images: Mapping[str, Path]
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    names = [entry.name for entry in parse_entries(dataset_classes("coco-object"))]
    categories = {value + 1: (label, names[label]) for label, value in enumerate(IDS[:THINGS], 1)}
    truths, faults = read_instances(path, categories)
    pairs, problems = pair_up("coco-object", images, dict.fromkeys([*truths, *faults], path))
    samples = tuple(
        Sample(name, ImageFile(image), truths[name]) for name, image, _ in pairs if name in truths
    )
    faulty = [Problem(name, faults[name]) for name, _, _ in pairs if name in faults]
    if not samples:
        raise DatasetError(
            f"coco-object: expected images whose instances can be drawn, got none, such as {faulty[0].name!r}: "
            f"{faulty[0].reason}"
        )
    return samples, tuple(sorted([*problems, *faulty], key=lambda problem: problem.name))


# Instances. pycocotools decodes run lengths that are too short to memory that was never written, and walks along every
# edge of a polygon however long: annotations are checked first.

_LONGEST_OUTLINE = 1_000_000
"""Pixels that the edges of an instance's polygons may have together: pycocotools takes 40 bytes for each."""

_LONGEST_NUMBER = 7
"""Characters of a run length in packed text: as many as 32 bits need."""

_OF_OTHER_CONTENT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What reading a JSON file as something that it is not raises."""


@dataclass(frozen=True)
class Instances:
    """The true classes of an image, as the regions of its instances; a pixel in none of them has class 0."""

    height: int
    width: int
    regions: tuple[tuple[int, bytes], ...]
    """The class and COCO's compressed run lengths of each, the topmost first: some 200 bytes per region."""

    def read(self) -> PixelArray:
        """(H, W) uint8."""
        from pycocotools import mask

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
        path: a file in the format of instances_val2017.json.
        categories: the class and the name of each category that may occur, by its id.

    Returns:
        By the image's file name without its ending: the instances; and, of images with an annotation that cannot
        be drawn, the reason.

    Raises:
        DatasetError: the file is no JSON, holds something else, lists an image twice, has annotations of images that it
            does not list, or names its categories differently.
        ImportError: pycocotools is not installed.
    """
    if find_spec("pycocotools") is None:
        raise ImportError(
            "drawing COCO's instances needs pycocotools, which is not installed; install it with "
            "`pip install 'resclip[eval]'`, or use COCO-Stuff's masks"
        )
    truths: dict[str, Instances] = {}
    faults: dict[str, str] = {}
    check_regular(path, "COCO's instances as JSON")
    try:
        document = json.loads(read_text(path, "COCO's instances as JSON"))
        check_categories(path, document["categories"], categories)
        annotations: dict[int, list[Any]] = {number_of(image): [] for image in document["images"]}
        if len(annotations) < len(document["images"]):
            raise DatasetError(f"{path}: expected each image once, got two of the same name or id")
        for annotation in document["annotations"]:
            if annotation["image_id"] not in annotations:
                raise DatasetError(
                    f"{path}: expected annotations of the images that it lists, got one of an image "
                    f"{cut(annotation['image_id'], 40)!r}; use COCO's own file"
                )
            annotations[annotation["image_id"]].append(annotation)
        for image in document["images"]:
            name = Path(image["file_name"]).stem
            if name in truths or name in faults:
                raise DatasetError(f"{path}: expected each image once, got {cut(name)!r} twice")
            try:
                truths[name] = draw_instances(image, annotations[image["id"]], categories)
            except ValueError as error:
                faults[name] = f"{path}: {error}"
    except DatasetError:
        raise
    except (OSError, *_OF_OTHER_CONTENT) as error:
        why = f" ({reason(error)})" if isinstance(error, OSError) else ""
        raise DatasetError(
            f"{path}: expected COCO's instances, an object with lists of images, annotations and categories, got a "
            f"file that cannot be read so{why}; get annotations_trainval2017.zip again"
        ) from error
    return truths, faults


def number_of(image: Mapping[str, Any]) -> int:
    """An image's id; ValueError where it is no whole number."""
    if type(image["id"]) is not int:
        raise ValueError("an id that is no number")
    return int(image["id"])


def check_categories(
    path: Path, listed: Sequence[Mapping[str, Any]], categories: Mapping[int, tuple[int, str]]
) -> None:
    """DatasetError where an id stands for something else than in COCO: all its labels would be wrong."""
    for category in listed:
        number, name = category["id"], category["name"]
        if number not in categories or categories[number][1] != name:
            expected = repr(categories[number][1]) if number in categories else "none"
            raise DatasetError(
                f"{path}: expected COCO's categories, of which {cut(number, 40)} is {expected}, got {cut(name)!r}; "
                "use COCO's own file"
            )


def draw_instances(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[int, tuple[int, str]],
) -> Instances:
    """The instances of one image; ValueError where its size or one of its annotations cannot be used."""
    height: Any = image.get("height")
    width: Any = image.get("width")
    whole = type(height) is int and type(width) is int
    if not whole or min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(
            f"expected a height and a width in pixels, got {cut(height, 40)} and {cut(width, 40)}"
        )
    regions = []
    for annotation in annotations:
        try:
            regions.append(draw_region(annotation, height, width, categories))
        except _OF_OTHER_CONTENT as error:
            # Of our own errors the words, of Python's none.
            said = (
                str(error) if type(error) is _Unusable else "expected a category and a segmentation"
            )
            raise ValueError(f"annotation {cut(annotation.get('id'), 40)}: {said}") from None
    return Instances(height, width, tuple(regions))


class _Unusable(ValueError):
    """What cannot be drawn of an annotation, in words."""


def draw_region(
    annotation: Mapping[str, Any],
    height: int,
    width: int,
    categories: Mapping[int, tuple[int, str]],
) -> tuple[int, bytes]:
    """The class of an instance, and its region as COCO's compressed run lengths.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError: it is none.
    """
    from pycocotools import mask

    category, segmentation = annotation["category_id"], annotation["segmentation"]
    if category not in categories:
        raise _Unusable(f"expected a category of a thing, got {cut(category)}")
    if isinstance(segmentation, list):
        check_polygons(segmentation, height, width)
        region = mask.merge(mask.frPyObjects(segmentation, height, width))
    else:
        check_run_lengths(segmentation, height, width)
        plain = isinstance(segmentation["counts"], list)
        region = mask.frPyObjects(segmentation, height, width) if plain else segmentation
    counts = region["counts"]
    return categories[category][0], counts.encode() if isinstance(counts, str) else counts


def check_polygons(polygons: Sequence[Any], height: int, width: int) -> None:
    """ValueError for what has no area (pycocotools takes two corners for a box) or leads far out of the image."""
    reach, length = 2 * max(height, width), 0.0
    for polygon in polygons or [None]:
        if not (
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(isinstance(value, (int, float)) and abs(value) <= reach for value in polygon)
        ):
            raise _Unusable(
                "expected polygons of at least 3 corners, x and y in turn and near the image, got "
                f"{cut(polygon, 60)}"
            )
        corners = np.array(polygon, np.float64).reshape(-1, 2)
        length += float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
    if length > _LONGEST_OUTLINE:
        raise _Unusable(
            f"expected polygons with an outline of at most {_LONGEST_OUTLINE:,} pixels, got {length:,.0f}"
        )


def check_run_lengths(segmentation: Mapping[str, Any], height: int, width: int) -> None:
    """ValueError for run lengths, plain or packed, that are not those of all pixels of the image."""
    counts, size = segmentation["counts"], segmentation["size"]
    lengths = unpack_run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(length) is int for length in lengths):
        raise _Unusable(f"expected run lengths, got {cut(lengths, 60)}")
    total = sum(lengths)
    if size != [height, width] or total != height * width or min(lengths) < 0:
        raise _Unusable(
            f"expected run lengths of {height} x {width} pixels, got {cut(total, 40)} pixels of {cut(size, 40)}"
        )


def unpack_run_lengths(counts: str) -> list[int]:
    """The run lengths that COCO packs into text; pycocotools does not give them out.

    A character holds 5 bits above 48, the lowest first, and 32 where more follow; 16 in the last one is the sign. From
    the fourth on a number is the difference to the length two before it.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= 5 * _LONGEST_NUMBER:
            raise _Unusable(f"expected packed run lengths, got {cut(counts, 60)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            signed = value - (1 << shift) if bits & 16 else value
            lengths.append(signed + lengths[-2] if len(lengths) > 2 else signed)
            value = shift = 0
    return lengths
