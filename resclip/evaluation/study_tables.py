"""Studies as text: a table each, the same as Markdown, and every figure as CSV.

Knows where an ablation's figures are. Knows no model, and not how they were measured.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from resclip.evaluation.ablation import Ablation, Findings, Line
from resclip.evaluation.report import Evaluation, Report
from resclip.evaluation.tables import (
    Table,
    aligned,
    cell,
    conditions,
    left_out,
    mean_of_all,
    plain_markdown,
    problem_lines,
    published_of,
)

CSV_COLUMNS = (
    "study", "set", "setting", "x", "row", "miou", "difference", "reference", "best", "published_miou",
    "published_source", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou", "images", "problems", "seconds",
)  # fmt: skip

_BEST = " best"


def study_text(ablation: Ablation) -> str:
    """A table a study, settings as rows and sets as columns, and under all of them the conditions.

    Figures are mIoU with, in brackets, the difference to the study's reference; the best of a column is marked; what
    papers state for just that setting stands in square brackets.
    """
    parts = []
    for findings in ablation.findings:
        study = findings.study
        table = "\n".join(aligned(table_of(findings, ablation.report)))
        parts.append(f"{study.name}: {study.title}\n{study.shows}\n\n{table}")
    return "\n\n".join([*parts, "\n".join(notes(ablation))])


def study_markdown(ablation: Ablation) -> str:
    """`study_text` with headings, Markdown tables and the best figures in bold."""
    parts = []
    for findings in ablation.findings:
        table = table_of(findings, ablation.report)
        lines = [table.heads, ["---"] * len(table.heads)]
        lines += [[emphasised(text) for text in line] for line in table.lines]
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(
            f"## {findings.study.title} (`{findings.study.name}`)\n\n{plain_markdown(findings.study.shows)}\n\n{rows}"
        )
    listed = "\n".join(f"- {plain_markdown(note)}" for note in notes(ablation))
    return "\n\n".join([*parts, listed])


def emphasised(text: str) -> str:
    """A cell as Markdown, in bold where it is marked as the best."""
    plain = plain_markdown(text.strip())
    return f"**{plain.removesuffix(_BEST)}**" if plain.endswith(_BEST) else plain


def table_of(findings: Findings, report: Report) -> Table:
    """The cells of a study: its x, a column a set and, of several, their mean."""
    sets = list(report.sets.values())
    columns = [column_of(findings, figures) for figures in sets]
    heads = [findings.study.x_label, *(figures.dataset for figures in sets)]
    if len(sets) > 1:
        columns.append(mean_column(findings, sets))
        heads.append("mean")
    labels = [line.label for line in findings.shown]
    return Table(heads, [[*texts] for texts in zip(labels, *columns, strict=True)])


def column_of(findings: Findings, figures: Evaluation) -> list[str]:
    """A study's cells for one set."""
    alone = findings.reference.miou(figures)
    values = [line.miou(figures) for line in findings.shown]
    references = [
        None if findings.is_reference(line, figures.dataset) else alone for line in findings.shown
    ]
    stated = [stated_miou(line, figures) for line in findings.shown]
    return cells(values, references, stated)


def mean_column(findings: Findings, sets: list[Evaluation]) -> list[str]:
    """A study's cells for the mean over the sets."""
    alone = mean_of_all([findings.reference.miou(figures) for figures in sets])
    values = [mean_of_all([line.miou(figures) for figures in sets]) for line in findings.shown]
    references = [
        None if line.rows == findings.reference.rows else alone for line in findings.shown
    ]
    return cells(values, references, [""] * len(values))


def cells(
    values: list[float | None], references: list[float | None], stated: list[str]
) -> list[str]:
    """Figures with their differences, what is published, and the best one marked."""
    best = max((value for value in values if value is not None), default=None)
    return [
        f"{cell(value, reference)}{text}{_BEST if value is not None and value == best else ''}"
        for value, reference, text in zip(values, references, stated, strict=True)
    ]


def stated_miou(line: Line, figures: Evaluation) -> str:
    """What papers state for a setting on a set, to stand behind its figure; nothing where they do not."""
    known = published_of(figures, line.rows[figures.dataset])
    return "" if known is None else f" [{known.miou:.1f}]"


def notes(ablation: Ablation) -> Iterator[str]:
    """How to read the tables, the conditions, and images that are left out."""
    sets = ablation.report.sets.values()
    yield "mIoU in per cent; best: the highest of its column, before rounding."
    references: dict[str, list[str]] = {}
    for findings in ablation.findings:
        references.setdefault(findings.reference.label, []).append(findings.study.name)
    for label, names in references.items():
        yield f"In brackets, of {', '.join(names)}: the difference to {label}."
    yield from (f"{figures.dataset}: {conditions(figures)}" for figures in sets)
    stated = [published_of(figures, name) for figures in sets for name in figures.rows]
    for source in dict.fromkeys(known.source for known in stated if known is not None):
        yield f"In square brackets, published: {source}."
    count = sum(map(left_out, sets))
    if count:
        images = "1 image is" if count == 1 else f"{count:,} images are"
        first = problem_lines(ablation.report)[0]
        yield f"{images} left out of the figures; the first: {first}"


def study_csv(ablation: Ablation) -> str:
    """Every figure, unrounded, as RFC 4180 has it: a line a study, set and setting; what is not there is empty."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, CSV_COLUMNS)
    writer.writeheader()
    for findings in ablation.findings:
        for figures in ablation.report.sets.values():
            writer.writerows(csv_lines(findings, figures))
    return stream.getvalue()


def csv_lines(findings: Findings, figures: Evaluation) -> Iterator[dict[str, Any]]:
    """A study's settings on one set, by `CSV_COLUMNS`."""
    alone = findings.reference.miou(figures)
    measured = [line.miou(figures) for line in findings.shown]
    best = max((value for value in measured if value is not None), default=None)
    for line, miou in zip(findings.shown, measured, strict=True):
        name = line.rows[figures.dataset]
        row, known = figures.rows[name], published_of(figures, name)
        scores = row.scores
        yield {
            "study": findings.study.name,
            "set": figures.dataset,
            "setting": line.label,
            "x": line.x,
            "row": name,
            "miou": miou,
            "difference": None if miou is None or alone is None else miou - alone,
            "reference": findings.reference.rows[figures.dataset],
            "best": miou is not None and miou == best,
            "published_miou": known and known.miou,
            "published_source": known and known.source,
            "mean_accuracy": scores.mean_accuracy,
            "pixel_accuracy": scores.pixel_accuracy,
            "frequency_weighted_iou": scores.frequency_weighted_iou,
            "images": row.images,
            "problems": len(row.problems),
            "seconds": row.cost.seconds,
        }
