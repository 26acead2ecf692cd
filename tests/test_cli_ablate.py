"""`resclip ablate`: what it prints and writes, that options reach the studies, and one line where it cannot be done."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import names_in, one_line, run
from dataset_support import save_image, save_mask, truncate

from resclip.evaluation import ablation as module
from resclip.evaluation.ablation import STUDIES, Study
from resclip.evaluation.report import Report

SMALL = ("ablate", "--scenes", 2, "--size", 48, "--device", "cpu", "--workers", 0)


class Stopped(RuntimeError):
    """In place of measuring."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks for; nothing is measured."""
    found: dict[str, Any] = {}

    def ablate(studies: Any, datasets: Any, base_of: Any, options: Any, **rest: Any) -> None:
        segmenter = base_of(datasets[0])
        found.update(rest, studies=studies, datasets=datasets, options=options, segmenter=segmenter)
        raise Stopped("asked")

    monkeypatch.setattr(module, "ablate", ablate)
    return found


def test_it_prints_a_table_a_study_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    options = [*SMALL, "--study", "connectivity, modules", "--out", out, "--plot"]
    assert run(*options) == 0
    first = capsys.readouterr()
    printed = first.out.splitlines()
    assert printed[0] == "modules: What each module adds"
    assert "connectivity: SFR: which pairs path decay spares" in printed
    assert "builtin: 2 held-out scenes of 48 × 48, windows of 112 every 56 pixels; " in first.out
    assert names_in(out) == [
        "ablation.csv", "ablation.json", "ablation.md", "connectivity_builtin.png", "modules_builtin.png",
    ]  # fmt: skip
    rows = Report.read(out / "ablation.json").datasets["builtin"].rows
    with (out / "ablation.csv").open(newline="") as stream:
        lines = [*csv.DictReader(stream)]
    assert len(lines) == 4 + 4
    for line in lines:
        assert float(line["miou"]) == rows[line["row"]].scores.miou
    assert (out / "ablation.md").read_text().startswith("## What each module adds (`modules`)\n")
    assert (out / "modules_builtin.png").read_bytes().startswith(b"\x89PNG")
    assert first.err.count("\n") == len(rows) == 7  # The four modules; three kinds that are new.

    assert run(*options) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.count("(stored)\n") == len(rows)


def test_options_reach_the_studies(asked: dict[str, Any], tmp_path: Path) -> None:
    options = "--base sclip --study pamr,modules --preset voc21 --rcs layers=3-5,temperature=1.5"
    options += " --sfr rounds=2 --window 64 --fresh"
    assert run(*SMALL, *options.split(), "--out", tmp_path) == 1
    assert [study.name for study in asked["studies"]] == ["modules", "pamr"]
    assert asked["options"] == {
        "rcs": {"layers": "3-5", "temperature": 1.5},
        "sfr": {"rounds": 2},
    }
    assert (asked["checkpoint"], asked["fresh"], asked["workers"]) == (tmp_path / "ablation.json", True, 0)  # fmt: skip
    settings = asked["segmenter"].settings
    assert (settings["base"], settings["rcs"], settings["sfr"]) == ("sclip", None, None)
    assert (settings["preset"], settings["window"]) == ("voc21", 64)
    assert settings["probability_threshold"] == 0.1  # The preset's.


def test_all_studies_and_forty_scenes_are_the_default(asked: dict[str, Any]) -> None:
    assert run("ablate", "--device", "cpu", "--size", 16) == 1
    assert asked["studies"] == STUDIES
    assert [len(dataset) for dataset in asked["datasets"]] == [40]
    assert asked["segmenter"].settings["base"] == "naclip"
    assert asked["checkpoint"] is None


def test_the_help_names_every_study_and_waits_for_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resclip.evaluation.ablation", None)
    assert run("ablate", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for study in STUDIES:
        assert study.name in text
    assert "it takes 40 of them unless --scenes" in text


def test_images_that_cannot_be_read_are_named_and_the_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of three masks is cut off; two settings of one study."""
    root, out = tmp_path / "dataset", tmp_path / "out"
    for name in ("a", "b", "c"):
        save_image(root / "images" / f"{name}.png", 24, 24)
        mask = root / "masks" / f"{name}.png"
        save_mask(mask, np.random.default_rng(0).integers(0, 2, (24, 24)))
    truncate(root / "masks" / "b.png")
    (root / "classes.txt").write_text("sky\ngrass\n")
    few = few_of("pamr")
    monkeypatch.setattr("resclip.evaluation.ablation.STUDIES", [few])
    asked = ["--dataset", "folder", "--root", root, "--short-side", 48, "--workers", 0]
    assert run("ablate", *asked, "--out", out) == 1
    came = capsys.readouterr()
    assert came.err.count("resclip: left out: folder, b: ") == 1
    assert "1 image is left out of the figures; " in came.out
    stored = json.loads((out / "ablation.json").read_text())["datasets"]["folder"]["rows"]
    assert {row["images"] for row in stored.values()} == {2}


def few_of(name: str) -> Study:
    """The first two settings of a study."""
    (study,) = (study for study in STUDIES if study.name == name)
    return replace(study, vary=lambda method, depth: study.vary(method, depth)[:2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--study", "pamir"], ["unknown study 'pamir'", "'pamr'", "modules, layers-window"]),
        (["--base", "naclop"], ["one of the bases clip, maskclip", "got 'naclop'"]),
        (["--base", "resclip"], ["got 'resclip'; the studies add RCS and SFR"]),
        (["--base", "maskclip"], ["base 'maskclip' has none", "layers-window,layers-cumulative"]),
        (["--rcs", "wait=1"], ["expected name=value for some of layers", "'wait=1'"]),
        (["--rcs", "layers=12", "--study", "rcs-weight"], ["between 1 and 11", "got 12"]),
        (["--plot"], ["expected --out DIR for what --plot writes"]),
    ],
)
def test_a_wrong_request_is_one_line(
    options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, *options) == 2
    one_line(capsys, *words)


def test_figures_under_other_conditions_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resclip.evaluation.ablation.STUDIES", [few_of("pamr")])
    assert run(*SMALL, "--out", tmp_path) == 0
    capsys.readouterr()
    before = (tmp_path / "ablation.json").read_bytes()
    other = [*SMALL, "--scenes", 3, "--out", tmp_path]
    assert run(*other) == 2
    one_line(capsys, "images: 2 there, 3 here", "pass --fresh to replace it")
    assert (tmp_path / "ablation.json").read_bytes() == before
    assert run(*other, "--fresh") == 0
