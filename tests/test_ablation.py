"""Ablations: where a study starts, that the option under study wins, and that each setting is measured once."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from measure_support import spy_on_measure, together, values
from study_support import study

from resclip import RCS, SFR, Segmenter, Vocabulary, load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation import runner as protocol
from resclip.evaluation.ablation import STUDIES, ablate, find_studies, starting_point, with_method
from resclip.evaluation.datasets import Dataset
from resclip.evaluation.datasets.builtin import scene_dataset
from resclip.evaluation.distributed import World
from resclip.evaluation.report import Report
from resclip.evaluation.runner import Candidate, evaluate
from resclip.methods.catalogue import BASES, METHODS

TWO = scene_dataset(count=2, size=48)  # two small scenes: rows and files, no quality


@cache
def vocabulary() -> Vocabulary:
    return load(classes=CLASS_NAMES, device="cpu").vocabulary


def base_segmenter(dataset: Dataset, base: str = "naclip", **options: Any) -> Segmenter:
    given = {"classes": vocabulary(), "method": base, "device": "cpu"}
    return load(**{**given, **dataset.settings, **options})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that were measured, and not read from a file, as they come."""
    return spy_on_measure(monkeypatch)


# Where a study starts


def test_a_study_starts_from_the_preset_and_what_is_named_wins() -> None:
    segmenter = base_segmenter(TWO, preset="voc21")
    start = starting_point(segmenter, {})
    assert start.rcs == RCS(layers=(6, 7, 8, 9), weight=0.3, temperature=2.0)
    assert start.sfr == SFR(label_threshold=0.5, temperature=2.2, weight=0.7)
    start = starting_point(segmenter, {"rcs": {"weight": 0.9}, "sfr": {"rounds": 3}})
    assert start.rcs == RCS(layers=(6, 7, 8, 9), weight=0.9, temperature=2.0)
    assert start.sfr == SFR(label_threshold=0.5, temperature=2.2, weight=0.7, rounds=3)


def test_the_layers_of_a_tower_are_named() -> None:
    start = starting_point(base_segmenter(TWO), {})
    assert start.rcs == RCS(layers=(6, 7, 8, 9))
    assert start.sfr == SFR()


@pytest.mark.parametrize("base", BASES)
def test_a_score_decides_whether_there_is_sfr(base: str) -> None:
    start = starting_point(base_segmenter(TWO, base), {})
    assert start.base == base
    assert (start.sfr is not None) is BASES[base].has_score
    if base == "maskclip":
        assert starting_point(base_segmenter(TWO, base, correlation="qq"), {}).sfr == SFR()


@pytest.mark.parametrize("base", BASES)
def test_a_segmenter_with_other_modules_is_the_one_that_load_makes(base: str) -> None:
    """Every base: each rebuilds its encoder from other arguments."""
    method = replace(METHODS[f"{base}+rcs"], rcs=RCS(layers="3-4", weight=0.7))
    if BASES[base].has_score:
        method = replace(method, sfr=SFR(weight=0.3))
    given = base_segmenter(TWO, base)
    came = with_method(given, method)
    wanted = base_segmenter(TWO, rcs=method.rcs, sfr=method.sfr, base=base)
    assert {**came.settings, "method": base} == wanted.settings
    pixels = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(0))
    labels = [one.predict_many([pixels], [(48, 48)])[0] for one in (came, wanted, given)]
    assert torch.equal(labels[0][1], labels[1][1])
    assert not torch.equal(labels[0][1], labels[2][1])
    assert given.settings == base_segmenter(TWO, base).settings


def test_a_correlation_of_its_own_is_kept() -> None:
    given = base_segmenter(TWO, "naclip", correlation="random,projections=2,seed=3")
    came = with_method(given, METHODS["naclip+rcs"])
    assert came.settings["correlation"] == given.settings["correlation"]
    assert torch.equal(
        came.encoder.random_projections,  # type: ignore[arg-type]
        given.encoder.random_projections,  # type: ignore[arg-type]
    )


# Measuring


def test_the_option_under_study_wins_and_the_presets_windows_stay() -> None:
    """voc21: the whole image, λ_r 0.3, θ 0.5 and a threshold for background."""
    some = [study("rcs-weight"), study("pamr")]
    few = [
        replace(one, vary=lambda method, depth, one=one: one.vary(method, depth)[3:5])
        for one in some
    ]
    came = ablate(few, [TWO], lambda one: base_segmenter(one, preset="voc21"), workers=0)
    rows = came.report.sets["builtin"].rows
    assert [*rows] == [
        "naclip", "naclip+rcs", "naclip+sfr", "naclip+rcs(weight=0.4)", "naclip+sfr(refine_iterations=20)",
    ]  # fmt: skip
    for found in rows.values():
        assert (found.options["window"], found.options["probability_threshold"]) == (0, 0.1)
        assert found.options["preset"] == "voc21"
    changed = rows["naclip+rcs(weight=0.4)"].options
    assert changed["rcs"] == {
        **asdict(RCS(weight=0.4, temperature=2.0)),
        "layers": [6, 7, 8, 9],
    }
    refined = rows["naclip+sfr(refine_iterations=20)"].options["sfr"]
    wanted = SFR(label_threshold=0.5, temperature=2.2, weight=0.7, refine_iterations=20)
    assert refined == asdict(wanted)
    weights, pamr = came.findings
    assert [line.rows["builtin"] for line in weights.lines] == [
        "naclip+rcs",
        "naclip+rcs(weight=0.4)",
    ]
    assert weights.reference.rows == {"builtin": "naclip"}
    assert [line.label for line in weights.shown] == ["naclip", "0.3", "0.4"]
    assert [line.label for line in pamr.shown] == ["10", "20"]  # 10 is where it starts.
    assert pamr.reference.rows == {"builtin": "naclip+sfr"}


def test_rows_have_the_figures_that_evaluate_gives_them(measured: list[str]) -> None:
    came = ablate([study("modules")], [TWO], base_segmenter, workers=0)
    assert measured == ["naclip", "naclip+rcs", "naclip+sfr", "naclip+rcs+sfr"]
    rows = [
        Candidate(name, lambda one, name=name: base_segmenter(one, name)) for name in measured
    ]  # fmt: skip
    wanted = evaluate(rows, [TWO], workers=0).sets["builtin"].rows
    for name, found in came.report.sets["builtin"].rows.items():
        assert found.scores == wanted[name].scores


def test_what_studies_share_is_measured_once_and_an_interrupted_run_goes_on(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ablation.json"
    spy = protocol.measure

    def stop(segmenter: Segmenter, *arguments: Any, **options: Any) -> Any:
        if "line" in segmenter.settings["method"]:
            raise KeyboardInterrupt
        return spy(segmenter, *arguments, **options)

    some = find_studies(["connectivity", "pamr"])
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            ablate(some, [TWO], base_segmenter, path=path, workers=0)
    assert measured == ["naclip+sfr"]
    came = ablate(some, [TWO], base_segmenter, path=path, workers=0)
    rows = [
        "naclip+sfr",
        *(f"naclip+sfr(connectivity={kind})" for kind in ("line", "component", "none")),
        *(f"naclip+sfr(refine_iterations={count})" for count in (0, 1, 5, 20)),
    ]
    assert measured == rows
    assert Report.read(path) == came.report
    again = ablate(find_studies(["pamr"]), [TWO], base_segmenter, path=path, workers=0)
    assert measured == rows
    assert again.findings == came.findings[1:]
    assert Report.read(path) == came.report  # The other study's rows stay.


def test_sets_start_from_their_own_presets() -> None:
    """λ_r is 0.3 on the first and 0.6 on the second: 0.3 is a row of its own there."""
    second = replace(scene_dataset("validation", 1, 48), name="second")
    presets = {"builtin": "voc21", "second": "voc20"}
    some = replace(
        study("rcs-weight"), vary=lambda method, depth: study("rcs-weight").vary(method, depth)[3:4]
    )
    came = ablate(
        [some], [TWO, second], lambda one: base_segmenter(one, preset=presets[one.name]), workers=0
    )
    (findings,) = came.findings
    (line,) = findings.lines
    assert line.rows == {"builtin": "naclip+rcs", "second": "naclip+rcs(weight=0.3)"}
    for name, figures in came.report.sets.items():
        assert figures.rows[line.rows[name]].options["rcs"]["weight"] == 0.3
        assert line.miou(figures) == figures.rows[line.rows[name]].scores.miou
    assert [*came.report.sets] == ["builtin", "second"]


def test_what_cannot_be_studied_is_refused_before_anything_is_measured(measured: list[str]) -> None:
    with pytest.raises(ValueError, match="base 'maskclip' has none"):
        ablate(STUDIES, [TWO], lambda one: base_segmenter(one, "maskclip"), workers=0)
    with pytest.raises(ValueError, match="at least one study"):
        ablate([], [TWO], base_segmenter)
    with pytest.raises(ValueError, match="RCS layers must lie between 1 and 11 .* got 12"):
        ablate([study("modules")], [TWO], base_segmenter, {"rcs": {"layers": "9-12"}})
    assert measured == []


def switched(world: World) -> Any:
    came = ablate([study("modules")], [TWO], base_segmenter, world=world, workers=0)
    return {name: found.scores for name, found in came.report.sets["builtin"].rows.items()}


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    first, second = values(together(tmp_path, switched))
    assert first == second == switched(World())
