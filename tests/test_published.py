"""Published figures: found for the configuration that they are of, and for no other."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import report_support

from resclip import Vocabulary, load
from resclip.evaluation.published import ABLATIONS, NAMES, TABLE, paper_rows, published
from resclip.evaluation.report import Report
from resclip.evaluation.tables import published_figures, report_tables
from resclip.methods.catalogue import BASES, MODULES, ProxyAttention, find_method
from resclip.text.class_names import DATASETS, dataset_classes

OPENAI = ("ViT-B-16", "openai")


@cache
def vocabulary() -> Vocabulary:
    """Made once: what a segmenter is asked for does not show in its settings."""
    return load("builtin", classes=["sky", "tree"], templates="name", device="cpu").vocabulary


@cache
def measured(row: str, preset: str) -> Mapping[str, Any]:
    """Settings as a report has them, of a segmenter that `load` makes; model and proxy are not its own."""
    segmenter = load("builtin", classes=vocabulary(), method=row, preset=preset, device="cpu")
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


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# Reruns, earlier releases, parts of a method, and another paper's figures of a method that has its own.
FOR_READING = {
    "NACLIP + ResCLIP (independent rerun)",
    "SFP (December 2025 release)",
    "SFP (rerun by PEARL's authors)",
    "RF-CLIP ablation: averaged k·k maps alone",
    "RF-CLIP ablation: + mean filtering of distracted tokens",
    "RF-CLIP ablation: + both redistributions",
    "CLIP (SCLIP paper)",
    # By features of DINO, which the steps "cass" and "lposs" do not take.
    "CASS (DINO B/8)",
    "LPOSS (DINO B/16)",
    "MaskCLIP (SCLIP paper)",
}


def test_every_name_is_one_of_the_table() -> None:
    """And no figure is left in it that nothing leads to, but those that are for reading."""
    lines, names = read(TABLE), json.loads(NAMES.read_text(encoding="utf-8"))
    methods = {line["method"] for line in lines}
    reached = {name for part in ("methods", "refined", "proxy") for name in names[part].values()}
    reached |= {known["method"] for known in names["predictors"].values()}
    assert reached <= methods
    assert methods - reached == FOR_READING
    backbones = {known["backbone"] for known in names["predictors"].values()}
    assert {line["backbone"] for line in lines} == {*names["backbones"].values(), *backbones}
    assert set(lines[0]) == {"method", "backbone", "source", *DATASETS}
    assert len({(line["method"], line["backbone"]) for line in lines}) == len(lines)
    for row in names["methods"]:
        base, *modules = row.split("+")
        if base in BASES and set(modules) <= set(MODULES):
            assert find_method(row).name == row


def test_every_figure_is_one() -> None:
    for line in read(TABLE) + read(ABLATIONS):
        assert line["source"]
        assert None not in line, f"{line['method']}: a comma too many"
        for name in DATASETS:
            assert not line[name] or 0 < float(line[name]) < 100, line
    for line in read(ABLATIONS):
        assert line["average"] or any(line[name] for name in DATASETS), line
    assert len({(line["method"], line["setting"]) for line in read(ABLATIONS)}) == len(read(ABLATIONS))  # fmt: skip


@pytest.mark.parametrize(
    ("row", "dataset", "settings", "wanted"),
    [
        ("sc-clip", "voc21", {"logit_scale": 50.0, "probability_threshold": 0.15}, 64.6),
        ("sc-clip", "voc21", {"logit_scale": 40.0, "probability_threshold": 0.1}, None),
        ("sc-clip", "ade20k", {}, 20.1),
        ("sfp", "ade20k", {"short_side": 384}, 20.8),
        ("sfp", "ade20k", {}, None),
        ("pearl", "voc20", {"window": 0}, 86.9),
        ("rf-clip", "coco-stuff", {"refine_iterations": 10}, 27.5),
    ],
)
def test_later_methods_find_their_figures_once_the_catalogue_has_them(
    row: str, dataset: str, settings: dict[str, Any], wanted: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A stand-in of that name; until there is one, a row of it has none."""
    if row not in BASES:
        assert published(row, dataset, *OPENAI, {}) is None
        monkeypatch.setitem(BASES, row, replace(BASES["clearclip"], name=row))
    usual = {"window": 224, "stride": 112, "short_side": 336, "logit_scale": 40.0}
    found = published(row, dataset, *OPENAI, {"probability_threshold": 0.0, **usual, **settings})
    assert (found and found.miou) == wanted


def test_a_backbones_own_settings_stand_above_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASES, "sc-clip", replace(BASES["clearclip"], name="sc-clip"))
    large = ("ViT-L-14", "openai")
    options = {"window": 224, "stride": 112, "logit_scale": 40.0, "probability_threshold": 0.2}
    found = published("sc-clip", "voc21", *large, options)
    assert found is not None
    assert found.miou == 65.0
    assert published("sc-clip", "voc21", *OPENAI, options) is None


def predicted(dataset: str, **changes: Any) -> float | None:
    """The figure beside a row of the predictor "groupvit", with its released settings and changes."""
    threshold = {"voc21": 0.95, "context60": 0.35, "coco-object": 0.95}.get(dataset, 0.95)
    own = {"name": "groupvit", "weights": "nvidia/groupvit-gcc-yfcc", "rule": "original"}
    settings = {"short_side": 448, "long_side": 2048, "window": 448, "stride": 224}
    of_row = {name: value for name, value in changes.items() if name not in (*own, "threshold")}
    predictor = {**own, "threshold": threshold}
    predictor |= {name: value for name, value in changes.items() if name not in of_row}
    found = published("groupvit", dataset, "", None, {**settings, **of_row, "predictor": predictor})
    return found and found.miou


def test_predictors_find_their_figures_by_name_and_settings() -> None:
    assert predicted("voc21") == 52.3
    assert predicted("context60") == 18.7
    assert predicted("ade20k") == 10.4
    for changes in (
        {"name": "mine"},
        {"rule": "hugging-face"},
        {"threshold": 0.9},
        {"window": 224},
        {"weights": "elsewhere"},
        {"split": "train"},
        {"entries": ["cat", "dog"]},
    ):
        assert predicted("voc21", **changes) is None
    assert predicted("builtin") is None


def test_a_table_shows_a_predictors_figure_whatever_the_methods_model_is() -> None:
    predictor = {"name": "groupvit", "weights": "nvidia/groupvit-gcc-yfcc", "rule": "original"}
    rows = {
        "groupvit": report_support.row(
            50.0, options={"window": 448, "stride": 224, "predictor": predictor}
        ),
        "naclip": report_support.row(57.0, options={"window": 224, "stride": 112}),
    }
    measured_ones = report_support.column("voc20", rows, model="ViT-B-16", pretrained="openai")
    stated = published_figures([measured_ones])
    assert {name: figure and figure.miou for (_, name), figure in stated.items()} == {
        "groupvit": 79.7,
        "naclip": 79.7,
    }
    text = report_tables(Report({"voc20": measured_ones})).text
    assert "Published: GroupViT (SCLIP paper): SCLIP paper table (average 30.7)." in text


def test_the_rows_of_the_papers_tables() -> None:
    """Each base that has figures, alone and with all that fits, and the ablations of one; never what is not there."""
    rows = paper_rows()
    assert len(set(rows)) == len(rows)
    for name in ("clip", "clip+rcs+sfr", "maskclip", "maskclip+rcs", "naclip", "naclip+rcs",
                 "naclip+sfr", "naclip+rcs+sfr", "proxyclip", "proxyclip+rcs+sfr"):  # fmt: skip
        assert name in rows
    assert not {"clip+rcs", "naclip-neighbourhood", "maskclip+sfr"} & set(rows)
    assert all(find_method(name).name == name for name in rows)
