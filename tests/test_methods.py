"""Methods, presets, correlations and options as values."""

from __future__ import annotations

from typing import Any

import pytest

from resclip import RCS, SFR, Correlation
from resclip.methods.catalogue import BASES, METHODS, ProxyAttention, find_method
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


@pytest.mark.parametrize("name", RELEASED)
def test_presets_hold_the_released_settings(name: str) -> None:
    threshold, sfr, rcs, window, probability = RELEASED[name]
    method = find_preset(name).apply(find_method("resclip"))
    assert method.sfr == SFR(label_threshold=threshold, temperature=sfr[0], weight=sfr[1])
    assert method.rcs == RCS(layers=(6, 7, 8, 9), temperature=rcs[0], weight=rcs[1])
    assert find_preset(name).segmenter.get("window") == window
    assert find_preset(name).segmenter.get("probability_threshold") == probability


def test_the_paper_preset_is_the_papers_equations() -> None:
    method = find_preset("paper").apply(find_method("resclip"))
    assert method.rcs is not None
    assert method.sfr is not None
    assert (method.rcs.temperature, method.rcs.weight) == (1.0, 0.5)
    assert (method.sfr.temperature, method.sfr.weight) == (1.0, 0.7)
    assert (method.sfr.connectivity, method.sfr.refine_iterations) == ("line", 0)
    assert method.sfr.normalise is False


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


def test_every_method_has_a_base_a_summary_and_a_citation() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.base in BASES
        assert method.summary
        assert BASES[method.base].citation in method.citation or name == "resclip"


def test_every_base_takes_each_module_but_maskclip_no_sfr() -> None:
    for base in BASES:
        assert METHODS[f"{base}+rcs"].rcs == RCS()
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
        ("", "unknown method ''"),
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
        ("1-9", tuple(range(1, 10))),  # Cumulative.
        (" 3, 6 - 8 ", (3, 6, 7, 8)),  # A list with a range in it.
        ("7", (7,)),
        ([2, 4], (2, 4)),
    ],
)
def test_layers_as_text_and_as_numbers(given: Any, layers: tuple[int, ...]) -> None:
    assert RCS(layers=given).layers == layers
    assert RCS(layers=given) == RCS(layers=layers)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("9-6", ValueError, '"6-9" or "3,6-9"; got .9-6'),
        ("", ValueError, "got ''"),
        ("six", ValueError, "got 'six'"),
        ("6-9,8", ValueError, "each block once"),
        ((), ValueError, "at least one layer"),
        ((6.0,), TypeError, "block numbers; got 6.0"),
    ],
)
def test_wrong_layers_say_what_was_expected(
    given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RCS(layers=given)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (12, tuple(range(6, 10))),  # ViT-B: the released blocks.
        (24, tuple(range(12, 19))),  # ViT-L.
        (32, tuple(range(16, 25))),  # ViT-H.
        (40, tuple(range(20, 31))),  # ViT-g.
        (4, (2, 3)),
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
        ("none", Correlation("none")),
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
        ("kk,temperature=0", ValueError, "above 0; got 0"),
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
    assert parse_options(RCS, "layers=7") == RCS(layers=(7,))
    assert parse_options(SFR, "connectivity=none,rounds=2,normalise=false") == SFR(
        connectivity=None, rounds=2, normalise=False
    )
    assert parse_options(ProxyAttention, "model=colour,beta=1,input_size=224") == ProxyAttention(
        "colour", beta=1, input_size=224
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wieght=0.5", "layers, weight, temperature.*got 'wieght=0.5'"),
        ("weight", "got 'weight'"),
        ("weight=0.5,weight=0.6", "weight once"),
        ("weight=2", "RCS weight .*got 2"),
    ],
)
def test_wrong_options_say_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options(RCS, text)


def test_text_where_a_number_belongs_is_named() -> None:
    with pytest.raises(TypeError, match="RCS weight .*got 'much'"):
        parse_options(RCS, "weight=much")
