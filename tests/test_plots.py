"""Plots: which files come out, what is in them, and that matplotlib's own state stays as it was."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_support import EVERYTHING, ablation, column, row, study

from resclip.evaluation import plots
from resclip.evaluation.metrics import Scores
from resclip.evaluation.plots import (
    FORMATS,
    Curve,
    PairHistogram,
    check_matplotlib,
    plot_classes,
    plot_curves,
    plot_gains,
    plot_pair_histograms,
    plot_study,
)
from resclip.evaluation.report import DatasetReport, MethodResult

BLUE, ORANGE = (0, 114, 178), (230, 159, 0)
TWO = column("voc21", {"naclip": row(50.0), "naclip+rcs": row(52.0)})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, and nothing is written."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    return figures


def axes_of(drawn: list[Figure]) -> Axes:
    """Those of the one figure."""
    assert len(drawn) == 1
    return drawn[0].axes[0]


def legend_of(drawn: list[Figure]) -> list[str]:
    return [text.get_text() for text in drawn[0].legends[0].get_texts()]


def many(classes: int, rows: int, seed: int) -> DatasetReport:
    """Rows with an IoU for every class."""
    generator = np.random.default_rng(seed)
    names = tuple(f"class {number}" for number in range(classes))
    filled = {}
    for number in range(rows):
        iou = tuple(float(value) for value in generator.uniform(0, 100, classes))
        scores = Scores(float(np.mean(iou)), 1.0, 1.0, 1.0, iou, iou)
        filled[f"row {number}"] = MethodResult(scores, 1, (), {}, 1.0, 1, 1, "a CPU", 1, EVERYTHING)
    return DatasetReport("set", "made up", {}, names, filled)


@pytest.mark.parametrize("ending", [*FORMATS, ".PNG"])
def test_the_ending_decides_the_format(ending: str, tmp_path: Path) -> None:
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    path = tmp_path / "new" / f"plot{ending}"
    plot_classes(TWO, path)
    assert path.read_bytes().startswith(starts[ending.lower()])
    assert list(path.parent.iterdir()) == [path]


def test_classes_are_sorted_and_those_without_a_figure_come_last(drawn: list[Figure]) -> None:
    plot_classes(TWO, Path("plot.png"))
    axes = axes_of(drawn)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["sky", "car", "night sky"]
    first, last = axes.get_ylim()
    assert first > last  # The first class is on top.
    lengths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert lengths == [[60.0, 40.0, 0.0], [62.0, 42.0, 0.0]]
    assert legend_of(drawn) == ["naclip: mIoU 50.0", "naclip+rcs: mIoU 52.0"]
    written = [text.get_text() for text in axes.texts]
    assert written == ["60.0", "40.0", "–", "62.0", "42.0", "–"]
    assert [line.get_xdata()[0] for line in axes.lines] == [50.0, 52.0]


def test_bars_of_one_class_do_not_overlap(drawn: list[Figure], seed: int) -> None:
    plot_classes(many(3, 26, seed), Path("plot.png"))
    spans = sorted(
        (bar.get_y(), bar.get_y() + bar.get_height())
        for bars in axes_of(drawn).containers
        for bar in bars
    )
    assert len(spans) == 78
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))
    looks = {(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in axes_of(drawn).containers}
    assert len(looks) == 26


# 171 × 1: COCO-Stuff; 90 × 26: every row, where the height comes to its limit.
@pytest.mark.parametrize(("classes", "rows", "inches"), [(171, 1, 30), (90, 26, 239)])
def test_many_classes_make_a_tall_plot(
    classes: int, rows: int, inches: float, drawn: list[Figure], seed: int
) -> None:
    plot_classes(many(classes, rows, seed), Path("plot.png"))
    width, height = drawn[0].get_size_inches()
    assert width == 9
    assert inches < height < 300
    assert height * drawn[0].dpi < 65536


def test_names_are_no_formulas(tmp_path: Path) -> None:
    """What stands between dollar signs goes to matplotlib's own parser, which raises where it is no formula."""
    one = row(50.0)
    names = ("$\\frac$", "a_b", "$")
    odd = DatasetReport("$\\frac$", "$\\frac$", {}, names, {"$\\frac$": one, "$_$": one})
    plot_classes(odd, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_other_endings_and_nothing_to_draw_are_refused(tmp_path: Path) -> None:
    for name in ("plot.jpg", "png"):
        with pytest.raises(ValueError, match=r"plot's file to end in \.png, \.svg, \.pdf"):
            plot_classes(TWO, tmp_path / name)
    with pytest.raises(ValueError, match="at least one method on mine"):
        plot_classes(column("mine", {}), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (check_matplotlib, lambda: plot_classes(TWO, tmp_path / "a.png")):
        with pytest.raises(ImportError, match=r"pip install 'resclip\[eval\]'"):
            draw()


def test_pyplot_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It picks a window system, and keeps every figure until it is closed."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # Importing it raises now.
    plot_classes(TWO, tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


# Studies


def lines_of(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """What is drawn: points by name."""
    (axes,) = figure.axes
    return {
        line.get_label(): [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]
        for line in axes.get_lines()
    }  # fmt: skip


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def test_an_order_is_drawn_as_a_curve_with_what_it_is_compared_with(drawn: list[Figure]) -> None:
    """Numbers stand where they are on the axis, steps side by side."""
    came = ablation()
    numbers = came.findings[0]
    steps = replace(numbers, study=study("layers-window"), settings=tuple(
        replace(line, x=line.label, label=f"{line.label}-4") for line in numbers.settings[1:]
    ))  # fmt: skip
    for findings in (numbers, steps):
        plot_study(findings, came.report.datasets["two"], Path("a.png"))
    first, second = drawn
    assert lines_of(first)["each setting"] == [(0.0, 30.0), (0.1, 29.0), (0.2, 28.0)]
    assert lines_of(second)["each setting"] == [(0.0, 29.0), (1.0, 28.0)]
    for figure in drawn:
        assert {y for _, y in lines_of(figure)["naclip"]} == {30.0}
    assert texts(first.axes[0].get_xticklabels()) == ["0", "0.1", "0.2"]
    assert texts(second.axes[0].get_xticklabels()) == ["0.1-4", "0.2-4"]
    assert first.axes[0].get_xlabel() == "λ_r"
    low, high = second.axes[0].get_ylim()
    assert low < 28.0
    assert high > 30.0  # The reference's.


def test_kinds_are_drawn_as_points_and_what_is_missing_left_out(drawn: list[Figure]) -> None:
    came = ablation()
    for name in ("two", "voc20"):
        plot_study(came.findings[1], came.report.datasets[name], Path("a.png"))
    two, voc20 = drawn
    assert lines_of(two)["each setting"] == [(31.0, 0.0), (31.0, 1.0)]
    assert lines_of(voc20)["each setting"] == [(61.0, 0.0)]
    assert texts(two.axes[0].get_yticklabels()) == ["naclip+sfr", "none"]
    assert texts(two.axes[0].texts) == ["31.0", "31.0"]
    assert {x for x, _ in lines_of(two)["naclip+sfr"]} == {31.0}
    low, high = two.axes[0].get_xlim()
    assert (low, high) == pytest.approx((31 - 1.3, 31 + 1.3))  # Equal figures: not magnified.


@pytest.mark.parametrize("number", [0, 1])  # a curve, and points
def test_no_study_to_draw_and_unknown_formats_are_refused(number: int, tmp_path: Path) -> None:
    came = ablation()
    figures = came.report.datasets["voc20"]
    with pytest.raises(ValueError, match="to end in .png"):
        plot_study(came.findings[number], figures, tmp_path / "a.bmp")
    empty = replace(figures, rows=dict.fromkeys(figures.rows, row(None)))
    with pytest.raises(ValueError, match="expected at least one figure of .* on voc20 to draw"):
        plot_study(came.findings[number], empty, tmp_path / "a.png")
    plot_study(came.findings[number], figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# Plots of the papers' studies


def test_curves_are_lines_and_single_values_are_points(drawn: list[Figure]) -> None:
    curves = [Curve(f"curve {number}", [0.0, 1.0], [0.5, 0.1 * number]) for number in range(9)]
    plot_curves(
        "title",
        ("x", "y"),
        [*curves, Curve("one value", [1.0], [0.3])],
        Path("plot.png"),
        limits=((0, 1), (0, 2)),
        level=("chance", 0.25),
    )
    lines = axes_of(drawn).lines
    looks = {(line.get_color(), line.get_linestyle()) for line in lines[:9]}
    assert len(looks) == 9  # There are eight colours.
    assert (lines[9].get_linestyle(), lines[9].get_marker()) != ("-", "")
    assert lines[9].get_linestyle() == "None"
    assert list(lines[10].get_ydata()) == [0.25, 0.25]
    assert legend_of(drawn)[-2:] == ["one value", "chance: 0.250"]
    assert axes_of(drawn).get_ylim() == (0, 2)


def test_histograms_have_an_area_of_one_and_end_where_the_pairs_do(drawn: list[Figure]) -> None:
    edges = np.linspace(-1, 1, 21)
    same, other = np.zeros((2, 20), np.int64)
    same[15], other[12] = 300, 7
    panels = [PairHistogram(name, "S", edges, same, other) for name in ("before", "after")]
    plot_pair_histograms("title", panels, Path("plot.png"))
    assert [axes.get_title() for axes in drawn[0].axes] == ["before", "after"]
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        assert 0.1 < low < 0.2
        assert 0.6 < high < 0.7
        for patch in axes.patches:
            values, ends, _ = patch.get_data()  # type: ignore[attr-defined]
            assert (values * np.diff(ends)).sum() == pytest.approx(1)
    assert legend_of(drawn) == ["pairs of one class", "pairs of two classes"]


def test_gains_are_bars_from_zero_with_their_figures(drawn: list[Figure]) -> None:
    gains = {"naclip": {"RCS": 1.25, "SFR": -0.5}, "maskclip": {"RCS": 0.0, "SFR": None}}
    plot_gains("title", gains, "gain", Path("plot.png"))
    axes = axes_of(drawn)
    lengths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert lengths == [[1.25, 0.0], [-0.5, 0.0]]
    written = [text.get_text() for text in axes.texts]
    assert written == ["+1.2", "+0.0", "-0.5", "–"]
    low, high = axes.get_xlim()
    assert low < -0.5 < 1.25 < high
    assert [label.get_text() for label in axes.get_yticklabels()] == ["naclip", "maskclip"]
