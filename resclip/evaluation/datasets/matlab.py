"""A matrix of numbers out of a MATLAB file of version 5 to 7, compressed or not: all that PASCAL Context's masks are.

The format is that of "MAT-File Format" by The MathWorks. SciPy's reader has been seen to crash the process on damaged
files: here every number of the file is checked before it is used.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_NUMBERS = range(6, 16)
"""The classes of arrays that hold numbers, from double to uint64."""
_COMPLEX = 0x800


def read_matrix(data: bytes, name: str, most: int) -> NDArray[Any]:
    """The matrix called `name`, (H, W) of numbers.

    Args:
        data: the whole file.
        most: entries that the matrix may have.

    Raises:
        ValueError, LookupError, struct.error, zlib.error: the file is damaged or of another format, or has no such
            matrix.
    """
    order = {b"IM": "<", b"MI": ">"}[data[126:128]]
    if struct.unpack(f"{order}H", data[124:126]) != (0x0100,):
        raise ValueError("another version")
    for kind, content in _variables(data[_HEADER:], order, most):
        if kind == _MATRIX:
            (_, flags), (_, shape), (_, called), *values = _elements(content, order)
            if called == name.encode():
                return _matrix(flags, shape, values[0], order, most)
    raise LookupError(name)


def _variables(data: bytes, order: str, most: int) -> Iterator[tuple[int, bytes]]:
    """The elements of a file, those that were compressed unpacked."""
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            # Entries have 8 bytes at most; the rest are the name and the size.
            unpacked = stream.decompress(content, 8 * most + 4096)
            if not stream.eof:
                raise ValueError("cut short, or too large")
            yield from _elements(unpacked, order)
        else:
            yield kind, content


def _matrix(
    flags: bytes, shape: bytes, values: tuple[int, bytes], order: str, most: int
) -> NDArray[Any]:
    """The array of a matrix's parts; down its columns come its values, in any type that holds them."""
    (flag, _), sides = struct.unpack(f"{order}II", flags), np.frombuffer(shape, f"{order}i4")
    kind, content = values
    if flag & 0xFF not in _NUMBERS or flag & _COMPLEX or len(sides) != 2:
        raise ValueError("no matrix of numbers")
    size = [int(side) for side in sides]
    if min(size) < 0 or prod(size) > most:
        raise ValueError("a size out of reason")
    return np.frombuffer(content, order + _TYPES[kind]).reshape(size, order="F")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The kind and the content of each element, one after the other."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start = position + 8
        if kind >> 16:
            # Four bytes and fewer stand in the place of the size.
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
            if size > 4:
                raise ValueError("a short element that is none")
            position += 8
        else:
            position = start + size + (0 if kind == _COMPRESSED else -size % 8)
        content = data[start : start + size]
        if len(content) < size:
            raise ValueError("cut short")
        yield kind, content
