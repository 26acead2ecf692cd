"""What RCS, SFR and both add to each base, on each of several models: the gains of ResCLIP's tables 1 to 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resclip.evaluation.plots import plot_gains
from resclip.evaluation.report import DatasetReport, Report
from resclip.evaluation.tables import (
    MODULE_COLUMNS,
    Tables,
    aligned,
    cell,
    conditions,
    coverage_notes,
    csv_text,
    markdown,
    markdown_list,
    mean_of_all,
    miou_of,
    problem_notes,
    published_figures,
)
from resclip.methods.catalogue import combinations, find_base

BASES = ("sclip", "clearclip", "naclip")
"""The bases of ResCLIP's tables."""
BACKGROUND_SETS = ("voc21", "context60", "coco-object")
"""The benchmarks that count the background as a class; the paper averages over these and over the others."""
GAIN_CSV = (
    "model", "base", "modules", "set", "miou", "gain", "published_miou", "published_source", "images", "problems",
)  # fmt: skip


def rows_of(bases: Sequence[str]) -> list[str]:
    """The rows that are measured: each base, and it with the modules that fit it; ValueError for an unknown base."""
    return [method.name for base in bases for method in combinations(find_base(base))]


def averages(names: Sequence[str]) -> dict[str, list[str]]:
    """The means that a table has, by header: over which datasets."""
    groups = {
        "mean, background": [name for name in names if name in BACKGROUND_SETS],
        "mean, no background": [name for name in names if name not in BACKGROUND_SETS],
        "mean": list(names),
    }
    # One dataset needs no mean, and a mean over all is enough where they are of one kind.
    return {
        header: members
        for header, members in groups.items()
        if len(members) > 1 and (header == "mean" or len(members) < len(names))
    }


def gain_of(columns: Sequence[DatasetReport], base: str, row: str) -> float | None:
    """The mean gain of a row over its base; None where a figure is missing."""
    gains = []
    for column in columns:
        value, alone = miou_of(column, row), miou_of(column, base)
        gains.append(None if value is None or alone is None else value - alone)
    return mean_of_all(gains)


def gain_tables(reports: Mapping[str, Report], bases: Sequence[str]) -> Tables:
    """A line per model, base and modules, a column per dataset, and means over those with and without background.

    Args:
        reports: by the model's name, with `rows_of(bases)` on the same datasets.
        bases: names.
    """
    has_models = len(reports) > 1
    first = next(iter(reports.values()))
    groups = averages(list(first.datasets))
    headers = [*(["model"] if has_models else []), "base", "modules", *first.datasets, *groups]
    lines = []
    for model, report in reports.items():
        stated = published_figures(report.datasets.values())
        for base in bases:
            for row in rows_of([base]):
                cells = []
                for name, column in report.datasets.items():
                    alone = None if row == base else miou_of(column, base)
                    figure = stated.get((name, row))
                    published = "" if figure is None else f" [{figure.miou:.1f}]"
                    cells.append(cell(miou_of(column, row), alone) + published)
                for members in groups.values():
                    values, alones = (
                        mean_of_all([miou_of(report.datasets[name], one) for name in members])
                        for one in (row, base)
                    )
                    cells.append(cell(values, None if row == base else alones))
                modules = MODULE_COLUMNS[row.removeprefix(base)]
                lines.append([*([model] if has_models else []), base, modules, *cells])
    notes = [
        "mIoU in per cent; in brackets the gain over the base alone; in square brackets what is published."
    ]
    for report in reports.values():
        for column in report.datasets.values():
            notes.append(f"{column.dataset}: {conditions(column)}")
            notes += [*coverage_notes(column), *problem_notes(column)]
        for figure in published_figures(report.datasets.values()).values():
            if figure is not None:
                notes.append(f"Published: {figure.method}: {figure.source}.")
    notes = list(dict.fromkeys(notes))
    title = "gain: what RCS and SFR add to each base"
    return Tables(
        f"{title}\n\n{aligned(headers, lines)}\n\n" + "\n".join(notes),
        f"{markdown(headers, lines)}\n\n{markdown_list(notes)}",
        csv_text(GAIN_CSV, gain_csv_lines(reports, bases)),
    )


def gain_csv_lines(reports: Mapping[str, Report], bases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line per model, base, modules and dataset, by the names in `GAIN_CSV`, unrounded."""
    for model, report in reports.items():
        stated = published_figures(report.datasets.values())
        for base in bases:
            for row in rows_of([base]):
                for name, column in report.datasets.items():
                    figure = stated.get((name, row))
                    result = column.rows[row]
                    yield {
                        "model": model,
                        "base": base,
                        "modules": row.removeprefix(base).removeprefix("+"),
                        "set": name,
                        "miou": result.scores.miou,
                        "gain": gain_of([column], base, row),
                        "published_miou": figure and figure.miou,
                        "published_source": figure and figure.source,
                        "images": result.images,
                        "problems": len(result.problems),
                    }


def draw_gains(reports: Mapping[str, Report], bases: Sequence[str], path: Path) -> None:
    """The gains, averaged over all datasets, as bars by base and model; raises as `plot_gains`."""
    gains: dict[str, dict[str, float | None]] = {}
    for model, report in reports.items():
        columns = list(report.datasets.values())
        for base in bases:
            label = f"{base}, {model}" if len(reports) > 1 else base
            gains[label] = {
                MODULE_COLUMNS[row.removeprefix(base)]: gain_of(columns, base, row)
                for row in rows_of([base])
                if row != base
            }
    datasets = ", ".join(next(iter(reports.values())).datasets)
    plot_gains(f"What RCS and SFR add, on {datasets}", gains, "gain in points of mIoU", path)
