"""Studies as plots: a curve where the settings have an order, points below one another where they have none.

Knows where an ablation's figures are, and matplotlib's axes. Files and colours are plots.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resclip.evaluation.ablation import Findings, Line
from resclip.evaluation.plots import add_legend, check_format, colour, new_figure, save
from resclip.evaluation.record import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
