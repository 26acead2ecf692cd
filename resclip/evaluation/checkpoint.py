"""How far a measurement has come, on disk, so that one that was interrupted goes on and gives the same figures.

Knows counts and files. Knows no image, model or process group.

A journal is one file a process, and one that holds what earlier runs did. A file has the sums over the groups of
images that it lists, so files may be added up exactly where no group is in two of them. That holds at any instant:
a process writes only of groups that nobody had done when it started, no two processes do the same group, and files
that are being merged stay until the file that has all of them is there; from then on they are subsets of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.datasets.base import Problem
from resclip.io.files import read_text, write_atomically

FORMAT = "resclip progress, version 1"
MERGED = "earlier"


@dataclass(frozen=True)
class Progress:
    """What has been measured so far."""

    groups: frozenset[int]
    """Those that are done."""
    counts: NDArray[np.int64]
    """(C, C): `confusion`'s, over these groups."""
    images: int = 0
    """That the counts are of."""
    problems: tuple[Problem, ...] = ()
    """Images of these groups that are not in the counts."""
    seconds: float = 0.0
    peak_memory: int = 0
    """Bytes."""

    @classmethod
    def none(cls, classes: int) -> Progress:
        """Nothing yet."""
        return cls(frozenset(), np.zeros((classes, classes), np.int64))

    @property
    def dealt_with(self) -> int:
        """Images of these groups, counted or not."""
        return self.images + len(self.problems)

    def and_then(self, later: Progress) -> Progress:
        """Both, one after the other; their groups differ."""
        return self.joined(later, self.seconds + later.seconds)

    def beside(self, other: Progress) -> Progress:
        """Both, at the same time, so that the longer one's seconds count; their groups differ."""
        return self.joined(other, max(self.seconds, other.seconds))

    def joined(self, other: Progress, seconds: float) -> Progress:
        """Both, in the given time."""
        return Progress(
            self.groups | other.groups,
            self.counts + other.counts,
            self.images + other.images,
            self.problems + other.problems,
            seconds,
            max(self.peak_memory, other.peak_memory),
        )


@dataclass(frozen=True)
class Journal:
    """The progress of one measurement in a folder that others may share.

    Args:
        folder: made where it is missing; of several machines' processes, on a disk that they share.
        key: everything that decides the figures, as JSON-able values. Progress under another key counts as missing.
    """

    folder: Path
    key: Mapping[str, Any]

    @property
    def name(self) -> str:
        """How the files' names begin."""
        return hashlib.sha256(text_of(self.key).encode()).hexdigest()[:24]

    def path(self, part: str) -> Path:
        """Of one file."""
        return self.folder / f"{self.name}-{part}.json"

    def files(self) -> list[Path]:
        """Those that are there, in the order of their names."""
        return sorted(self.folder.glob(f"{self.name}-*.json"))

    def resume(self, terms: Mapping[str, Any]) -> Progress | None:
        """What was done before, merged into one file. To be called by one process, before any writes.

        Args:
            terms: what must agree for progress to be of use, beside the key: how images are grouped.

        Returns:
            None where there is nothing of use.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        merged, *parts = (self.read(path, terms) for path in self.sources())
        earlier = together(merged, parts)
        if earlier is not None and earlier is not merged:
            self.write(MERGED, earlier, terms)
        for path in self.files():
            if earlier is None or path != self.path(MERGED):
                path.unlink(missing_ok=True)
        return earlier

    def sources(self) -> list[Path]:
        """The file of earlier runs, whether it is there or not, and those of processes."""
        first = self.path(MERGED)
        return [first, *(path for path in self.files() if path != first)]

    def write(self, part: str, progress: Progress, terms: Mapping[str, Any]) -> None:
        """Replace one file.

        Args:
            part: which one; each process has its own.
            progress: of the groups that this process has done since `resume`.
            terms: those of `resume`.

        Raises:
            OSError: it cannot be written.
        """
        body = {
            "key": dict(self.key),
            "terms": dict(terms),
            "groups": sorted(progress.groups),
            "counts": progress.counts.tolist(),
            "images": progress.images,
            "problems": [[problem.name, problem.reason] for problem in progress.problems],
            "seconds": progress.seconds,
            "peak_memory": progress.peak_memory,
        }
        stored = {"format": FORMAT, "checksum": checksum(body), "body": body}
        write_atomically(self.path(part), text_of(stored).encode())

    def read(self, path: Path, terms: Mapping[str, Any]) -> Progress | None:
        """What `write` wrote under the same key and terms; None for a file that is anything else, or not there."""
        try:
            stored = json.loads(read_text(path, "progress as JSON"))
            body = stored["body"]
            if stored["format"] != FORMAT or stored["checksum"] != checksum(body):
                return None
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if text_of([body["key"], body["terms"]]) != text_of([self.key, terms]):
            return None
        return Progress(
            frozenset(body["groups"]),
            np.array(body["counts"], np.int64),
            body["images"],
            tuple(Problem(*problem) for problem in body["problems"]),
            body["seconds"],
            body["peak_memory"],
        )

    def clear(self) -> None:
        """Forget it all, once the figures are safe elsewhere; the folder goes with its last file."""
        for path in self.files():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # It is not empty, or was never made.
            self.folder.rmdir()


def together(merged: Progress | None, parts: Iterable[Progress | None]) -> Progress | None:
    """Everything that files say, no group twice; `merged` itself where the others add nothing."""
    beside: Progress | None = None
    taken = merged.groups if merged is not None else frozenset()
    for part in parts:
        # What shares a group is in what was merged already.
        if part is not None and part.groups and not part.groups & taken:
            beside = part if beside is None else beside.beside(part)
            taken |= part.groups
    if merged is None or beside is None:
        return merged or beside
    return merged.and_then(beside)


def checksum(body: Mapping[str, Any]) -> str:
    """Of what a file says."""
    return hashlib.sha256(text_of(body).encode()).hexdigest()


def text_of(value: Any) -> str:
    """JSON that is the same for the same values; TypeError for what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, default=dict)
