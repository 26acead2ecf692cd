"""Ablations: the settings of each study, where it starts, and that each setting is measured once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_support import record_measured
from report_support import study

from resclip import RCS, SFR, Segmenter, Vocabulary, load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation.ablation import (
    STUDIES,
    ablate,
    find_studies,
    row_name,
    segmenter_with,
    starting_point,
)
from resclip.evaluation.datasets import Dataset, open_dataset
from resclip.evaluation.report import Report
from resclip.methods.catalogue import BASES, METHODS, Method

TWO = open_dataset("builtin", count=2, size=48)  # two small scenes: rows and files, no quality


@cache
def vocabulary() -> Vocabulary:
    return load("builtin", classes=CLASS_NAMES, device="cpu").vocabulary


def base_segmenter(dataset: Dataset, base: str = "naclip", **options: Any) -> Segmenter:
    given = {"model": "builtin", "classes": vocabulary(), "method": base, "device": "cpu"}
    return load(**{**given, **dataset.settings, **options})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that were measured, and not read from a file, as they come."""
    return record_measured(monkeypatch)


# Where a study starts


def test_a_study_starts_from_the_preset_and_what_is_named_wins() -> None:
    segmenter = base_segmenter(TWO, preset="voc21")
    start = starting_point(segmenter, {})
    assert start.rcs == RCS(layers=(6, 7, 8, 9), weight=0.3, temperature=2.0)
    assert start.sfr == SFR(label_threshold=0.5, temperature=2.2, weight=0.7)
    start = starting_point(segmenter, {"rcs": {"weight": 0.9}, "sfr": {"rounds": 3}})
    assert start.rcs == RCS(layers=(6, 7, 8, 9), weight=0.9, temperature=2.0)
    assert start.sfr == SFR(label_threshold=0.5, temperature=2.2, weight=0.7, rounds=3)


def test_a_score_decides_whether_there_is_sfr() -> None:
    for base in BASES:
        start = starting_point(base_segmenter(TWO, base), {})
        assert start.base == base
        assert (start.sfr is not None) is BASES[base].has_score
    assert starting_point(base_segmenter(TWO, "maskclip", correlation="qq"), {}).sfr == SFR()


@pytest.mark.parametrize("base", BASES)
def test_a_segmenter_with_other_modules_is_the_one_that_load_makes(base: str) -> None:
    """Every base: each rebuilds its encoder from other arguments."""
    method = replace(METHODS[f"{base}+rcs"], rcs=RCS(layers="3-4", weight=0.7))
    if BASES[base].has_score:
        method = replace(method, sfr=SFR(weight=0.3))
    given = base_segmenter(TWO, base)
    came = segmenter_with(given, method, TWO)
    wanted = base_segmenter(TWO, rcs=method.rcs, sfr=method.sfr, base=base)
    assert {**came.settings, "method": base} == wanted.settings
    pixels = torch.randn(3, 48, 48, generator=torch.Generator().manual_seed(0))
    logits = [one.logits([pixels])[0] for one in (came, wanted, given)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert given.settings == base_segmenter(TWO, base).settings


def test_a_correlation_of_its_own_is_kept() -> None:
    given = base_segmenter(TWO, "naclip", correlation="random,projections=2,seed=3")
    came = segmenter_with(given, METHODS["naclip+rcs"], TWO)
    assert came.settings["correlation"] == given.settings["correlation"]
    assert torch.equal(
        came.encoder.final.random_projections,  # type: ignore[arg-type]
        given.encoder.final.random_projections,  # type: ignore[arg-type]
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
    rows = came.report.datasets["builtin"].rows
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
    assert [point.rows["builtin"] for point in weights.settings] == [
        "naclip+rcs",
        "naclip+rcs(weight=0.4)",
    ]
    assert weights.reference.rows == {"builtin": "naclip"}
    assert [point.label for point in weights.shown] == ["naclip", "0.3", "0.4"]
    assert [point.label for point in pamr.shown] == ["10", "20"]  # 10 is where it starts.
    assert pamr.reference.rows == {"builtin": "naclip+sfr"}


def test_what_studies_share_is_measured_once(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "ablation.json"
    some = find_studies(["connectivity", "pamr"])
    came = ablate(some, [TWO], base_segmenter, checkpoint=path, workers=0)
    rows = [
        "naclip+sfr",
        *(f"naclip+sfr(connectivity={kind})" for kind in ("line", "component", "none")),
        *(f"naclip+sfr(refine_iterations={count})" for count in (0, 1, 5, 20)),
    ]
    assert measured == rows
    assert Report.read(path) == came.report
    again = ablate(find_studies(["pamr"]), [TWO], base_segmenter, checkpoint=path, workers=0)
    assert measured == rows
    assert again.findings == came.findings[1:]
    assert Report.read(path) == came.report  # The other study's rows stay.


def test_datasets_start_from_their_own_presets() -> None:
    """λ_r is 0.3 on the first and 0.6 on the second: 0.3 is a row of its own there."""
    second = replace(open_dataset("builtin", split="validation", count=1, size=48), name="second")
    presets = {"builtin": "voc21", "second": "voc20"}
    some = replace(
        study("rcs-weight"), vary=lambda method, depth: study("rcs-weight").vary(method, depth)[3:4]
    )
    came = ablate(
        [some], [TWO, second], lambda one: base_segmenter(one, preset=presets[one.name]), workers=0
    )
    (findings,) = came.findings
    (point,) = findings.settings
    assert point.rows == {"builtin": "naclip+rcs", "second": "naclip+rcs(weight=0.3)"}
    for name, figures in came.report.datasets.items():
        assert figures.rows[point.rows[name]].options["rcs"]["weight"] == 0.3
        assert point.miou(figures) == figures.rows[point.rows[name]].scores.miou
    assert [*came.report.datasets] == ["builtin", "second"]


def test_what_cannot_be_studied_is_refused_before_anything_is_measured(measured: list[str]) -> None:
    with pytest.raises(ValueError, match="base 'maskclip' has none"):
        ablate(STUDIES, [TWO], lambda one: base_segmenter(one, "maskclip"), workers=0)
    with pytest.raises(ValueError, match="at least one study"):
        ablate([], [TWO], base_segmenter)
    with pytest.raises(ValueError, match="RCS layers must lie between 1 and 11 .* got 12"):
        ablate([study("modules")], [TWO], base_segmenter, {"rcs": {"layers": "9-12"}})
    assert measured == []


# Studies


START = replace(
    METHODS["resclip"],
    rcs=RCS(layers="2-3", weight=0.45, temperature=1.5),
    sfr=SFR(weight=0.35, temperature=1.7, rounds=2),
)
"""Unlike any default, so that an option that is lost shows."""


def points(name: str, depth: int = 12) -> Mapping[str, Method]:
    variations = study(name).variations(START, depth)
    labels = [variation.label for variation in variations]
    assert len(set(labels)) == len(labels)
    return {variation.label: variation.method for variation in variations}


@pytest.mark.parametrize(("depth", "count"), [(5, 1), (12, 8)])  # the least that holds a window
def test_windows_of_layers_slide_up_to_the_block_before_the_final_one(
    depth: int, count: int
) -> None:
    methods = points("layers-window", depth)
    assert len(methods) == count
    for number, (label, method) in enumerate(methods.items(), start=1):
        assert label == f"{number}-{number + 3}"
        assert method.rcs == replace(START.rcs, layers=tuple(range(number, number + 4)))
        assert method.sfr is None


@pytest.mark.parametrize("depth", [2, 12])  # 2: one block before the final one
def test_layers_add_up_from_the_first_on(depth: int) -> None:
    methods = points("layers-cumulative", depth)
    assert [*methods] == ["1", *(f"1-{last}" for last in range(2, depth))]
    for last, method in enumerate(methods.values(), start=1):
        assert method.rcs == replace(START.rcs, layers=tuple(range(1, last + 1)))
        assert method.sfr is None


@pytest.mark.parametrize(("module", "other"), [("rcs", "sfr"), ("sfr", "rcs")])
def test_weights_go_from_the_base_alone_to_one_in_tenths(module: str, other: str) -> None:
    variations = study(f"{module}-weight").variations(START, 12)
    assert [variation.x for variation in variations] == [tenth / 10 for tenth in range(11)]
    assert [variation.label for variation in variations][:2] == ["0", "0.1"]
    alone, *weighted = [variation.method for variation in variations]
    assert (alone.rcs, alone.sfr) == (None, None)
    for method, variation in zip(weighted, variations[1:], strict=True):
        assert getattr(method, module) == replace(getattr(START, module), weight=variation.x)
        assert getattr(method, other) is None


def test_modules_are_the_base_each_of_them_and_both() -> None:
    methods = points("modules")
    assert [*methods] == ["naclip", "naclip + RCS", "naclip + SFR", "naclip + RCS + SFR"]
    assert [(method.rcs, method.sfr) for method in methods.values()] == [
        (None, None),
        (START.rcs, None),
        (None, START.sfr),
        (START.rcs, START.sfr),
    ]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "sfr-switches",
            {
                "whole": {},
                "no path decay": {"connectivity": None},
                "no smoothing": {"smoothing_std": 0.0},
                "no normalisation": {"normalise": False},
                "no PAMR on the labels": {"refine_iterations": 0},
                "no label threshold": {"label_threshold": 0.0},
            },
        ),
        (
            "connectivity",
            {
                **{kind: {"connectivity": kind} for kind in ("prefix", "line", "component")},
                "none": {"connectivity": None},
            },
        ),
        ("pamr", {str(count): {"refine_iterations": count} for count in (0, 1, 5, 10, 20)}),
    ],
)
def test_studies_of_sfr_change_one_option(name: str, options: Mapping[str, Any]) -> None:
    methods = points(name)
    assert [*methods] == [*options]
    for label, method in methods.items():
        assert method.sfr == replace(START.sfr, **options[label])
        assert method.rcs is None


def test_every_study_has_points_of_its_scale_on_the_base_that_it_is_given() -> None:
    for some in STUDIES:
        variations = some.variations(START, 12)
        assert len(variations) > 1
        for variation in variations:
            assert isinstance(variation.x, float) is (some.scale == "numbers")
            assert variation.method.base == "naclip"
            used = {name for name in ("rcs", "sfr") if getattr(variation.method, name)}
            assert used <= set(some.needs)


def test_studies_come_by_name_each_once_in_their_own_order() -> None:
    assert [some.name for some in find_studies(["pamr", "modules", "pamr"])] == ["modules", "pamr"]
    known = ", ".join(some.name for some in STUDIES)
    with pytest.raises(ValueError, match=f"study 'pamir' .did you mean 'pamr'.*: {known}"):
        find_studies(["modules", "pamir"])
    with pytest.raises(ValueError, match="at least one study, got none; use some of: modules"):
        find_studies([])


def test_a_base_without_a_score_takes_the_studies_of_rcs() -> None:
    start = replace(START, base="maskclip", sfr=None)
    for some in STUDIES:
        if "sfr" not in some.needs:
            assert some.variations(start, 12)
            continue
        with pytest.raises(ValueError, match=f"{some.name}.*base 'maskclip' has none") as error:
            some.variations(start, 12)
        assert "studies layers-window,layers-cumulative,rcs-weight" in str(error.value)


@pytest.mark.parametrize(
    ("name", "depth", "said"),
    [
        ("layers-window", 4, "'layers-window' needs a tower of at least 5 blocks, got one of 4"),
        ("layers-cumulative", 1, "at least 2 blocks, got one of 1"),
        ("modules", 1, "at least 2 blocks, got one of 1"),
        ("rcs-weight", 3, "must lie between 1 and 2 .*; got 3"),  # the layers of START
    ],
)
def test_a_tower_too_shallow_is_refused(name: str, depth: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        study(name).variations(START, depth)


def test_a_row_is_named_by_the_options_that_differ() -> None:
    assert row_name(replace(START, rcs=None, sfr=None), START) == "naclip"
    assert row_name(START, START) == "naclip+rcs+sfr"
    rcs = replace(START.rcs or RCS(), layers=(1, 3, 4), weight=0.5)
    sfr = replace(START.sfr or SFR(), connectivity=None, normalise=False)
    assert row_name(replace(START, rcs=rcs, sfr=sfr), START) == (
        "naclip+rcs(layers=1,3,4,weight=0.5)+sfr(connectivity=none,normalise=false)"
    )
    assert row_name(points("layers-window")["1-4"], START) == "naclip+rcs(layers=1-4)"
    assert row_name(points("layers-cumulative")["1"], START) == "naclip+rcs(layers=1)"


def test_equal_settings_share_a_row_and_others_do_not() -> None:
    start = replace(METHODS["resclip"], rcs=RCS(layers="6-9"), sfr=SFR())
    methods = [
        variation.method for some in STUDIES for variation in some.variations(start, 12)
    ]  # fmt: skip
    rows = {row_name(method, start) for method in methods}
    distinct = {(method.rcs, method.sfr) for method in methods}
    assert len(rows) == len(distinct) < len(methods)
    assert {"naclip", "naclip+rcs", "naclip+sfr", "naclip+rcs+sfr"} <= rows
