"""Figures as plots: the IoU of each class as bars, and what all plots share.

Knows matplotlib, which is imported when a plot is made, but not its global state. Knows no method and no data set.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resclip.evaluation.record import Evaluation
from resclip.files import write_atomically

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
# Inches. A picture of Agg's has at most 65,536 pixels a side: 436 inches.
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
