"""Predictors by name, as module:function and by entry points; in `resclip evaluate` beside methods."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import predictor_support
import pytest
from cli_support import one_line, run

from resclip.evaluation.datasets import open_dataset
from resclip.evaluation.report import Report
from resclip.evaluation.runner import evaluate, row_names
from resclip.predictors import PredictorSegmenter
from resclip.predictors.registry import (
    SHIPPED,
    is_predictor,
    make_predictor,
    parse_options,
    predictor_names,
)

SMALL = ["evaluate", "--scenes", 2, "--size", 48, "--device", "cpu", "--workers", 0]
MAKE = "predictor_support:make"


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that announces two predictors, one of them by the name of a method."""
    points = [
        importlib.metadata.EntryPoint(name, MAKE, "resclip.predictors")
        for name in ("brightness", "naclip")
    ]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: points if group == "resclip.predictors" else [],
    )


def test_names(announced: None) -> None:
    names = predictor_names()
    assert names["brightness"] == MAKE
    assert set(SHIPPED) < set(names)
    assert "naclip" not in names
    assert not is_predictor("naclip+rcs")
    assert all(map(is_predictor, ("brightness", "groupvit", "groupvit+rcs", MAKE)))
    assert make_predictor("brightness").name == "brightness"


def test_what_makes_a_predictor_is_given_what_it_takes() -> None:
    assert make_predictor(MAKE).name == "brightness"
    assert make_predictor("predictor_support:Brightness").name == "brightness"
    assert make_predictor("predictor_support:READY") is predictor_support.READY
    options = {"level": 2.5}
    made = make_predictor("predictor_support:make_with", device="cpu", dataset="voc21", options=options)  # fmt: skip
    assert made.name == "cpu, voc21, 2.5"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nowhere.at_all:make", {}, "there is no module 'nowhere'"),
        ("predictor_support.inner:make", {}, "there is no module 'predictor_support.inner'"),
        ("predictor_support:makes", {}, "'predictor_support' has no 'makes'"),
        ("predictor_support:make_number", {}, "expected a predictor with a name"),
        ("predictor_support:NUMBER", {}, "got 7 without prepare, scores, name, settings"),
        ("predictor_support:Nameless", {}, "without name, settings"),
        ("predictor_support:", {}, "as module:function, or one of groupvit"),
        ("groupvitt", {}, "did you mean 'groupvit'?"),
        (MAKE, {"level": 1}, "takes the options none; got 'level'"),
        ("predictor_support:make_with", {"levle": 1}, "takes the options dataset, device, level; got 'levle'"),
        ("predictor_support:READY", {"level": 1}, "is there already and takes no options"),
        ("reco", {}, "predictor 'reco' needs references=; got no value for it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)) as caught:
        make_predictor(name, options=options)
    assert "\n" not in str(caught.value)
    assert name.partition(":")[0] in str(caught.value)


def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules in the folder that the command is started in are found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('no luck')\n")
    with pytest.raises(ValueError, match="'broken_one' cannot be imported .RuntimeError: no luck"):
        make_predictor("broken_one:make")
    (tmp_path / "needs_more.py").write_text("import not_there_at_all\n")
    with pytest.raises(ImportError, match="not_there_at_all"):
        make_predictor("needs_more:make")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("groupvit+rcs", "end in group tokens"),
        ("groupvit+rcs+sfr", "leave +rcs+sfr out"),
        ("reco+sfr", "method=naclip+rcs"),
        ("clipseg+rcs", "trained decoder"),
        (f"{MAKE}+rcs", "a predictor gives scores alone"),
    ],
)
def test_modules_on_a_predictor_are_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        row_names([name])


def test_rows() -> None:
    assert row_names(["resclip", MAKE, "groupvit", MAKE]) == ["naclip+rcs+sfr", MAKE, "groupvit"]
    with pytest.raises(ValueError, match="has no 'makes'"):
        row_names(["clip", "predictor_support:makes"])
    papers = row_names(["paper-table"])
    assert {"clip", "naclip+rcs+sfr"} < set(papers)
    assert row_names(["clip", "paper-table", "groupvit"]) == ["clip", *papers[1:], "groupvit"]


def test_options_as_text() -> None:
    texts = [
        "groupvit,rule=hugging-face,threshold=0.9",
        "mine:make,path=a,b.pt, flag=true",
        "groupvit,weights=w",
    ]
    assert parse_options(texts) == {
        "groupvit": {"rule": "hugging-face", "threshold": 0.9, "weights": "w"},
        "mine:make": {"path": "a,b.pt", "flag": True},
    }
    for text, words in (
        ("groupvit", "expected a predictor and its options"),
        ("rule=soft", "expected a predictor and its options"),
        ("groupvit,rule=a,rule=b", "expected rule of groupvit once"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_options([text])


# In an evaluation


def test_beside_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both in one table; each goes on from the file alone, whichever was there first."""
    path = tmp_path / "figures.json"
    assert run(*SMALL, "--method", MAKE, "--json", path) == 0
    assert run(*SMALL, "--method", f"clip,{MAKE}", "--json", path) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.endswith("(stored)") for line in told] == [False, False, True]
    column = Report.read(path).datasets["builtin"]
    assert set(column.rows) == {"clip", MAKE}
    assert column.settings["model"] == "builtin"
    options = column.rows[MAKE].options
    assert options["predictor"]["name"] == "brightness"
    assert options["predictor"]["levels"] == "even"
    assert (options["window"], options["stride"]) == (16, 8)
    assert "model" not in options
    # It may compute elsewhere than the method.
    assert options["device"] == column.settings["device"] == "cpu"
    assert "device" not in column.rows["clip"].options
    # The other way round, and what the methods share still counts.
    other = tmp_path / "other.json"
    assert run(*SMALL, "--method", f"clip,{MAKE}", "--json", other) == 0
    capsys.readouterr()
    assert run(*SMALL, "--method", MAKE, "--json", other) == 0
    assert capsys.readouterr().err.endswith("(stored)\n")
    assert run(*SMALL, "--method", "clip", "--templates", "plain", "--json", other) == 2
    one_line(capsys, "under other conditions (templates")


def test_its_settings_and_options_are_those_of_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    name = "predictor_support:make_with"
    assert run(*SMALL, "--method", name, "--json", path) == 0
    assert run(*SMALL, "--method", name, "--json", path, "--window", 24) == 0
    assert "measured again: window was 16, now 24; stride was 8, now 12" in capsys.readouterr().err
    options = ["--predictor-options", f"{name},level=1.5"]
    assert run(*SMALL, "--method", name, "--json", path, *options) == 0
    assert "predictor name was cpu, builtin, 0.0, now" in capsys.readouterr().err
    assert run(*SMALL, "--method", "clip", *options) == 2
    one_line(capsys, "--predictor-options is for predictors that --method names")


def test_worker_processes_make_no_difference() -> None:
    dataset = open_dataset("builtin", count=9, size=40)
    entries = {"mine": lambda each: PredictorSegmenter(predictor_support.make(), each.entries)}
    reports = [evaluate(entries, [dataset], workers=workers) for workers in (0, 2)]
    first, second = (report.datasets["builtin"].rows["mine"] for report in reports)
    assert first.scores == second.scores
    assert first.images == 9


def test_a_predictor_that_fails_ends_the_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong_scores.py").write_text(
        "import torch\n"
        "from resclip.predictors import FunctionPredictor\n"
        "make = lambda: FunctionPredictor('mine', lambda pixels, entries: torch.zeros(1))\n"
    )
    assert run(*SMALL, "--method", "wrong_scores:make") == 2
    one_line(capsys, "scores() of predictor 'mine' must return (1, 17, h, w)", "got (1,)")
    assert run(*SMALL, "--method", "not_there:make") == 2
    one_line(capsys, "there is no module 'not_there'")


def test_resclip_methods_lists_them(announced: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    came = capsys.readouterr().out
    for name in ("groupvit", "clipseg", "reco", "brightness", "MODULE:FUNCTION"):
        assert re.search(rf"^  {name} ", came, re.MULTILINE)
