"""What a batch job has done: a Parquet file with a row for each image, and small parts of it while a run is at work.

    manifest.parquet               what earlier runs did
    manifest.parts/000000.parquet  what this run has done since, or a run that was killed
    manifest.lock                  which process is at work; on local disks alone

Of rows with the same name the one in the later part counts, and any part counts more than manifest.parquet. A run
writes its last part anew until it is full and then begins the next. In the end manifest.parquet is replaced by all
rows, and the parts are removed, the oldest first: whenever a run is killed, the files that are left say the same.
Tested to a million images with five classes each: they take 31 s of a core to record in all, and 5 s and 1.1 GB to put
together.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from resclip.batch.parquet import parquet
from resclip.batch.storage import Store
from resclip.errors import reason

if TYPE_CHECKING:
    from typing_extensions import Self

MANIFEST = "manifest.parquet"
PARTS = "manifest.parts"
LOCK = "manifest.lock"

SETTINGS_KEY = b"resclip"
"""The metadata of a file of rows hold the settings under this key, as JSON."""

ROWS_PER_GROUP = 16_384
"""Rows of a row group of the finished manifest."""

ROWS_PER_PART = 4_096
"""A part with so many rows is full: it is written in milliseconds, and a million images make 245 parts."""

MAX_UNWRITTEN_ROWS = 512
MAX_UNWRITTEN_SECONDS = 2.0
"""A run that is killed loses at most so many rows, of at most this age: their images are done again."""

MAX_DIFFERENCES = 3
"""So many of the settings that differ are shown."""

_PART = re.compile(rf"{PARTS}/(\d{{6,}})\.parquet")


@dataclass(frozen=True)
class ClassArea:
    """How much of an image a class covers."""

    index: int
    name: str
    pixels: int
    area: float
    """Fraction of the image's pixels."""


@dataclass(frozen=True)
class Row:
    """What became of an image."""

    index: int
    """The image's position in its source."""
    name: str
    """The image's name, which no other image has: see `resclip.batch.output_names`."""
    status: Literal["done", "failed"]
    error: str | None
    """One line; None if the image is done."""
    seconds: float
    """From when the image was read until its files were written."""
    width: int | None
    height: int | None
    """In pixels; None for an image that could not be read."""
    classes: tuple[ClassArea, ...]
    outputs: tuple[str, ...]
    """Names of the files, relative to the output folder."""


@cache
def schema(*, large: bool = False) -> Any:
    """The columns of the manifest and its parts; `large` for tables whose texts may exceed 2 GB."""
    import pyarrow as pa

    parquet()  # If pyarrow is missing, its error says what to install.
    text = pa.large_string() if large else pa.string()
    area = pa.struct(
        [
            pa.field("index", pa.int32(), nullable=False),
            pa.field("name", text, nullable=False),
            pa.field("pixels", pa.int64(), nullable=False),
            pa.field("area", pa.float64(), nullable=False),
        ]
    )
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("name", text, nullable=False),
            pa.field("status", text, nullable=False),
            pa.field("error", text),
            pa.field("seconds", pa.float64(), nullable=False),
            pa.field("width", pa.int64()),
            pa.field("height", pa.int64()),
            pa.field("classes", pa.list_(area), nullable=False),
            pa.field("outputs", pa.list_(text), nullable=False),
        ]
    )


def table_of(rows: Sequence[Row]) -> Any:
    """An Arrow table of rows."""
    import pyarrow as pa

    # Not dataclasses.asdict, which copies every value: it takes three times as long as all the rest.
    values = [{**vars(row), "classes": [vars(area) for area in row.classes]} for row in rows]
    return pa.Table.from_pylist(values, schema())


def newest(tables: Iterable[Any]) -> Iterator[Any]:
    """Of rows with the same name the last one, sorted by index and name, in tables of a row group each."""
    import pyarrow as pa

    # In one piece, as `take` would put the pieces together each time; large, as they fail to fit into 2 GB then.
    table = pa.concat_tables(table.cast(schema(large=True)) for table in tables).combine_chunks()
    numbered = table.select(["name"]).append_column("number", pa.array(np.arange(len(table))))
    last = numbered.group_by("name").aggregate([("number", "max")])["number_max"]
    keys = table.select(["index", "name"]).take(last).append_column("number", last)
    order = keys.sort_by([("index", "ascending"), ("name", "ascending")])["number"]
    for start in range(0, len(order), ROWS_PER_GROUP):
        yield table.take(order.slice(start, ROWS_PER_GROUP))


def write_rows(store: Store, name: str, tables: Iterable[Any], settings: Mapping[str, Any]) -> None:
    """Write tables as a file of rows, whole or not at all."""
    text = json.dumps(settings, sort_keys=True)
    described = schema().with_metadata({SETTINGS_KEY: text.encode()})
    with (
        store.create(name) as stream,
        parquet().ParquetWriter(stream, described, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(described))


def read_rows(
    store: Store, name: str, settings: Mapping[str, Any], columns: Sequence[str] | None = None
) -> Any:
    """The rows of a file, or some of their columns, as an Arrow table.

    Raises:
        ValueError: it is not a manifest of this library, or one of a run with other settings.
        OSError: it cannot be read.
    """
    import pyarrow as pa

    location = store.location(name)
    with store.open(name) as stream:
        try:
            file = parquet().ParquetFile(stream)
            found = file.schema_arrow
            earlier = json.loads((found.metadata or {})[SETTINGS_KEY])
            if found.equals(schema()):
                table = file.read(columns=columns)
        except (pa.ArrowInvalid, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{location}: expected a manifest of this library, got another or a damaged file "
                f"({reason(error)}); give another out=, or overwrite=True to replace it"
            ) from error
    if not found.equals(schema()):
        raise ValueError(
            f"{location}: expected a manifest with the columns {', '.join(schema().names)}, "
            f"got {', '.join(found.names)} or other types, as of another version of this library; "
            "give another out=, or overwrite=True to replace it"
        )
    differences = list(_differences(earlier, settings))
    if differences:
        more = len(differences) - MAX_DIFFERENCES
        shown = "; ".join(differences[:MAX_DIFFERENCES]) + (f"; {more} more" if more > 0 else "")
        raise ValueError(
            f"{location}: expected the settings of the earlier run, got others ({shown}); "
            "give another out=, or overwrite=True to do everything again"
        )
    return table


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], above: str = ""
) -> Iterator[str]:
    """What two settings differ in: "method: 'naclip' there, 'resclip' now"."""
    for key in sorted({*before, *now}):
        if key in before and key in now and before[key] == now[key]:
            continue
        if isinstance(before.get(key), dict) and isinstance(now.get(key), dict):
            yield from _differences(before[key], now[key], f"{above}{key}.")
        else:
            old, new = (repr(side[key]) if key in side else "nothing" for side in (before, now))
            yield f"{above}{key}: {old} there, {new} now"


class Manifest:
    """The manifest of an output folder, for one run at a time.

    Args:
        store: the folder, which can be written to.
        settings: everything that decides the files, as JSON-able values.
        overwrite: forget what earlier runs did; their images' files stay until they are replaced.

    Attributes:
        done: names of the images that need not be done again.

    Raises:
        ValueError: earlier runs had other settings, or their manifest cannot be read.
        OSError: another run is at work there; the folder cannot be read or written.
        TypeError: settings are not JSON-able.
        ImportError: pyarrow is missing.
    """

    def __init__(
        self, store: Store, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.store = store
        self.settings: Mapping[str, Any] = json.loads(json.dumps(settings))
        self.done: set[str] = set()
        self._unwritten: list[Row] = []
        self._table = table_of([])  # The last part, which is on disk.
        self._written_at = time.monotonic()
        path = store.local_path(LOCK)
        self._lock = None if path is None else lock_folder(path)
        try:
            earlier = self._files()
            if overwrite:
                for name in earlier:
                    store.remove(name)
                earlier = []
            for name in earlier:
                table = read_rows(store, name, self.settings, ["name", "status"])
                for batch in table.to_batches(max_chunksize=65_536):
                    self._count(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        except BaseException:
            self._release()
            raise
        parts = [int(match[1]) for match in map(_PART.fullmatch, earlier) if match]
        self._part = max(parts, default=-1) + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: Row) -> None:
        """Record what became of an image. It is on disk after at most 512 rows, or with the first row after 2 s.

        Raises:
            OSError: it cannot be written.
        """
        self._unwritten.append(row)
        self._count([(row.name, row.status)])
        late = time.monotonic() - self._written_at >= MAX_UNWRITTEN_SECONDS
        if late or len(self._unwritten) >= MAX_UNWRITTEN_ROWS:
            self.flush()

    def flush(self) -> None:
        """Bring all rows to the disk, where the files that they speak of are already.

        Raises:
            OSError: they cannot be written.
        """
        import pyarrow as pa

        if self._unwritten:
            name = f"{PARTS}/{self._part:06d}.parquet"
            table = pa.concat_tables([self._table, table_of(self._unwritten)])
            write_rows(self.store, name, [table], self.settings)
            self._unwritten = []
            self._table = table
            if len(table) >= ROWS_PER_PART:
                self._part += 1
                self._table = table_of([])
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Put all rows into manifest.parquet, and let other runs in.

        Raises:
            OSError: it cannot be written; nothing is lost then.
        """
        try:
            self.flush()
            names = self._files()
            if names != [MANIFEST]:
                # One by one, so that each is let go when it has been copied.
                tables = (read_rows(self.store, name, self.settings) for name in names)
                rows = newest(itertools.chain([table_of([])], tables))
                write_rows(self.store, MANIFEST, rows, self.settings)
                for name in names:
                    if name != MANIFEST:
                        self.store.remove(name)
        finally:
            self._release()

    def _files(self) -> list[str]:
        """All files of rows, oldest first."""
        parts = [match for name in self.store.list(PARTS) if (match := _PART.fullmatch(name))]
        parts.sort(key=lambda match: int(match[1]))
        whole = [MANIFEST] if self.store.exists(MANIFEST) else []
        return whole + [match[0] for match in parts]

    def _count(self, rows: Iterable[tuple[str, str]]) -> None:
        """Take in the name and status of rows."""
        for name, status in rows:
            if status == "done":
                self.done.add(name)
            else:
                self.done.discard(name)

    def _release(self) -> None:
        if self._lock is not None:
            # Removed before it is released: whoever opened it in between finds that it is gone, and makes a new one.
            with contextlib.suppress(OSError):  # Windows keeps files that are open.
                Path(self._lock.lock_file).unlink()
            self._lock.release()


def lock_folder(path: Path) -> FileLock:
    """Lock an output folder until the lock is released, or its process ends in whatever way.

    Network disks without locks keep nobody out.

    Args:
        path: of the lock file; it holds the process's number and machine as JSON.

    Raises:
        OSError: another run holds it; or it cannot be written.
    """
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
        path.write_text(json.dumps({"process": os.getpid(), "machine": socket.gethostname()}))
    except Timeout:
        raise OSError(
            errno.EBUSY,
            f"expected a folder that no run is writing to, got one that {_holder(path)} is; "
            "wait for it, or give another out=",
            str(path.parent),
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return lock


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['process']} on {holder['machine']}"
    except (OSError, ValueError, KeyError, TypeError):  # It is not written yet, or cannot be read.
        return "another process"
