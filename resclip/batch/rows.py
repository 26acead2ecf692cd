"""What a manifest says of pictures: rows, as Parquet, and several files of rows made into one.

Knows rows and Parquet, by pyarrow. Knows no folder and no run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from resclip.batch.locations import reason
from resclip.batch.store import Store
from resclip.batch.tables import parquet

if TYPE_CHECKING:
    from typing_extensions import Self


KEY = b"resclip"
"""Under which a file's metadata hold the settings, as JSON."""

ROWS_AT_ONCE = 16_384
ROWS_READ = 2_048
"""At once of each of up to 100 files."""


@dataclass(frozen=True)
class ClassArea:
    """How much of a picture a class has."""

    index: int
    name: str
    pixels: int
    area: float
    """Fraction of the picture's pixels."""


@dataclass(frozen=True)
class Row:
    """What became of a picture."""

    index: int
    """In the source's order."""
    name: str
    """No other picture's: see `resclip.batch.sources`."""
    status: Literal["done", "failed"]
    error: str | None
    """One line; None for one that is done."""
    seconds: float
    width: int | None
    height: int | None
    """In pixels; None for a picture that could not be read."""
    classes: tuple[ClassArea, ...]
    outputs: tuple[str, ...]
    """Names of the files, relative to the output folder."""


@cache
def schema() -> Any:
    """Of every file of rows."""
    import pyarrow as pa

    parquet()  # Its error says what to install.
    area = pa.struct(
        [
            pa.field("index", pa.int32(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("pixels", pa.int64(), nullable=False),
            pa.field("area", pa.float64(), nullable=False),
        ]
    )
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error", pa.string()),
            pa.field("seconds", pa.float64(), nullable=False),
            pa.field("width", pa.int64()),
            pa.field("height", pa.int64()),
            pa.field("classes", pa.list_(area), nullable=False),
            pa.field("outputs", pa.list_(pa.string()), nullable=False),
        ]
    )


def table_of(rows: Sequence[Row]) -> Any:
    """An Arrow table of rows, in the order in which files have them: by index, then name."""
    import pyarrow as pa

    ordered = sorted(rows, key=lambda row: (row.index, row.name.encode()))
    # Not dataclasses.asdict, which copies every value: it takes three times as long as all the rest.
    values = [{**vars(row), "classes": [vars(area) for area in row.classes]} for row in ordered]
    return pa.Table.from_pylist(values, schema())


def write_table(stream: BinaryIO, tables: Iterator[Any], settings: Mapping[str, Any]) -> int:
    """Write tables as one Parquet file; the number of rows."""
    text = json.dumps(settings, sort_keys=True)
    described = schema().with_metadata({KEY: text.encode()})
    count = 0
    with parquet().ParquetWriter(stream, described, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(described.metadata))
            count += len(table)
    return count


class RowFile:
    """A file of rows that is open.

    Args:
        store: where it is.
        name: of the file.

    Raises:
        ValueError: it is no Parquet file, or none of rows.
        OSError: it cannot be read.
    """

    def __init__(self, store: Store, name: str) -> None:
        import pyarrow as pa

        self.name = name
        self._stream = store.open(name)
        try:
            self._file = parquet().ParquetFile(self._stream, pre_buffer=False, buffer_size=1 << 20)
            found = self._file.schema_arrow
            settings = json.loads((found.metadata or {})[KEY])
        except (pa.ArrowInvalid, KeyError, json.JSONDecodeError) as error:
            self._stream.close()
            raise ValueError(
                f"{store.location(name)}: expected a manifest of this library, got another or a damaged file "
                f"({reason(error)}); give another --out, or --overwrite to replace it"
            ) from error
        if not found.equals(schema()):
            self._stream.close()
            raise ValueError(
                f"{store.location(name)}: expected a manifest with the columns {', '.join(schema().names)}, "
                f"got {', '.join(found.names)} or other types, as of another version of this library; "
                "give another --out, or --overwrite to replace it"
            )
        self.settings: Mapping[str, Any] = settings
        self._batches = self._file.iter_batches(ROWS_READ, use_threads=False)
        self._pending: Any = None
        self._first = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def columns(self, names: Sequence[str]) -> Any:
        """These columns of all rows, as an Arrow table."""
        return self._file.read(columns=list(names), use_threads=False)

    def take(self, numbers: NDArray[np.int64]) -> Iterator[Any]:
        """The rows of these ascending numbers, in tables; every call goes on behind the rows of the last."""
        import pyarrow as pa

        while len(numbers):
            if self._pending is None:
                self._pending = pa.Table.from_batches([next(self._batches)])
            end = self._first + len(self._pending)
            here, numbers = np.split(numbers, [int(np.searchsorted(numbers, end))])
            if len(here):
                yield self._pending.take(pa.array(here - self._first))
            if len(numbers):
                self._first, self._pending = end, None


def merged(store: Store, names: Sequence[str]) -> Iterator[Any]:
    """The rows of several files, one a picture, sorted by index and name, in tables of 16,384 rows.

    Indexes and names are in memory at once; of everything else, 2,048 rows of each file.

    Args:
        store: where the files are.
        names: of the files, oldest first: of rows with the same name the last counts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not names:
        return
    with ExitStack() as stack:
        files = [stack.enter_context(RowFile(store, name)) for name in names]
        firsts = np.cumsum([0, *(len(file) for file in files)])
        order = _newest(pa.concat_tables(file.columns(["index", "name"]) for file in files), pc)
        for start in range(0, len(order), ROWS_AT_ONCE):
            chunk = order[start : start + ROWS_AT_ONCE]
            ascending = np.sort(chunk)
            # Each file has its rows in this very order, so it is read from front to back.
            bounds = np.searchsorted(ascending, firsts)
            tables = [
                table
                for number, file in enumerate(files)
                for table in file.take(
                    ascending[bounds[number] : bounds[number + 1]] - firsts[number]
                )
            ]
            yield pa.concat_tables(tables).take(pa.array(np.searchsorted(ascending, chunk)))


def _newest(keys: Any, pc: Any) -> NDArray[np.int64]:
    """Numbers of the last row of each name, sorted by index and name.

    Args:
        keys: a table with the columns index and name.
        pc: `pyarrow.compute`.
    """
    import pyarrow as pa

    numbered = keys.append_column("number", pa.array(np.arange(len(keys))))
    last = numbered.select(["name", "number"]).group_by("name").aggregate([("number", "max")])
    rows = numbered.take(last["number_max"])
    order = pc.sort_indices(rows, [("index", "ascending"), ("name", "ascending")])
    result: NDArray[np.int64] = rows["number"].take(order).to_numpy()
    return result
