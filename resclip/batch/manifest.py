"""What has been done, on disk: one Parquet file, and small ones beside it while a run is at work.

Knows rows, the files that they are in, and settings. Knows no images.

    manifest.parquet               what earlier runs did, one row an image
    manifest.parts/000000.parquet  what this one has done since, or a run that was killed
    manifest.lock                  whose turn it is, on this machine's disks

Of rows with the same name the one in the later part counts, and any part before manifest.parquet. Files that are merged
are removed after the file that has all their rows is there, the oldest first: at any instant, what is left says the
same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from resclip.batch.parquet import parquet
from resclip.batch.paths import reason
from resclip.batch.storage import Store

if TYPE_CHECKING:
    from typing_extensions import Self


KEY = b"resclip"
"""Under which a file's metadata hold the settings, as JSON."""

ROWS_AT_ONCE = 16_384
ROWS_READ = 2_048
"""At once of each of up to 100 files."""


@dataclass(frozen=True)
class ClassArea:
    """How much of an image a class has."""

    index: int
    name: str
    pixels: int
    area: float
    """Fraction of the image's pixels."""


@dataclass(frozen=True)
class Row:
    """What became of an image."""

    index: int
    """In the source's order."""
    name: str
    """No other image's: see `resclip.batch.sources`."""
    status: Literal["done", "failed"]
    error: str | None
    """One line; None for one that is done."""
    seconds: float
    width: int | None
    height: int | None
    """In pixels; None for an image that could not be read."""
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
    """The rows of several files, one an image, sorted by index and name, in tables of 16,384 rows.

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


class FolderLock:
    """Holds a lock file from when it is made until `release`, or until it is forgotten or the process ends.

    Windows, and disks of a network without locks, have none: there nobody is kept out.

    Args:
        path: of the lock file, whose folder is there; it holds the process's number and machine as JSON.

    Raises:
        OSError: another run has it; or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._stream = path.open("a+", encoding="utf-8")
            if not self._lock():
                break
            # Whoever had it may have removed it since it was opened; then it keeps nobody out.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._stream.fileno()), path.stat()):
                    break
            self._stream.close()
        self._stream.truncate(0)
        self._stream.write(json.dumps({"process": os.getpid(), "machine": socket.gethostname()}))
        self._stream.flush()

    def release(self) -> None:
        """Let others in."""
        if self._stream.closed:
            return
        with contextlib.suppress(PermissionError):  # Windows keeps files that are open.
            self.path.unlink(missing_ok=True)
        self._stream.close()

    def _lock(self) -> bool:
        """Whether there are locks here, and it is ours."""
        if sys.platform == "win32":
            return False
        import fcntl

        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            self._stream.close()
            raise OSError(
                errno.EBUSY,
                f"expected a folder that no run is writing to, got one that {holder} is; "
                "wait for it, or give another --out",
                str(self.path.parent),
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return False
            raise
        return True

    def _holder(self) -> str:
        try:
            self._stream.seek(0)
            about = json.load(self._stream)
            return f"process {about['process']} on {about['machine']}"
        except (ValueError, KeyError, TypeError):  # It has not written it yet.
            return "another process"


__all__ = ["ClassArea", "Manifest", "Row"]

WHOLE = "manifest.parquet"
PARTS = "manifest.parts/"
LOCK = "manifest.lock"

MAX_ROWS = 512
MAX_SECONDS = 2.0
"""Rows that are lost at most when a run is killed, and their age: their images are done again."""
MAX_PARTS = 100
MAX_DIFFERENCES = 3
"""That are shown."""

_PART = re.compile(r"manifest\.parts/(\d{6,})\.parquet")


class Manifest:
    """The manifest of an output folder, for one run at a time.

    Args:
        store: the folder, which can be written to.
        settings: everything that decides the files, as JSON-able values.
        overwrite: forget what earlier runs did; their images' files stay until they are replaced.

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
        path = store.local_path(LOCK)
        self._lock = None if path is None else FolderLock(path)
        try:
            if overwrite:
                self._forget()
            self._parts: list[tuple[int, int]] = []  # Number and rows of each, oldest first.
            self._done: set[str] = set()
            for name in self._files():
                self._take_in(name)
        except BaseException:
            self._release()
            raise
        self._buffer: dict[str, Row] = {}
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def done(self) -> AbstractSet[str]:
        """Names of the images that need not be done again."""
        return self._done

    def add(self, row: Row) -> None:
        """Record what became of an image. It is on disk after at most 512 rows, or with the first row after 2 s.

        Raises:
            OSError: it cannot be written.
        """
        self._buffer[row.name] = row
        self._count(row.name, row.status)
        late = time.monotonic() - self._flushed >= MAX_SECONDS
        if late or len(self._buffer) >= MAX_ROWS:
            self.flush()

    def flush(self) -> None:
        """Bring all rows to the disk, and before them the files that they speak of.

        Raises:
            OSError: they cannot be written.
        """
        if self._buffer:
            rows = list(self._buffer.values())
            # One of a folder is enough.
            outputs = {PurePosixPath(name).parent: name for row in rows for name in row.outputs}
            self.store.sync(outputs.values())
            self._add_part(iter([table_of(rows)]))
            self._buffer.clear()
            if len(self._parts) > MAX_PARTS:
                self._compact()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Merge everything into manifest.parquet, and let others in.

        Raises:
            OSError: it cannot be written; nothing is lost then.
        """
        try:
            self.flush()
            files = self._files()
            if files != [WHOLE]:
                with self.store.create(WHOLE) as stream:
                    write_table(stream, merged(self.store, files), self.settings)
                self.store.sync([WHOLE])
                self._remove_parts(len(self._parts))
        finally:
            self._release()

    def _files(self) -> list[str]:
        """All that are there, oldest first."""
        found = (_PART.fullmatch(name) for name in self.store.list(PARTS))
        numbers = sorted(int(match[1]) for match in found if match)
        whole = [WHOLE] if self.store.exists(WHOLE) else []
        return whole + [_part(number) for number in numbers]

    def _take_in(self, name: str) -> None:
        """Learn what a file says that an earlier run has left."""
        with RowFile(self.store, name) as file:
            differences = list(_differences(file.settings, self.settings))
            if differences:
                more = len(differences) - MAX_DIFFERENCES
                shown = "; ".join(differences[:MAX_DIFFERENCES]) + (
                    f"; {more} more" if more > 0 else ""
                )
                raise ValueError(
                    f"{self.store.location(name)}: expected the settings of the earlier run, got others ({shown}); "
                    "give another --out, or --overwrite to do everything again"
                )
            match = _PART.fullmatch(name)
            if match:
                self._parts.append((int(match[1]), len(file)))
            table = file.columns(["name", "status"])
            for batch in table.to_batches(max_chunksize=65_536):
                for row, status in zip(
                    *(column.to_pylist() for column in batch.columns), strict=True
                ):
                    self._count(row, status)

    def _count(self, name: str, status: str) -> None:
        if status == "done":
            self._done.add(name)
        else:
            self._done.discard(name)

    def _add_part(self, tables: Iterator[Any]) -> None:
        number = self._parts[-1][0] + 1 if self._parts else 0
        with self.store.create(_part(number)) as stream:
            rows = write_table(stream, tables, self.settings)
        self.store.sync([_part(number)])
        self._parts.append((number, rows))

    def _compact(self) -> None:
        """Merge parts into one, from the first on that has no more rows than all later ones together.

        So each row is written again only as often as the rows double: 6 times for a million.
        """
        first, later = 0, sum(rows for _, rows in self._parts[1:])
        while first < len(self._parts) - 2 and self._parts[first][1] > later:
            first += 1
            later -= self._parts[first][1]
        older = self._parts[first:]
        self._add_part(merged(self.store, [_part(number) for number, _ in older]))
        new = self._parts.pop()
        self._remove_parts(len(older), first)
        self._parts.append(new)

    def _remove_parts(self, count: int, first: int = 0) -> None:
        """Remove parts whose rows are elsewhere, the oldest first."""
        for number, _ in self._parts[first : first + count]:
            self.store.remove(_part(number))
        del self._parts[first : first + count]

    def _forget(self) -> None:
        for name in self._files():
            self.store.remove(name)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _part(number: int) -> str:
    return f"{PARTS}{number:06d}.parquet"


def _differences(
    there: Mapping[str, Any], now: Mapping[str, Any], above: str = ""
) -> Iterator[str]:
    """What two settings differ in: "method: 'naclip' there, 'resclip' now"."""
    for key in sorted({*there, *now}):
        if key not in there or key not in now:
            before, after = (repr(side[key]) if key in side else "nothing" for side in (there, now))
            yield f"{above}{key}: {before} there, {after} now"
        elif isinstance(there[key], dict) and isinstance(now[key], dict):
            yield from _differences(there[key], now[key], f"{above}{key}.")
        elif there[key] != now[key]:
            yield f"{above}{key}: {there[key]!r} there, {now[key]!r} now"
