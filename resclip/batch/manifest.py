"""What a batch job has done: a Parquet file with a row for each image, and small parts of it while a run is at work.

    manifest.parquet               what earlier runs did
    manifest.parts/000000.parquet  what this run has done since, or a run that was killed
    manifest.lock                  which process is at work; on local disks alone

Of rows with the same name the one in the later part counts, and any part counts more than manifest.parquet. A run
writes its first part, empty, as it begins; its last part it writes anew until it is full and then begins the next.
Before it replaces files of earlier runs it withdraws the rows that speak of them. In the end manifest.parquet is
replaced by all rows that are not withdrawn, and the parts are removed, the oldest first: whenever a run is killed, the
files that are left say the same.
Tested to a million images with five classes each: they take 21 s of a core to record in all, and 6 s and 1.1 GB to put
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
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from resclip.batch.items import Identity, Item, forget_files
from resclip.batch.output_names import LOCK, MANIFEST, PARTS, folded, stem_of
from resclip.batch.parquet import parquet, raise_if_of_disk, table_errors
from resclip.batch.paths import is_url, title
from resclip.batch.storage import Store
from resclip.errors import reason
from resclip.inference.prefetch import prefetch
from resclip.io.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from typing_extensions import Self

SETTINGS_KEY = b"resclip"
"""The metadata of a file of rows hold the settings under this key, as JSON."""

FORMAT_KEY = b"resclip.format"
FORMAT = b"2"
"""The version of the columns and their meaning, and the key of the metadata under which it stands."""

ROWS_PER_GROUP = 16_384
"""Rows of a row group of the finished manifest."""

ROWS_PER_PART = 4_096
"""A part with so many rows is full: it is written in milliseconds, and a million images make 245 parts."""

MAX_UNWRITTEN_ROWS = 512
MAX_UNWRITTEN_SECONDS = 2.0
"""A run that is killed loses at most so many rows, of at most this age: their images are done again."""

MAX_DIFFERENCES = 3
"""So many of the settings that differ are shown."""

MAX_SHOWN = 80
"""Letters of a setting's value that are shown."""

ASKING = 32
"""Threads that ask servers whether images have changed: they wait for answers."""

EARLIER = ("index", "name", "status", "location", "size", "version", "outputs")
"""Columns that say whether an image need not be done again."""

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
    status: Literal["done", "failed", "withdrawn"]
    """Rows of the last kind are in parts alone: they take back an earlier row, whose files are about to be replaced."""
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
    identity: Identity | None = None
    """Which bytes the image was, from before they were read; the columns location, size and version."""
    input: str | None = None
    """What was done to read it, such as how its values were scaled, as JSON; None where that is nothing."""


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
            pa.field("location", text, nullable=False),
            pa.field("size", pa.int64()),
            pa.field("version", text),
            pa.field("source", text, nullable=False),
            pa.field("input", text),
        ]
    )


def table_of(rows: Sequence[Row], source: str = "") -> Any:
    """An Arrow table of rows of the images of a source."""
    import pyarrow as pa

    unknown = Identity("", None, None)
    # Not dataclasses.asdict, which copies every value: it takes three times as long as all the rest.
    values = [
        {
            **vars(row),
            "classes": [vars(area) for area in row.classes],
            "location": (row.identity or unknown).location,
            "size": (row.identity or unknown).size,
            "version": (row.identity or unknown).version,
            "source": source,
        }
        for row in rows
    ]
    try:
        return pa.Table.from_pylist(values, schema())
    except UnicodeEncodeError:  # A file's name that is not UTF-8.
        return pa.Table.from_pylist(_storable(values), schema())


def _storable(value: Any) -> Any:
    """A value of a row, or many, with escapes for what is not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {name: _storable(one) for name, one in value.items()}
    return [_storable(one) for one in value] if isinstance(value, (list, tuple)) else value


def newest(tables: Iterable[Any]) -> Iterator[Any]:
    """Of rows with the same name the last one, sorted by index and name, in tables of a row group each.

    Those that are withdrawn are left out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # In one piece, as `take` would put the pieces together each time; large, as they fail to fit into 2 GB then.
    table = pa.concat_tables(table.cast(schema(large=True)) for table in tables).combine_chunks()
    last = _last_of_each_name(table)
    last = last.filter(pc.not_equal(table["status"].take(last), "withdrawn"))
    keys = table.select(["index", "name"]).take(last).append_column("number", last)
    order = keys.sort_by([("index", "ascending"), ("name", "ascending")])["number"]
    for start in range(0, len(order), ROWS_PER_GROUP):
        yield table.take(order.slice(start, ROWS_PER_GROUP))


def _last_of_each_name(table: Any) -> Any:
    """The numbers of the rows that have no later one of their name."""
    import pyarrow as pa

    numbered = table.select(["name"]).append_column("number", pa.array(np.arange(len(table))))
    return numbered.group_by("name").aggregate([("number", "max")])["number_max"]


def write_rows(store: Store, name: str, tables: Iterable[Any], settings: Mapping[str, Any]) -> None:
    """Write tables as a file of rows, whole or not at all."""
    text = json.dumps(settings, sort_keys=True)
    described = schema().with_metadata({SETTINGS_KEY: text.encode(), FORMAT_KEY: FORMAT})
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
    location = title(store.location(name))
    damaged: tuple[type[Exception], ...] = (KeyError, json.JSONDecodeError, *table_errors())
    with store.open(name) as stream:
        try:
            file = parquet().ParquetFile(stream)
            found = file.schema_arrow
            metadata = found.metadata or {}
            earlier = json.loads(metadata[SETTINGS_KEY])
            if not isinstance(earlier, dict):
                raise KeyError(SETTINGS_KEY.decode())
            if found.equals(schema()):
                table = file.read(columns=columns)
        except damaged as error:
            raise_if_of_disk(error)
            raise ValueError(
                f"{location}: expected a manifest of this library, got another or a damaged file "
                f"({reason(error)[:80]}); give another out=, or overwrite=True to replace it"
            ) from error
    if metadata.get(FORMAT_KEY) != FORMAT:
        version = metadata.get(FORMAT_KEY, b"1").decode(errors="replace")
        raise ValueError(
            f"{location}: expected a manifest of format {FORMAT.decode()}, got one of format {version[:20]}, as of "
            "another version of this library; give another out=, or overwrite=True to do everything again"
        )
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


def done_outputs(store: Store) -> Iterator[list[str]]:
    """The files of each image that is done, by a manifest that is closed, in the order of the images."""
    with store.open(MANIFEST) as stream:
        file = parquet().ParquetFile(stream)
        for batch in file.iter_batches(columns=["status", "outputs"]):
            for row in batch.to_pylist():
                if row["status"] == "done":
                    yield row["outputs"]


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
            old, new = (_short(side[key]) if key in side else "nothing" for side in (before, now))
            yield f"{above}{key}: {old} there, {new} now"


def _short(value: Any) -> str:
    """A setting as Python writes it, or its beginning."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


class Manifest:
    """The manifest of an output folder, for one run at a time.

    Args:
        store: the folder, which can be written to.
        settings: everything that decides the files, as JSON-able values.
        source: where the images are from, as it may be stored and shown.
        overwrite: forget what earlier runs did; their images' files stay until they are replaced.

    Raises:
        ValueError: earlier runs had other settings, or their manifest cannot be read.
        OSError: another run is at work there; the folder cannot be read or written.
        TypeError: settings are not JSON-able.
        ImportError: pyarrow is missing.
    """

    def __init__(
        self,
        store: Store,
        settings: Mapping[str, Any],
        *,
        source: str = "",
        overwrite: bool = False,
    ) -> None:
        self.store = store
        self.settings: Mapping[str, Any] = json.loads(json.dumps(settings))
        self.source = source
        self._unwritten: list[Row] = []
        self._table = table_of([])  # The last part, which is on disk.
        path = store.local_path(LOCK)
        if path is not None and path.with_name(MANIFEST).is_dir():
            raise IsADirectoryError(
                errno.EISDIR,
                "expected the manifest, or none, got a folder of that name; rename it, or give another out=",
                str(path.with_name(MANIFEST)),
            )
        self._lock = None if path is None else lock_folder(path)
        try:
            earlier = self._files()
            if overwrite:
                for name in earlier:
                    store.remove(name)
                earlier = []
            tables = [read_rows(store, name, self.settings, EARLIER) for name in earlier]
            self._earlier = _done(tables)
            parts = [int(match[1]) for match in map(_PART.fullmatch, earlier) if match]
            self._part = max(parts, default=-1) + 1
            # So that this is known as an output folder however soon the run is killed.
            self._write_part()
        except BaseException:
            self._release()
            raise
        self._written_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def done(self) -> set[str]:
        """Names of the images that earlier runs have done and no run has begun to do again."""
        return set(self._earlier["name"].to_pylist())

    def missing(self, items: Sequence[Item], limits: Limits = DEFAULT_LIMITS) -> list[Item]:
        """The items that are to be done, in their order; to be called once, before any row is added.

        An item is done if an earlier run did it under the same stem, its files are there, and its bytes are the same as
        far as a look at the file, or an answer of its server, tells; where there is none, what is done stays. Rows
        whose files will be replaced are withdrawn first.

        Raises:
            OSError: the store's files cannot be listed, or the manifest not be written.
        """
        forget_files()
        if not len(self._earlier):
            return list(items)
        files = self.store.names()
        by_name = {item.name: item for item in items if item.error is None}
        found: list[tuple[Item, Identity]] = []
        for row in _rows_of(self._earlier):
            item = by_name.get(row["name"])
            outputs = row["outputs"]
            if item and outputs and files.issuperset(outputs) and stem_of(outputs) == item.stem:
                found.append((item, Identity(row["location"], row["size"], row["version"])))
        now = _identities([item for item, _ in found], limits)
        done = {
            item.name
            for (item, before), identity in zip(found, now, strict=True)
            if before.agrees(identity)
        }
        missing = [item for item in items if item.name not in done]
        if missing:
            self._withdraw(missing, done)
        self._earlier = self._earlier.slice(0, 0)
        return missing

    def _withdraw(self, missing: Sequence[Item], done: Collection[str]) -> None:
        """Take back the rows of images that are not done whose files the missing ones will replace."""
        # Folded, as a disk that ignores case replaces Cat_labels.png by cat_labels.png.
        stems = {folded(item.stem) for item in missing}
        for row in _rows_of(self._earlier.select(["index", "name", "outputs"])):
            if row["name"] not in done and folded(stem_of(row["outputs"])) in stems:
                position, name = row["index"], row["name"]
                self._unwritten.append(
                    Row(position, name, "withdrawn", None, 0.0, None, None, (), ())
                )
        self.flush()

    def add(self, row: Row) -> None:
        """Record what became of an image. It is on disk after at most 512 rows, or with the first row after 2 s.

        Raises:
            OSError: it cannot be written.
        """
        self._unwritten.append(row)
        late = time.monotonic() - self._written_at >= MAX_UNWRITTEN_SECONDS
        if late or len(self._unwritten) >= MAX_UNWRITTEN_ROWS:
            self.flush()

    def flush(self) -> None:
        """Bring all rows to the disk, where the files that they speak of are already.

        Raises:
            OSError: they cannot be written.
        """
        if self._unwritten:
            import pyarrow as pa

            self._write_part(
                pa.concat_tables([self._table, table_of(self._unwritten, self.source)])
            )
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Put all rows into manifest.parquet, and let other runs in.

        Raises:
            OSError: it cannot be written; nothing is lost then.
        """
        try:
            self.flush()
            names = self._files()
            if names == [MANIFEST, self._part_name] and not len(self._table):
                self.store.remove(self._part_name)  # Nothing is new.
            elif names != [MANIFEST]:
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

    def _write_part(self, table: Any = None) -> None:
        """Replace the last part by `table`, or write it for the first time, and begin another once it is full."""
        table = self._table if table is None else table
        write_rows(self.store, self._part_name, [table], self.settings)
        self._unwritten = []
        self._table = table
        if len(table) >= ROWS_PER_PART:
            self._part += 1
            self._table = table_of([])

    @property
    def _part_name(self) -> str:
        return f"{PARTS}/{self._part:06d}.parquet"

    def _release(self) -> None:
        if self._lock is not None:
            # Removed before it is released: whoever opened it in between finds that it is gone, and makes a new one.
            with contextlib.suppress(OSError):  # Windows keeps files that are open.
                Path(self._lock.lock_file).unlink()
            self._lock.release()


def _done(tables: Sequence[Any]) -> Any:
    """Of the images that are done, by the last of their rows in tables with the columns `EARLIER`, these rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = pa.schema([schema().field(name) for name in EARLIER])
    table = pa.concat_tables([columns.empty_table(), *tables])
    counts = np.zeros(len(table), np.bool_)
    counts[_last_of_each_name(table).to_numpy()] = True
    return table.filter(pc.and_(pa.array(counts), pc.equal(table["status"], "done")))


def _rows_of(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table, a few thousand at a time in memory."""
    for batch in table.to_batches(max_chunksize=8192):
        yield from batch.to_pylist()


def _identities(items: Sequence[Item], limits: Limits) -> list[Identity]:
    """Which bytes items are now; servers are asked in threads."""
    if not any(is_url(item.location) for item in items):
        return [item.identity(limits) for item in items]
    return list(prefetch(partial(Item.identity, limits=limits), items, workers=ASKING))


def lock_folder(path: Path) -> FileLock:
    """Lock an output folder until the lock is released, or its process ends in whatever way.

    Network disks without locks keep nobody out.

    Args:
        path: of the lock file; it holds the process's number and machine as JSON.

    Raises:
        OSError: another run holds it; it cannot be written; or it is a link, of which no kind is followed.
    """
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(
                errno.ELOOP,
                "expected a plain file that locks the output folder, or none, got a link or no file; remove it",
                str(path),
            )
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
        flags = os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags), "w", encoding="utf-8") as stream:
            json.dump({"process": os.getpid(), "machine": socket.gethostname()}, stream)
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
