"""PASCAL Context, with its background as a class (context60) and without (context59).

VOC 2010's JPEGImages and one of three kinds of masks for them, in VOC2010 or beside it, the preferred one first:

    SegmentationClassContext/2008_000002.png   as mmsegmentation prepares them: 0 background, 1-59 classes
    59_context_labels/2008_000002.png          official: 0 background, and the numbers of 59_labels.txt beside it
    trainval/2008_000002.mat                   official: the numbers of labels.txt beside it, 459 names

The official numbers are in another order than the prepared ones: 59_labels.txt begins with VOC's 20 classes, while
mmsegmentation and the class lists of the methods' authors are alphabetical. So they become classes by the names in
those two files, never by their order; the 400 names that are no class are background.

A split is mmsegmentation's ImageSets/SegmentationContext/val.txt (5,104 names, as the "detail" API splits), or else
VOC 2010's own ImageSets/Main/val.txt (5,105 names, the split of Mottaghi et al., CVPR 2014).

trainval_merged.json is not read: mmsegmentation's converter makes SegmentationClassContext of it, which published
figures are of. Whether the official kinds agree with it in every pixel is not known.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resclip.errors import reason
from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    DatasetError,
    ImageFile,
    LabelFile,
    Sample,
    Values,
    benchmark,
    files_under,
    first_that_exists,
    lines_of,
    pair_up,
    split_names,
)
from resclip.evaluation.datasets.matlab import read_matrix
from resclip.io.errors import check_file
from resclip.io.images import ImageError, PixelArray
from resclip.text.class_names import dataset_classes

_MOST_PIXELS = 1 << 24
_MOST_BYTES = 1 << 27
"""Of a mask in a MATLAB file; PASCAL's have 500 × 500 pixels."""


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
        check_file(self.path, str(self.path))
        try:
            if self.path.stat().st_size > _MOST_BYTES:
                raise ValueError("a file that may exhaust memory")
            matrix = read_matrix(self.path.read_bytes(), "LabelMap", _MOST_PIXELS)
        except (OSError, ValueError, LookupError, struct.error, zlib.error) as error:
            why = f" ({reason(error)})" if isinstance(error, OSError) else ""
            raise ImageError(
                f"{self.path}: expected a MATLAB file of version 5 to 7 with a matrix LabelMap of at most "
                f"{_MOST_PIXELS:,} numbers, got one that cannot be read so{why}; get the file again"
            ) from error
        with np.errstate(invalid="ignore"):  # What is no whole number is refused next.
            raw = matrix.astype(np.uint16)
        if raw.size == 0 or not np.array_equal(raw, matrix):
            raise ImageError(
                f"{self.path}: expected whole numbers from 0 to 65535; check that it is a mask"
            )
        return self.values.labels(raw, self.path)


_FOLDERS = ("VOCdevkit/VOC2010", "VOC2010", "VOCdevkit", ".")
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
    images = first_that_exists(root, "the images of VOC 2010", _below_folders("JPEGImages"))
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
    return benchmark(name, what, masks, root, official, samples, problems)


def _below_folders(*names: str) -> list[str]:
    """Where each may lie, the first name anywhere before the second one."""
    return [f"{folder}/{name}".removeprefix("./") for name in names for folder in _FOLDERS]


def _find_masks(root: Path) -> Path:
    try:
        return first_that_exists(root, "the masks of PASCAL Context", _below_folders(*_MASKS))
    except DatasetError as error:
        if not any((root / folder / _MERGED).exists() for folder in _FOLDERS):
            raise
        raise DatasetError(f"{error}; {_CONVERT}") from None


def _split_file(folder: Path, split: str) -> Path:
    """The preferred split file that exists, or the first one, for the error."""
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
    labels = {number: label + first for label, number in numbers.items()}
    if background:
        return Values({**labels, **dict.fromkeys(others, 0)})
    return Values(labels, frozenset({*others, IGNORED}))


def _numbers(path: Path, classes: list[str]) -> Mapping[int, int]:
    """The number of each class in a file of lines such as "21: bag", by label."""
    listed: dict[str, int] = {}
    for line in lines_of(path, "a number and a name per line"):
        match = re.fullmatch(r"(\d{1,3})\s*:\s*(.+)", line)
        if match:
            listed["".join(match[2].split())] = int(match[1])
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
