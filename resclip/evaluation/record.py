"""Measured figures as a value and as a JSON file: what all rows share, and a row a method.

Knows how figures are stored and which stored rows still hold. Knows no method, and not what was measured how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resclip.files import read_text, write_atomically

__all__ = ["Evaluation", "Row", "resume"]


@dataclass(frozen=True)
class Row:
    """One method's figures."""

    miou: float
    """Mean of `iou`, in per cent."""
    iou: tuple[float | None, ...]
    """Of each class, in per cent; None for a class neither there nor predicted."""
    seconds: float
    """How long all pictures took, without loading the model."""
    threads: int
    """Of the CPU, that `seconds` was measured with."""
    knobs: Mapping[str, Any]
    """What sets the method apart, as JSON-able values."""


@dataclass
class Evaluation:
    """The figures of some methods under the same conditions."""

    pictures: str
    """What was measured on, in words: "200 held-out scenes of 168 × 168"."""
    settings: Mapping[str, Any]
    """What all rows share, as JSON-able values: pictures, windows, device, versions."""
    classes: tuple[str, ...]
    rows: dict[str, Row] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all; OSError where that cannot be done."""
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """What `save` wrote; ValueError for any other file."""
        try:
            stored = json.loads(read_text(path, "figures as JSON"))
            rows = {
                name: Row(**{**row, "iou": tuple(row["iou"])})
                for name, row in stored.pop("rows").items()
            }
            return cls(**{**stored, "classes": tuple(stored["classes"])}, rows=rows)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}: expected figures that `resclip evaluate --json` wrote; got something else: name another "
                "file, or pass --fresh to replace it"
            ) from error


def resume(wanted: Evaluation, path: Path) -> Evaluation:
    """`wanted` with the rows that the file at `path` has, if there is one.

    Raises:
        ValueError: the file holds figures taken under other conditions, or none.
    """
    if not path.exists():
        return wanted
    stored = Evaluation.read(path)
    there = {**stored.settings, "classes": stored.classes}
    here = {**wanted.settings, "classes": wanted.classes}
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{path} holds figures under other conditions ({name}: {there.get(name)} there, {here.get(name)} "
                "here): name another file, or pass --fresh to replace it"
            )
    return Evaluation(wanted.pictures, wanted.settings, wanted.classes, dict(stored.rows))
