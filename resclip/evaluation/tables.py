"""Figures as text: bases as rows, what is put on them as columns.

Knows how a row's name is made of a base and modules ("naclip+rcs"). Knows no metric and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resclip.evaluation.record import Evaluation

__all__ = ["COLUMNS", "bases_of", "class_tables", "conditions", "mean_table", "row_of"]

COLUMNS = {"": "none", "+rcs": "RCS", "+sfr": "SFR", "+rcs+sfr": "RCS + SFR"}
"""Heads of the columns by what stands behind the base's name."""


def bases_of(names: Iterable[str]) -> list[str]:
    """The bases of some rows, each once, in order."""
    return list(dict.fromkeys(name.partition("+")[0] for name in names))


def row_of(base: str, values: Mapping[str, float | None]) -> list[float | None]:
    """A base's figures in the order of `COLUMNS`; None for a row that is not there."""
    return [values.get(base + column) for column in COLUMNS]


def mean_table(evaluation: Evaluation) -> str:
    """The mIoU of every row, with its change from the base alone, and the conditions under it."""
    means = {name: row.miou for name, row in evaluation.rows.items()}
    rows = {base: row_of(base, means) for base in bases_of(means)}
    note = (
        f"mIoU in per cent, in brackets its change from the base alone.\n{conditions(evaluation)}"
    )
    return f"{grid('base', rows)}\n\n{note}"


def class_tables(evaluation: Evaluation) -> str:
    """The IoU of every class, a table a base."""
    tables = []
    for base in bases_of(evaluation.rows):
        rows = {
            name: row_of(base, {row: figures.iou[index] for row, figures in evaluation.rows.items()})
            for index, name in enumerate(evaluation.classes)
        }  # fmt: skip
        tables.append(grid(base, rows))
    return "\n\n".join(tables)


def grid(corner: str, rows: Mapping[str, Sequence[float | None]]) -> str:
    """Aligned text: a line a row, a cell a column of `COLUMNS`."""
    wide = max(map(len, [corner, *rows])) + 2
    lines = ["".join([f"{corner:{wide}}", *(f"{head:<16}" for head in COLUMNS.values())])]
    for name, values in rows.items():
        alone, *others = values
        cells = [cell(alone, None), *(cell(value, alone) for value in others)]
        lines.append("".join([f"{name:{wide}}", *(f"{text:<16}" for text in cells)]))
    return "\n".join(line.rstrip() for line in lines)


def cell(value: float | None, alone: float | None) -> str:
    """A figure with its change from the base, where that is known; "-" where it was not measured."""
    if value is None:
        return f"{'-':>5}"
    if alone is None:
        return f"{value:5.1f}"
    change = round(value - alone, 1) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{value:5.1f} ({change:+.1f})"


def conditions(evaluation: Evaluation) -> str:
    """What the figures were measured on and with, as a sentence."""
    settings: Mapping[str, Any] = evaluation.settings
    windows = (
        f"windows of {settings['window']} every {settings['stride']} pixels"
        if settings["window"]
        else "whole"
    )
    return (
        f"{evaluation.pictures}, {windows}; {settings['device']}, {settings['precision']}, "
        f"resclip {settings['resclip']}, torch {settings['torch']}."
    )
