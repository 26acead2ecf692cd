"""Images in tar archives, as WebDataset makes them: where in its archive each begins, so that it is read in place.

Knows tar. Reads the headers of members, and none of their bytes.
"""

from __future__ import annotations

import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import BinaryIO

from resclip.batch.items import Entry
from resclip.batch.output_names import PackedTexts, safe_name, without_suffix
from resclip.batch.paths import join, naming, open_binary, reason

COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def check_compression(location: str) -> None:
    """Raise ValueError for an archive whose name says that it is compressed."""
    if location.lower().endswith(COMPRESSED):
        raise _compressed(location, "a compressed one")


class Members:
    """The images of archives, in the order in which they lie there.

    Of a key's members, which share their names up to the first dot, those are images whose whole rest is an image's
    suffix: `a.jpg`, but not `a.seg.png` beside it. Where a key has none, its last suffixes count: `photo.v2.jpg`.

    Args:
        base: the folder of the archives, or its URL.
        archives: their names relative to it.
        suffixes: of images, with their dots, in small letters.

    Raises:
        ValueError: an archive is damaged, cut short or compressed, or holds no image.
        OSError: an archive cannot be read.
    """

    def __init__(self, base: str, archives: list[str], suffixes: Collection[str]) -> None:
        self.base = base
        self.archives = archives
        self.skipped = 0
        self._names = PackedTexts()
        self._starts = array("Q")
        self._lengths = array("Q")
        self._ends: list[int] = []
        for archive in archives:
            self._add(join(base, archive), suffixes)
            self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Entry:
        archive = self.archives[bisect_right(self._ends, index)]
        name = f"{without_suffix(archive)}/{self._names[index]}"
        location = join(self.base, archive)
        return Entry(safe_name(name), location, self._starts[index], self._lengths[index])

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(len(self)))

    def _add(self, location: str, suffixes: Collection[str]) -> None:
        before = len(self)
        with naming(location), open_binary(location) as stream:
            for _, members in groupby(_members(stream, location), lambda member: _split(member)[0]):
                group = list(members)
                images = [member for member in group if _split(member)[1] in suffixes]
                if not images:
                    endings = tuple(suffixes)
                    images = [member for member in group if member.name.lower().endswith(endings)]
                self.skipped += len(group) - len(images)
                for image in images:
                    self._names.append(image.name)
                    self._starts.append(image.offset_data)
                    self._lengths.append(image.size)
        if len(self) == before:
            raise ValueError(
                f"{location}: expected members with the suffix of an image "
                f"({', '.join(suffixes)}), got an archive without any; check what it was made of"
            )


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and the rest, in small letters with its dot: "a/b.seg.png" → "a/b", ".seg.png"."""
    folder, slash, file = member.name.rpartition("/")
    key, dot, rest = file.partition(".")
    return folder + slash + key, (dot + rest).lower()


def _members(stream: BinaryIO, location: str) -> Iterator[tarfile.TarInfo]:
    """The files in an archive whose bytes lie there in one piece; no hidden ones."""
    start = stream.read(6)
    stream.seek(0)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            raise _compressed(location, f"one compressed by {name}")
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # It would remember all of them.
                hidden = member.name.rpartition("/")[2].startswith(".")
                if member.isreg() and not member.issparse() and not hidden:
                    yield member
            end = archive.offset
        # tarfile takes a header that it cannot read for the end, and the end of the file as well.
        stream.seek(end)
        closing = stream.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(location, reason(error)) from error
    if len(closing) < tarfile.BLOCKSIZE or any(closing):
        raise _damaged(location, f"no header and no end at byte {end}")


def _compressed(location: str, got: str) -> ValueError:
    return ValueError(
        f"{location}: expected a plain .tar, got {got}, in which no member can be read in place; "
        "decompress it first"
    )


def _damaged(location: str, why: str) -> ValueError:
    return ValueError(
        f"{location}: expected a whole tar archive, got one that is damaged or cut short ({why}); "
        "get it again"
    )
