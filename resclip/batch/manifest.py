"""What has been done, on disk: one Parquet file, and small ones beside it while a run is at work.

Knows rows, the files that they are in, and settings. Knows no pictures.

    manifest.parquet               what earlier runs did, one row a picture
    manifest.parts/000000.parquet  what this one has done since, or a run that was killed
    manifest.lock                  whose turn it is, on this machine's disks

Of rows with the same name the one in the later part counts, and any part before manifest.parquet. Files that are merged
are removed after the file that has all their rows is there, the oldest first: at any instant, what is left says the
same.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from resclip.batch.lock import FolderLock
from resclip.batch.rows import ClassArea, Row, RowFile, merged, table_of, write_table
from resclip.batch.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ClassArea", "Manifest", "Row"]

WHOLE = "manifest.parquet"
PARTS = "manifest.parts/"
LOCK = "manifest.lock"

MOST_ROWS = 512
MOST_SECONDS = 2.0
"""Rows that are lost at most when a run is killed, and their age: their pictures are done again."""
MOST_PARTS = 100
MOST_DIFFERENCES = 3
"""That are shown."""

_PART = re.compile(r"manifest\.parts/(\d{6,})\.parquet")


class Manifest:
    """The manifest of an output folder, for one run at a time.

    Args:
        store: the folder, which can be written to.
        settings: everything that decides the files, as JSON-able values.
        overwrite: forget what earlier runs did; their pictures' files stay until they are replaced.

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
        """Names of the pictures that need not be done again."""
        return self._done

    def add(self, row: Row) -> None:
        """Record what became of a picture. It is on disk after at most 512 rows, or with the first row after 2 s.

        Raises:
            OSError: it cannot be written.
        """
        self._buffer[row.name] = row
        self._count(row.name, row.status)
        late = time.monotonic() - self._flushed >= MOST_SECONDS
        if late or len(self._buffer) >= MOST_ROWS:
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
            if len(self._parts) > MOST_PARTS:
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
                more = len(differences) - MOST_DIFFERENCES
                shown = "; ".join(differences[:MOST_DIFFERENCES]) + (
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
