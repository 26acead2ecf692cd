"""What stands under a table of figures: how to read it, the conditions, the sources, and pictures that are left out.

Knows figures and the settings that they were taken with. Knows no column and no cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from resclip.evaluation.datasets.samples import Problem
from resclip.evaluation.published import Published, published
from resclip.evaluation.record import Evaluation, Report


RESCLIP = "naclip+rcs+sfr"
"""The row of the method "resclip"."""
_PROBLEMS_SHOWN = 5  # Of a set, under a table; `problem_lines` has them all.


def notes(report: Report) -> list[str]:
    """What stands under a table: how to read it, conditions, sources, and pictures that are left out."""
    sets = list(report.sets.values())
    if len(sets) == 1:
        lines = [
            "Per cent; change: of the mIoU, from the base alone; weighted IoU: by the classes' shares of the pixels."
        ]
        lines += [f"Pictures per second: {text}." for text in machines(sets[0])]
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
        first = rows[0].knobs.items()
        settings |= {
            knob: value
            for knob, value in first
            if all(row.knobs.get(knob) == value for row in rows)
        }
    pictures = [evaluation.description, *windows_in_words(settings)]
    return f"{', '.join(pictures)}; {', '.join(model_in_words(settings))}."


def windows_in_words(settings: Mapping[str, Any]) -> Iterator[str]:
    """How pictures are prepared and cut."""
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
    settings = {**figures.settings, **row.knobs}
    model, pretrained = settings.get("model", ""), settings.get("pretrained")
    return published(name, figures.dataset, model, pretrained, settings)


def problem_lines(report: Report) -> list[str]:
    """Every picture that is left out, a line each: the set, its name, why, and the rows unless it is all of them."""
    sets = report.sets.values()
    return [f"{figures.dataset}, {line}" for figures in sets for line in problems_of(figures)]


def problem_notes(figures: Evaluation) -> Iterator[str]:
    """How many pictures of a set are left out, and the first of the reasons."""
    count = left_out(figures)
    if not count:
        return
    pictures = "1 picture is" if count == 1 else f"{count:,} pictures are"
    yield f"* {figures.dataset}: {pictures} left out of the figures:"
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
    """Number of pictures that a row of the set is without."""
    return len({problem.name for row in figures.rows.values() for problem in row.problems})
