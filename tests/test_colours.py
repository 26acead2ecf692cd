"""Colours by name: common things in their own, no two alike, and hardly any dependence on the other classes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resclip.text.class_names import DATASETS, dataset_classes, parse_entries
from resclip.visualization.colours import APART, oklab, palette

COMMON = (
    "sky",
    "tree",
    "grass",
    "road",
    "building",
    "person",
    "car",
    "water",
    "soil",
    "sand",
    "snow",
)
# Machado, Oliveira and Fernandes (2009): linear sRGB as it is seen without one kind of cones.
BLINDNESS = {
    "protanopia": [
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998),
    ],
    "deuteranopia": [
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881),
    ],
    "tritanopia": [
        (1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900),
    ],
}  # fmt: skip


def gaps(colours: np.ndarray) -> np.ndarray:
    """Distances in OKLab of all pairs."""
    places = oklab(colours)
    pairs = itertools.combinations(range(len(places)), 2)
    return np.array([np.linalg.norm(places[one] - places[two]) for one, two in pairs])


def hue(name: str) -> float:
    """In degrees of OKLab: about 30 is red, 90 yellow, 140 green, 260 blue."""
    _, a, b = oklab(palette([name])[0])
    return float(np.degrees(np.arctan2(b, a)) % 360)


def test_common_things_look_like_themselves() -> None:
    for name in ("sky", "water", "sea", "river", "lake"):
        assert 225 < hue(name) < 285
    for name in ("tree", "grass", "vegetation", "bush", "plant"):
        assert 110 < hue(name) < 175
    road = oklab(palette(["asphalt"])[0])
    assert np.hypot(*road[1:]) < 0.03
    assert oklab(palette(["background"])[0])[0] < 0.35
    assert oklab(palette(["snow"])[0])[0] > 0.9
    for name in ("building", "house", "roof"):
        assert hue(name) < 75


def test_synonyms_plurals_and_spellings_have_one_colour() -> None:
    for same in (
        ("tree", "Trees", " TREE ", "forest", "oak tree", "trees, woods"),
        ("road", "street", "asphalt", "asphalt-road"),
        ("night sky", "night_sky"),
        ("sky", "skies", "sky-other"),
        ("person", "people"),
        ("floor", "floor-wood", "floor-other", "wooden floor"),
        ("gadget", "Gadget"),
        ("fire hydrant", "fire_hydrant", "fire-hydrant"),
    ):
        assert len({bytes(palette([name])[0]) for name in same}) == 1, same


def test_others_have_a_colour_by_their_name_in_every_process() -> None:
    script = "from resclip.visualization.colours import palette; print(palette(['gadget', '猫']).tolist())"
    came = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert came == {f"{palette(['gadget', '猫']).tolist()}\n"}


def test_a_colour_depends_on_no_order_and_on_few_others(seed: int) -> None:
    names = dataset_classes("context60")
    names = [entry.name for entry in parse_entries(names)]
    alone = {name: palette([name])[0] for name in names}
    colours = dict(zip(names, palette(names), strict=True))
    kept = [name for name in names if (alone[name] == colours[name]).all()]
    assert len(kept) > 0.6 * len(names)
    assert {"sky", "tree", "grass", "road", "person", "car", "water"} <= set(kept)
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    for name, colour in zip(shuffled, palette(shuffled), strict=True):
        np.testing.assert_array_equal(colour, colours[name])


@pytest.mark.parametrize("name", DATASETS)
def test_no_two_classes_of_a_list_look_alike(name: str) -> None:
    names = [entry.name for entry in parse_entries(dataset_classes(name))]
    least = gaps(palette(names)).min()
    # 0.02 is just seen; 150 colours cannot all be as far apart as 60.
    assert least >= (APART if len(names) <= 60 else 0.04)


def test_words_that_mean_one_thing_are_told_apart_within_a_list() -> None:
    names = ("tree", "trees", "pine tree", "forest", "woods", "house", "home", "building")
    colours = palette(names)
    assert gaps(colours).min() >= APART
    np.testing.assert_array_equal(colours[0], palette(["tree"])[0])
    assert 100 < np.degrees(np.arctan2(*oklab(colours[2])[:0:-1])) % 360 < 185  # Still a green.


@pytest.mark.parametrize("kind", [None, *BLINDNESS])
def test_what_most_scenes_are_made_of_is_told_apart_by_colour_blind_people(
    kind: str | None,
) -> None:
    colours = palette(COMMON).astype(float)
    if kind is not None:
        encoded = colours / 255
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        seen = (linear @ np.array(BLINDNESS[kind]).T).clip(0, 1)
        colours = 255 * np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    assert gaps(colours).min() > 0.06


@pytest.mark.parametrize("count", [0, 1, 600, 5_000])
def test_any_number_of_names_has_different_colours(count: int) -> None:
    colours = palette([f"class {index}" for index in range(count)])
    assert (colours.shape, colours.dtype) == ((count, 3), np.uint8)
    assert len(np.unique(colours, axis=0)) == count
    assert not ((colours == 0).all(axis=1) | (colours == 255).all(axis=1)).any()


def test_a_palette_cannot_be_changed_for_the_next_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        palette(["sky"])[0] = 0
