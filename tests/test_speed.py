"""`resclip bench` and `resclip.speed`: rivals take turns, and what is printed says what it holds for."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import run

from resclip import speed
from resclip.speed import Row, Setting, Speed, measure

SMALL: dict[str, Any] = {
    "model": "ViT-S-32",
    "method": "naclip+rcs",
    "sizes": (64,),
    "seconds": 1e-3,
}
ARGUMENTS = ("--model", "vit-s-32", "--method", "naclip+rcs", "--sizes", "64", "--seconds", "0.001")


@pytest.fixture(autouse=True)
def one_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not CLIP's eighty, which take longer than the tower does; and no rivals but those of a test."""
    monkeypatch.setattr(speed, "OTHERS", {})
    monkeypatch.setattr("resclip.text.vocabulary.find_templates", lambda name: ["a photo of a {}."])


def test_every_setting_has_a_row_for_each_rival() -> None:
    result = measure(**SMALL, names=(2, 3), implementations=("torch", "reference"))
    settings = [Setting(64, names, 1, "fp32") for names in (2, 3)]
    assert [(row.setting, row.rival) for row in result.rows] == [
        (setting, rival) for setting in settings for rival in ("plain tower", "torch", "reference")
    ]
    for row in result.rows:
        assert row.seconds is not None
        assert row.best is not None
        assert 0 < row.best <= row.seconds < 10
        assert row.rounds >= 3
        assert row.peak_memory is None


def test_rivals_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rivals = {name: (lambda name=name: order.append(name)) for name in ("one", "two")}
    rows = list(speed.take_turns(Setting(1, 1, 1, "fp32"), rivals, torch.device("cpu"), 1e-9))
    assert order == ["one", "two"] * 4  # Once uncounted, then three rounds.
    assert [row.rounds for row in rows] == [3, 3]


def test_a_rival_without_memory_has_a_note_and_the_others_a_time() -> None:
    def fails() -> None:
        raise MemoryError

    rivals = {"one": fails, "two": lambda: None}
    first, second = speed.take_turns(Setting(1, 1, 1, "fp32"), rivals, torch.device("cpu"), 1e-9)
    assert (first.seconds, first.note) == (None, "not enough memory")
    assert second.seconds is not None


def test_stages_are_parts_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure("ViT-S-32", "resclip", sizes=(64,), names=(3,), seconds=1e-3)
    assert [row.rival for row in result.stages] == list(speed.STAGES)
    assert all(row.seconds is not None and row.seconds >= 0 for row in result.stages)
    heads = result.stage_table().splitlines()[0]
    assert all(stage in heads for stage in speed.STAGES)
    naclip = measure(**SMALL).stages
    assert "refinement" not in {row.rival for row in naclip}


def test_a_stage_is_shown_without_the_one_that_is_part_of_it() -> None:
    setting = Setting(1, 1, 1, "fp32")
    rows = [
        speed.Row(setting, name, seconds, seconds, 3, None)
        for name, seconds in (("one", 1.0), ("two", 3.0), ("three", None))
    ]
    after = speed.without(rows, {"two": "one", "three": "two"})
    assert [row.seconds for row in after] == [1.0, 2.0, None]


def test_other_programs_run_the_tower_where_they_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stand-ins for the packages."""

    def fails(file: str, array: Any, dtype: torch.dtype) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(speed, "export", lambda visual, pixels, file: Path(file).touch())
    runs: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        speed,
        "OTHERS",
        {
            "onnxruntime": lambda file, array, dtype: lambda: runs.append(array.shape),
            "other": fails,
        },
    )
    monkeypatch.setattr(speed, "gem_rival", lambda *arguments: None)
    rows = {row.rival: row for row in measure(**SMALL).rows}
    assert rows["onnxruntime"].seconds is not None
    assert set(runs) == {(1, 3, 64, 64)}
    assert rows["other"].note == "failed: RuntimeError: no such instruction"


@pytest.mark.parametrize("works", (True, False))
def test_gem_is_a_rival_where_it_is_installed(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package."""
    gem = types.ModuleType("gem")

    def create_gem_model(model_name: str, pretrained: None, device: torch.device) -> Any:
        if not works:
            raise RuntimeError("no such model\nand more")
        model = torch.nn.Identity()
        model.forward = lambda pixels, words: pixels  # type: ignore[method-assign]
        return model

    gem.create_gem_model = create_gem_model  # type: ignore[attr-defined]
    gem.__spec__ = types.SimpleNamespace(name="gem")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "gem", gem)
    row = measure(**SMALL).rows[-1]
    assert row.rival == "gem_torch"
    if works:
        assert row.seconds is not None
    else:
        assert row.note == "failed: RuntimeError: no such model"


def test_the_command_prints_stores_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "speed.json"
    assert run("bench", *ARGUMENTS, "--json", path) == 0
    printed = capsys.readouterr().out
    for part in (
        "plain tower",
        "ms an image",
        "ViT-S-32 with random weights",
        " threads; ",
        "torch ",
    ):
        assert part in printed
    stored = Speed.read(path)
    assert stored.record() == json.loads(path.read_text())
    assert {"resclip", "torch", "python"} <= set(stored.versions)
    assert run("bench", *ARGUMENTS, "--compare", path) == 0
    printed = capsys.readouterr().out
    assert "change" in printed
    assert printed.count("%") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    (
        (("--sizes", "0"), "whole numbers of at least 1"),
        (("--names", "a,b"), "whole numbers of at least 1"),
        (("--seconds", "nan"), "a number above 0"),
        (("--precision", "fp8"), "fp32, fp16, bf16"),
        (("--implementation", "cuda"), "'cuda'"),
        (("--model", "ViT-Z"), "unknown model 'ViT-Z'"),
        (("--model", "RN50"), "no plain vision transformer"),
        (("--method", "proxyclip"), "second vision model"),
        (("--device", "cuda:99"), "cannot be used"),
        (("--device", "meta"), "device 'meta' cannot be used"),
        (("--compare", "missing.json"), "missing.json"),
    ),
)
def test_refusals(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", *ARGUMENTS, *arguments) != 0
    assert said in capsys.readouterr().err


def test_another_file_or_method_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    good = Speed("ViT-L-14", "naclip", "cpu", "a machine", 1, {}).record()
    setting = vars(Setting(1, 1, 1, "fp32"))
    row = {"setting": setting, "rival": "torch", "best": 1, "rounds": 1, "peak_memory": None}
    documents = (
        {"version": 99},
        {"version": 1, "rows": 3},
        {**good, "rows": [{**row, "seconds": 0.0}]},
        {**good, "rows": [{**row, "seconds": "a"}]},
        {**good, "rows": [{**row, "seconds": math.nan}]},
        {**good, "rows": [{**row, "seconds": None}]},
        {**good, "rows": [{**row, "seconds": 1.0, "setting": {**setting, "size": "1"}}]},
        good,
    )
    for text in ("", "{}", "[]", *map(json.dumps, documents)):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"other\.json holds no speeds of version 2"):
            Speed.read(path)
    rows = [Row(Setting(1, 1, 1, "fp32"), "torch", 1.0, 1.0, 1, None)]
    Speed("ViT-L-14", "naclip", "cpu", "a machine", 1, {}, rows).store(path)
    assert run("bench", *ARGUMENTS, "--compare", path) != 0
    assert "compare the same model and method" in capsys.readouterr().err
