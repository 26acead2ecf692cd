"""Studies: which settings each has on towers of any depth, what it refuses, and what its rows are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from study_support import study

from resclip import RCS, SFR
from resclip.evaluation.ablation import STUDIES, find_studies, row_name
from resclip.methods.catalogue import METHODS, Method

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


@pytest.mark.parametrize(
    ("depth", "first", "last", "count"),
    [
        (5, "1-4", "1-4", 1),  # the least that holds a window
        (6, "1-4", "2-5", 2),
        (12, "1-4", "8-11", 8),  # ViT-B, and the built-in model
        (24, "1-4", "20-23", 20),  # ViT-L
    ],
)
def test_windows_of_layers_slide_up_to_the_block_before_the_final_one(
    depth: int, first: str, last: str, count: int
) -> None:
    methods = points("layers-window", depth)
    labels = [*methods]
    assert (labels[0], labels[-1], len(labels)) == (first, last, count)
    for number, (label, method) in enumerate(methods.items(), start=1):
        layers = (number, number + 1, number + 2, number + 3)
        assert label == f"{number}-{number + 3}"
        assert method.rcs == replace(START.rcs, layers=layers)
        assert method.sfr is None


@pytest.mark.parametrize("depth", [2, 6, 12, 24])  # 2: one block before the final one
def test_layers_add_up_from_the_first_on(depth: int) -> None:
    methods = points("layers-cumulative", depth)
    assert [*methods] == ["1", *(f"1-{last}" for last in range(2, depth))]
    for last, method in enumerate(methods.values(), start=1):
        assert method.rcs == replace(START.rcs, layers=tuple(range(1, last + 1)))
        assert method.sfr is None


@pytest.mark.parametrize(("module", "other"), [("rcs", "sfr"), ("sfr", "rcs")])
def test_weights_go_from_the_base_alone_to_one_in_tenths(module: str, other: str) -> None:
    variations = study(f"{module}-weight").variations(START, 12)
    assert [variation.x for variation in variations] == [
        0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0,
    ]  # fmt: skip
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
                "prefix": {"connectivity": "prefix"},
                "line": {"connectivity": "line"},
                "component": {"connectivity": "component"},
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


@pytest.mark.parametrize("depth", [6, 12, 24])
def test_every_study_has_points_of_its_scale_on_the_base_that_it_is_given(depth: int) -> None:
    for some in STUDIES:
        variations = some.variations(START, depth)
        assert len(variations) > 1
        for variation in variations:
            assert isinstance(variation.x, float) is (some.scale == "numbers")
            assert variation.method.base == "naclip"
            used = {name for name in ("rcs", "sfr") if getattr(variation.method, name)}
            assert used <= set(some.needs)


def test_studies_come_by_name_each_once_in_their_own_order() -> None:
    names = [some.name for some in find_studies(["pamr", "modules", "pamr"])]
    assert names == ["modules", "pamr"]
    known = [some.name for some in STUDIES]
    with pytest.raises(ValueError, match="unknown study 'pamir' .did you mean 'pamr'") as error:
        find_studies(["modules", "pamir"])
    assert all(name in str(error.value) for name in known)
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
