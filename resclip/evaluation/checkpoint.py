"""What has been measured of a dataset so far, on disk, so that an interrupted run goes on and gives the same figures.

Each process appends one line for each finished group of images to a file of its own. A group counts once, however many
lines tell of it, and a line that a killed process left unfinished counts as missing. So a kill at any moment loses at
most the groups in progress, and nothing is ever rewritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.datasets.base import Problem


@dataclass(frozen=True)
class DatasetResult:
    """What was measured on a dataset or a part of it."""

    confusion: NDArray[np.int64]
    """(C, C): pixels by true class (row) and predicted class (column)."""
    images: int = 0
    """The number of images that the confusion is of."""
    problems: tuple[Problem, ...] = ()
    """The images that could not be read."""
    seconds: float = 0.0
    peak_bytes: int = 0

    @classmethod
    def empty(cls, classes: int) -> DatasetResult:
        """Of no image yet."""
        return cls(np.zeros((classes, classes), np.int64))

    def __add__(self, other: DatasetResult) -> DatasetResult:
        """Both, measured one after the other."""
        return DatasetResult(
            self.confusion + other.confusion,
            self.images + other.images,
            self.problems + other.problems,
            self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes),
        )


@dataclass(frozen=True)
class Checkpoint:
    """The finished groups of one method on one dataset.

    Args:
        folder: shared by all methods and datasets of a report; made if missing. Processes of several machines need
            one on a disk that the machines share.
        conditions: everything that decides the figures, as JSON-able values. Lines under other conditions are not
            seen.
    """

    folder: Path
    conditions: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The beginning of the files' names."""
        text = json.dumps(self.conditions, sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def path(self, rank: int) -> Path:
        """The file of the process of this rank."""
        return self.folder / f"{self.name}-{rank}.jsonl"

    def files(self) -> list[Path]:
        """The files that exist, in the order of their ranks."""
        paths = self.folder.glob(f"{self.name}-*.jsonl")
        return sorted(paths, key=rank_of)

    def read(self, classes: int) -> tuple[set[int], dict[int, DatasetResult]]:
        """The numbers of the finished groups, and what they sum to by the rank of the process that measured them.

        Raises:
            OSError: the folder cannot be made, or a file cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        finished: set[int] = set()
        sums: dict[int, DatasetResult] = {}
        for path in self.files():
            rank = rank_of(path)
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                # A line that was cut short by a kill or a power cut is no JSON.
                with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
                    number, result = parse_line(line, classes)
                    if number not in finished:
                        finished.add(number)
                        sums[rank] = sums.get(rank, DatasetResult.empty(classes)) + result
        return finished, sums

    def append(self, rank: int, number: int, result: DatasetResult) -> None:
        """Add a finished group to the file of a process.

        Raises:
            OSError: it cannot be written.
        """
        with self.path(rank).open("a", encoding="utf-8") as file:
            # The line break comes first: the last line in the file may be unfinished.
            file.write("\n" + format_line(number, result))

    def clear(self) -> None:
        """Remove the files, once the figures are safe elsewhere, and the folder with the last file in it."""
        for path in self.files():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # The folder is not empty, or was never made.
            self.folder.rmdir()


def rank_of(path: Path) -> int:
    """The rank of the process that writes to a file."""
    return int(path.stem.rpartition("-")[2])


def format_line(number: int, result: DatasetResult) -> str:
    """A group as one line of JSON; of the confusion, the cells that are not 0, as flat index and count."""
    cells = np.flatnonzero(result.confusion)
    values = {
        "group": number,
        "cells": cells.tolist(),
        "counts": result.confusion.flat[cells].tolist(),
        "images": result.images,
        "problems": [[problem.name, problem.reason] for problem in result.problems],
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
    }
    return json.dumps(values)


def parse_line(line: str, classes: int) -> tuple[int, DatasetResult]:
    """The number and result of the group that `format_line` wrote; ValueError, TypeError, KeyError, IndexError else."""
    values = json.loads(line)
    confusion = np.zeros((classes, classes), np.int64)
    confusion.flat[values["cells"]] = values["counts"]
    problems = tuple(Problem(name, reason) for name, reason in values["problems"])
    return int(values["group"]), DatasetResult(
        confusion, values["images"], problems, values["seconds"], values["peak_bytes"]
    )
