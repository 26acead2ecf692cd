"""PASCAL Context, with its background as a class (context60) and without (context59).

Knows VOC 2010's JPEGImages and three kinds of masks for them, in VOC2010 or beside it, the preferred one first:

    SegmentationClassContext/2008_000002.png   as mmsegmentation prepares them: 0 background, 1-59 classes
    59_context_labels/2008_000002.png          official: 0 background, and the numbers of 59_labels.txt beside it
    trainval/2008_000002.mat                   official: the numbers of labels.txt beside it, 459 names

The official numbers are in another order than the prepared ones: 59_labels.txt begins with VOC's 20 classes, while
mmsegmentation and the class lists of the methods' authors are alphabetical. So they become classes by the names in
those two files, never by their order; the 400 names that are no class are background.

A split is mmsegmentation's ImageSets/SegmentationContext/val.txt (5,104 names, as the "detail" API splits), or else
VOC 2010's own ImageSets/Main/val.txt (5,105 names, the split of Mottaghi et al., CVPR 2014).

Does not read trainval_merged.json: mmsegmentation's converter makes SegmentationClassContext of it, which published
figures are of. Whether the official kinds agree with it in every pixel is not known.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    DatasetError,
    ImageFile,
    LabelFile,
    Sample,
    Values,
    benchmark_palette,
    describe,
    files_under,
    first_that_exists,
    lines_of,
    pair_up,
    split_names,
)
from resclip.io.images import MAX_PIXELS, ImageError, PixelArray
from resclip.text.class_names import dataset_classes

_HEADER = 128  # Bytes: text, then version (0x0100) and "MI" in the writer's byte order.
_VERSION = 0x0100
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""The element types that hold numbers, as NumPy calls them."""
_LARGEST = 8 * MAX_PIXELS  # Bytes that a compressed element may hold: an image's worth of doubles.


@dataclass(frozen=True)
class LabelMapFile:
    """A mask in a MATLAB file, whose matrix "LabelMap" holds values that `values` explains."""

    path: Path
    values: Values

    def read(self) -> PixelArray:
        """(H, W) uint8: class indices and `IGNORED`.

        Raises:
            ImageError: the file is missing, damaged, without such a matrix, or holds a value that stands for nothing.
        """
        try:
            matrix = read_matrix(self.path, "LabelMap")
        except FileNotFoundError:
            raise ImageError(f"{self.path}: no such file; check the dataset") from None
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{self.path}: expected a MATLAB file with a matrix LabelMap, got one that cannot be read ({error}); "
                "get the file again"
            ) from error
        with np.errstate(invalid="ignore"):  # Of what is no number, and then refused.
            raw = matrix.astype(np.uint16)
        if raw.size == 0 or not np.array_equal(raw, matrix):
            raise ImageError(
                f"{self.path}: expected whole numbers from 0 to 65535; check that it is a mask"
            )
        return self.values.labels(raw, self.path)


def read_matrix(path: Path, name: str) -> NDArray[Any]:
    """(rows, columns): the matrix called `name` in a MATLAB file, of the type that its numbers are stored in.

    Raises:
        ValueError: the file is damaged, of another version, or has no such matrix.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[_HEADER - 2 : _HEADER])
    if order is None or struct.unpack_from(f"{order}H", data, _HEADER - 4)[0] != _VERSION:
        raise ValueError("it is no MATLAB file of version 5 to 7")
    for kind, content in _inflated(data[_HEADER:], order):
        if kind == _MATRIX:
            parts = list(_elements(content, order))
            if len(parts) > 2 and parts[2][1] == name.encode():
                return _matrix(parts, order)
    raise ValueError(f"it has no {name}")


def _matrix(parts: list[tuple[int, bytes]], order: str) -> NDArray[Any]:
    """A matrix of its elements: flags, sizes, name and numbers, which are stored column by column."""
    if len(parts) != 4 or parts[3][0] not in _NUMBERS:
        raise ValueError("it is no plain matrix of numbers")
    sizes = np.frombuffer(parts[1][1], f"{order}i4")
    kind = np.dtype(f"{order}{_NUMBERS[parts[3][0]]}")
    content = parts[3][1]
    if sizes.size != 2 or math.prod(sizes.tolist()) * kind.itemsize != len(content):
        raise ValueError(f"its sizes are {sizes.tolist()}, its numbers take {len(content)} bytes")
    return np.frombuffer(content, kind).reshape(sizes, order="F")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element in a row of them."""
    place = 0
    while place < len(data):
        if len(data) < place + 8:
            raise ValueError("it is cut short")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, end = place + 8, place + 8 + size
        padding = -size % 8 if kind != _COMPRESSED else 0
        if (
            kind >> 16
        ):  # A small element: its size is in the type's upper half, its content in the place of the size.
            kind, size = kind & 0xFFFF, kind >> 16
            start, end, padding = place + 4, place + 4 + size, 4 - size
        if end > len(data):
            raise ValueError("it is cut short")
        yield kind, data[start:end]
        place = end + padding


def _inflated(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The same, with what compressed elements hold in their place."""
    for kind, content in _elements(data, order):
        if kind != _COMPRESSED:
            yield kind, content
            continue
        stream = zlib.decompressobj()
        try:
            inflated = stream.decompress(content, _LARGEST)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not stream.eof:
            raise ValueError("it is cut short or too large")
        yield from _elements(inflated, order)


_PLACES = ("VOCdevkit/VOC2010", "VOC2010", "VOCdevkit", ".")
_MASKS = _PREPARED, _OFFICIAL_59, _OFFICIAL_459 = (
    "SegmentationClassContext",
    "59_context_labels",
    "trainval",
)
_MERGED = "trainval_merged.json"
_CONVERT = (
    f"{_MERGED} alone cannot be read: convert it with mmsegmentation's "
    "tools/dataset_converters/pascal_context.py, which writes SegmentationClassContext"
)
_OFFICIAL_IMAGES = {
    "SegmentationContext": {"train": 4_996, "val": 5_104},
    "Main": {"train": 4_998, "val": 5_105, "trainval": 10_103},
}
_NAMES_459 = 459
_OTHER_SPELLINGS = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
"""Of classes, in another edition of 59_labels.txt."""


def context59(root: Path, split: str | None) -> Dataset:
    """The 59 classes: the background does not count. See `context60`."""
    return _context("context59", root, split)


def context60(root: Path, split: str | None) -> Dataset:
    """The 59 classes and the background, which is class 0.

    Args:
        root: the folder of VOCdevkit, VOCdevkit itself, or VOC2010.
        split: "train" instead of "val".

    Raises:
        DatasetError: a folder, the split file or a list of numbers is missing, or no image has a mask.
    """
    return _context("context60", root, split)


def _context(name: str, root: Path, split: str | None) -> Dataset:
    split = split or "val"
    images = first_that_exists(root, "the images of VOC 2010", _below_places("JPEGImages"))
    masks = _find_masks(root)
    split_file = _split_file(images.parent / "ImageSets", split)
    ending = ".mat" if masks.name == _OFFICIAL_459 else ".png"
    pairs, problems = pair_up(
        name, files_under(images, [".jpg"]), files_under(masks, [ending]), split_names(split_file)
    )
    values = _values(masks, background=name == "context60")
    truth = LabelFile if ending == ".png" else LabelMapFile
    samples = tuple(
        Sample(one, ImageFile(image), truth(mask, values)) for one, image, mask in pairs
    )
    official = _OFFICIAL_IMAGES[split_file.parent.name].get(split)
    what = f"PASCAL Context's {split} of ImageSets/{split_file.parent.name}"
    return Dataset(
        name=name,
        description=describe(len(samples), what, masks, root, official),
        entries=tuple(dataset_classes(name)),
        samples=samples,
        problems=problems,
        palette=benchmark_palette(name),
    )


def _below_places(*names: str) -> list[str]:
    """Where each may be, the first name anywhere before the second one."""
    return [f"{place}/{name}".removeprefix("./") for name in names for place in _PLACES]


def _find_masks(root: Path) -> Path:
    try:
        return first_that_exists(root, "the masks of PASCAL Context", _below_places(*_MASKS))
    except DatasetError as error:
        if not any((root / place / _MERGED).exists() for place in _PLACES):
            raise
        raise DatasetError(f"{error}; {_CONVERT}") from None


def _split_file(folder: Path, split: str) -> Path:
    """The preferred split file that is there, or the first one, for the error."""
    files = [folder / kind / f"{split}.txt" for kind in _OFFICIAL_IMAGES]
    return next((file for file in files if file.is_file()), files[0])


def _values(masks: Path, background: bool) -> Values:
    """What the values in the masks of a folder stand for."""
    classes = dataset_classes("context59")
    first = int(background)
    numbers: Mapping[int, int]
    if masks.name == _PREPARED:
        numbers = {label: label + 1 for label in range(len(classes))}
        others = {0}
    else:
        prefix = "59_" * (masks.name == _OFFICIAL_59)
        listed = first_that_exists(
            masks.parent,
            f"the names of the numbers in {masks.name}, from the dataset's page",
            [f"{prefix}labels.txt", f"{masks.name}/{prefix}labels.txt"],
        )
        numbers = _numbers(listed, classes)
        highest = len(classes) if prefix else _NAMES_459
        others = set(range(highest + 1)).difference(numbers.values())
    known = {number: label + first for label, number in numbers.items()}
    if background:
        return Values({**known, **dict.fromkeys(others, 0)})
    return Values(known, frozenset({*others, IGNORED}))


def _numbers(path: Path, classes: list[str]) -> Mapping[int, int]:
    """The number of each class in a file of lines such as "21: bag", by label."""
    listed: dict[str, int] = {}
    for line in lines_of(path, "a number and a name a line"):
        found = re.fullmatch(r"(\d{1,3})\s*:\s*(.+)", line)
        if found:
            listed["".join(found[2].split())] = int(found[1])
    numbers: dict[int, int] = {}
    for label, name in enumerate(classes):
        number = listed.get(name, listed.get(_OTHER_SPELLINGS.get(name, name)))
        if number is None:
            raise DatasetError(
                f"{path}: expected lines such as '2: aeroplane' for all {len(classes)} classes, "
                f"got {len(listed)} without {name!r}; get the file again"
            )
        numbers[label] = number
    return numbers
