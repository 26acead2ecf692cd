"""One image of a source: its name, and where its bytes are.

Knows names, and files, parts of files and cells of tables to read from. Knows no pixels; which images there are is
`sources.py`'s to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from resclip.batch.output_names import PackedTexts, name_of
from resclip.batch.paths import inside, join, plain


class Cell(NamedTuple):
    """A place in a Parquet file."""

    column: str
    """Path of a column that holds bytes: "image.bytes"."""
    row: int
    """From 0, through the whole file."""


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
