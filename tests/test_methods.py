"""Methods, presets, correlations and options as values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from resclip import RCS, SFR, Correlation
from resclip.methods.catalogue import (
    BASES,
    METHODS,
    Method,
    Overview,
    ProxyAttention,
    find_method,
)
from resclip.methods.options_text import parse_options
from resclip.methods.presets import PRESETS, find_preset

# As in the configurations of the authors' program: θ, (τ_s, λ_s), (τ_r, λ_r), window, probability threshold.
RELEASED = {
    "voc20": (0.10, (2.1, 0.6), (2.0, 0.6), 0, None),
    "voc21": (0.50, (2.2, 0.7), (2.0, 0.3), 0, 0.1),
    "context59": (0.25, (1.8, 0.7), (2.0, 0.4), None, None),
    "context60": (0.30, (1.8, 0.7), (2.0, 0.3), None, 0.1),
    "coco-object": (0.11, (1.8, 0.7), (2.0, 0.4), None, 0.1),
    "coco-stuff": (0.11, (1.8, 0.7), (2.0, 0.4), None, None),
    "cityscapes": (0.10, (2.1, 0.6), (2.0, 0.2), None, None),
    "ade20k": (0.25, (2.1, 0.7), (2.0, 0.3), None, None),
}


def test_presets_hold_the_released_settings() -> None:
    for name, (threshold, sfr, rcs, window, probability) in RELEASED.items():
        preset = find_preset(name)
        method = preset.apply(find_method("resclip"))
        assert method.sfr == SFR(label_threshold=threshold, temperature=sfr[0], weight=sfr[1])
        assert method.rcs == RCS(layers=(6, 7, 8, 9), temperature=rcs[0], weight=rcs[1])
        assert preset.segmenter.get("window") == window, name
        assert preset.segmenter.get("probability_threshold") == probability, name


def test_the_paper_preset_is_the_papers_equations() -> None:
    method = find_preset("paper").apply(find_method("resclip"))
    rcs, sfr = method.rcs, method.sfr
    assert rcs is not None
    assert sfr is not None
    assert (rcs.temperature, rcs.weight) == (1.0, 0.5)
    assert (sfr.temperature, sfr.weight) == (1.0, 0.7)
    assert (sfr.connectivity, sfr.refine_iterations, sfr.normalise) == ("line", 0, False)


def test_the_released_preset_keeps_its_blocks_in_any_tower() -> None:
    method = find_preset("released").apply(find_method("sclip+rcs"))
    assert method.rcs is not None
    assert method.rcs.layers_of(24) == (6, 7, 8, 9)
    assert method.sfr is None


def test_a_preset_adds_no_module_to_a_method_without_it() -> None:
    for name in BASES:
        for preset in PRESETS.values():
            method = preset.apply(find_method(name))
            assert method.rcs is None
            assert method.sfr is None


def test_every_base_takes_each_module_but_maskclip_no_sfr() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.summary
        assert BASES[method.base].citation in method.citation or name == "resclip"
    for base in BASES:
        assert METHODS[f"{base}+rcs"].rcs == RCS(temperature=BASES[base].rcs_temperature)
        assert METHODS[f"{base}+rcs"].sfr is None
        has_score = base != "maskclip"
        assert (f"{base}+sfr" in METHODS) == has_score
        assert (f"{base}+rcs+sfr" in METHODS) == has_score
    both, resclip = METHODS["naclip+rcs+sfr"], METHODS["resclip"]
    assert (both.base, both.rcs, both.sfr) == (resclip.base, resclip.rcs, resclip.sfr)


def test_modules_are_named_in_any_order() -> None:
    assert find_method("sclip+sfr+rcs") is METHODS["sclip+rcs+sfr"]
    assert find_method(" sclip + sfr ") is METHODS["sclip+sfr"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nacilp", "'naclip'.*maskclip, sclip"),
        ("naclip+crf", r"'naclip\+crf'.*\+rcs, \+sfr"),
        ("sclip+rcs+rcs", "unknown method"),
        ("resclip+rcs", "unknown method"),
        ("maskclip+sfr", "'maskclip'.*clip, sclip"),
    ],
)
def test_unknown_methods_say_what_there_is(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_method(name)


def test_unknown_presets_list_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="'nonsense'.*released, paper, voc20"):
        find_preset("nonsense")


@pytest.mark.parametrize(
    ("given", "layers"),
    [
        ("6-9", (6, 7, 8, 9)),  # A window of blocks.
        (" 3, 6 - 8 ", (3, 6, 7, 8)),  # A list with a range in it.
        ([2, 4], (2, 4)),
    ],
)
def test_layers_as_text_and_as_numbers(given: Any, layers: tuple[int, ...]) -> None:
    assert RCS(layers=given).layers == layers
    assert RCS(layers=given) == RCS(layers=layers)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"layers": "9-6"}, ValueError, '"6-9" or "3,6-9"; got .9-6'),
        ({"layers": "six"}, ValueError, "got 'six'"),
        ({"layers": "6-9,8"}, ValueError, "each block once"),
        ({"layers": ()}, ValueError, "RCS layers must name at least one block"),
        ({"layers": (6.0,)}, TypeError, "block numbers; got 6.0"),
        ({"layers": 3}, TypeError, 'tuple of block numbers, or text such as "6-9"; got 3'),
        ({"weight": 1.2}, ValueError, "RCS weight must lie between 0 and 1; got 1.2"),
        ({"temperature": 0}, ValueError, r"from 1e-06 to 1e\+06; got 0"),
    ],
)
def test_wrong_options_of_rcs(option: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RCS(**option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"weight": -0.1}, "SFR weight"),
        ({"label_threshold": math.nan}, "label_threshold must lie between 0 and 1"),
        ({"connectivity": "walk"}, "'prefix', 'line', 'component', or None; got 'walk'"),
        ({"smoothing_std": -1}, r"smoothing_std .*from 0 to 1e\+06"),
        ({"refine_iterations": -1}, "refine_iterations .*at least 0"),
        ({"refine_iterations": 2.5}, "refine_iterations must be an integer; got 2.5"),
        ({"smoothing_std": "5"}, "smoothing_std must be a number; got '5'"),
        ({"smoothing_std": math.nan}, r"smoothing_std .*from 0 to 1e\+06; got nan"),
        ({"connectivity": np.zeros(2)}, "or None; got array"),
        ({"normalise": "no"}, "normalise must be True or False; got 'no'"),
    ],
)
def test_wrong_options_of_sfr(option: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SFR(**option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"model": 5}, "model must be the name of a model; got 5"),
        ({"beta": math.nan}, "beta must be a finite number from .* got nan"),
        ({"input_size": (224, 0)}, r"input_size must be \(height, width\) in pixels, at least 1 "),
        ({"input_size": "224"}, "input_size must be an integer; got '224'"),
    ],
)
def test_wrong_options_of_a_proxy(option: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ProxyAttention(**option)


@pytest.mark.parametrize("wrong", [None, 5, ["naclip"]], ids=str)
def test_a_name_that_is_no_text(wrong: Any) -> None:
    with pytest.raises(TypeError, match="method must be a name such as 'resclip', or a Method"):
        find_method(wrong)
    with pytest.raises(ValueError, match="unknown preset"):
        find_preset(wrong)
    with pytest.raises(ValueError, match="unknown base"):
        Method("mine", wrong, "", "")
    with pytest.raises(TypeError, match="rcs must be an RCS or None; got"):
        Method("mine", "naclip", "", "", rcs=wrong or 5)
    with pytest.raises(TypeError, match="correlation must be text such as 'kk'"):
        Correlation.parse(wrong)
    assert find_method(METHODS["sclip"]) is METHODS["sclip"]


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (12, (6, 7, 8, 9)),  # ViT-B: the released blocks.
        (24, tuple(range(12, 19))),  # ViT-L.
        (40, tuple(range(20, 31))),  # ViT-g.
        (2, (1,)),
    ],
)
def test_default_layers_scale_with_depth(depth: int, layers: tuple[int, ...]) -> None:
    assert RCS().layers_of(depth) == layers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qq+kk", Correlation("qq+kk")),
        ("random, projections=8, seed=3", Correlation("random", projections=8, seed=3)),
        ("qk,layer=4,temperature=0.5", Correlation("qk", layer=4, temperature=0.5)),
        ("kk,window=7", Correlation("kk", window=7)),
    ],
)
def test_correlations_as_text(text: str, expected: Correlation) -> None:
    assert Correlation.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("cosine", ValueError, "'qk', 'qq', 'kk'.*got 'cosine'"),
        ("kk,window=4", ValueError, "odd.*got 4"),
        ("kk,window=wide", TypeError, "integer; got 'wide'"),
        ("kk,temperature=0", ValueError, r"from 1e-06 to 1e\+06; got 0"),
        ("kk,projections=2", ValueError, "'kk'"),
        ("identity,window=3", ValueError, "window"),
        ("kk,size=3", ValueError, "scores, temperature.*got 'size=3'"),
        ("kk,layer=0", ValueError, "at least 1; got 0"),
    ],
)
def test_wrong_correlations_say_what_was_expected(
    text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Correlation.parse(text)


def test_options_as_text() -> None:
    assert parse_options(RCS, "layers=3,6-9, weight=0.5") == RCS(layers=(3, 6, 7, 8, 9), weight=0.5)
    assert parse_options(SFR, "connectivity=none,rounds=2,normalise=false") == SFR(
        connectivity=None, rounds=2, normalise=False
    )
    assert parse_options(ProxyAttention, "model=colour,beta=1,input_size=224") == ProxyAttention(
        "colour", beta=1, input_size=224
    )


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("wieght=0.5", ValueError, "layers, weight, temperature.*got 'wieght=0.5'"),
        ("weight", ValueError, "got 'weight'"),
        ("weight=0.5,weight=0.6", ValueError, "weight once"),
        ("weight=2", ValueError, "RCS weight .*got 2"),
        ("weight=much", TypeError, "RCS weight .*got 'much'"),
    ],
)
def test_wrong_options_as_text(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_options(RCS, text)


@pytest.mark.parametrize(
    ("kind", "option", "bound"),
    [
        (RCS, {"temperature": 1e300}, r"1e\+06; got 1e\+300"),
        (RCS, {"temperature": True}, "must be a number; got True"),
        (RCS, {"layers": "1-1000000000"}, "at most 1,000"),
        (RCS, {"layers": range(10**9)}, "at most 1,000"),
        (SFR, {"temperature": 1e-300}, "from 1e-06"),
        (SFR, {"logit_scale": math.inf}, r"1e\+06; got inf"),
        (SFR, {"rounds": 10**9}, "at most 100; got 1000000000"),
        (SFR, {"refine_iterations": 10**5000}, "at most 1,000; got int"),
        (SFR, {"smoothing_std": 1e9}, r"1e\+06"),
        (Overview, {"side": 10**9}, "at most 65,536"),
        (ProxyAttention, {"beta": -math.inf}, "got -inf"),
        (ProxyAttention, {"gamma": 1e30}, r"1e\+06"),
        (ProxyAttention, {"input_size": (224, 10**9)}, "at most 65,536"),
        (Correlation, {"scores": "random", "projections": 10**9}, "at most 256"),
        (Correlation, {"scores": "random", "seed": 10**30}, "seed must be at most"),
    ],
)
def test_values_out_of_reason_are_refused_with_the_bound(
    kind: Any, option: dict[str, Any], bound: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=bound):
        kind(**option)


def test_errors_show_the_beginning_of_what_came() -> None:
    with pytest.raises(ValueError, match="unknown method 'x{80}…'; use one of") as caught:
        find_method("x" * 10_000)
    assert len(str(caught.value)) < 400
