"""What has been measured of a dataset so far, on disk, so that an interrupted run goes on and gives the same figures.

Each process appends one line for each finished group of images to a file of its own. A group counts once, however many
lines tell of it, and a line that a killed process left unfinished counts as missing. So a kill at any moment loses at
most the groups in progress, and nothing is ever rewritten.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.datasets.base import Problem
from resclip.io.files import make_folder


@dataclass(frozen=True)
class DatasetResult:
    """What was measured on a dataset or a part of it."""

    confusion: NDArray[np.int64]
    """(C, C + 1): pixels by true class (row) and predicted class (column), as `metrics.confusion` counts them."""
    images: int = 0
    """The number of images that the confusion is of."""
    problems: tuple[Problem, ...] = ()
    """The images that could not be read."""
    seconds: float = 0.0
    peak_bytes: int = 0
    ignored: int = 0
    """Pixels of the ground truth that do not count; they are in no cell of the confusion."""

    @classmethod
    def empty(cls, classes: int) -> DatasetResult:
        """Of no image yet."""
        return cls(np.zeros((classes, classes + 1), np.int64))

    def __add__(self, other: DatasetResult) -> DatasetResult:
        """Both, measured one after the other."""
        return DatasetResult(
            self.confusion + other.confusion,
            self.images + other.images,
            self.problems + other.problems,
            self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes),
            self.ignored + other.ignored,
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

    def files(self) -> list[tuple[int, Path]]:
        """The rank of the process that writes to it, and the path, of each file that exists; by rank."""
        pattern = re.compile(rf"{self.name}-(\d{{1,9}})\.jsonl")
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found)

    def read(self, classes: int) -> tuple[set[int], dict[int, DatasetResult]]:
        """The numbers of the finished groups, and what they sum to by the rank of the process that measured them.

        Raises:
            OSError: the folder cannot be made, or a file cannot be read.
        """
        make_folder(self.folder)
        finished: set[int] = set()
        sums: dict[int, DatasetResult] = {}
        for rank, path in self.files():
            check_no_link(path)
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    number, result = parse_line(line, classes)
                except DAMAGED:
                    # A line that was cut short by a kill or a power cut is no JSON.
                    continue
                if number not in finished:
                    finished.add(number)
                    sums[rank] = sums.get(rank, DatasetResult.empty(classes)) + result
        return finished, sums

    def append(self, rank: int, number: int, result: DatasetResult) -> None:
        """Add a finished group to the file of a process.

        Raises:
            OSError: it cannot be written.
        """
        check_no_link(self.path(rank))
        with self.path(rank).open("a", encoding="utf-8") as file:
            # The line break comes first: the last line in the file may be unfinished.
            file.write("\n" + format_line(number, result))

    def clear(self) -> None:
        """Remove the files, once the figures are safe elsewhere, and the folder with the last file in it."""
        for _, path in self.files():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # The folder is not empty, or was never made.
            self.folder.rmdir()


def check_no_link(path: Path) -> None:
    """OSError where a path is taken by what is no file of ours: a link to a file elsewhere, a pipe, a folder."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(
                errno.EEXIST,
                "expected a file of unfinished figures, got a link, a pipe or a folder of that name; remove it",
                str(path),
            )


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
        "ignored": result.ignored,
    }
    return json.dumps(values)


DAMAGED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What reading JSON of damaged or foreign content raises."""


def parse_line(line: str, classes: int) -> tuple[int, DatasetResult]:
    """The number and result of the group that `format_line` wrote; one of `DAMAGED` else."""
    values = json.loads(line)
    confusion = np.zeros((classes, classes + 1), np.int64)
    confusion.flat[whole_numbers(values["cells"])] = whole_numbers(values["counts"])
    problems = tuple(Problem(text(name), text(reason)) for name, reason in values["problems"])
    numbers = whole_numbers([values[name] for name in ("group", "images", "peak_bytes", "ignored")])
    group, images, peak_bytes, ignored = numbers
    seconds = float(values["seconds"])
    if not 0.0 <= seconds < math.inf:
        raise ValueError("seconds that are none")
    return group, DatasetResult(confusion, images, problems, seconds, peak_bytes, ignored)


def whole_numbers(values: Any) -> list[int]:
    """A list of numbers from 0 to 2^63 − 1 out of JSON; ValueError for anything else."""
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("no list of whole numbers")
    if values and not 0 <= min(values) <= max(values) < 2**63:
        raise ValueError("numbers out of range")
    return values


def text(value: Any) -> str:
    """A text out of JSON; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError("no text")
    return value
