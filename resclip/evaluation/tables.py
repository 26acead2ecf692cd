"""Figures as text: methods by datasets for a report, bases by modules for one set, and the same as Markdown and CSV.

Knows how a row's name is made of a base and modules ("naclip+rcs"). Knows no metric and no model.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.published import Published, published
from resclip.evaluation.report import Evaluation, Report, Row

RESCLIP = "naclip+rcs+sfr"
"""The row of the method "resclip"."""
_PROBLEMS_SHOWN = 5  # Of a set, under a table; `problem_lines` has them all.


def notes(report: Report) -> list[str]:
    """What stands under a table: how to read it, conditions, sources, and images that are left out."""
    sets = list(report.sets.values())
    if len(sets) == 1:
        lines = [
            "Per cent; change: of the mIoU, from the base alone; weighted IoU: by the classes' shares of the pixels."
        ]
        lines += [f"Images per second: {text}." for text in machines(sets[0])]
    else:
        lines = [
            "mIoU in per cent, in brackets its change from the base alone; mean: of rows that have every set."
        ]
    if RESCLIP in report.rows:
        lines.append(f"{RESCLIP} is resclip.")
    lines += [f"{figures.dataset}: {conditions(figures)}" for figures in sets]
    methods: dict[str, list[str]] = {}
    for figures in sets:
        for name in figures.rows:
            known = published_of(figures, name)
            if known is not None:
                methods.setdefault(known.source, []).append(known.method)
    lines += [
        f"Published: {', '.join(dict.fromkeys(names))}: {source}."
        for source, names in methods.items()
    ]
    for figures in sets:
        lines += problem_notes(figures)
    return lines


def conditions(evaluation: Evaluation) -> str:
    """What the figures were measured on and with, as a sentence: of the settings, those that all rows have alike."""
    rows = list(evaluation.rows.values())
    settings: dict[str, Any] = {**evaluation.settings}
    if rows:
        first = rows[0].options.items()
        settings |= {
            option: value
            for option, value in first
            if all(row.options.get(option) == value for row in rows)
        }
    images = [evaluation.description, *windows_in_words(settings)]
    return f"{', '.join(images)}; {', '.join(model_in_words(settings))}."


def windows_in_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """How images are prepared and cut."""
    if settings.get("short_side"):
        yield f"short side {settings['short_side']}"
    if "window" not in settings:
        yield "windows by method"
    elif settings["window"] == 0:
        yield "whole"
    else:
        stride = f" every {settings['stride']} pixels" if "stride" in settings else ""
        yield f"windows of {settings['window']}{stride}"
    if settings.get("refine_iterations"):
        yield f"{settings['refine_iterations']} iterations of PAMR"


def model_in_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """Model, preset, device and versions, as far as they are known."""
    if settings.get("model"):
        weights = f" ({settings['pretrained']})" if settings.get("pretrained") else ""
        yield f"{settings['model']}{weights}"
    if settings.get("preset"):
        yield f"preset {settings['preset']}"
    yield from (str(settings[name]) for name in ("device", "precision") if name in settings)
    yield from (f"{name} {settings[name]}" for name in ("resclip", "torch") if name in settings)


def machines(figures: Evaluation) -> list[str]:
    """What each row was measured on, each once."""
    costs = [row.cost for row in figures.rows.values()]
    texts = [
        f"{cost.machine}, {cost.processes} process{'' if cost.processes == 1 else 'es'} of {cost.threads} threads"
        for cost in costs
    ]
    return list(dict.fromkeys(texts))


def published_of(figures: Evaluation, name: str) -> Published | None:
    """The published figure for a row as it was measured."""
    row = figures.rows.get(name)
    if row is None:
        return None
    settings = {**figures.settings, **row.options}
    model, pretrained = settings.get("model", ""), settings.get("pretrained")
    return published(name, figures.dataset, model, pretrained, settings)


def problem_lines(report: Report) -> list[str]:
    """Every image that is left out, a line each: the set, its name, why, and the rows unless it is all of them."""
    sets = report.sets.values()
    return [f"{figures.dataset}, {line}" for figures in sets for line in problems_of(figures)]


def problem_notes(figures: Evaluation) -> Iterator[str]:
    """How many images of a set are left out, and the first of the reasons."""
    count = left_out(figures)
    if not count:
        return
    images = "1 image is" if count == 1 else f"{count:,} images are"
    yield f"* {figures.dataset}: {images} left out of the figures:"
    lines = list(problems_of(figures))
    yield from (f"  {line}" for line in lines[:_PROBLEMS_SHOWN])
    if len(lines) > _PROBLEMS_SHOWN:
        yield f"  and {len(lines) - _PROBLEMS_SHOWN:,} more, which the report's JSON lists"


def problems_of(figures: Evaluation) -> Iterator[str]:
    """A line a problem of a set; one that several rows share is there once."""
    rows: dict[Problem, list[str]] = {}
    for name, row in figures.rows.items():
        for problem in row.problems:
            rows.setdefault(problem, []).append(name)
    for problem, names in rows.items():
        where = "" if len(names) == len(figures.rows) else f" (only {', '.join(names)})"
        yield f"{problem.name}: {' '.join(problem.reason.split())}{where}"


def left_out(figures: Evaluation) -> int:
    """Number of images that a row of the set is without."""
    return len({problem.name for row in figures.rows.values() for problem in row.problems})


__all__ = [
    "COLUMNS",
    "bases_of",
    "class_tables",
    "conditions",
    "csv_table",
    "markdown_table",
    "problem_lines",
    "report_table",
    "row_of",
]

COLUMNS = {"": "none", "+rcs": "RCS", "+sfr": "SFR", "+rcs+sfr": "RCS + SFR"}
"""Heads of the columns by what stands behind the base's name."""

CSV_COLUMNS = (
    "set", "method", "miou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou", "images", "problems",
    "seconds", "images_per_second", "peak_memory", "published_miou", "published_method", "published_source",
    "iou", "accuracy",
)  # fmt: skip

_MISSING = f"{'-':>5}"


@dataclass(frozen=True)
class Table:
    """Heads, and a line a row; as many cells as heads in each."""

    heads: list[str]
    lines: list[list[str]]


def report_table(report: Report) -> str:
    """Aligned text, methods as rows, and under it what it needs to be understood.

    Several sets: a column each with mIoU and, in brackets, its change from the base, and their mean where a row has
    them all; published figures stand in a line of their own under the measured ones. One set: a column a figure.
    """
    return "\n\n".join(("\n".join(aligned(table_of(report))), "\n".join(notes(report))))


def markdown_table(report: Report) -> str:
    """`report_table` as a Markdown table, and its notes as a list."""
    table = table_of(report)
    lines = [table.heads, ["---"] * len(table.heads), *table.lines]
    rows = [f"| {' | '.join(plain_markdown(cell.strip()) for cell in line)} |" for line in lines]
    listed = [f"{indent_of(note)}- {plain_markdown(note.strip())}" for note in notes(report)]
    return "\n".join([*rows, "", *listed])


def indent_of(line: str) -> str:
    """The spaces that a line starts with."""
    return line[: len(line) - len(line.lstrip())]


def plain_markdown(text: str) -> str:
    """The text with what would end a cell or start an emphasis taken at its word."""
    return text.replace("|", "\\|").replace("*", "\\*")


def csv_table(report: Report) -> str:
    """Every figure, unrounded, as RFC 4180 has it: a line a set and row, lines ended by CR LF.

    Shares are in per cent, memory in bytes; what is not there is empty. The last two columns hold the IoU and the
    accuracy of each class as JSON objects.
    """
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, CSV_COLUMNS)
    writer.writeheader()
    for figures in report.sets.values():
        for name, row in figures.rows.items():
            writer.writerow(csv_line(figures, name, row))
    return stream.getvalue()


def csv_line(figures: Evaluation, name: str, row: Row) -> dict[str, Any]:
    """A row's values by `CSV_COLUMNS`."""
    scores, known = row.scores, published_of(figures, name)
    by_class = {
        kind: json.dumps(
            dict(zip(figures.classes, getattr(scores, kind), strict=True)), ensure_ascii=False
        )
        for kind in ("iou", "accuracy")
    }
    return {
        "set": figures.dataset,
        "method": name,
        "miou": scores.miou,
        "mean_accuracy": scores.mean_accuracy,
        "pixel_accuracy": scores.pixel_accuracy,
        "frequency_weighted_iou": scores.frequency_weighted_iou,
        "images": row.images,
        "problems": len(row.problems),
        "seconds": row.cost.seconds,
        "images_per_second": rate(row),
        "peak_memory": row.cost.peak_memory,
        "published_miou": known and known.miou,
        "published_method": known and known.method,
        "published_source": known and known.source,
        **by_class,
    }


def table_of(report: Report) -> Table:
    """The cells of `report_table`."""
    if len(report.sets) == 1:
        return figures_of_one(*report.sets.values())
    return figures_by_set(report)


def figures_by_set(report: Report) -> Table:
    """A line a method and, where there are any, one with its published figures; a column a set, and the mean."""
    sets = list(report.sets.values())
    heads = ["method", *(marked(figures) for figures in sets), "mean"]
    lines = []
    for name in report.rows:
        values = [miou(some, name) for some in sets]
        lines.append([name, *cells(values, [change_base(miou, some, name) for some in sets])])
        stated = [stated_miou(some, name) for some in sets]
        if any(value is not None for value in stated):
            alone = [change_base(stated_miou, some, name) for some in sets]
            lines.append(["  published", *cells(stated, alone)])
    return Table(heads, lines)


def cells(values: Sequence[float | None], alone: Sequence[float | None]) -> list[str]:
    """A cell a set and one for the mean, each with its change from the base's value, where `alone` has it."""
    means = mean_of_all(values), mean_of_all(alone)
    return [cell(value, base) for value, base in [*zip(values, alone, strict=True), means]]


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean, where no value is missing: means over different sets would not compare."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def figures_of_one(figures: Evaluation) -> Table:
    """A line a method, a column a figure."""
    heads = ["method", f"mIoU{'*' if left_out(figures) else ''}", "change", "published"]
    heads += ["mean accuracy", "pixel accuracy", "weighted IoU", "images/s"]
    lines = []
    for name, row in figures.rows.items():
        scores, speed = row.scores, rate(row)
        lines.append(
            [
                name,
                number(scores.miou),
                f"{change(scores.miou, change_base(miou, figures, name)) or '-':>5}",
                number(stated_miou(figures, name)),
                number(scores.mean_accuracy),
                number(scores.pixel_accuracy),
                number(scores.frequency_weighted_iou),
                _MISSING if speed is None else f"{speed:7.2f}",
            ]
        )
    return Table(heads, lines)


def marked(figures: Evaluation) -> str:
    """The set's name, with a star where images are left out."""
    return f"{figures.dataset}*" if left_out(figures) else figures.dataset


def rate(row: Row) -> float | None:
    """Images per second, as far as both are known."""
    return row.images / row.cost.seconds if row.images and row.cost.seconds else None


def change_base(
    value_of: Callable[[Evaluation, str], float | None], figures: Evaluation, name: str
) -> float | None:
    """The base's value that a row's is compared with; None for the base itself."""
    base = base_of(name)
    return None if base == name else value_of(figures, base)


def miou(figures: Evaluation, name: str) -> float | None:
    """A row's mIoU; None where it was not measured."""
    row = figures.rows.get(name)
    return None if row is None else row.scores.miou


def stated_miou(figures: Evaluation, name: str) -> float | None:
    """The published mIoU for a row as it was measured."""
    known = published_of(figures, name)
    return None if known is None else known.miou


def base_of(name: str) -> str:
    """The base of a row: "naclip" of "naclip+rcs"."""
    return name.partition("+")[0]


def bases_of(names: Iterable[str]) -> list[str]:
    """The bases of some rows, each once, in order."""
    return list(dict.fromkeys(map(base_of, names)))


def row_of(
    base: str, values: Mapping[str, float | None], columns: Iterable[str] = COLUMNS
) -> list[float | None]:
    """A base's figures in the order of `columns`; None for a row that is not there."""
    return [values.get(base + column) for column in columns]


def class_tables(evaluation: Evaluation) -> str:
    """The IoU of every class, a table a base and a column a combination of modules."""
    tables = []
    for base in bases_of(evaluation.rows):
        own = {name: row for name, row in evaluation.rows.items() if base_of(name) == base}
        columns = columns_of(own)
        rows = {}
        for index, label in enumerate(evaluation.classes):
            values = {name: row.scores.iou[index] for name, row in own.items()}
            rows[label] = row_of(base, values, columns)
        tables.append(grid(base, columns, rows))
    return "\n\n".join(tables)


def columns_of(names: Iterable[str]) -> dict[str, str]:
    """`COLUMNS`, and behind them whatever else stands behind the base in some rows' names."""
    rests = [name[len(base_of(name)) :] for name in names]
    return {**COLUMNS, **{rest: rest.lstrip("+") for rest in rests if rest not in COLUMNS}}


def grid(
    corner: str, columns: Mapping[str, str], rows: Mapping[str, Sequence[float | None]]
) -> str:
    """Aligned text: a line a row, a cell a column, with its change from the first."""
    lines = []
    for name, (alone, *others) in rows.items():
        lines.append([name, cell(alone, None), *(cell(value, alone) for value in others)])
    return "\n".join(aligned(Table([corner, *columns.values()], lines)))


def aligned(table: Table) -> Iterator[str]:
    """A line of text a row, each column as wide as it needs."""
    lines = [table.heads, *table.lines]
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (f"{text:{width}}" for text, width in zip(line, widths, strict=True))
        yield "".join(padded).rstrip()


def cell(value: float | None, alone: float | None) -> str:
    """A figure with its change from the base, where that is known; "-" where it was not measured."""
    difference = change(value, alone)
    return f"{number(value)} ({difference})" if difference else number(value)


def number(value: float | None) -> str:
    """To one decimal, aligned up to 100.0; "-" for None."""
    return _MISSING if value is None else f"{value:5.1f}"


def change(value: float | None, alone: float | None) -> str:
    """The signed difference to one decimal; nothing where one of the two is not known."""
    if value is None or alone is None:
        return ""
    return f"{round(value - alone, 1) + 0.0:+.1f}"  # -0.0 + 0.0 is 0.0
