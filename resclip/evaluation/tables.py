"""Reports and ablations as tables: aligned text, Markdown and CSV, with the notes that they need to be understood."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from tabulate import tabulate

from resclip.evaluation.ablation import Ablation, Findings
from resclip.evaluation.coverage import Coverage
from resclip.evaluation.datasets.base import Problem, cut, names_in_words
from resclip.evaluation.published import Published, published
from resclip.evaluation.published_ablations import published_setting
from resclip.evaluation.report import DatasetReport, MethodResult, Report

RESCLIP = "naclip+rcs+sfr"
"""The row of the method "resclip"."""

MODULE_COLUMNS = {"": "none", "+rcs": "RCS", "+sfr": "SFR", "+rcs+sfr": "RCS + SFR"}
"""Headers of a table of bases by modules, by what follows the base in a row's name."""

PROBLEMS_SHOWN = 5
"""How many left-out images of a dataset the notes name; `problem_lines` has them all."""

REPORT_CSV = (
    "set", "method", "miou", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou", "images", "problems",
    "seconds", "images_per_second", "peak_memory", "published_miou", "published_method", "published_source",
    "counted_pixels", "ignored_pixels", "unlabelled_pixels", "iou", "accuracy",
)  # fmt: skip

ABLATION_CSV = (
    "study", "set", "setting", "x", "row", "miou", "difference", "reference", "best", "published_miou",
    "published_source", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou", "images", "problems", "seconds",
)  # fmt: skip

Stated: TypeAlias = Mapping[tuple[str, str], Published | None]
"""What is published for each row, by dataset and method."""

_MISSING = f"{'-':>5}"
_BEST = " best"


class Tables(NamedTuple):
    """The same figures in three forms."""

    text: str
    markdown: str
    csv: str


def report_tables(report: Report) -> Tables:
    """Methods as rows.

    Several datasets: a column each with mIoU and, in brackets, its change from the base, and their mean for rows that
    have them all; published figures stand in a line of their own under the measured ones. One dataset: a column a
    figure. The CSV has a line per dataset and method with every figure, unrounded: shares in per cent, memory in bytes,
    missing values empty, the IoU and accuracy of each class as JSON objects.
    """
    columns = list(report.datasets.values())
    stated = published_figures(columns)
    if len(columns) == 1:
        headers, lines = figures_of_one(columns[0], stated)
        notes = [
            "Per cent; change: of the mIoU, from the base alone; weighted IoU: by the classes' shares of the pixels."
        ]
        machines = [
            f"{row.machine}, {row.processes} process{'' if row.processes == 1 else 'es'} of {row.threads} threads"
            for row in columns[0].rows.values()
        ]
        notes += [f"Images per second: {text}." for text in dict.fromkeys(machines)]
    else:
        headers, lines = figures_by_dataset(report, stated)
        notes = [
            "mIoU in per cent, in brackets its change from the base alone; mean: of rows that have every dataset."
        ]
    if RESCLIP in report.methods:
        notes.append(f"{RESCLIP} is resclip.")
    notes += [f"{column.dataset}: {conditions(column)}" for column in columns]
    sources: dict[str, list[str]] = {}
    for figure in stated.values():
        if figure is not None:
            sources.setdefault(figure.source, []).append(figure.method)
    notes += [
        f"Published: {', '.join(dict.fromkeys(names))}: {source}."
        for source, names in sources.items()
    ]
    for column in columns:
        notes += coverage_notes(column)
        notes += problem_notes(column)
    return Tables(
        f"{aligned(headers, lines)}\n\n" + "\n".join(notes),
        f"{markdown(headers, lines)}\n\n{markdown_list(notes)}",
        csv_text(REPORT_CSV, report_csv_lines(columns, stated)),
    )


def figures_of_one(column: DatasetReport, stated: Stated) -> tuple[list[str], list[list[str]]]:
    """Headers and lines for one dataset: a line per method, a column per figure."""
    headers = ["method", f"mIoU{'*' if left_out(column) else ''}", "change", "published"]
    headers += ["mean accuracy", "pixel accuracy", "weighted IoU", "images/s"]
    lines = []
    for name, row in column.rows.items():
        scores, figure, speed = row.scores, stated[column.dataset, name], images_per_second(row)
        base = base_of(name)
        from_base = "" if base == name else change(scores.miou, miou_of(column, base))
        lines.append(
            [
                name,
                number(scores.miou),
                f"{from_base or '-':>5}",
                number(None if figure is None else figure.miou),
                number(scores.mean_accuracy),
                number(scores.pixel_accuracy),
                number(scores.frequency_weighted_iou),
                _MISSING if speed is None else f"{speed:7.2f}",
            ]
        )
    return headers, lines


def figures_by_dataset(report: Report, stated: Stated) -> tuple[list[str], list[list[str]]]:
    """Headers and lines for several datasets: a column each, and the mean."""
    columns = list(report.datasets.values())
    names = [f"{column.dataset}{'*' if left_out(column) else ''}" for column in columns]

    def measured(name: str) -> list[float | None]:
        return [miou_of(column, name) for column in columns]

    def claimed(name: str) -> list[float | None]:
        figures = [stated.get((column.dataset, name)) for column in columns]
        return [None if figure is None else figure.miou for figure in figures]

    lines = []
    for name in report.methods:
        base = base_of(name)
        for label, values_of in ((name, measured), ("  published", claimed)):
            values = values_of(name)
            if values_of is measured or any(value is not None for value in values):
                alone = values_of(base) if base != name else [None] * len(values)
                pairs = zip([*values, mean_of_all(values)], [*alone, mean_of_all(alone)], strict=True)  # fmt: skip
                lines.append([label, *(cell(value, reference) for value, reference in pairs)])
    return ["method", *names, "mean"], lines


def report_csv_lines(columns: Sequence[DatasetReport], stated: Stated) -> Iterator[dict[str, Any]]:
    """A line per dataset and method, by the names in `REPORT_CSV`."""
    for column in columns:
        for name, row in column.rows.items():
            scores, figure = row.scores, stated[column.dataset, name]
            by_class = {
                kind: json.dumps(dict(zip(column.classes, values, strict=True)), ensure_ascii=False)
                for kind, values in (("iou", scores.iou), ("accuracy", scores.accuracy))
            }
            yield {
                "set": column.dataset,
                "method": name,
                **figures_for_csv(row, figure),
                "images_per_second": images_per_second(row),
                "peak_memory": row.peak_memory,
                "published_method": figure and figure.method,
                "counted_pixels": row.coverage.counted,
                "ignored_pixels": row.coverage.ignored,
                "unlabelled_pixels": row.coverage.unlabelled,
                **by_class,
            }


def figures_for_csv(row: MethodResult, figure: Published | None) -> dict[str, Any]:
    """The values that both CSV files have of a row."""
    scores = row.scores
    return {
        "miou": scores.miou,
        "mean_accuracy": scores.mean_accuracy,
        "pixel_accuracy": scores.pixel_accuracy,
        "frequency_weighted_iou": scores.frequency_weighted_iou,
        "images": row.images,
        "problems": len(row.problems),
        "seconds": row.seconds,
        "published_miou": figure and figure.miou,
        "published_source": figure and figure.source,
    }


def ablation_tables(ablation: Ablation) -> Tables:
    """A table per study, settings as rows and datasets as columns, and under all of them the notes.

    Figures are mIoU with, in brackets, the difference to the study's reference; the best of a column is marked, in
    Markdown in bold; what papers state for just that setting stands in square brackets.
    """
    columns = list(ablation.report.datasets.values())
    stated = {**published_figures(columns), **published_settings(ablation)}
    texts, sections = [], []
    for findings in ablation.findings:
        study = findings.study
        headers, lines = study_figures(findings, columns, stated)
        texts.append(f"{study.name}: {study.title}\n{study.shows}\n\n{aligned(headers, lines)}")
        heading = f"## {study.title} (`{study.name}`)\n\n{escaped(study.shows)}"
        sections.append(f"{heading}\n\n{markdown(headers, lines)}")
    notes = list(ablation_notes(ablation, columns, stated))
    return Tables(
        "\n\n".join([*texts, "\n".join(notes)]),
        "\n\n".join([*sections, markdown_list(notes)]),
        csv_text(ABLATION_CSV, ablation_csv_lines(ablation, columns, stated)),
    )


def study_figures(
    findings: Findings,
    columns: Sequence[DatasetReport],
    stated: Stated,
) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of a study: its settings, a column per dataset and, of several, their mean."""
    reference, shown = findings.reference, findings.shown
    headers = [findings.study.x_label, *(column.dataset for column in columns)]
    cells = [[setting.label for setting in shown]]
    for column in columns:
        figures = [stated[column.dataset, setting.rows[column.dataset]] for setting in shown]
        cells.append(
            study_column(
                [setting.miou(column) for setting in shown],
                [
                    None if setting.has_row_of(reference, column) else reference.miou(column)
                    for setting in shown
                ],
                ["" if figure is None else f" [{figure.miou:.1f}]" for figure in figures],
            )
        )
    if len(columns) > 1:
        headers.append("mean")
        alone = mean_of_all([reference.miou(column) for column in columns])
        cells.append(
            study_column(
                [mean_of_all([setting.miou(column) for column in columns]) for setting in shown],
                [None if setting.rows == reference.rows else alone for setting in shown],
                [""] * len(shown),
            )
        )
    return headers, [list(line) for line in zip(*cells, strict=True)]


def study_column(
    values: Sequence[float | None], references: Sequence[float | None], stated: Sequence[str]
) -> list[str]:
    """Figures with their differences and what is published, the best one marked."""
    best = best_of(values)
    return [
        f"{cell(value, reference)}{text}{_BEST if value is not None and value == best else ''}"
        for value, reference, text in zip(values, references, stated, strict=True)
    ]


def ablation_notes(
    ablation: Ablation,
    columns: Sequence[DatasetReport],
    stated: Stated,
) -> Iterator[str]:
    """How to read the tables, the conditions, and images that are left out."""
    yield "mIoU in per cent; best: the highest of its column, before rounding."
    references: dict[str, list[str]] = {}
    for findings in ablation.findings:
        references.setdefault(findings.reference.label, []).append(findings.study.name)
    for label, names in references.items():
        yield f"In brackets, of {', '.join(names)}: the difference to {label}."
    yield from (f"{column.dataset}: {conditions(column)}" for column in columns)
    for source in dict.fromkeys(figure.source for figure in stated.values() if figure is not None):
        yield f"In square brackets, published: {source}."
    for column in columns:
        yield from coverage_notes(column)
    count = sum(map(left_out, columns))
    if count:
        yield f"{left_out_in_words(count)}; the first: {problem_lines(ablation.report)[0]}"


def ablation_csv_lines(
    ablation: Ablation,
    columns: Sequence[DatasetReport],
    stated: Stated,
) -> Iterator[dict[str, Any]]:
    """A line per study, dataset and setting, by the names in `ABLATION_CSV`."""
    for findings in ablation.findings:
        for column in columns:
            alone = findings.reference.miou(column)
            measured = [setting.miou(column) for setting in findings.shown]
            best = best_of(measured)
            for setting, miou in zip(findings.shown, measured, strict=True):
                name = setting.rows[column.dataset]
                yield {
                    "study": findings.study.name,
                    "set": column.dataset,
                    "setting": setting.label,
                    "x": setting.x,
                    "row": name,
                    **figures_for_csv(column.rows[name], stated[column.dataset, name]),
                    "difference": None if miou is None or alone is None else miou - alone,
                    "reference": findings.reference.rows[column.dataset],
                    "best": miou is not None and miou == best,
                }


def class_tables(column: DatasetReport) -> str:
    """The IoU of every class as text: a table per base, a column per combination of modules."""
    tables = []
    for base in bases_of(column.rows):
        rows = {name: row for name, row in column.rows.items() if base_of(name) == base}
        # Behind the usual columns stands whatever else follows the base in a row's name.
        suffixes = [name.removeprefix(base) for name in rows]
        other = {suffix: suffix.lstrip("+") for suffix in suffixes if suffix not in MODULE_COLUMNS}
        heads = {**MODULE_COLUMNS, **other}
        lines = []
        for index, label in enumerate(column.classes):
            values = {name: row.scores.iou[index] for name, row in rows.items()}
            alone, *others = module_values(base, values, heads)
            lines.append([label, cell(alone, None), *(cell(value, alone) for value in others)])
        tables.append(aligned([base, *heads.values()], lines))
    return "\n\n".join(tables)


def module_values(
    base: str, values: Mapping[str, float | None], suffixes: Iterable[str] = MODULE_COLUMNS
) -> list[float | None]:
    """A base's values with each combination of modules; None for a row that is missing."""
    return [values.get(base + suffix) for suffix in suffixes]


def base_of(name: str) -> str:
    """The base of a row: "naclip" of "naclip+rcs"."""
    return name.partition("+")[0]


def bases_of(names: Iterable[str]) -> list[str]:
    """The bases of some rows, each once, in order."""
    return list(dict.fromkeys(map(base_of, names)))


# Notes


def conditions(column: DatasetReport) -> str:
    """What the figures were measured on and with, as a sentence: of the settings, those that all rows have alike."""
    rows = list(column.rows.values())
    settings = dict(column.settings)
    if rows:
        settings |= {
            option: value
            for option, value in rows[0].options.items()
            if all(row.options.get(option) == value for row in rows)
        }
    images = [column.description]
    if settings.get("short_side"):
        images.append(f"short side {settings['short_side']}")
    if "window" not in settings:
        images.append("windows by method")
    elif settings["window"] == 0:
        images.append("whole")
    else:
        stride = f" every {settings['stride']} pixels" if "stride" in settings else ""
        images.append(f"windows of {settings['window']}{stride}")
    if settings.get("refine_iterations"):
        images.append(f"{settings['refine_iterations']} iterations of PAMR")
    model = []
    if settings.get("model"):
        weights = f" ({settings['pretrained']})" if settings.get("pretrained") else ""
        model.append(f"{settings['model']}{weights}")
    if settings.get("preset"):
        model.append(f"preset {settings['preset']}")
    model += [str(settings[name]) for name in ("device", "precision") if name in settings]
    model += [f"{name} {settings[name]}" for name in ("resclip", "torch") if name in settings]
    return f"{', '.join(images)}; {', '.join(model)}."


def published_figures(columns: Iterable[DatasetReport]) -> Stated:
    """The published figure for each row as it was measured."""
    stated = {}
    for column in columns:
        for name, row in column.rows.items():
            settings = {**column.settings, **row.options}
            model, pretrained = settings.get("model", ""), settings.get("pretrained")
            figure = published(name, column.dataset, model, pretrained, settings)
            stated[column.dataset, name] = figure
    return stated


def published_settings(ablation: Ablation) -> Stated:
    """The figures that papers state for settings of their own studies, by the rows that have these settings."""
    stated = {}
    for findings in ablation.findings:
        for column in ablation.report.datasets.values():
            for setting in findings.settings:
                row = setting.rows[column.dataset]
                settings = {**column.settings, **column.rows[row].options}
                model, pretrained = settings.get("model", ""), settings.get("pretrained")
                figure = published_setting(
                    findings.study.name, setting.label, column.dataset, model, pretrained, settings
                )
                if figure is not None:
                    stated[column.dataset, row] = figure
    return stated


def problem_lines(report: Report) -> list[str]:
    """Every image that is left out, a line each: the dataset, its name, why, and the rows unless it is all of them."""
    columns = report.datasets.values()
    return [f"{column.dataset}, {line}" for column in columns for line in problems_of(column)]


def problems_of(column: DatasetReport) -> Iterator[str]:
    """A line per problem of a dataset; one that several rows share is listed once."""
    rows: dict[Problem, list[str]] = {}
    for name, row in column.rows.items():
        for problem in row.problems:
            rows.setdefault(problem, []).append(name)
    for problem, names in rows.items():
        only = "" if len(names) == len(column.rows) else f" (only {', '.join(names)})"
        yield f"{cut(problem.name, 200)}: {' '.join(problem.reason.split())}{only}"


def coverage_notes(column: DatasetReport) -> Iterator[str]:
    """What of a dataset's masks is in no figure, and what seems wrong with them; which rows, unless it is all."""
    rows: dict[str, list[str]] = {}
    for name, row in column.rows.items():
        for sentence in coverage_sentences(row.coverage):
            rows.setdefault(sentence, []).append(name)
    for sentence, names in rows.items():
        only = "" if len(names) == len(column.rows) else f" (only {', '.join(names)})"
        yield f"{column.dataset}: {sentence}{only}"


def hint_notes(report: Report) -> list[str]:
    """What seems wrong with the masks of datasets, a line each."""
    hints = {
        f"{column.dataset}: {row.coverage.hint}": None
        for column in report.datasets.values()
        for row in column.rows.values()
        if row.coverage.hint
    }
    return list(hints)


def coverage_sentences(coverage: Coverage) -> Iterator[str]:
    """What is worth saying: nothing where every pixel counts and each class occurs."""
    if coverage.ignored:
        share = percentage(coverage.ignored, coverage.counted + coverage.ignored)
        yield f"{share} of the masks' pixels do not count."
    if coverage.missing and coverage.counted:
        count = len(coverage.missing)
        yield f"{count} class{'' if count == 1 else 'es'} without ground truth: {names_in_words(coverage.missing)}."
    if coverage.unlabelled:
        share = percentage(coverage.unlabelled, coverage.counted)
        yield f"{share} of the pixels that count have no image data: each is counted as a miss."
    if coverage.hint:
        yield coverage.hint


def percentage(part: int, whole: int) -> str:
    """A share that is not 0, to one decimal: what rounds to 0.0 or 100.0 without being it is said to be near."""
    share = 100 * part / whole
    if share < 0.05:
        return "less than 0.1 %"
    if part < whole and share >= 99.95:
        return "more than 99.9 %"
    return f"{share:.1f} %"


def problem_notes(column: DatasetReport) -> Iterator[str]:
    """How many images of a dataset are left out, and the first of the reasons."""
    count = left_out(column)
    if count:
        yield f"* {column.dataset}: {left_out_in_words(count)}:"
        lines = list(problems_of(column))
        yield from (f"  {line}" for line in lines[:PROBLEMS_SHOWN])
        if len(lines) > PROBLEMS_SHOWN:
            yield f"  and {len(lines) - PROBLEMS_SHOWN:,} more, which the report's JSON lists"


def left_out(column: DatasetReport) -> int:
    """How many images some row of the dataset is without."""
    return len({problem.name for row in column.rows.values() for problem in row.problems})


def left_out_in_words(count: int) -> str:
    """That so many images are in no figure."""
    images = "1 image is" if count == 1 else f"{count:,} images are"
    return f"{images} left out of the figures"


# Cells


def miou_of(column: DatasetReport, name: str) -> float | None:
    """A row's mIoU; None if it was not measured."""
    row = column.rows.get(name)
    return None if row is None else row.scores.miou


def images_per_second(row: MethodResult) -> float | None:
    """The speed, as far as it is known."""
    return row.images / row.seconds if row.images and row.seconds else None


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is missing, as means over different datasets would not compare."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def best_of(values: Iterable[float | None]) -> float | None:
    """The highest of the figures that are known."""
    return max((value for value in values if value is not None), default=None)


def cell(value: float | None, reference: float | None) -> str:
    """A figure with its change from a reference if both are known; "-" if it was not measured."""
    difference = change(value, reference)
    return f"{number(value)} ({difference})" if difference else number(value)


def number(value: float | None) -> str:
    """To one decimal, aligned up to 100.0; "-" for None."""
    return _MISSING if value is None else f"{value:5.1f}"


def change(value: float | None, reference: float | None) -> str:
    """The signed difference to one decimal; nothing if one of the two is missing."""
    if value is None or reference is None:
        return ""
    return f"{round(value - reference, 1) + 0.0:+.1f}"  # -0.0 + 0.0 is 0.0


# Forms


def aligned(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as text, without rules."""
    # As `headers=` they would be padded.
    text: str = tabulate(
        [headers, *lines], tablefmt="plain", disable_numparse=True, preserve_whitespace=True
    )
    return "\n".join(line.rstrip() for line in text.splitlines())


def markdown(headers: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; cells that are marked as the best are bold."""
    rows = []
    for line in lines:
        cells = [escaped(text.strip()) for text in line]
        rows.append(
            [f"**{text.removesuffix(_BEST)}**" if text.endswith(_BEST) else text for text in cells]
        )
    text: str = tabulate(
        rows, list(map(escaped, headers)), tablefmt="github", disable_numparse=True
    )
    return text


def markdown_list(notes: Iterable[str]) -> str:
    """A list in Markdown; a note that is indented stands below the one before."""
    lines = []
    for note in notes:
        text = note.lstrip()
        lines.append(f"{note[: len(note) - len(text)]}- {escaped(text)}")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """The text with what would end a Markdown cell or start an emphasis taken literally."""
    return text.replace("|", "\\|").replace("*", "\\*")


def csv_text(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """As RFC 4180 has it: lines end in CR LF, and what needs quotes has them."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()
