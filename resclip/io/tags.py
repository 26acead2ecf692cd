"""The tags of a TIFF and of an EXIF block, which is one too: numbers alone, and never more than a few of them."""

from __future__ import annotations

import io
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO, TypeAlias

Tags: TypeAlias = "Mapping[int, tuple[int, ...]]"
"""By number, the values of the tags of a page; () for what nobody wants, is no whole number or has too many of them."""

ORIENTATION = 274

MOST_PAGES = 64
"""Pages whose tags are read: an image's overviews and masks come after it, two pages for each power of 2 at most."""

MOST_VALUES = 1 << 16
"""Values that are read of a tag: one for each band of a TIFF."""

MOST_CHUNKS = 1 << 14
"""Chunks of a PNG that are looked at: writers cut its pixels into chunks of 8 kB or more."""

# Whole numbers, by TIFF's number of their type: bytes, and how `struct` reads them.
_TYPES = {1: (1, "B"), 3: (2, "H"), 4: (4, "I"), 8: (2, "h"), 9: (4, "i"), 16: (8, "Q")}


def tiff_pages(stream: BinaryIO, wanted: Collection[int]) -> list[Tags]:
    """The tags of a TIFF's pages, from its beginning; none of pages that are damaged.

    Args:
        stream: of the file.
        wanted: whose values are read, no more than `MOST_VALUES` each whatever the file claims; of others it is known
            that they are there.

    Raises:
        OSError: the stream cannot be read.
    """
    pages: list[Tags] = []
    try:
        stream.seek(0)
        start = stream.read(16)
        order = {b"II": "<", b"MM": ">"}[start[:2]]
        is_big = struct.unpack(f"{order}H", start[2:4])[0] == 43
        # Number of tags, number of values or place of a page, and bytes of a value that stands in the tag itself.
        count, place, size = ("Q", "Q", 8) if is_big else ("H", "I", 4)
        (at,) = struct.unpack_from(order + place, start, 8 if is_big else 4)
        layout = f"{order}HH{place}{size}s"
        seen = set()
        while at and at not in seen and len(pages) < MOST_PAGES:
            seen.add(at)
            stream.seek(at)
            length = min(_unpack(stream, order + count)[0], 1 << 16) * struct.calcsize(layout)
            entries = list(struct.iter_unpack(layout, stream.read(length)))
            (at,) = _unpack(stream, order + place)
            # The first of several tags of one number counts.
            page = {tag: entry for tag, *entry in reversed(entries)}
            pages.append(
                {
                    tag: _values(stream, order, place, entry) if tag in wanted else ()
                    for tag, entry in page.items()
                }
            )
    except (KeyError, struct.error, ValueError, OverflowError):
        # ValueError: a place beyond what a stream can seek to.
        pass
    return pages


def exif_orientation(block: bytes) -> int:
    """The orientation that an EXIF block names, 1 to 8; 1 if it names none or is damaged."""
    pages = tiff_pages(io.BytesIO(block.removeprefix(b"Exif\0\0")), {ORIENTATION})
    return orientation_of(pages[0]) if pages else 1


def png_orientation(stream: BinaryIO) -> int:
    """The orientation that a PNG's EXIF chunk names, 1 to 8; 1 if it is missing or damaged. Raises as `tiff_pages`."""
    stream.seek(8)
    for _ in range(MOST_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return exif_orientation(stream.read(min(length, MOST_VALUES)))
        # Over the chunk and its checksum.
        stream.seek(length + 4, io.SEEK_CUR)
    return 1


def orientation_of(tags: Tags) -> int:
    """The orientation that a page's tags name, 1 to 8; 1 if they name none."""
    value = (tags.get(ORIENTATION) or (1,))[0]
    return value if 1 <= value <= 8 else 1


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))


def _values(stream: BinaryIO, order: str, place: str, entry: Sequence[Any]) -> tuple[int, ...]:
    kind, count, value = entry
    if kind not in _TYPES or not 0 < count <= MOST_VALUES:
        return ()
    size, letter = _TYPES[kind]
    if count * size > len(value):
        stream.seek(*struct.unpack(order + place, value))
        value = stream.read(count * size)
    if len(value) < count * size:
        return ()
    return struct.unpack_from(f"{order}{count}{letter}", value)
