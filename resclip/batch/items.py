"""One picture of a source: its name, and where its bytes are.

Knows names, and files, parts of files and cells of tables to read from. Knows no pixels; which pictures there are is
`sources.py`'s to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from resclip.batch.output_names import PackedTexts, name_of
from resclip.batch.paths import inside, join, local_path, naming, plain, read_range, reason


class Cell(NamedTuple):
    """A place in a Parquet file."""

    column: str
    """Path of a column that holds bytes: "image.bytes"."""
    row: int
    """From 0, through the whole file."""


@dataclass(frozen=True)
class Item:
    """A picture to be segmented: small, and the same in any process.

    Args:
        index: in the source's order, from 0.
        name: relative, with "/" between parts, and no other item's: "sub/cat.jpg".
        stem: of the output files, and no other item's on any disk: "sub/cat".
        location: path or URL of the file that holds the bytes.
        start, length: which bytes of it, where not all.
        cell: which cell of it, where it is a Parquet file.
    """

    index: int
    name: str
    stem: str
    location: str
    start: int = 0
    length: int | None = None
    cell: Cell | None = None

    def read(self, limit: int | None = None) -> bytes:
        """The encoded picture.

        Args:
            limit: bytes that it may have.

        Raises:
            OSError: the file is missing or cannot be read; names the item.
            ValueError: it has more bytes than `limit`, its table names no file or is damaged; names the item.
            ImportError: the file system, or Parquet, needs a package that is not there.
        """
        if not self.location:
            raise ValueError(f"{self.name}: expected a path or URL in the table's row, got none")
        try:
            with naming(self.location):
                if self.cell is None:
                    return read_range(self.location, self.start, self.length, limit)
                from resclip.batch.parquet import read_cell

                return read_cell(self.location, self.cell.column, self.cell.row, limit)
        except OSError as error:
            raise OSError(error.errno, reason(error), self._title) from error
        except ValueError as error:
            shown = "" if self._title == self.location else f"{self.name}: "
            raise ValueError(f"{shown}{reason(error)}") from error

    @property
    def local_path(self) -> Path | None:
        """The file, where the picture is the whole of one on this machine."""
        if self.cell is not None or self.length is not None or not self.location:
            return None
        return local_path(self.location)

    @property
    def _title(self) -> str:
        named = self.location.endswith(self.name)
        return self.location if named else f"{self.name} ({self.location})"


class Entry(NamedTuple):
    """What a kind of source knows of an item."""

    name: str
    """Safe; another item may have it too."""
    location: str
    start: int = 0
    length: int | None = None
    cell: Cell | None = None

    @property
    def origin(self) -> str:
        """A text that no other entry of a source has."""
        return f"{self.location}\n{self.start}\n{self.cell}"


class Entries(Protocol):
    """A list of entries that are made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Entry: ...

    def __iter__(self) -> Iterator[Entry]: ...


class Files:
    """Whole files.

    Args:
        base: a folder or its URL.
        texts: the files, relative to `base`, or absolute, or URLs; "" for one that is missing in its table.
        names: their names; without it, and where one is "", from the texts.
    """

    def __init__(self, base: str, texts: PackedTexts, names: PackedTexts | None = None) -> None:
        self.base = base
        self.texts = texts
        self.names = names

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Entry:
        text = self.texts[index]
        name = self.names[index] if self.names is not None else ""
        name = name or name_of(inside(self.base, plain(text))) or f"{index:09d}"
        return Entry(name, self.location(text))

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(len(self)))

    def locations(self) -> Iterator[str]:
        """Where they are, one after the other."""
        return map(self.location, self.texts)

    def location(self, text: str) -> str:
        """Where one of `texts` is; "" for ""."""
        return join(self.base, text) if text else ""
