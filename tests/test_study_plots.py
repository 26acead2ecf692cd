"""Plots of studies: what is drawn where, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_support import row
from study_support import made_up, study

from resclip.evaluation import plots as study_plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figures: list[Any] = []
    monkeypatch.setattr(study_plots, "save", lambda figure, _: figures.append(figure))
    return figures


def lines_of(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """What is drawn: points by name."""
    (axes,) = figure.axes
    return {
        line.get_label(): [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]
        for line in axes.get_lines()
    }  # fmt: skip


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def test_an_order_is_drawn_as_a_curve_with_what_it_is_compared_with(drawn: list[Any]) -> None:
    """Numbers stand where they are on the axis, steps side by side."""
    came = made_up()
    numbers = came.findings[0]
    steps = replace(numbers, study=study("layers-window"), lines=tuple(
        replace(line, x=line.label, label=f"{line.label}-4") for line in numbers.lines[1:]
    ))  # fmt: skip
    for findings in (numbers, steps):
        study_plots.plot_study(findings, came.report.sets["two"], Path("a.png"))
    first, second = drawn
    assert lines_of(first)["each setting"] == [(0.0, 30.0), (0.1, 29.0), (0.2, 28.0)]
    assert lines_of(second)["each setting"] == [(0.0, 29.0), (1.0, 28.0)]
    for figure in drawn:
        assert {y for _, y in lines_of(figure)["naclip"]} == {30.0}
    assert texts(first.axes[0].get_xticklabels()) == ["0", "0.1", "0.2"]
    assert texts(second.axes[0].get_xticklabels()) == ["0.1-4", "0.2-4"]
    assert first.axes[0].get_xlabel() == "λ_r"


def test_kinds_are_drawn_as_points_and_what_is_missing_left_out(drawn: list[Any]) -> None:
    came = made_up()
    for name in ("two", "voc20"):
        study_plots.plot_study(came.findings[1], came.report.sets[name], Path("a.png"))
    two, voc20 = drawn
    assert lines_of(two)["each setting"] == [(31.0, 0.0), (31.0, 1.0)]
    assert lines_of(voc20)["each setting"] == [(61.0, 0.0)]
    assert texts(two.axes[0].get_yticklabels()) == ["naclip+sfr", "none"]
    assert texts(two.axes[0].texts) == ["31.0", "31.0"]
    assert {x for x, _ in lines_of(two)["naclip+sfr"]} == {31.0}
    low, high = two.axes[0].get_xlim()
    assert (low, high) == pytest.approx((31 - 1.3, 31 + 1.3))  # Equal figures: not magnified.


def test_an_axis_holds_all_figures_and_the_reference(drawn: list[Any]) -> None:
    came = made_up()
    study_plots.plot_study(came.findings[0], came.report.sets["voc20"], Path("a.png"))
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 58.0
    assert high > 62.04


@pytest.mark.parametrize("number", [0, 1])  # a curve, and points
def test_nothing_to_draw_and_unknown_formats_are_refused(number: int, tmp_path: Path) -> None:
    came = made_up()
    figures = came.report.sets["voc20"]
    with pytest.raises(ValueError, match="to end in .png"):
        study_plots.plot_study(came.findings[number], figures, tmp_path / "a.bmp")
    empty = replace(figures, rows=dict.fromkeys(figures.rows, row(None)))
    with pytest.raises(ValueError, match="expected at least one figure of .* on voc20 to draw"):
        study_plots.plot_study(came.findings[number], empty, tmp_path / "a.png")
    study_plots.plot_study(came.findings[number], figures, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
