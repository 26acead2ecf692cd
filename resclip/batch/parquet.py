"""Images in Parquet tables: bytes in a column, or paths and URLs of files.

Columns are read piece by piece, since a row group may be larger than memory.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple

from resclip.batch.output_names import contained_name, name_of, without_suffix
from resclip.batch.paths import (
    inside,
    is_url,
    join,
    local_path,
    naming,
    open_binary,
    parent,
    plain,
    shown,
)
from resclip.errors import reason

# Columns that are looked for, the most likely first: of images as bytes, of their paths or URLs, and of their names.
BYTES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "picture", "img")
LOCATIONS = ("path", "url", "file_name", "filename", "image_path", "image_url", "file", "image")
NAMES = ("name", "key", "__key__", "id")

TEXTS_PER_READ = 65_536
"""So many paths or names are read from a table together, which takes a few megabytes."""

IMAGES_PER_READ = 16
"""So many rows of images are decoded together: 16 photographs are some megabytes."""

BATCHES_KEPT = 4
"""So many batches of `IMAGES_PER_READ` rows stay in memory for threads that ask for neighbours out of order."""


def parquet() -> ModuleType:
    """`pyarrow.parquet`; ImportError with what to install."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            'Parquet needs pyarrow, which is not installed; pip install "resclip[batch]"'
        ) from None
    module: ModuleType = pyarrow.parquet
    return module


class Cell(NamedTuple):
    """A cell of a Parquet table."""

    column: str
    """Path of a column that holds bytes: "image.bytes"."""
    row: int
    """From 0, through the whole file."""


class TableImage(NamedTuple):
    """An image of a table: bytes in the cell `cell` of the table at `location`, or, without it, the file there."""

    name: str
    """Contained, but maybe not the only one of that name; "" if nothing in the table names the image."""
    location: str
    """"" if the table's row has none."""
    cell: Cell | None


class _Columns(NamedTuple):
    """Which columns of a table are read."""

    images: str
    """Path of a column: "image.bytes"."""
    are_bytes: bool
    names: str | None
    """Path of the column that names the images, if there is one."""


def open_tables(
    base: str, tables: list[str], column: str | None
) -> tuple[list[TableImage], _Columns]:
    """The images of tables with the same columns, and the columns that were chosen.

    Args:
        base: the folder of the tables, or its URL.
        tables: their names relative to it; at least one.
        column: the one with the images; None to find it by its name and type.

    Raises:
        ValueError: a table is damaged, has no usable column, or not those of the first.
        OSError: a table cannot be read.
        ImportError: pyarrow is missing.
    """
    first = None
    images: list[TableImage] = []
    for table in tables:
        location = join(base, table)
        try:
            with naming(location), _open(location) as file:
                columns = _choose(file.schema_arrow, location, column)
                first = first or columns
                if columns[:2] != first[:2]:
                    raise ValueError(
                        f"{location}: expected images in column {first.images}, as in "
                        f"{join(base, tables[0])}, got them in {columns.images}; name one kind of table"
                    )
                images += _images_of(file, columns, base, table)
        except _arrow_errors() as error:
            raise _damaged(location, error) from error
    assert first is not None
    return images, first


def _images_of(file: Any, columns: _Columns, base: str, table: str) -> Iterator[TableImage]:
    """The images of a table that is open."""
    count = file.metadata.num_rows
    names = _column(file, columns.names) if columns.names else ("" for _ in range(count))
    if columns.are_bytes:
        location = join(base, table)
        # Of a URL without its query.
        folder = without_suffix(inside(shown(base), shown(location)))
        for row, text in enumerate(names):
            name = name_of(text) or contained_name(f"{folder}/{row:09d}")
            yield TableImage(name, location, Cell(columns.images, row))
        return
    for text, cell in zip(names, _column(file, columns.images), strict=True):
        # Relative paths begin at the table's own folder.
        is_relative = cell and not is_url(cell) and not cell.startswith("/")
        path = join(parent(table), cell) if is_relative else cell
        name = name_of(text) or name_of(inside(base, plain(path)))
        yield TableImage(name, join(base, path) if path else "", None)


def _column(file: Any, path: str) -> Iterator[str]:
    """A column of a table that is open, as texts; "" for what is missing."""
    import pyarrow as pa

    for batch in file.iter_batches(TEXTS_PER_READ, columns=[path], use_threads=False):
        for text in _leaf(batch, path).cast(pa.large_string()).to_pylist():
            yield text or ""


def _leaf(batch: Any, path: str) -> Any:
    """A column, or the only field that was read of one."""
    import pyarrow as pa

    values = batch.column(path if path in batch.schema.names else path.split(".", maxsplit=1)[0])
    while pa.types.is_struct(values.type):
        values = values.flatten()[0]
    return values


def _choose(schema: Any, location: str, column: str | None) -> _Columns:
    """Which columns hold images and names."""
    fields = {field.name: field.type for field in schema}
    leaves = {name: _image_leaf(name, kind) for name, kind in fields.items()}
    if column is not None:
        if leaves.get(column) is None:
            raise ValueError(
                f"{location}: expected a column {column!r} of bytes, texts or {{bytes, path}}, "
                f"got {_columns(schema)}; name one of these"
            )
        chosen = column
    else:
        usable = [
            name
            for names, are_bytes in ((BYTES, True), (LOCATIONS, False))
            for name in names
            if (leaf := leaves.get(name)) is not None and leaf[1] is are_bytes
        ]
        if not usable:
            raise ValueError(
                f"{location}: expected a column of bytes ({', '.join(BYTES[:4])}) or of locations "
                f"({', '.join(LOCATIONS[:3])}), got {_columns(schema)}; name one by column="
            )
        chosen = usable[0]
    leaf = leaves[chosen]
    path, are_bytes = leaf if leaf is not None else (chosen, False)
    names = [name for name in NAMES if name != chosen and _is_name(fields.get(name))]
    if are_bytes:
        if path != chosen and fields[chosen].get_field_index("path") >= 0:
            names.append(f"{chosen}.path")
        names += [name for name in LOCATIONS if _is_text(fields.get(name))]
    return _Columns(path, are_bytes, names[0] if names else None)


def _image_leaf(name: str, kind: Any) -> tuple[str, bool] | None:
    """Where a column has images, and whether as bytes; None for a column that cannot have any."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = _image_leaf(f"{name}.bytes", kind.field("bytes").type)
        return inner if inner is not None and inner[1] else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return name, True
    return (name, False) if _is_text(kind) else None


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if kind is None:
        return False
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_name(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and (_is_text(kind) or bool(pa.types.is_integer(kind)))


def _columns(schema: Any) -> str:
    return "the columns " + ", ".join(f"{field.name} ({field.type})" for field in schema)


def read_cell(location: str, cell: Cell) -> bytes:
    """The bytes in a cell. Rows that are asked for roughly in order are read once.

    Raises:
        ValueError: the table is damaged, or the cell is empty.
        OSError: the table cannot be read.
        ImportError: pyarrow is missing.
    """
    try:
        value = _reader(location, cell.column).cell(cell.row)
    except _arrow_errors() as error:
        raise _damaged(location, error) from error
    if value is None:
        raise ValueError(
            f"{location}: expected bytes in column {cell.column}, row {cell.row}, got none"
        )
    return value


class _Reader:
    """A column that is read from front to back, and again from a row group's start where it has to be."""

    def __init__(self, location: str, column: str) -> None:
        self.file = _open(location)
        self.column = column
        self.lock = threading.Lock()
        self.recent: deque[tuple[int, Any]] = deque(maxlen=BATCHES_KEPT)
        groups = range(self.file.metadata.num_row_groups)
        sizes = (self.file.metadata.row_group(group).num_rows for group in groups)
        self.firsts = list(accumulate(sizes, initial=0))[:-1]
        self.next = 0
        self.batches: Iterator[Any] = iter(())
        self.group = -1

    def cell(self, row: int) -> bytes | None:
        """The bytes in a row."""
        with self.lock:
            values, first = self._around(row)
            value: bytes | None = values[row - first].as_py()
            return value

    def _around(self, row: int) -> tuple[Any, int]:
        for first, values in self.recent:
            if first <= row < first + len(values):
                return values, first
        group = bisect_right(self.firsts, row) - 1
        if group != self.group or row < self.next:
            self.group, self.next = group, self.firsts[group]
            self.batches = self.file.iter_batches(
                IMAGES_PER_READ, row_groups=[group], columns=[self.column], use_threads=False
            )
        while True:
            values = _leaf(next(self.batches), self.column)
            first, self.next = self.next, self.next + len(values)
            if row < self.next:
                self.recent.append((first, values))
                return values, first


_reader = lru_cache(maxsize=4)(_Reader)


def _open(location: str) -> Any:
    """A Parquet file, whose columns are read a megabyte at a time."""
    file = parquet()
    where = open_binary(location) if local_path(location) is None else location
    try:
        return file.ParquetFile(where, buffer_size=1 << 20, pre_buffer=False)
    except _arrow_errors() as error:
        raise _damaged(location, error) from error


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError)


def _damaged(location: str, error: Exception) -> ValueError:
    return ValueError(
        f"{location}: expected a Parquet table, got one that is damaged or none ({reason(error)}); "
        "get it again"
    )
