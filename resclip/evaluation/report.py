"""Measured figures as values and as a JSON file: the conditions of a dataset once, and one row per method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.metrics import Scores
from resclip.io.files import read_text, write_atomically

FORMAT = "resclip evaluation"
VERSION = 3
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
        """What `save` wrote; ValueError for any other file and for one of another version."""
        try:
            stored = json.loads(read_text(path, "figures as JSON"))
            if not str(stored["format"]).startswith(FORMAT):
                raise ValueError
            version = stored.get("version")
            if version == VERSION:
                return cls({name: parse(part) for name, part in stored["datasets"].items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}: expected figures that `resclip evaluate` or `resclip ablate` wrote, got something else: "
                "name another file, or pass fresh=True to replace it"
            ) from error
        raise ValueError(
            f"{path}: expected figures of version {VERSION}, got version {version or '2 or older'}: name another file, "
            "or pass fresh=True to measure anew and replace it"
        )


def parse(stored: Mapping[str, Any]) -> DatasetReport:
    """A `DatasetReport` from the values of a JSON file."""
    rows = {}
    for name, row in stored["rows"].items():
        scores: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in row["scores"].items()
        }
        problems = tuple(Problem(**problem) for problem in row["problems"])
        rows[name] = MethodResult(**{**row, "scores": Scores(**scores), "problems": problems})
    return DatasetReport(**{**stored, "classes": tuple(stored["classes"]), "rows": rows})
