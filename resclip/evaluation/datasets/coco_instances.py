"""COCO's instances as label maps: polygons and run lengths, drawn over each other.

Knows COCO's JSON format (cocodataset.org, "Data format") and, by pycocotools, how a polygon covers pixels. Knows no
folder and no list of classes.

Where instances overlap, the one that the file lists first lies on top, and a crowd's region is drawn as its category:
both as COCO-Stuff's authors extract the things that stuff was annotated around (cocostuff10k,
annotator/code/extractThings.m). They draw polygons with MATLAB's poly2mask, so rims differ from those in COCO-Stuff's
masks, and figures measured on one are not exactly those of the other. Published figures are of the masks.
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

from resclip.evaluation.datasets.samples import DatasetError
from resclip.files import read_text
from resclip.images import MAX_PIXELS, PixelArray



@dataclass(frozen=True)
class Instances:
    """The true classes of a picture, as the regions of its instances; a pixel in none of them has class 0."""

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
    """The instances of every picture that a JSON file lists.

    Args:
        path: of a file in the format of instances_val2017.json.
        categories: the class and the name of each category that may occur, by its id.

    Returns:
        By the picture's file name without its ending: the instances; and, of pictures with an annotation that cannot
        be drawn, the reason.

    Raises:
        DatasetError: the file is no JSON, holds something else, lists a picture twice, or names its categories
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
                raise DatasetError(f"{path}: expected each picture once, got {name!r} twice")
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
                "expected polygons of at least 3 corners, x and y in turn and near the picture, got "
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
