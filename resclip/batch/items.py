"""One image of a source: its names, and where its bytes are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resclip.batch.parquet import Cell, read_cell
from resclip.batch.paths import local_path, naming, read_range, shown, title
from resclip.errors import reason


@dataclass(frozen=True, slots=True)
class Item:
    """An image to be segmented: small, and the same in any process.

    Args:
        index: in the source's order, from 0.
        name: relative, with "/" between parts, and no other item's: "sub/cat.jpg".
        stem: of the output files, and no other item's on any disk: "sub/cat".
        location: path or URL of the file that holds the bytes; "" for one that its table does not name.
        start, length: which bytes of the file, where the image is a part of it.
        cell: which cell of the file, where it is a Parquet table.
        error: why it cannot be read, where that is known before; one line.
    """

    index: int
    name: str
    stem: str
    location: str
    start: int = 0
    length: int | None = None
    cell: Cell | None = None
    error: str | None = None

    def read(self) -> bytes:
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
                    return read_range(self.location, self.start, self.length)
                return read_cell(self.location, self.cell)
        except OSError as error:
            raise OSError(error.errno, reason(error), name) from error
        except ValueError as error:
            raise ValueError(
                f"{'' if is_file else f'{title(self.name)}: '}{reason(error)}"
            ) from error

    @property
    def local_path(self) -> Path | None:
        """The file, where the image is the whole of one on this machine."""
        if self.cell is not None or self.length is not None or not self.location:
            return None
        return local_path(self.location)
