"""Images in tar archives, as WebDataset makes them: where in its archive each begins, so that it is read in place.

Only the headers of members are read to find them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

from resclip.batch.paths import naming, open_binary
from resclip.errors import reason

COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def check_compression(location: str) -> None:
    """Raise ValueError for an archive whose name says that it is compressed."""
    if location.lower().endswith(COMPRESSED):
        raise _compressed(location, "a compressed one")


class Member(NamedTuple):
    """An image in an archive: its name there, and its bytes."""

    name: str
    start: int
    length: int


def images_in(location: str, suffixes: Collection[str]) -> tuple[list[Member], int]:
    """The images of an archive in their order there, and how many other files it has.

    Of a key's members, which share their names up to the first dot, those are images whose whole rest is an image's
    suffix: `a.jpg`, but not `a.seg.png` beside it. If a key has none, the last suffixes count: `photo.v2.jpg`.

    Args:
        location: path or URL of the archive.
        suffixes: of images, with their dots, in lower case.

    Raises:
        ValueError: the archive is damaged, cut short or compressed, or holds no image.
        OSError: the archive cannot be read.
    """
    found = []
    skipped = 0
    with naming(location), open_binary(location) as stream:
        for _, members in groupby(_members(stream, location), lambda member: _split(member)[0]):
            group = list(members)
            images = [member for member in group if _split(member)[1] in suffixes]
            if not images:
                endings = tuple(suffixes)
                images = [member for member in group if member.name.lower().endswith(endings)]
            skipped += len(group) - len(images)
            found += [Member(image.name, image.offset_data, image.size) for image in images]
    if not found:
        raise ValueError(
            f"{location}: expected members with the suffix of an image "
            f"({', '.join(suffixes)}), got an archive without any; check what it was made of"
        )
    return found, skipped


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and the rest, in lower case with its dot: "a/b.seg.png" → "a/b", ".seg.png"."""
    folder, slash, file = member.name.rpartition("/")
    key, dot, rest = file.partition(".")
    return folder + slash + key, (dot + rest).lower()


def _members(stream: BinaryIO, location: str) -> Iterator[tarfile.TarInfo]:
    """The files in an archive that are stored in one piece; no hidden ones."""
    start = stream.read(6)
    stream.seek(0)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            raise _compressed(location, f"one compressed by {name}")
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # Else tarfile keeps all of them in memory.
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
