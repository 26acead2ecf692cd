"""Images in Parquet tables: bytes in a column, or paths and URLs of files.

Columns are read piece by piece, since a row group may be larger than memory.
"""

from __future__ import annotations

import base64
import contextlib
import io
import pickle
import re
import subprocess
import sys
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple

from resclip.batch.output_names import contained_name, name_of, without_suffix
from resclip.batch.parquet_pages import Overlaid, Pages, alone, find_pages
from resclip.batch.paths import (
    inside,
    is_url,
    join,
    local_path,
    naming,
    open_binary,
    parent,
    shown,
    title,
)
from resclip.errors import reason
from resclip.io.files import check_regular
from resclip.io.limits import DEFAULT_LIMITS, Limits
from resclip.io.signatures import looks_like_image
from resclip_kernels import quoted

# Columns that are looked for, in any case, the most likely first: of images as bytes or as base64, of their paths or
# URLs, and of their names.
BYTES = (
    "image", "bytes", "jpg", "jpeg", "png", "webp", "picture", "img",
    "image_bytes", "image_base64", "img_base64", "base64", "b64",
)  # fmt: skip
LOCATIONS = (
    "path", "url", "file_name", "filename", "image_path", "image_url", "file", "image", "file_path", "filepath",
)  # fmt: skip
NAMES = ("name", "key", "__key__", "id")

TEXTS_PER_READ = 65_536
"""So many paths or names are read from a table together, which takes a few megabytes."""

IMAGES_PER_READ = 16
"""So many rows of images are decoded together: 16 photographs are some megabytes."""

BYTES_PER_READ = 1 << 28
"""Fewer rows are decoded together where they are expected to be larger than this."""

LOOKED_AT = 8
"""So many texts of a column say what it holds."""

ROWS_LOOKED_AT = 1024
"""They are looked for in so many rows."""

LETTERS_LOOKED_AT = 256
"""The beginning of a text says whether it is an image."""

MAX_ROWS = 1_000_000
"""A table may have so many rows, or as many as its file has bytes: images, and where they are, take at least one."""

MAX_LOCATION = 8192
"""A longer text is no path and no URL."""

COLUMNS_SHOWN = 12

_DATA_URI = re.compile(r"\s*data:[\w.+/;=-]{0,100};base64,", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")
_OTHER_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{128,}={0,2}")
_SUFFIX = re.compile(r"\.\w{1,9}")

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
    """Path of a column that holds bytes, or texts that are base64: "image.bytes"."""
    row: int
    """From 0, through the whole file."""


class TableImage(NamedTuple):
    """An image of a table: in the cell `cell` of the table at `location`, or, without it, the file there."""

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
    """Or texts that are base64."""
    names: str | None
    """Path of the column that names the images, if there is one."""


def open_tables(
    base: str, tables: list[str], column: str | None, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[TableImage], _Columns]:
    """The images of tables with the same columns, and the columns that were chosen.

    Args:
        base: the folder of the tables, or its URL.
        tables: their names relative to it; at least one.
        column: the one with the images; None to find it by its name and type.
        limits: how long a web server may take, and how much of a file is held that it sends in one piece alone.

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
            with naming(location):
                file, size = _open(location, limits)
            with naming(location), file:
                _check_rows(file, location, size)
                columns = _choose(file, location, column)
                first = first or columns
                if columns[:2] != first[:2]:
                    raise ValueError(
                        f"{title(location)}: expected images in column {first.images}, as in "
                        f"{title(join(base, tables[0]))}, got them in {columns.images}; name one kind of table"
                    )
                images += _images_of(file, columns, base, table, limits)
        except table_errors() as error:
            raise _damaged(location, error) from error
    assert first is not None
    return images, first


def _check_rows(file: Any, location: str, size: int) -> None:
    """Raise ValueError for a table that says to have more rows than it can have."""
    metadata = file.metadata
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    rows = metadata.num_rows
    if min([*groups, 0]) < 0 or sum(groups) != rows or rows > max(MAX_ROWS, size):
        raise ValueError(
            f"{title(location)}: expected a Parquet table, got one whose end says that it has {rows:,} rows, which its "
            f"{size:,} bytes cannot hold; get it again"
        )


def _images_of(
    file: Any, columns: _Columns, base: str, table: str, limits: Limits
) -> Iterator[TableImage]:
    """The images of a table that is open."""
    count = file.metadata.num_rows
    location = join(base, table)
    names: Iterable[str | None] = ("" for _ in range(count))
    if columns.names:
        names = _column(file, location, columns.names, limits)
    if columns.are_bytes:
        for row, text in enumerate(names):
            name = name_of(text or "") or _name_of_row(base, table, row)
            yield TableImage(name, location, Cell(columns.images, row))
        return
    cells = _column(file, location, columns.images, limits)
    for row, (text, cell) in enumerate(zip(names, cells, strict=True)):
        if cell is None or (cell and not _is_location(cell)):
            # Reading it says what is wrong, or it is an image as base64.
            name = name_of(text or "") or _name_of_row(base, table, row)
            yield TableImage(name, location, Cell(columns.images, row))
            continue
        # Relative paths begin at the table's own folder.
        is_relative = cell and not is_url(cell) and not cell.startswith("/")
        path = join(parent(table), cell) if is_relative else cell
        where = join(base, path) if path else ""
        # What stands behind "?" is left out while it can still be told from a name.
        name = name_of(text or "") or name_of(inside(shown(base), shown(where)))
        yield TableImage(name, where, None)


def _name_of_row(base: str, table: str, row: int) -> str:
    # Of a URL without its query.
    folder = without_suffix(inside(shown(base), shown(join(base, table))))
    return contained_name(f"{folder}/{row:09d}")


def _column(file: Any, location: str, path: str, limits: Limits) -> Iterator[str | None]:
    """A column of a table that is open, as texts; "" for what is missing, and None for what is damaged."""
    import pyarrow as pa

    row = 0
    try:
        for batch in file.iter_batches(TEXTS_PER_READ, columns=[path], use_threads=False):
            texts = _leaf(batch, path).cast(pa.large_string()).to_pylist()
            for text in texts:
                yield text or ""
            row += len(texts)
    except table_errors() as error:
        raise_if_of_disk(error)
    if row < file.metadata.num_rows:
        reader = _Reader(location, path, limits)
        for rest in range(row, file.metadata.num_rows):
            try:
                value = reader.cell(rest)
            except ValueError:
                yield None
            else:
                yield "" if value is None else str(value)


def _leaf(batch: Any, path: str) -> Any:
    """A column, or the only field that was read of one."""
    import pyarrow as pa

    values = batch.column(path if path in batch.schema.names else path.split(".", maxsplit=1)[0])
    while pa.types.is_struct(values.type):
        values = values.flatten()[0]
    return values


def _choose(file: Any, location: str, column: str | None) -> _Columns:
    """Which columns hold images and names."""
    schema = file.schema_arrow
    fields = {field.name: field.type for field in schema}
    if column is not None:
        found = columns_named(fields, (column,))
        if not found or _image_leaf(found[0], fields[found[0]]) is None:
            raise ValueError(
                f"{title(location)}: expected a column {quoted(column)} of bytes, texts or {{bytes, path}}, "
                f"got {_columns(schema)}; name one of these"
            )
        chosen, images = found[0], _images_in(file, found[0])
        if images is None:
            raise ValueError(
                f"{title(location)}: expected images in column {quoted(chosen)}, as bytes, base64, paths or URLs, got "
                "texts that are none of these; name another column"
            )
    else:
        of_bytes, of_locations = columns_named(fields, BYTES), columns_named(fields, LOCATIONS)
        kinds = {name: _images_in(file, name) for name in dict.fromkeys(of_bytes + of_locations)}
        usable = [name for name in of_bytes if (kind := kinds[name]) and kind[1]]
        usable += [
            name for name in of_locations + of_bytes if (kind := kinds[name]) and not kind[1]
        ]
        if not usable:
            raise ValueError(
                f"{title(location)}: expected a column of bytes or base64 ({', '.join(BYTES[:4])}) or of locations "
                f"({', '.join(LOCATIONS[:3])}), got {_columns(schema)}; name one by column="
            )
        chosen = usable[0]
        images = kinds[chosen]
    assert images is not None
    path, are_bytes = images
    names = [
        name for name in columns_named(fields, NAMES) if name != chosen and _is_name(fields[name])
    ]
    if are_bytes:
        if path != chosen and fields[chosen].get_field_index("path") >= 0:
            names.append(f"{chosen}.path")
        locations = columns_named(fields, LOCATIONS)
        names += [name for name in locations if name != chosen and _is_text(fields[name])]
    return _Columns(path, are_bytes, names[0] if names else None)


def columns_named(fields: Collection[str], names: Sequence[str]) -> list[str]:
    """The columns that have one of these names, in their order; case matters only where several have the same."""
    found = []
    for name in names:
        alike = [field for field in fields if field.lower() == name.lower()]
        found += [name] if name in alike else alike[:1]
    return found


def _images_in(file: Any, name: str) -> tuple[str, bool] | None:
    """Where a column has images, and whether as bytes or base64; None for one that, by its first texts, has none."""
    leaf = _image_leaf(name, file.schema_arrow.field(name).type)
    if leaf is None or leaf[1]:
        return leaf
    texts = _first_texts(file, name)
    are_locations = any(map(_is_location, texts))
    if not are_locations and any(map(_is_base64_image, texts)):
        return name, True
    return (name, False) if are_locations or not texts else None


def _first_texts(file: Any, name: str) -> list[str]:
    """The first texts of a column that are not empty, as far as they can be read."""
    import pyarrow as pa

    found: list[str] = []
    rows = 0
    try:
        for batch in file.iter_batches(IMAGES_PER_READ, columns=[name], use_threads=False):
            texts = _leaf(batch, name).cast(pa.large_string()).to_pylist()
            found += filter(None, texts)
            rows += len(texts)
            if len(found) >= LOOKED_AT or rows >= ROWS_LOOKED_AT:
                break
    except table_errors() as error:
        raise_if_of_disk(error)
    return found[:LOOKED_AT]


def _is_location(text: str) -> bool:
    """Whether a text can be a path or a URL, and not a caption or data."""
    # Nearly all are short words with a dot, which is no letter of base64; this test is ten times faster than the rest.
    if len(text) <= 255 and "." in text and " " not in text and text.isprintable():
        return not text.lower().startswith("data:")
    if len(text) > MAX_LOCATION or not text.strip() or _OTHER_BASE64.fullmatch(text):
        return False
    if any(ord(letter) < 32 for letter in text) or _is_base64_image(text):
        return False
    if is_url(text):
        return True
    parts = re.split(r"[/\\]", text)
    is_one_word = len(parts) == 1 and not re.search(r"\s", text)
    return max(map(len, parts)) <= 255 and (
        is_one_word or len(parts) > 1 or _SUFFIX.search(text[-10:]) is not None
    )


def _is_base64_image(text: str) -> bool:
    """Whether a text begins as an image does that is written as base64."""
    letters = _letters(text[:LETTERS_LOOKED_AT])
    try:
        start = _from_letters(letters[: 4 * (len(letters) // 4)][:64])
    except ValueError:
        return False
    # These two bytes are an image's too, but "/work" begins with them.
    return not start.startswith(b"\xff\x0a") and looks_like_image(start)


def _letters(text: str) -> str:
    """The letters of base64 in a text, without "data:image/png;base64," before them, line ends and "=" at the end."""
    prefix = _DATA_URI.match(text)
    return "".join(text[prefix.end() if prefix else 0 :].split()).rstrip("=")


def _from_letters(letters: str) -> bytes:
    """The bytes that letters of base64, of either kind, stand for; ValueError for others."""
    whole = letters.translate(_URL_SAFE) + "=" * (-len(letters) % 4)
    return base64.b64decode(whole, validate=True)


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
    """The columns of a table with their types, for an error."""
    shown = [f"{field.name[:40]} ({str(field.type)[:60]})" for field in schema][:COLUMNS_SHOWN]
    more = len(schema) - len(shown)
    lists = [field.name[:40] for field in schema if _is_list(field.type)][:1]
    return (
        "the columns "
        + ", ".join(shown)
        + (f" and {more} more" if more else "")
        + (f", of which {lists[0]} holds lists: make a row of each image" if lists else "")
    )


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def read_cell(location: str, cell: Cell, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The image in a cell. Rows that are asked for roughly in order are read once.

    Raises:
        ValueError: the table is damaged there, or the cell is empty, no image, or of more than `limits.max_bytes`.
        OSError: the table cannot be read.
        ImportError: pyarrow is missing.
    """
    try:
        value = _reader(location, cell.column, limits).cell(cell.row)
    except table_errors() as error:
        raise _damaged(location, error) from error
    where = f"in column {cell.column[:40]}, row {cell.row}"
    if value is None:
        raise ValueError(f"{title(location)}: expected bytes {where}, got none")
    max_bytes = limits.max_bytes
    if len(value) > (max_bytes if isinstance(value, bytes) else max_bytes * 4 // 3 + 1024):
        raise ValueError(
            f"{title(location)}: expected at most {max_bytes:,} bytes {where}, got {len(value):,}; "
            "allow more by max_bytes=, or leave the image out"
        )
    if isinstance(value, bytes):
        return value
    if not _is_base64_image(value):
        raise ValueError(
            f"{title(location)}: expected a path, a URL or an image as base64 {where}, "
            f"got another text of {len(value):,} characters"
        )
    try:
        return _from_letters(_letters(value))
    except ValueError:
        raise ValueError(
            f"{title(location)}: expected base64 {where}, got a text of {len(value):,} characters with others in it"
        ) from None


def forget_tables() -> None:
    """Open tables anew from now on: they may have been replaced."""
    _reader.cache_clear()


class _Reader:
    """A column that is read from front to back, and again from a row group's start where it has to be.

    Behind a damaged page, the others of its row group are read one by one.
    """

    def __init__(self, location: str, column: str, limits: Limits) -> None:
        self.location = location
        self.limits = limits
        self.file, _ = _open(location, limits)
        self.column = column
        self.lock = threading.Lock()
        self.recent: deque[tuple[int, Any]] = deque(maxlen=BATCHES_KEPT)
        groups = range(self.file.metadata.num_row_groups)
        sizes = [self.file.metadata.row_group(group).num_rows for group in groups]
        self.firsts = list(accumulate(sizes, initial=0))
        self.next = 0
        self.batches: Iterator[Any] = iter(())
        self.group = -1
        self.damaged: dict[int, _DamagedGroup | ValueError] = {}

    def cell(self, row: int) -> bytes | str | None:
        """The value in a row.

        Raises:
            ValueError: it is damaged.
        """
        with self.lock:
            values, first = self._around(row)
            value: bytes | str | None = values[row - first].as_py()
            return value

    def _around(self, row: int) -> tuple[Any, int]:
        for first, values in self.recent:
            if first <= row < first + len(values):
                return values, first
        group = bisect_right(self.firsts, row) - 1
        if group not in self.damaged:
            try:
                return self._read_on(group, row)
            except table_errors() as error:
                raise_if_of_disk(error)
                self.group = -1
                self.damaged[group] = self._damaged(group)
        within = row - self.firsts[group]
        damaged = self.damaged[group]
        if isinstance(damaged, ValueError):
            raise damaged
        values, first = damaged.around(within)
        first += self.firsts[group]
        self.recent.append((first, values))
        return values, first

    def _damaged(self, group: int) -> _DamagedGroup | ValueError:
        """What is left of a row group; the error where that is nothing."""
        try:
            first = self.firsts[group]
            return _DamagedGroup(self.location, self.file, self.column, group, first, self.limits)
        except ValueError as error:
            return error

    def _read_on(self, group: int, row: int) -> tuple[Any, int]:
        if group != self.group or row < self.next:
            self.group, self.next = group, self.firsts[group]
            rows = self.firsts[group + 1] - self.firsts[group]
            # Of all columns, which images outweigh: `_chunk` is for damaged groups alone.
            size = max(1, self.file.metadata.row_group(group).total_byte_size // max(1, rows))
            self.batches = self.file.iter_batches(
                max(1, min(IMAGES_PER_READ, BYTES_PER_READ // size)),
                row_groups=[group],
                columns=[self.column],
                use_threads=False,
            )
        while True:
            values = _leaf(next(self.batches), self.column)
            first, self.next = self.next, self.next + len(values)
            if row < self.next:
                self.recent.append((first, values))
                return values, first


class _DamagedGroup:
    """The rows of a column in a row group that cannot be read from front to back."""

    def __init__(
        self, location: str, file: Any, column: str, group: int, first: int, limits: Limits
    ) -> None:
        self.first = first
        self.location = location
        self.column = column
        self.group = group
        self.rows = file.metadata.row_group(group).num_rows
        about = _chunk(file, group, column, location)
        starts = (about.dictionary_page_offset or 0, about.data_page_offset)
        self.start = min(start for start in starts if start > 0)
        names = [file.schema.column(index).path for index in range(len(file.schema))]
        self.levels = file.schema.column(names.index(column)).max_definition_level
        self.stream = open_binary(location, limits)
        # No more is held than is there, whatever the table says.
        left = self.stream.seek(0, io.SEEK_END) - self.start
        self.stream.seek(self.start)
        self.chunk = self.stream.read(max(0, min(about.total_compressed_size, left)))
        self.pages: Pages = find_pages(self.chunk, self.rows)
        self.unreadable: dict[int, Exception] = {}

    def around(self, row: int) -> tuple[Any, int]:
        """Values around a row of the group, and the row of the first.

        Raises:
            ValueError: the row is damaged.
        """
        number = bisect_right([page.first for page in self.pages.data], row) - 1
        page = self.pages.data[number] if number >= 0 else None
        if page is None or not page.is_readable or row >= page.first + page.rows:
            raise self._lost(row, "no page begins there")
        if row in self.unreadable:
            raise self._lost(row, reason(self.unreadable[row])) from self.unreadable[row]
        data = alone(self.chunk, self.pages, page, self.rows, self.levels)
        problem: Exception = ValueError("it has fewer rows than it says")
        try:
            values = next(self._batches(data, self.rows))
            if len(values) == self.rows:
                return values.slice(page.first, page.rows), page.first
        except table_errors() as error:
            raise_if_of_disk(error)
            problem = error
        # Of a page that is damaged further down the rows before are there.
        with contextlib.suppress(*table_errors()):
            for found, values in enumerate(self._batches(data, 1)):
                if found == row:
                    return values, row
        self.unreadable |= dict.fromkeys(range(row, page.first + page.rows), problem)
        raise self._lost(row, reason(problem)) from problem

    def _batches(self, data: bytes, rows: int) -> Iterator[Any]:
        """The column's values, `rows` at a time, with other bytes at the beginning of its chunk."""
        table = parquet().ParquetFile(Overlaid(self.stream, self.start, data))
        for batch in table.iter_batches(
            rows, row_groups=[self.group], columns=[self.column], use_threads=False
        ):
            yield _leaf(batch, self.column)

    def _lost(self, row: int, why: str) -> ValueError:
        return ValueError(
            f"{self.location}: expected a value in column {self.column[:40]}, row {self.first + row}, "
            f"got a damaged page ({why[:80]}); get the table again"
        )


_reader = lru_cache(maxsize=4)(_Reader)


MOST_LOOKS = 4
"""So many row groups whose figures contradict each other are told from sound ones; all behind them count as damaged."""

# Arrow ends the process where a chunk's figures contradict each other: another process looks first.
_LOOK = """
import pickle, sys
metadata = pickle.load(sys.stdin.buffer)
for group in range(int(sys.argv[1]), metadata.num_row_groups):
    metadata.row_group(group).column(int(sys.argv[2])).to_dict()
    print(group, flush=True)
"""


@lru_cache(maxsize=4)
def _sound_groups(metadata: bytes, index: int) -> frozenset[int]:
    """The row groups of a table, whose metadata are pickled, in which a column can be described."""
    sound: set[int] = set()
    first = 0
    for _ in range(MOST_LOOKS):
        looked = subprocess.run(
            [sys.executable, "-c", _LOOK, str(first), str(index)],
            input=metadata,
            capture_output=True,
            check=False,
        )
        numbers = [int(text) for text in looked.stdout.split()]
        sound.update(numbers)
        if not looked.returncode:
            break
        # Behind the one that ended it.
        first = (numbers[-1] + 1 if numbers else first) + 1
    return frozenset(sound)


def _chunk(file: Any, group: int, column: str, location: str) -> Any:
    """What a table that is damaged says about a column in one of its row groups.

    Raises:
        ValueError: nothing that can be used.
    """
    paths = [file.schema.column(index).path for index in range(len(file.schema))]
    index = paths.index(column)
    if group not in _sound_groups(pickle.dumps(file.metadata), index):
        raise ValueError(
            f"{title(location)}: expected a Parquet table, got one whose row group {group} is damaged; get it again"
        )
    return file.metadata.row_group(group).column(index)


def _open(location: str, limits: Limits) -> tuple[Any, int]:
    """A Parquet file, whose columns are read a megabyte at a time, and its size in bytes."""
    file = parquet()
    path = local_path(location)
    where: Any = location
    if path is None:
        where = open_binary(location, limits)
        size = where.seek(0, io.SEEK_END)
    else:
        # Arrow would wait for the other end of a pipe.
        check_regular(path)
        size = path.stat().st_size
    try:
        return file.ParquetFile(where, buffer_size=1 << 20, pre_buffer=False), size
    except table_errors() as error:
        raise _damaged(location, error) from error


def table_errors() -> tuple[type[Exception], ...]:
    """What Arrow raises for a damaged table; of errors that a disk or server may have too see `raise_if_of_disk`."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, StopIteration)


def raise_if_of_disk(error: Exception) -> None:
    """Raise an error again that is a disk's or server's; Arrow's about the contents are plain and have no number."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise error


def _damaged(location: str, error: Exception) -> ValueError:
    """The error in place of Arrow's; those of disks and servers are raised again."""
    raise_if_of_disk(error)
    return ValueError(
        f"{title(location)}: expected a Parquet table, got one that is damaged or none ({reason(error)[:80]}); "
        "get it again"
    )
