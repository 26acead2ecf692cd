"""Figures as plots: the IoU of each class as bars, and what all plots share.

Knows matplotlib, which is imported when a plot is made, but not its global state. Knows no method and no dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resclip.evaluation.ablation import Findings, Line
from resclip.evaluation.report import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from resclip.io.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = (".png", ".svg", ".pdf")
"""Endings of the files that can be written."""

# Okabe and Ito's colours, told apart in all common kinds of colour blindness; yellow, too faint for lines, comes last.
_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#4D4D4D",
    "#F0E442",
)
# After the last colour they come again, by other patterns.
_HATCHES = ("", "////", "....", "xxxx")
_INK = "#18181B"
_FAINT_INK = "#71717A"
_GRID = "#E4E4E7"

_DPI = 150
_WIDTH = 9.0  # Inches, of bars.
# Inches. An image of Agg's has at most 65,536 pixels a side: 436 inches.
_TALLEST = 240.0
_LABELLED_ROWS = 3  # With more, the figures at the ends of the bars are in each other's way.


def plot_classes(evaluation: Evaluation, path: Path) -> None:
    """The IoU of every class as horizontal bars, one colour a row, the best class on top; tall for many classes.

    Up to three rows have figures at their bars and a dashed line at their mIoU. Classes that are neither there nor
    predicted come last, without bars.

    Args:
        evaluation: with at least one row.
        path: of the file; its ending, one of `FORMATS`, decides the format.

    Raises:
        ValueError: no row, or another ending.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check_format(path)
    rows = evaluation.rows
    if not rows:
        raise ValueError(f"expected figures of at least one method on {evaluation.dataset}")
    order = sorted(range(len(evaluation.classes)), key=lambda index: rank(evaluation, index))
    names = [evaluation.classes[index] for index in order]
    # Half of a tenth of an inch is read easily as a bar; a class's name needs 0.17.
    height = min(_TALLEST - 2, len(order) * max(0.2, 0.08 + 0.11 * len(rows)))
    labels = {name: legend_line(name, row.scores.miou) for name, row in rows.items()}
    lines = math.ceil(len(rows) / legend_columns(labels.values(), _WIDTH))
    figure, axes = new_figure(_WIDTH, height + 1.3 + 0.2 * lines)
    thickness = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        places = [place - 0.4 + thickness * (number + 0.5) for place in range(len(order))]
        values = [row.scores.iou[index] for index in order]
        axes.barh(
            places,
            [value or 0.0 for value in values],
            thickness,
            label=labels[name],
            color=colour(number),
            hatch=again(_HATCHES, number),
            edgecolor="white",
            linewidth=0,
        )
        if len(rows) <= _LABELLED_ROWS:
            label_bars(axes, places, values)
            if row.scores.miou is not None:
                line = axes.axvline(row.scores.miou, color=colour(number), linestyle="--")
                line.set(linewidth=1, zorder=0.9)  # Behind the bars.
    axes.set_yticks(range(len(names)), names, fontsize=8.5, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 100 if len(rows) > _LABELLED_ROWS else 104)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="x", top=True, labeltop=True)
    axes.set_xlabel("IoU in per cent", color=_INK)
    axes.grid(axis="x", color=_GRID)
    add_legend(figure, f"{evaluation.dataset}: {evaluation.description}", list(labels.values()))
    save(figure, path)


def label_bars(axes: Axes, places: Sequence[float], values: Sequence[float | None]) -> None:
    """A figure at the end of each bar; a dash where there is none."""
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    for place, value in zip(places, values, strict=True):
        text = "–" if value is None else f"{value:.1f}"
        at = (value or 0.0) + 0.6
        axes.text(at, place, text, va="center", fontsize=6.5, color=_FAINT_INK, bbox=behind)


def legend_line(name: str, miou: float | None) -> str:
    """What the legend says of a row."""
    return name if miou is None else f"{name}: mIoU {miou:.1f}"


def legend_columns(labels: Iterable[str], width: float) -> int:
    """How many of the labels stand side by side in so many inches."""
    # A letter takes 0.08 inches, the sample of the colour and the space to the next six letters.
    return max(1, min(4, int(width / 0.08 / (max(map(len, labels)) + 6))))


def rank(evaluation: Evaluation, index: int) -> tuple[bool, float]:
    """Sorts classes by their mean over the rows, the best first, and those without any figure last."""
    every = [row.scores.iou[index] for row in evaluation.rows.values()]
    known = [value for value in every if value is not None]
    return not known, -sum(known) / len(known) if known else 0.0


def check_format(path: Path) -> None:
    """ValueError for an ending that is none of `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"expected a plot's file to end in {', '.join(FORMATS)}; got {str(path)!r}"
        )


def check_matplotlib() -> None:
    """ImportError where there is no matplotlib to plot with, and how to get it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install 'resclip[eval]'"
        ) from error


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot of so many inches, without pyplot: nothing to close, and no window anywhere."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    return figure, axes


def colour(number: int) -> str:
    """Of the row or curve of this number."""
    return _COLOURS[number % len(_COLOURS)]


def again(patterns: Sequence[str], number: int) -> str:
    """The pattern that tells a row or curve from the others of its colour."""
    return patterns[number // len(_COLOURS) % len(patterns)]


def add_legend(figure: Figure, title: str, labels: Sequence[str]) -> None:
    """The title, and below it what the colours stand for, above the plot."""
    legend = figure.legend(
        title=title,
        title_fontsize=11,
        alignment="left",
        loc="outside upper left",
        ncols=min(len(labels), legend_columns(labels, figure.get_figwidth())),
        frameon=False,
        fontsize=8.5,
        labelcolor=_INK,
    )
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)  # Names are no formulas, whatever dollar signs they hold.


def save(figure: Figure, path: Path) -> None:
    """Write the plot, whole or not at all."""
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix.lower().removeprefix("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, stream.getvalue())


_AXIS = "mIoU in per cent"
_SETTINGS = "each setting"  # In the legend.
_LEAST_RANGE = (
    2.0  # Points of mIoU that the axis spans at least: noise shall not look like a finding.
)
_MARGIN = 0.15  # Of the range, on either side.
_BEHIND = 0.9  # Of matplotlib's order of drawing, in which lines and points have 2.
_GRID = "#E4E4E7"


def plot_study(findings: Findings, figures: Evaluation, path: Path) -> None:
    """A study's mIoU on one set, and as a dashed line that of what it is compared with.

    Settings that could not be measured are left out.

    Args:
        findings: the study.
        figures: of the set, with the study's rows.
        path: of the file; its ending, one of `resclip.evaluation.plots.FORMATS`, decides the format.

    Raises:
        ValueError: nothing could be measured, or another ending.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check_format(path)
    study, reference = findings.study, findings.reference
    is_curve = study.scale != "kinds"
    # On a curve the reference is the dashed line alone: it is no point of a scale of layers or weights.
    lines = findings.lines if is_curve else findings.shown
    points = [(line, miou) for line in lines if (miou := line.miou(figures)) is not None]
    if not points:
        raise ValueError(
            f"expected at least one figure of {study.name} on {figures.dataset} to draw, got none"
        )
    alone = reference.miou(figures)
    if is_curve:
        figure, axes = new_figure(max(6.4, min(16.0, 0.55 * len(points))), 4.6)
        draw_curve(axes, points, alone, reference.label)
        axes.set_xlabel(study.x_label, parse_math=False)
    else:
        figure, axes = new_figure(6.4, 1.5 + 0.35 * len(points))
        draw_points(axes, points, alone, reference.label)
    labels = [_SETTINGS] if alone is None else [_SETTINGS, reference.label]
    add_legend(figure, f"{study.title}, on {figures.dataset}", labels)
    save(figure, path)


def draw_curve(
    axes: Axes, points: Sequence[tuple[Line, float]], alone: float | None, name: str
) -> None:
    """From left to right, and the reference across."""
    places = [
        line.x if isinstance(line.x, float) else float(number)
        for number, (line, _) in enumerate(points)
    ]
    axes.plot(
        places,
        [miou for _, miou in points],
        linestyle="-",
        marker="o",
        color=colour(0),
        label=_SETTINGS,
    )
    if alone is not None:
        axes.axhline(alone, color=colour(1), linestyle="--", zorder=_BEHIND, label=name)
    axes.set_xticks(places, [line.label for line, _ in points], parse_math=False)
    axes.set_ylim(limits_of(points, alone))
    axes.set_ylabel(_AXIS)
    axes.grid(axis="y", color=_GRID)


def draw_points(
    axes: Axes, points: Sequence[tuple[Line, float]], alone: float | None, name: str
) -> None:
    """From top to bottom, each with its figure, and the reference across."""
    places = [float(number) for number in range(len(points))]
    axes.plot(
        [miou for _, miou in points],
        places,
        linestyle="none",
        marker="o",
        markersize=8,
        color=colour(0),
        label=_SETTINGS,
    )
    for place, (_, miou) in zip(places, points, strict=True):
        text = f"{miou:.1f}"
        where = (9, 0), "data", "offset points"  # Points right of the marker.
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
        axes.annotate(text, (miou, place), *where, va="center", fontsize=8.5, bbox=behind)
    if alone is not None:
        axes.axvline(alone, color=colour(1), linestyle="--", zorder=_BEHIND, label=name)
    axes.set_yticks(places, [line.label for line, _ in points], parse_math=False)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlim(limits_of(points, alone))
    axes.set_xlabel(_AXIS)
    axes.grid(axis="x", color=_GRID)


def limits_of(points: Sequence[tuple[Line, float]], alone: float | None) -> tuple[float, float]:
    """The ends of an axis that holds all figures, with some room, and spans no less than `_LEAST_RANGE`."""
    values = [miou for _, miou in points] + ([] if alone is None else [alone])
    middle = (min(values) + max(values)) / 2
    half = max(max(values) - min(values), _LEAST_RANGE) * (0.5 + _MARGIN)
    return middle - half, middle + half
