"""What a data set is to an evaluation: pictures with the true class of each pixel, and the classes.

Knows arrays and picture files. Knows no benchmark, no folder layout and no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.class_names import parse_entries
from resclip.images import ImageError, PixelArray, read_image


IGNORED = 255
"""The value of pixels that do not count."""


class DatasetError(ValueError):
    """A data set that cannot be used: what was looked for, what was found, what to do."""


@dataclass(frozen=True)
class Problem:
    """A picture that is left out of the figures, and why."""

    name: str
    reason: str


class Picture(Protocol):
    """Where a picture comes from; picklable, as worker processes read it."""

    def read(self) -> PixelArray:
        """(H, W, 3) uint8; `ImageError` where it cannot be had."""


class Truth(Protocol):
    """Where the true classes of a picture come from; picklable, as worker processes read it."""

    def read(self) -> PixelArray:
        """(H, W) uint8: class indices and `IGNORED`; `ImageError` where they cannot be had."""


@dataclass(frozen=True)
class PictureFile:
    """A picture on disk."""

    path: Path

    def read(self) -> PixelArray:
        """(H, W, 3) uint8."""
        return read_image(self.path)


@dataclass(frozen=True)
class Values:
    """What the values in a mask's file stand for: classes, or pixels that do not count.

    Args:
        classes: the class of each value that stands for one.
        ignored: values of pixels that do not count. Any other value is an error.
    """

    classes: Mapping[int, int]
    ignored: frozenset[int] = frozenset({IGNORED})

    def table(self) -> NDArray[np.int16]:
        """(65536,): the class of each value, `IGNORED`, or −1 for a value that must not occur."""
        table = np.full(65536, -1, np.int16)
        table[sorted(self.ignored)] = IGNORED
        for value, label in self.classes.items():
            table[value] = label
        return table

    def labels(self, raw: NDArray[np.uint16], path: Path) -> PixelArray:
        """The classes of a mask's values, uint8, in their shape.

        Raises:
            ImageError: a value that stands for nothing; it names `path`.
        """
        found = self.table()[raw]
        if found.min() < 0:
            strange = np.unique(raw[found < 0])
            shown = ", ".join(map(str, strange[:8])) + (", …" if len(strange) > 8 else "")
            raise ImageError(
                f"{path}: expected values among {shorten(sorted({*self.classes, *self.ignored}))}, got {shown} in "
                f"{int((found < 0).sum()):,} pixels; check that the mask belongs to this data set"
            )
        labels: PixelArray = found.astype(np.uint8)
        return labels


@dataclass(frozen=True)
class LabelFile:
    """A mask on disk: a greyscale or paletted PNG whose values `values` explains."""

    path: Path
    values: Values

    def read(self) -> PixelArray:
        """(H, W) uint8.

        Raises:
            ImageError: the file is missing, damaged, of three channels, or holds a value that stands for nothing.
        """
        return self.values.labels(read_values(self.path), self.path)


def shorten(values: Sequence[int]) -> str:
    """Sorted numbers as text, runs of neighbours as "0 to 20"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in runs)


def read_values(path: Path) -> NDArray[np.uint16]:
    """(H, W), the numbers that a mask's pixels hold: a palette's indices, or grey levels of 8 or 16 bits.

    Raises:
        ImageError: the file is missing, damaged, or holds colours.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise ImageError(
                    f"{path}: expected one number a pixel (a greyscale or paletted PNG), got mode {image.mode}; "
                    "convert colours to class indices first"
                )
            image.load()
            values = np.asarray(image)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the data set") from None
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"{path}: expected a whole mask, got one that cannot be read ({error}); get the file again"
        ) from error
    if values.size == 0 or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path}: expected values from 0 to 65535; check that it is a mask")
    return values.astype(np.uint16)


@dataclass(frozen=True)
class Sample:
    """One picture of a data set."""

    name: str
    """Unique in the set, such as "2007_000033" or "frankfurt/frankfurt_000000_000294"."""
    picture: Picture
    truth: Truth


@dataclass(frozen=True)
class Dataset:
    """Pictures with their true classes, ready to be measured on.

    Raises:
        DatasetError: no picture, two of one name, or colours that do not fit the classes.
    """

    name: str
    """As it is asked for: "voc21"."""
    description: str
    """What was found, for people: "1,449 pictures of PASCAL VOC 2012's val (VOCdevkit/VOC2012)"."""
    entries: tuple[str, ...]
    """A class each in label order, with its synonyms, as `resclip.class_names` reads them."""
    samples: tuple[Sample, ...]
    split: str | None = None
    """As it was asked for; None for the standard one, which published figures are of."""
    problems: tuple[Problem, ...] = ()
    """Of pictures that could not be listed: they are in no figure and in every report."""
    palette: PixelArray | None = None
    """(C, 3) uint8: the set's own colours; None where it has none."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Arguments of `resclip.load` that go with the set, whatever the method."""

    def __post_init__(self) -> None:
        if not self.samples:
            raise DatasetError(f"{self.name}: expected at least one picture, got none")
        names = [sample.name for sample in self.samples]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"{self.name}: expected each picture once, got {twice!r} twice")
        if len(self.entries) > IGNORED:
            raise DatasetError(
                f"{self.name}: expected at most {IGNORED} classes, got {len(self.entries)}: "
                f"a mask's value {IGNORED} is for pixels that do not count"
            )
        if self.palette is not None and self.palette.shape != (len(self.entries), 3):
            raise DatasetError(
                f"{self.name}: expected a colour for each of {len(self.entries)} classes, "
                f"got a palette of shape {self.palette.shape}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """One name a class."""
        return tuple(entry.name for entry in parse_entries(self.entries))

    @property
    def digest(self) -> str:
        """Of the samples' names in their order: two sets of one digest have the same pictures."""
        names = "\n".join(sample.name for sample in self.samples)
        return hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest()

    def __len__(self) -> int:
        """Number of pictures that can be measured on."""
        return len(self.samples)
