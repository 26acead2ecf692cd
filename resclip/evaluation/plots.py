"""Plots of figures: the IoU of classes as bars, studies as curves or points, other curves, histograms and gains."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.ablation import Findings
from resclip.evaluation.report import DatasetReport
from resclip.io.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
"""Endings of the files that can be written."""

# Okabe and Ito's colours, told apart in all common kinds of colour blindness; yellow, too faint for lines, comes last.
_COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#4D4D4D", "#F0E442",
)  # fmt: skip
_HATCHES = ("", "////", "....", "xxxx")  # For rows beyond the last colour, which starts over.
_DASHES = ("-", "--", ":")  # Lines as well.
_POINTS = ("s", "D", "^", "v", "P")  # For curves of one point, which lie beside others.
_INK = "#18181B"
_FAINT_INK = "#71717A"
_GRID = "#E4E4E7"
_LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}

_DPI = 150
_BARS_WIDTH = 9.0  # Inches.
_MAX_HEIGHT = 240.0  # Inches: an image may have 65,536 pixels a side, which are 436 inches.
_MAX_LABELLED_ROWS = 3  # With more rows, the figures at the ends of the bars overlap.
_MIN_RANGE = 2.0  # Points of mIoU that an axis spans at least: noise must not look like a finding.
_MARGIN = 0.15  # Free space at either end of an axis, as a share of its range.
_BEHIND = 0.9  # In matplotlib's order of drawing, in which bars have 1, lines and points 2.


def plot_classes(column: DatasetReport, path: Path) -> None:
    """The IoU of every class as horizontal bars, one colour per row, the best class on top; tall for many classes.

    Up to three rows have figures at their bars and a dashed line at their mIoU. Classes that neither occur nor are
    predicted come last, without bars.

    Args:
        column: with at least one row.
        path: of the file; its ending, one of `FORMATS`, decides the format.

    Raises:
        ValueError: no row, or another ending.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check_format(path)
    rows = column.rows
    if not rows:
        raise ValueError(f"expected figures of at least one method on {column.dataset}")

    def rank(index: int) -> tuple[bool, float]:
        """By the mean over the rows, the best first, and classes without any figure last."""
        values = [row.scores.iou[index] for row in rows.values()]
        known = [value for value in values if value is not None]
        return not known, -sum(known) / len(known) if known else 0.0

    order = sorted(range(len(column.classes)), key=rank)
    labels = [
        name if row.scores.miou is None else f"{name}: mIoU {row.scores.miou:.1f}"
        for name, row in rows.items()
    ]
    # Half of a tenth of an inch is read easily as a bar; a class's name needs 0.17.
    height = min(_MAX_HEIGHT - 2, len(order) * max(0.2, 0.08 + 0.11 * len(rows)))
    legend_lines = math.ceil(len(rows) / legend_columns(labels, _BARS_WIDTH))
    figure, axes = new_figure(_BARS_WIDTH, height + 1.3 + 0.2 * legend_lines)
    thickness = 0.8 / len(rows)
    labelled = len(rows) <= _MAX_LABELLED_ROWS
    for number, (label, row) in enumerate(zip(labels, rows.values(), strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        positions = [position - 0.4 + thickness * (number + 0.5) for position in range(len(order))]
        values = [row.scores.iou[index] for index in order]
        axes.barh(
            positions,
            [value or 0.0 for value in values],
            thickness,
            label=label,
            color=colour,
            hatch=_HATCHES[number // len(_COLOURS) % len(_HATCHES)],
            edgecolor="white",
            linewidth=0,
        )
        if not labelled:
            continue
        for position, value in zip(positions, values, strict=True):
            axes.text(
                (value or 0.0) + 0.6,
                position,
                "–" if value is None else f"{value:.1f}",
                va="center",
                fontsize=6.5,
                color=_FAINT_INK,
                bbox=_LABEL_BOX,
            )
        if row.scores.miou is not None:
            axes.axvline(row.scores.miou, color=colour, linestyle="--", linewidth=1, zorder=_BEHIND)
    names = [column.classes[index] for index in order]
    axes.set_yticks(range(len(names)), names, fontsize=8.5, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 104 if labelled else 100)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="x", top=True, labeltop=True)
    axes.set_xlabel("IoU in per cent", color=_INK)
    axes.grid(axis="x", color=_GRID)
    add_legend(figure, f"{column.dataset}: {column.description}", labels)
    save(figure, path)


def plot_study(findings: Findings, column: DatasetReport, path: Path) -> None:
    """A study's mIoU on one dataset, and as a dashed line that of what it is compared with.

    Settings of numbers and steps are a curve from left to right, kinds are points from top to bottom. Settings that
    could not be measured are left out.

    Args:
        findings: the study.
        column: the figures on the dataset.
        path: of the file; its ending, one of `FORMATS`, decides the format.

    Raises:
        ValueError: nothing could be measured, or another ending.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check_format(path)
    study, reference = findings.study, findings.reference
    is_curve = study.scale != "kinds"
    # On a curve the reference is the dashed line alone: it has no position on a scale of layers or weights.
    shown = findings.settings if is_curve else findings.shown
    points = [(setting, miou) for setting in shown if (miou := setting.miou(column)) is not None]
    if not points:
        raise ValueError(
            f"expected at least one figure of {study.name} on {column.dataset} to draw, got none"
        )
    figures = [miou for _, miou in points]
    names = [setting.label for setting, _ in points]
    alone = reference.miou(column)
    limits = limits_of(figures if alone is None else [*figures, alone])
    line: dict[str, Any] = {"color": _COLOURS[1], "linestyle": "--", "zorder": _BEHIND}
    line["label"] = reference.label
    if is_curve:
        figure, axes = new_figure(max(6.4, min(16.0, 0.55 * len(points))), 4.6)
        positions = [
            setting.x if isinstance(setting.x, float) else float(number)
            for number, (setting, _) in enumerate(points)
        ]
        axes.plot(positions, figures, "o-", color=_COLOURS[0], label="each setting")
        if alone is not None:
            axes.axhline(alone, **line)
        axes.set_xticks(positions, names, parse_math=False)
        axes.set_xlabel(study.x_label, parse_math=False)
        axes.set_ylim(limits)
        axes.set_ylabel("mIoU in per cent")
        axes.grid(axis="y", color=_GRID)
    else:
        figure, axes = new_figure(6.4, 1.5 + 0.35 * len(points))
        positions = [float(number) for number in range(len(points))]
        axes.plot(figures, positions, "o", markersize=8, color=_COLOURS[0], label="each setting")
        for position, miou in zip(positions, figures, strict=True):
            axes.annotate(
                f"{miou:.1f}",
                (miou, position),
                (9, 0),  # Points right of the marker.
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                bbox=_LABEL_BOX,
            )
        if alone is not None:
            axes.axvline(alone, **line)
        axes.set_yticks(positions, names, parse_math=False)
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.set_xlim(limits)
        axes.set_xlabel("mIoU in per cent")
        axes.grid(axis="x", color=_GRID)
    labels = ["each setting"] if alone is None else ["each setting", reference.label]
    add_legend(figure, f"{study.title}, on {column.dataset}", labels)
    save(figure, path)


class Curve(NamedTuple):
    """One line of a plot, or one point where it has one position."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def plot_curves(
    title: str,
    axes_labels: tuple[str, str],
    curves: Sequence[Curve],
    path: Path,
    *,
    limits: tuple[tuple[float, float], tuple[float, float]],
    level: tuple[str, float] | None = None,
    ticks: Sequence[float] | None = None,
    markers: bool = False,
) -> None:
    """Curves in one plot, told apart by colour, and beyond the last colour by dashes.

    Args:
        title: above the plot.
        axes_labels: of x and y.
        curves: with labels for the legend; a curve of one point is drawn as a marker.
        path: of the file; its ending, one of `FORMATS`, decides the format.
        limits: the ends of x and of y.
        level: a label and a height, drawn as a faint line across.
        ticks: positions that x names; None: matplotlib's own.
        markers: whether the points of curves are marked.

    Raises:
        ValueError: another ending.
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check_format(path)
    figure, axes = new_figure(7.2, 5.2)
    for number, curve in enumerate(curves):
        is_point = len(curve.x) == 1
        dashes = "" if is_point else _DASHES[number // len(_COLOURS) % len(_DASHES)]
        marker = _POINTS[number % len(_POINTS)] if is_point else "o" if markers else ""
        style: dict[str, Any] = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": dashes}
        axes.plot(curve.x, curve.y, marker=marker, label=curve.label, **style)
    labels = [curve.label for curve in curves]
    if level is not None:
        name, height = level
        labels.append(f"{name}: {height:.3f}")
        axes.axhline(height, color=_FAINT_INK, linestyle=":", zorder=_BEHIND, label=labels[-1])
    if ticks is not None:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_xlabel(axes_labels[0], parse_math=False)
    axes.set_ylabel(axes_labels[1], parse_math=False)
    axes.grid(axis="both", color=_GRID)
    add_legend(figure, title, labels)
    save(figure, path)


class PairHistogram(NamedTuple):
    """Similarities of pairs of one class and of two, in one panel."""

    title: str
    label: str
    """Of the similarity."""
    edges: NDArray[np.float64]
    """(N + 1,) ends of the bins."""
    same: NDArray[np.int64]
    other: NDArray[np.int64]
    """(N,) pairs in each bin, of one class and of two."""


def plot_pair_histograms(title: str, panels: Sequence[PairHistogram], path: Path) -> None:
    """Histograms side by side, each kind of pairs with an area of 1; bins where there is nothing are cut off.

    Raises as `plot_curves`.
    """
    check_format(path)
    figure, first = new_figure(4.6 * len(panels), 4.2)
    first.remove()
    kinds = ("pairs of one class", "pairs of two classes")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        style_axes(axes)
        width = np.diff(panel.edges)
        for kind, counts, colour in zip(kinds, (panel.same, panel.other), _COLOURS, strict=False):
            density = counts / max(1, counts.sum()) / width
            axes.stairs(density, panel.edges, fill=True, alpha=0.45, color=colour, label=kind)
            axes.stairs(density, panel.edges, color=colour, linewidth=1.2)
        found = np.flatnonzero(panel.same + panel.other)
        low, high = panel.edges[found[0]], panel.edges[found[-1] + 1]
        margin = 0.05 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        axes.set_title(panel.title, fontsize=9.5, color=_INK, parse_math=False)
        axes.set_xlabel(panel.label, parse_math=False)
        axes.set_yticks([])
        axes.axvline(0, color=_FAINT_INK, linewidth=0.8, zorder=_BEHIND)
    handles = figure.axes[0].get_legend_handles_labels()
    add_legend(figure, title, kinds, handles[0])
    save(figure, path)


def plot_gains(
    title: str, gains: Mapping[str, Mapping[str, float | None]], label: str, path: Path
) -> None:
    """Gains as horizontal bars, a group of bars for each of some names.

    Args:
        gains: by the group's name, by the bar's, its length; None for a bar that there is not.
        label: of the axis.

    Raises as `plot_curves`.
    """
    check_format(path)
    kinds = list(dict.fromkeys(kind for group in gains.values() for kind in group))
    figure, axes = new_figure(7.2, 1.7 + 0.2 * (len(kinds) + 1) * len(gains))
    thickness = 0.8 / max(1, len(kinds))
    for number, kind in enumerate(kinds):
        values = [group.get(kind) for group in gains.values()]
        positions = [place - 0.4 + thickness * (number + 0.5) for place in range(len(values))]
        colour = _COLOURS[number % len(_COLOURS)]
        lengths = [value or 0.0 for value in values]
        axes.barh(positions, lengths, thickness, color=colour, label=kind)
        for position, value in zip(positions, values, strict=True):
            axes.annotate(
                "–" if value is None else f"{value:+.1f}",
                (value or 0.0, position),
                (-4 if (value or 0.0) < 0 else 4, 0),  # Points beyond the bar's end.
                textcoords="offset points",
                ha="right" if (value or 0.0) < 0 else "left",
                va="center",
                fontsize=7.5,
                color=_FAINT_INK,
            )
    known = [value for group in gains.values() for value in group.values() if value is not None]
    low, high = limits_of([0.0, *known])
    axes.set_xlim(min(low, 0.0) if min([0.0, *known]) < 0 else 0.0, high)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(gains)), list(gains), parse_math=False)
    axes.set_ylim(len(gains) - 0.4, -0.6)
    axes.set_xlabel(label, parse_math=False)
    axes.grid(axis="x", color=_GRID)
    add_legend(figure, title, kinds)
    save(figure, path)


def plot_intervals(
    title: str, intervals: Mapping[str, tuple[float, float, float]], label: str, path: Path
) -> None:
    """A horizontal bar for each interval with a point at its figure, from top to bottom; the first in another colour.

    Args:
        title: of the plot.
        intervals: low end, figure and high end, by name.
        label: of the axis.
        path: of the file, as `plot_classes` takes it.

    Raises as `plot_curves`.
    """
    check_format(path)
    height = min(_MAX_HEIGHT - 2, 0.2 * len(intervals))
    figure, axes = new_figure(_BARS_WIDTH, height + 1.3)
    places = range(len(intervals))
    lows, figures, highs = (
        [values[number] for values in intervals.values()] for number in range(3)
    )
    colours = [_COLOURS[3 if place == 0 else 0] for place in places]
    widths = [high - low for low, high in zip(lows, highs, strict=True)]
    axes.barh(places, widths, 0.6, left=lows, color=colours, alpha=0.45, linewidth=0)
    axes.scatter(figures, places, s=14, c=colours, zorder=2)
    axes.set_xlim(*limits_of([*lows, *figures, *highs]))
    axes.set_yticks(places, list(intervals), fontsize=7.5, parse_math=False)
    axes.set_ylim(len(intervals) - 0.4, -0.6)
    axes.set_xlabel(label, color=_INK, parse_math=False)
    axes.set_title(title, fontsize=9.5, color=_INK, loc="left", parse_math=False)
    axes.grid(axis="x", color=_GRID)
    save(figure, path)


def limits_of(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds all values with some space around, and spans at least `_MIN_RANGE`."""
    middle = (min(values) + max(values)) / 2
    half = max(max(values) - min(values), _MIN_RANGE) * (0.5 + _MARGIN)
    return middle - half, middle + half


def check_format(path: Path) -> None:
    """ValueError for an ending that is none of `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"expected a plot's file to end in {', '.join(FORMATS)}; got {str(path)!r}"
        )


def check_matplotlib() -> None:
    """ImportError if matplotlib is not installed, and how to get it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install 'resclip[eval]'"
        ) from error


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty plot, in inches. Without pyplot there is nothing to close, and no window anywhere."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """The look that all plots share."""
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, labelsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def legend_columns(labels: Sequence[str], width: float) -> int:
    """How many of the labels fit side by side into so many inches."""
    # A letter takes 0.08 inches; the sample of the colour and the space to the next label take six letters.
    return max(1, min(4, int(width / 0.08 / (max(map(len, labels)) + 6))))


def add_legend(
    figure: Figure, title: str, labels: Sequence[str], handles: Sequence[Any] | None = None
) -> None:
    """The title above the plot, and below it what the colours stand for; `handles`: of these alone."""
    chosen = {} if handles is None else {"handles": handles, "labels": labels}
    legend = figure.legend(
        **chosen,
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
