"""Measured figures as values and as a JSON file: a set's conditions once, and a row a method.

Knows how figures are stored and which stored rows still hold. Knows no method, and not what was measured how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.metrics import Scores
from resclip.io.files import read_text, write_atomically

FORMAT = "resclip evaluation, version 2"


@dataclass(frozen=True)
class Cost:
    """What measuring took. No figure depends on it."""

    seconds: float
    """For all images, without loading the model; of an interrupted run, of all its parts."""
    processes: int
    """That shared the images."""
    threads: int
    """Of the CPU, a process."""
    machine: str
    """The GPU's name, or the CPU's."""
    peak_memory: int
    """Bytes: of the GPU where one computes, else of the process; the largest of the processes'."""


@dataclass(frozen=True)
class Row:
    """One method's figures on one set."""

    scores: Scores
    images: int
    """That the figures are of."""
    problems: tuple[Problem, ...]
    """Images that are not in them, and why."""
    cost: Cost
    options: Mapping[str, Any]
    """What sets the method apart, as JSON-able values."""


@dataclass
class Evaluation:
    """The figures of some methods on one set, under the same conditions."""

    dataset: str
    """As it is asked for: "voc21"."""
    description: str
    """What was measured on, in words: "200 held-out scenes of 168 × 168"."""
    settings: Mapping[str, Any]
    """What all rows share, as JSON-able values: windows, device, versions."""
    classes: tuple[str, ...]
    rows: dict[str, Row] = field(default_factory=dict)


@dataclass
class Report:
    """The figures of some methods on some sets."""

    sets: dict[str, Evaluation] = field(default_factory=dict)
    """By the set's name, in the order of the table's columns."""

    @property
    def rows(self) -> list[str]:
        """The names of all rows, each once, in the order of their first set."""
        return list(dict.fromkeys(name for figures in self.sets.values() for name in figures.rows))

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all; OSError where that cannot be done."""
        write_atomically(
            path, (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()
        )

    @classmethod
    def read(cls, path: Path) -> Report:
        """What `save` wrote; ValueError for any other file."""
        try:
            stored = json.loads(read_text(path, "figures as JSON"))
            if stored["format"] != FORMAT:
                raise ValueError
            return cls({name: evaluation_from(figures) for name, figures in stored["sets"].items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}: expected figures that `resclip evaluate` or `resclip ablate` wrote; got something else: "
                "name another file, or pass --fresh to replace it"
            ) from error


def evaluation_from(stored: Mapping[str, Any]) -> Evaluation:
    """An `Evaluation` from the values of a JSON file."""
    rows = {name: row_from(row) for name, row in stored["rows"].items()}
    return Evaluation(**{**stored, "classes": tuple(stored["classes"]), "rows": rows})


def row_from(stored: Mapping[str, Any]) -> Row:
    """A `Row` from the values of a JSON file."""
    scores = {**stored["scores"]}
    scores |= {name: tuple(scores[name]) for name in ("iou", "accuracy")}
    problems = tuple(Problem(**problem) for problem in stored["problems"])
    changes = {"scores": Scores(**scores), "cost": Cost(**stored["cost"]), "problems": problems}
    return Row(**{**stored, **changes})


def resume(wanted: Evaluation, stored: Evaluation, path: Path | None) -> Evaluation:
    """`wanted` with the rows that `stored`, which the file at `path` holds, has for its set.

    With the description that `wanted` has: it is words, and no condition.

    Raises:
        ValueError: the stored figures were taken under other conditions.
    """
    there = {**stored.settings, "classes": stored.classes}
    here = {**wanted.settings, "classes": wanted.classes}
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{path} holds figures of {wanted.dataset} under other conditions ({name}: {there.get(name)} there, "
                f"{here.get(name)} here): name another file, or pass --fresh to replace it"
            )
    return Evaluation(
        wanted.dataset, wanted.description, wanted.settings, wanted.classes, dict(stored.rows)
    )
