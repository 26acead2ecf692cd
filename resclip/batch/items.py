"""One image of a source: its names, where its bytes are, and which bytes they are."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resclip.batch.parquet import Cell, forget_tables, read_cell
from resclip.batch.paths import about, is_url, local_path, naming, read_range, shown, title
from resclip.errors import reason
from resclip.io.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from resclip.io.resize import PixelArray
    from resclip.io.video import FrameReader

# What file systems call the version of a file, the most exact first.
VERSIONS = (
    "ETag", "etag", "blob_id", "generation", "Last-Modified", "LastModified", "last_modified", "mtime", "updated",
    "created",
)  # fmt: skip

FILES_KEPT = 65_536
"""What is known of so many remote files is kept, so that a server is asked once for all images of an archive."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which bytes an image is, as far as that is known without reading them.

    Args:
        location: path or URL of the file, without user, password, query and fragment.
        size: in bytes: of the file, or of an archive's member; None where it is unknown.
        version: of the file: the time of its last change in ns on a local disk, elsewhere what its server says, such as
            an ETag; None where it is unknown.
    """

    location: str
    size: int | None
    version: str | None

    def agrees(self, other: Identity) -> bool:
        """Whether both can be the same bytes: what one of them does not know makes no difference."""
        return (
            self.location == other.location
            and (self.size is None or other.size is None or self.size == other.size)
            and (self.version is None or other.version is None or self.version == other.version)
        )


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be segmented: small, and the same in any process.

    Args:
        index: in the source's order, from 0; of a video its number among all frames.
        name: relative, with "/" between parts, and no other item's: "sub/cat.jpg".
        stem: of the output files, and no other item's on any disk: "sub/cat".
        location: path or URL of the file that holds the bytes; "" for one that its table does not name.
        start, length: which bytes of the file, where the image is a part of it.
        cell: which cell of the file, where it is a Parquet table.
        error: why it cannot be read, where that is known before; one line.
        seen: which bytes it was when a run began to read it; None before.
        frame: which frame of the file, where it is a video; such an item has no bytes of its own, but `pixels`.
    """

    index: int
    name: str
    stem: str
    location: str
    start: int = 0
    length: int | None = None
    cell: Cell | None = None
    error: str | None = None
    seen: Identity | None = None
    frame: int | None = None

    def pixels(self, frames: FrameReader) -> PixelArray:
        """(H, W, 3) uint8: a video's frame.

        Raises:
            ImageError: it cannot be read; names the item.
        """
        assert self.frame is not None
        return frames.read(Path(self.location), self.frame, f"{self.name} ({title(self.location)})")

    def read(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """The encoded image.

        Raises:
            OSError: the file is missing or cannot be read; names the item.
            ValueError: its table names no file or is damaged; names the item. Or `error`.
            ImportError: the file system, or Parquet, needs a package that is not installed.
        """
        if self.error is not None:
            raise ValueError(self.error)
        if not self.location:
            raise ValueError(f"{self.name}: expected a path or URL in the table's row, got none")
        # A part of a file, or a file of another name, is shown with its file.
        location = title(self.location)
        is_file = shown(self.location).endswith(self.name)
        name = location if is_file else f"{title(self.name)} ({location})"
        try:
            with naming(self.location):
                if self.cell is None:
                    return read_range(self.location, self.start, self.length, limits)
                return read_cell(self.location, self.cell, limits)
        except OSError as error:
            raise OSError(error.errno, reason(error), name) from error
        except ValueError as error:
            raise ValueError(
                f"{'' if is_file else f'{title(self.name)}: '}{reason(error)}"
            ) from error

    def source(self, limits: Limits = DEFAULT_LIMITS) -> Path | bytes:
        """The file, where the image is the whole of one on this machine, else its bytes; raises as `read`."""
        path = self.local_path if self.error is None else None
        return self.read(limits) if path is None else path

    def identity(self, limits: Limits = DEFAULT_LIMITS) -> Identity:
        """Which bytes it is now: one look at a local file; a server is asked once for each file."""
        location = self.location
        size = version = None
        if not is_url(location):
            # Strings, not paths, take a third of the time, which counts for a million images.
            if location and not location.startswith("/"):
                location = str(Path(location).absolute())
            # Where it cannot be looked at, reading it says why.
            with contextlib.suppress(OSError, ValueError):
                status = os.stat(location)  # noqa: PTH116
                size, version = status.st_size, str(status.st_mtime_ns)
        else:
            if self.error is None:
                size, version = _remote_version(location, limits)
            location = shown(location)
        if not location.isascii():
            # Names that are not UTF-8 can be stored as escapes alone.
            location = location.encode("utf-8", "backslashreplace").decode()
        return Identity(location, size if self.length is None else self.length, version)

    def looked_at(self, limits: Limits = DEFAULT_LIMITS) -> Item:
        """The item with its identity, before its bytes are read: what changes afterwards is noticed by the next run."""
        return replace(self, seen=self.identity(limits))

    @property
    def local_path(self) -> Path | None:
        """The file, where the image is the whole of one on this machine."""
        is_part = self.cell is not None or self.length is not None or self.frame is not None
        if is_part or not self.location:
            return None
        return local_path(self.location)


def forget_files() -> None:
    """Ask servers and open tables anew from now on."""
    forget_tables()
    _remote_version.cache_clear()


@lru_cache(maxsize=FILES_KEPT)
def _remote_version(location: str, limits: Limits) -> tuple[int | None, str | None]:
    """Size and version of a remote file; None for what its server does not say, or where it cannot be asked."""
    known: dict[str, Any] = {}
    # Whatever it is, reading the file says it.
    with contextlib.suppress(Exception):
        known = about(location, limits)
    version = next((str(known[key]) for key in VERSIONS if known.get(key)), None)
    size = known.get("size")
    return size if isinstance(size, int) else None, version
