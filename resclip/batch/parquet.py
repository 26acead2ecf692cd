"""Images in Parquet tables: bytes in a column, or paths and URLs of files.

Knows Parquet, by pyarrow. Reads columns piece by piece: a row group may be larger than memory.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

from resclip.batch.items import Cell, Entry, Files
from resclip.batch.output_names import PackedTexts, name_of, safe_name, without_suffix
from resclip.batch.paths import is_url, join, local_path, naming, open_binary, parent, reason

BYTES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "picture", "img")
LOCATIONS = ("path", "url", "file_name", "filename", "image_path", "image_url", "file", "image")
NAMES = ("name", "key", "__key__", "id")

TEXTS_AT_ONCE = 65_536
IMAGES_AT_ONCE = 16
"""Rows that are decoded together: 16 photographs are some megabytes."""
KEPT = 4
"""Of these, so that threads which ask for neighbours out of order are served."""


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


@dataclass(frozen=True)
class Choice:
    """What of a table is read."""

    images: str
    """Path of a column: "image.bytes"."""
    are_bytes: bool
    names: str | None
    """Path of the column that names the images, if there is one."""


class Cells:
    """Images that are cells of tables.

    Args:
        base: the folder of the tables, or its URL.
        tables: their names relative to it.
        rows: of each.
        column: path of the column that holds the bytes.
        names: the images' names; without it, and where one is "", table and row.
    """

    def __init__(
        self,
        base: str,
        tables: list[str],
        rows: list[int],
        column: str,
        names: PackedTexts | None,
    ) -> None:
        self.base = base
        self.tables = tables
        self.column = column
        self.names = names
        self._firsts = [sum(rows[:number]) for number in range(len(rows))]
        self._count = sum(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Entry:
        number = bisect_right(self._firsts, index) - 1
        table, row = self.tables[number], index - self._firsts[number]
        name = self.names[index] if self.names is not None else ""
        name = name or safe_name(f"{without_suffix(table)}/{row:09d}")
        return Entry(name, join(self.base, table), cell=Cell(self.column, row))

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(len(self)))


def open_tables(base: str, tables: list[str], column: str | None) -> tuple[Cells | Files, str]:
    """The images of tables with the same columns, and the column that they are in.

    Args:
        base: the folder of the tables, or its URL.
        tables: their names relative to it.
        column: the one with the images; None to find it by its name and type.

    Raises:
        ValueError: a table is damaged, has no usable column, or not those of the first.
        OSError: a table cannot be read.
        ImportError: pyarrow is missing.
    """
    choice = None
    rows = []
    texts, names = PackedTexts(), PackedTexts()
    for table in tables:
        location = join(base, table)
        try:
            with naming(location), _open(location) as file:
                found = _choose(file.schema_arrow, location, column)
                choice = choice or found
                if (found.images, found.are_bytes) != (choice.images, choice.are_bytes):
                    raise ValueError(
                        f"{location}: expected images in column {choice.images}, as in "
                        f"{join(base, tables[0])}, got them in {found.images}; name one kind of table"
                    )
                rows.append(file.metadata.num_rows)
                _gather(file, found, parent(table), texts, names)
        except _arrow_errors() as error:
            raise _damaged(location, error) from error
    if choice is None:
        raise ValueError(f"{base}: expected Parquet tables, got none; check the path")
    used = names if any(names) else None
    if choice.are_bytes:
        return Cells(base, tables, rows, choice.images, used), choice.images
    return Files(base, texts, used), choice.images


def _gather(file: Any, choice: Choice, folder: str, texts: PackedTexts, names: PackedTexts) -> None:
    """Add a table's names, and the locations in it."""
    wanted = [choice.names] if choice.names else []
    if not choice.are_bytes:
        wanted.append(choice.images)
    if not choice.names:
        for _ in range(file.metadata.num_rows):
            names.append("")
    if not wanted:
        return
    for batch in file.iter_batches(TEXTS_AT_ONCE, columns=wanted, use_threads=False):
        if choice.names:
            for name in _texts(batch, choice.names):
                names.append(name_of(name))
        if not choice.are_bytes:
            for text in _texts(batch, choice.images):
                beside = text and not is_url(text) and not text.startswith("/")
                texts.append(join(folder, text) if beside else text)


def _texts(batch: Any, path: str) -> list[str]:
    """A column as texts; "" for what is missing."""
    import pyarrow as pa

    return [text or "" for text in _leaf(batch, path).cast(pa.large_string()).to_pylist()]


def _leaf(batch: Any, path: str) -> Any:
    """A column, or the only field that was read of one."""
    import pyarrow as pa

    values = batch.column(path if path in batch.schema.names else path.split(".", maxsplit=1)[0])
    while pa.types.is_struct(values.type):
        values = values.flatten()[0]
    return values


def _choose(schema: Any, location: str, column: str | None) -> Choice:
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
    return Choice(path, are_bytes, names[0] if names else None)


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


def read_cell(location: str, column: str, row: int, limit: int | None = None) -> bytes:
    """The bytes in a cell. Rows that are asked for in order, roughly, are read once.

    Raises:
        ValueError: the table is damaged, the cell is empty or has more than `limit` bytes.
        OSError: the table cannot be read.
        ImportError: pyarrow is missing.
    """
    try:
        value = _reader(location, column).cell(row)
    except _arrow_errors() as error:
        raise _damaged(location, error) from error
    if value is None:
        raise ValueError(f"{location}: expected bytes in column {column}, row {row}, got none")
    if limit is not None and len(value) > limit:
        raise ValueError(
            f"{location}: expected at most {limit} bytes in column {column}, row {row}, "
            f"got {len(value)}; raise the limit for a table you trust"
        )
    return value


@lru_cache(maxsize=4)
def _reader(location: str, column: str) -> _Reader:
    return _Reader(location, column)


class _Reader:
    """A column that is read from front to back, and again from a row group's start where it has to be."""

    def __init__(self, location: str, column: str) -> None:
        self.file = _open(location)
        self.column = column
        self.lock = threading.Lock()
        self.recent: deque[tuple[int, Any]] = deque(maxlen=KEPT)
        groups = range(self.file.metadata.num_row_groups)
        sizes = [self.file.metadata.row_group(group).num_rows for group in groups]
        self.firsts = [sum(sizes[:group]) for group in groups]
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
                IMAGES_AT_ONCE, row_groups=[group], columns=[self.column], use_threads=False
            )
        while True:
            values = _leaf(next(self.batches), self.column)
            first, self.next = self.next, self.next + len(values)
            if row < self.next:
                self.recent.append((first, values))
                return values, first


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
