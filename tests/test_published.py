"""Published figures: found for the configuration that they are of, and for no other."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from resclip import Vocabulary, load
from resclip.evaluation.published import NAMES, TABLE, published
from resclip.methods.catalogue import ProxyAttention, find_method
from resclip.text.class_names import DATASETS, dataset_classes

OPENAI = ("ViT-B-16", "openai")


@cache
def vocabulary() -> Vocabulary:
    """Made once: what a segmenter is asked for does not show in its settings."""
    return load(classes=["sky", "tree"], templates="name", device="cpu").vocabulary


@cache
def measured(row: str, preset: str) -> Mapping[str, Any]:
    """Settings as a report has them, of a segmenter that `load` makes; model and proxy are not its own."""
    segmenter = load(classes=vocabulary(), method=row, preset=preset, device="cpu")
    settings: dict[str, Any] = json.loads(json.dumps(segmenter.settings))
    if settings["proxy"]:
        settings["proxy"]["model"] = ProxyAttention().model
        settings |= {
            "window": 336,
            "stride": 112,
        }  # A preset for the whole image is not its papers'.
    return settings


def miou(
    row: str, dataset: str, model: tuple[str, str | None] = OPENAI, **changes: Any
) -> float | None:
    found = published(row, dataset, *model, {**measured(row, dataset), **changes})
    return found and found.miou


@pytest.mark.parametrize(
    ("row", "dataset", "wanted"),
    [
        ("clip", "voc21", 16.2),
        ("naclip+rcs", "voc20", 85.5),
        ("naclip+sfr", "voc20", 81.5),
        ("naclip+rcs", "voc21", None),  # The ablation is of one dataset.
        ("naclip+rcs+sfr", "voc20", 86.0),  # The paper's, not the rerun's 82.31.
        ("sclip+rcs+sfr", "coco-stuff", 23.9),
        ("clip+rcs+sfr", "voc21", None),
        ("naclip-neighbourhood", "voc21", None),
        ("proxyclip", "voc21", 61.3),
        ("proxyclip+rcs", "voc21", None),
    ],
)
def test_rows_of_a_loaded_segmenter_find_their_figure(
    row: str, dataset: str, wanted: float | None
) -> None:
    assert miou(row, dataset) == wanted


@pytest.mark.parametrize(
    ("model", "pretrained", "wanted"),
    [
        ("ViT-B/16", "openai", 58.9),
        ("transformers:openai/clip-vit-base-patch16", None, 58.9),
        ("ViT-L-14", "openai", 52.2),
        ("ViT-B-16", "laion2b_s34b_b88k", None),
        ("ViT-B-16", None, None),
        ("ViT-H-14", "laion2b_s32b_b79k", None),  # Only ProxyCLIP has figures of it.
        ("builtin", None, None),
    ],
)
def test_a_figure_is_of_one_backbone_and_its_weights(
    model: str, pretrained: str | None, wanted: float | None
) -> None:
    assert miou("naclip", "voc21", (model, pretrained)) == wanted
    if model == "ViT-H-14":
        assert miou("proxyclip", "voc21", (model, pretrained)) == 65.0


def test_pamr_changes_which_figure_it_is() -> None:
    found = published("naclip", "voc21", *OPENAI, {"refine_iterations": 10})
    assert found is not None
    assert (found.method, found.miou) == ("NACLIP + PAMR", 64.07)
    assert miou("naclip", "voc21", refine_iterations=3) is None
    assert miou("naclip+rcs+sfr", "voc21", refine_iterations=10) is None
    assert miou("sclip", "voc21", refine_iterations=10) is None


@pytest.mark.parametrize(
    ("row", "change"),
    [
        ("naclip", {"window": 224, "stride": 56}),
        ("naclip", {"short_side": 448}),
        ("naclip", {"probability_threshold": 0.0}),
        ("naclip", {"neighbourhood_std": 2.0}),
        ("naclip", {"templates": "short"}),
        ("naclip", {"split": "train"}),
        ("naclip", {"entries": ["cat", "dog"]}),
        ("naclip", {"rcs": {"layers": None, "weight": 0.3, "temperature": 2.0}}),
        ("naclip+rcs+sfr", {"window": 224, "stride": 112}),  # The rerun with windows is 4 points lower.
        ("naclip+rcs+sfr", {"rcs_layers": [1, 2, 3]}),
        ("naclip+rcs+sfr", {"rcs": {"layers": None, "weight": 0.9, "temperature": 2.0}}),
        ("proxyclip", {"proxy": {"model": "colour", "beta": 1.2, "gamma": 3.0, "input_size": None}}),
        ("proxyclip", {"proxy": {**vars(ProxyAttention()), "beta": 1.0}}),
    ],
)  # fmt: skip
def test_other_settings_have_no_figure(row: str, change: dict[str, Any]) -> None:
    """One or two of each kind of condition: options of the protocol are all compared in the same loop."""
    assert miou(row, "voc21") is not None
    assert miou(row, "voc21", **change) is None


@pytest.mark.parametrize(
    ("row", "change"),
    [
        ("naclip", {"window": 224, "stride": 112}),
        ("naclip", {"stride": 7}),  # The whole image has no stride.
        ("naclip", {"templates": "imagenet", "device": "cuda", "precision": "float16"}),
        ("naclip", {"entries": dataset_classes("voc21"), "split": None}),
        ("naclip+rcs+sfr", {"rcs": {"layers": [6, 7, 8, 9], "weight": 0.3, "temperature": 2.0}}),
        ("proxyclip", {"proxy": {**vars(ProxyAttention()), "model": "timm:vit_base_patch8_224.dino"}}),
    ],
)  # fmt: skip
def test_what_makes_no_difference_to_the_protocol_hides_no_figure(
    row: str, change: dict[str, Any]
) -> None:
    assert miou(row, "voc21", **change) == miou(row, "voc21")


def test_the_equations_of_the_paper_count_as_published() -> None:
    options = measured("naclip+rcs+sfr", "paper")
    found = published("naclip+rcs+sfr", "context59", *OPENAI, options)
    assert found is not None
    assert found.miou == 36.8
    # Neither the released values nor the paper's: those of another dataset.
    assert published("naclip+rcs+sfr", "ade20k", *OPENAI, measured("naclip+rcs+sfr", "context59")) is None  # fmt: skip


def test_other_datasets_and_rows_have_no_figure() -> None:
    for row, dataset in (("naclip", "builtin"), ("naclip", ""), ("naclop", "voc21"), ("", "voc21")):
        assert published(row, dataset, *OPENAI, {}) is None
    assert published("naclip+", "voc21", *OPENAI, {}) is None


def test_every_name_is_one_of_the_table() -> None:
    """And no figure is left in it that nothing leads to, but the rerun."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    methods = {line["method"] for line in lines}
    reached = {name for part in ("methods", "refined", "proxy") for name in names[part].values()}
    assert reached <= methods
    assert methods - reached == {"NACLIP + ResCLIP (independent rerun)"}
    assert {line["backbone"] for line in lines} == set(names["backbones"].values())
    assert set(lines[0]) == {"method", "backbone", "source", *DATASETS}
    assert all(find_method(row).name == row for row in names["methods"])
