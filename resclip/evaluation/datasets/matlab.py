"""Masks in MATLAB files, as PASCAL Context is released with 459 names.

Knows as much of the format as one matrix of numbers needs (MathWorks, "MAT-File Format", level 5, of MATLAB 5 to 7):
either byte order, compressed or not. Checks every size against the bytes that are there, as SciPy's reader does not: it
ends the whole process on some damaged files. Knows no HDF5 (version 7.3), no structures, no sparse or complex matrices.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.datasets.samples import Values
from resclip.images import MAX_PIXELS, ImageError, PixelArray


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
_LARGEST = 8 * MAX_PIXELS  # Bytes that a compressed element may hold: a picture's worth of doubles.


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
            raise ImageError(f"{self.path}: no such file; check the data set") from None
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
