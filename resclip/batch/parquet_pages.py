"""Where the pages of a Parquet column are, so that those beside a damaged one can still be read.

Arrow reads a column of a row group from its first page on, and gives up at the first that is damaged. Here the headers
of pages are followed, and found again behind damage; a page is then read from a file in which all rows around it are
missing. Headers are structs of Thrift's compact protocol.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

MAX_HEADER = 1 << 16
"""A page's header has at most so many bytes: it may hold the least and the greatest value of the page."""

# Kinds of pages and encodings, by Parquet's own numbers.
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _DELTA_LENGTHS = 0, 6

# A header begins with the fields 1, the kind, and 2, the size, both of type i32.
_BEGINNING = re.compile(rb"\x15[\x00\x06]\x15")


class Page(NamedTuple):
    """A page of a column chunk, or a gap between pages, in which no header can be read."""

    start: int
    end: int
    """From the chunk's start, in bytes."""
    first: int
    rows: int
    """From the row group's start."""
    is_readable: bool


class Pages(NamedTuple):
    """The pages of a column chunk of a row group."""

    dictionary: bytes
    """The dictionary page, whole; empty where there is none."""
    data: Sequence[Page]
    """In their order; together they have all rows of the group."""


def find_pages(chunk: bytes, rows: int) -> Pages:
    """The pages of a column chunk without repeated values.

    Args:
        chunk: its bytes.
        rows: of its row group.
    """
    position = 0
    header = _header(chunk, 0)
    if header is not None and header[0][1] == _DICTIONARY:
        position = header[1]
    dictionary = chunk[:position]
    forward, reached = _follow(chunk, position)
    read = sum(count for _, _, count in forward)
    pages, first = [], 0
    for start, end, count in forward:
        pages.append(Page(start, end, first, count, True))
        first += count
    if reached == len(chunk) and read == rows:
        return Pages(dictionary, pages)
    # Behind damage: the first place from which headers lead to the chunk's very end.
    behind: list[tuple[int, int, int]] = []
    for match in _BEGINNING.finditer(chunk, reached + 1):
        found, end = _follow(chunk, match.start())
        if end == len(chunk) and read + sum(count for _, _, count in found) <= rows:
            behind = found
            break
    gap_end = behind[0][0] if behind else len(chunk)
    gap_rows = rows - read - sum(count for _, _, count in behind)
    if gap_rows > 0:
        pages.append(Page(reached, gap_end, first, gap_rows, False))
        first += gap_rows
    for start, end, count in behind:
        pages.append(Page(start, end, first, count, True))
        first += count
    return Pages(dictionary, pages)


def alone(chunk: bytes, pages: Pages, page: Page, rows: int, levels: int) -> bytes:
    """The beginning of a column chunk in which a page stands alone, the rows before and behind it being missing.

    Args:
        chunk: the bytes of the chunk.
        pages: of the chunk.
        page: one of them.
        rows: of the row group.
        levels: the greatest definition level of the column: 0 for one in which no value may be missing.
    """
    behind = rows - page.first - page.rows
    return b"".join(
        [
            pages.dictionary,
            _missing(page.first, levels),
            chunk[page.start : page.end],
            _missing(behind, levels),
        ]
    )


class Overlaid(io.RawIOBase):
    """A file whose bytes from `start` on are others, for as long as these are."""

    def __init__(self, file: BinaryIO, start: int, data: bytes) -> None:
        self.file = file
        self.start = start
        self.data = data
        self.position = 0
        self.size = file.seek(0, io.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Bytes from the position on."""
        begin = min(self.position, self.size)
        end = self.size if size < 0 else min(begin + size, self.size)
        self.file.seek(begin)
        data = bytearray(self.file.read(end - begin))
        first, last = max(begin, self.start), min(end, self.start + len(self.data))
        if first < last:
            data[first - begin : last - begin] = self.data[first - self.start : last - self.start]
        self.position = begin + len(data)
        return bytes(data)


def _follow(chunk: bytes, position: int) -> tuple[list[tuple[int, int, int]], int]:
    """(start, end, rows) of the data pages from a position on, and where no header follows."""
    found = []
    while position < len(chunk):
        header = _header(chunk, position)
        if header is None or header[2] is None:
            break
        found.append((position, header[1], header[2]))
        position = header[1]
    return found, position


def _header(chunk: bytes, position: int) -> tuple[Mapping[int, Any], int, int | None] | None:
    """The fields of a page's header, where its page ends, and its rows, None for a dictionary; None if it is none."""
    try:
        fields, start = _struct(chunk[position : position + MAX_HEADER], 0)
        kind, size = fields[1], fields[3]
        about = fields[{_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}[kind]]
        end = position + start + size
        if size < 0 or fields[2] < 0 or about[1] < 0 or end > len(chunk):
            return None
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return fields, end, None if kind == _DICTIONARY else about[1]


def _struct(data: bytes, position: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while (byte := data[position]) != 0:
        position += 1
        if byte >> 4:
            number += byte >> 4
        else:
            value, position = _varint(data, position)
            number = _signed(value)
        fields[number], position = _value(data, position, byte & 15)
    return fields, position + 1


def _value(data: bytes, position: int, kind: int) -> tuple[Any, int]:
    """A value of one of Thrift's types, as far as headers have them."""
    if kind in (1, 2):  # True, False.
        return kind == 1, position
    if kind in (4, 5, 6):
        value, position = _varint(data, position)
        return _signed(value), position
    if kind == 8:
        length, position = _varint(data, position)
        if position + length > len(data):
            raise ValueError(length)
        return None, position + length
    if kind == 12:
        return _struct(data, position)
    raise ValueError(kind)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError(shift)


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _missing(rows: int, levels: int) -> bytes:
    """A page of rows without a value, or with no bytes where a value must be; nothing for no rows."""
    if not rows:
        return b""
    # A run of equal levels is its length, doubled, and the level in whole bytes.
    runs = _unsigned(rows << 1) + bytes(1) if levels else b""
    body = runs if levels else _no_lengths(rows)
    encoding = _PLAIN if levels else _DELTA_LENGTHS
    about = (rows, rows if levels else 0, rows, encoding, len(runs), 0)
    return b"".join(
        [
            _fields(_DATA_V2, len(body), len(body)),
            b"\x5c",  # Field 8, five after the last: a struct.
            _fields(*about),
            b"\x12",  # Field 7: False, not compressed.
            b"\x00\x00",
            body,
        ]
    )


def _no_lengths(rows: int) -> bytes:
    """As many lengths of 0 as rows, as differences: in blocks of 128, of four parts with 0 bits a difference."""
    blocks = -(-(rows - 1) // 128)
    return _unsigned(128) + _unsigned(4) + _unsigned(rows) + bytes(1) + bytes(5 * blocks)


def _fields(*values: int) -> bytes:
    """The fields 1, 2, … of a struct, as i32."""
    return b"".join(b"\x15" + _unsigned(value << 1) for value in values)


def _unsigned(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)
