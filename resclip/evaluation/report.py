"""Measured figures as values and as a JSON file: the conditions of a dataset once, and one row per method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from resclip.evaluation.checkpoint import DAMAGED
from resclip.evaluation.coverage import Coverage
from resclip.evaluation.datasets.base import Problem, cut
from resclip.evaluation.metrics import Scores
from resclip.io.files import read_text, write_atomically

FORMAT = "resclip evaluation"
VERSION = 4
"""The version of the JSON file that this program reads and writes."""


@dataclass(frozen=True)
class MethodResult:
    """The figures of one method on one dataset, and what measuring them took."""

    scores: Scores
    images: int
    """The number of images that the figures are of."""
    problems: tuple[Problem, ...]
    """The images that are not in the figures, and why."""
    options: Mapping[str, Any]
    """The settings of this method that other rows need not share, as JSON-able values."""
    seconds: float
    """For all images, without loading the model; all parts of an interrupted run together."""
    processes: int
    """How many processes shared the images."""
    threads: int
    """CPU threads of each process."""
    machine: str
    """The name of the GPU, or of the CPU."""
    peak_memory: int
    """Bytes of the GPU if one computes, else of the process; with several processes, of the one that took most."""
    coverage: Coverage
    """What part of the ground truth the figures are of."""


@dataclass
class DatasetReport:
    """The figures of some methods on one dataset, under the same conditions."""

    dataset: str
    """The dataset's name, as `open_dataset` takes it."""
    description: str
    """What was measured on, in words: "200 held-out scenes of 168 × 168"."""
    settings: Mapping[str, Any]
    """What all rows share, as JSON-able values: images, class names, device, versions."""
    classes: tuple[str, ...]
    rows: dict[str, MethodResult] = field(default_factory=dict)
    """By the method's name."""

    def selection(self, methods: Iterable[str]) -> DatasetReport:
        """The same with the rows of these methods alone, in the order of all."""
        wanted = set(methods)
        return replace(self, rows={name: row for name, row in self.rows.items() if name in wanted})


@dataclass
class Report:
    """The figures of some methods on some datasets."""

    datasets: dict[str, DatasetReport] = field(default_factory=dict)
    """By the dataset's name, in the order of the table's columns."""

    @property
    def methods(self) -> list[str]:
        """The names of all rows, each once, in the order of the first dataset that has them."""
        return list(dict.fromkeys(name for part in self.datasets.values() for name in part.rows))

    def save(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all; OSError where that cannot be done."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Report:
        """What `save` wrote.

        Raises:
            ValueError: the file holds something else, or is of another version.
            OSError: it cannot be read.
        """
        other = (
            f"{path}: expected figures that `resclip evaluate` or `resclip ablate` wrote, got something else: "
            "name another file, or pass fresh=True to replace it"
        )
        if path.exists() and not path.is_file():
            raise ValueError(
                f"{path}: expected a JSON file of figures, got a folder or a pipe of that name; name another file"
            )
        try:
            stored = json.loads(read_text(path, "figures as JSON"))
            if not str(stored["format"]).startswith(FORMAT):
                raise ValueError(other)
            version = stored.get("version")
            if version == VERSION:
                return cls({name: parse(part) for name, part in stored["datasets"].items()})
        except DAMAGED as error:
            raise ValueError(other) from error
        raise ValueError(
            f"{path}: expected figures of version {VERSION}, got version {cut(version or '2 or older', 20)}: name "
            "another file, or pass fresh=True to measure anew and replace it"
        )


def parse(stored: Mapping[str, Any]) -> DatasetReport:
    """A `DatasetReport` from the values of a JSON file; one of `DAMAGED` for what is none."""
    check(stored["classes"], list, str)
    report = DatasetReport(**{**stored, "classes": tuple(stored["classes"]), "rows": {}})
    check([report.dataset, report.description], list, str)
    check(report.settings, Mapping)
    for name, row in stored["rows"].items():
        report.rows[name] = parse_row(row, len(report.classes))
    return report


def parse_row(stored: Mapping[str, Any], classes: int) -> MethodResult:
    """A `MethodResult` from the values of a JSON file; one of `DAMAGED` for what is none."""
    figures: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored["scores"].items()
    }
    scores = Scores(**figures)
    for each in (scores.iou, scores.accuracy):
        check(each, tuple, (int, float, type(None)))
        if len(each) != classes:
            raise ValueError("figures of other classes")
    means = (
        scores.miou,
        scores.mean_accuracy,
        scores.pixel_accuracy,
        scores.frequency_weighted_iou,
    )
    check(means, tuple, (int, float, type(None)))
    problems = tuple(Problem(**problem) for problem in stored["problems"])
    check([text for problem in problems for text in (problem.name, problem.reason)], list, str)
    check(stored["coverage"]["missing"], list, str)
    coverage = Coverage(**{**stored["coverage"], "missing": tuple(stored["coverage"]["missing"])})
    check([coverage.hint], list, (str, type(None)))
    row = MethodResult(**{**stored, "scores": scores, "problems": problems, "coverage": coverage})
    check(row.options, Mapping)
    check([row.machine], list, str)
    check([row.seconds], list, (int, float))
    counts = [row.images, row.processes, row.threads, row.peak_memory]
    counts += [coverage.counted, coverage.ignored, coverage.unlabelled]
    check(counts, list, int)
    if coverage.unlabelled > coverage.counted:
        raise ValueError("a part that is more than the whole")
    return row


def check(values: Any, kind: type[Any], of: type[Any] | tuple[type[Any], ...] = ()) -> None:
    """ValueError unless `values` are a `kind`, each is `of` such a kind if one is named, numbers from 0 to 2^63."""
    if not isinstance(values, kind):
        raise ValueError("a value of another kind")
    for value in values if of else ():
        if not isinstance(value, of) or isinstance(value, bool):
            raise ValueError("a value of another kind")
        if isinstance(value, (int, float)) and not 0 <= value < 2**63:
            raise ValueError("a number out of range")
