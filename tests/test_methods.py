"""Methods and presets as values."""

from __future__ import annotations

import pytest

from resclip.methods import BASES, METHODS, PRESETS, RCS, SFR, find_method, find_preset

# Section "released settings" of the papers' programs: θ, (τ_s, λ_s), (τ_r, λ_r), window, probability threshold.
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
    method = find_method("resclip", name)
    assert method.sfr == SFR(label_threshold=threshold, temperature=sfr[0], weight=sfr[1])
    assert method.rcs == RCS(layers=(6, 7, 8, 9), temperature=rcs[0], weight=rcs[1])
    assert find_preset(name).segmenter.get("window") == window
    assert find_preset(name).segmenter.get("probability_threshold") == probability


def test_the_paper_preset_is_the_papers_equations() -> None:
    method = find_method("resclip", "paper")
    assert method.rcs is not None
    assert method.sfr is not None
    assert (method.rcs.temperature, method.rcs.weight) == (1.0, 0.5)
    assert (method.sfr.temperature, method.sfr.weight) == (1.0, 0.7)
    assert (method.sfr.connectivity, method.sfr.refine_iterations) == ("line", 0)
    assert method.sfr.normalise is False


def test_a_preset_adds_no_module_to_a_method_without_it() -> None:
    for name in BASES:
        for preset in PRESETS:
            method = find_method(name, preset)
            assert method.rcs is None
            assert method.sfr is None


def test_every_method_has_a_base_a_summary_and_a_citation() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.base in BASES
        assert method.summary
        assert method.citation


@pytest.mark.parametrize("find", (find_method, find_preset))
def test_unknown_names_list_the_valid_ones(find) -> None:
    with pytest.raises(ValueError, match=r"'nonsense'; use one of: \w+"):
        find("nonsense")
