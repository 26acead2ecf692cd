"""`resclip evaluate`: its rows, the file that it goes on from, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import one_line, run
from made_up import figures

from resclip import Segmenter, load
from resclip.builtin import PRESET
from resclip.builtin import evaluate as module
from resclip.builtin.evaluate import SceneSet, evaluate, measure, row_names
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation.metrics import confusion
from resclip.evaluation.record import Evaluation
from resclip.evaluation.tables import class_tables, mean_table
from resclip.methods import BASES, METHODS

TWO = SceneSet(count=2, size=48)  # two small scenes: rows and files, no quality
SMALL = ["evaluate", "--scenes", 2, "--size", 48, "--device", "cpu"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that were measured, and not read from a file, as they come."""
    bases: list[str] = []
    original = measure

    def spy(segmenter: Segmenter, *arguments: Any, **options: Any) -> Any:
        bases.append(segmenter.settings["method"])
        return original(segmenter, *arguments, **options)

    monkeypatch.setattr(module, "measure", spy)
    return bases


def small(*methods: str, **options: Any) -> Evaluation:
    return evaluate(methods, TWO, device="cpu", **options)


# Rows


def test_every_method_has_a_row_and_none_has_two() -> None:
    names = row_names()
    assert names == [name for name in METHODS if name != "resclip"]
    assert {name.partition("+")[0] for name in names} == set(BASES)
    assert "maskclip+rcs" in names
    assert "maskclip+sfr" not in names


def test_rows_are_named_by_base_and_modules() -> None:
    assert row_names(["resclip", "clip", "naclip+sfr+rcs"]) == ["naclip+rcs+sfr", "clip"]
    with pytest.raises(ValueError, match="unknown method 'naclop'"):
        row_names(["clip", "naclop"])
    with pytest.raises(ValueError, match="base 'maskclip' has none"):
        row_names(["maskclip+sfr"])
    with pytest.raises(ValueError, match="at least one method"):
        row_names([])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "training"}, "unknown set 'training'; use one of: held-out, validation"),
        ({"count": 0}, "scenes must be at least 1; got 0"),
        ({"size": 7}, "size must be at least 8; got 7"),
    ],
)
def test_a_set_of_scenes_says_what_it_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SceneSet(**values)


def test_counts_are_those_of_the_pictures_one_by_one() -> None:
    """Batches of two and a rest of one."""
    scenes = SceneSet(count=3, size=48).draw()
    segmenter = load(classes=CLASS_NAMES, method="naclip", device="cpu", short_side=0)
    told: list[int] = []
    counts = measure(segmenter, scenes, 2, told.append)
    alone = [segmenter.segment(scene.image).labels for scene in scenes]
    pairs = zip(scenes, alone, strict=True)
    wanted = sum(confusion(scene.mask, labels, len(CLASS_NAMES)) for scene, labels in pairs)
    assert told == [2, 1]
    assert counts.sum() == 3 * 48 * 48
    # The arg-max of two nearly equal classes may change with the size of a batch, at a few pixels.
    assert np.abs(counts - wanted).sum() <= 0.001 * counts.sum()


def test_every_row_has_the_same_windows() -> None:
    """ProxyCLIP's own windows are 336 pixels wide."""
    came = small("naclip", "proxyclip")
    assert came.settings["window"] == PRESET["segmenter"]["window"] == 112
    assert came.settings["stride"] == 56
    assert came.rows["proxyclip"].knobs["proxy"]["model"] == "colour"
    assert small("proxyclip", window=40).settings["stride"] == 20
    assert small("proxyclip", window=0).settings["window"] == 0


def test_the_methods_come_in_the_papers_order() -> None:
    """Twenty held-out scenes, each one window: the whole table has two hundred."""
    names = ("clip", "maskclip", "naclip", "resclip")
    scenes = SceneSet(count=20, size=112)
    came = evaluate(names, scenes, device="cpu")
    means = [row.miou for row in came.rows.values()]
    assert list(came.rows) == ["clip", "maskclip", "naclip", "naclip+rcs+sfr"]
    assert sorted(means) == means
    assert means[2] > 60
    # A class that is not there, but was predicted, has 0.
    drawn = set(np.unique([scene.mask for scene in scenes.draw()]))
    assert len(drawn) > 10
    assert all((came.rows["naclip+rcs+sfr"].iou[label] or 0) > 20 for label in drawn)


# The file


def test_the_file_says_what_was_measured_and_how(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    came = small("naclip+rcs", "clip", path=path)
    stored = json.loads(path.read_text())
    assert stored["pictures"] == "2 held-out scenes of 48 × 48"
    assert stored["classes"] == list(CLASS_NAMES)
    settings = stored["settings"]
    assert (settings["set"], settings["scenes"], settings["size"]) == ("held-out", 2, 48)
    assert (settings["model"], settings["preset"]) == ("builtin", "builtin")
    assert (settings["device"], settings["precision"]) == ("cpu", "float32")
    assert {"resclip", "torch", "python", "window", "stride"} <= set(settings)
    assert list(stored["rows"]) == ["clip", "naclip+rcs"]
    row = stored["rows"]["naclip+rcs"]
    assert len(row["iou"]) == len(CLASS_NAMES)
    known = [value for value in row["iou"] if value is not None]
    assert 0 < len(known) < len(CLASS_NAMES)
    assert row["miou"] == pytest.approx(sum(known) / len(known))
    assert row["seconds"] > 0
    assert row["threads"] >= 1
    assert row["knobs"]["rcs"]["weight"] == 0.4
    assert row["knobs"]["sfr"] is None
    assert Evaluation.read(path) == came


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.json"
    spy = module.measure

    def stop(segmenter: Segmenter, *arguments: Any, **options: Any) -> Any:
        if segmenter.settings["method"] == "maskclip":
            raise KeyboardInterrupt
        return spy(segmenter, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            small("clip", "maskclip", path=path)
    assert list(Evaluation.read(path).rows) == ["clip"]
    first = Evaluation.read(path).rows["clip"]
    came = small("clip", "maskclip", path=path)
    assert measured == ["clip", "maskclip"]
    assert came.rows["clip"] == first
    assert list(Evaluation.read(path).rows) == ["clip", "maskclip"]


def test_a_row_asked_for_alone_leaves_the_others_in_the_file(
    tmp_path: Path, measured: list[str]
) -> None:
    path = tmp_path / "figures.json"
    small("maskclip", path=path)
    assert list(small("clip", path=path).rows) == ["clip"]
    assert list(Evaluation.read(path).rows) == ["clip", "maskclip"]
    assert measured == ["maskclip", "clip"]
    small("maskclip", path=path, fresh=True)
    assert measured == ["maskclip", "clip", "maskclip"]
    assert list(Evaluation.read(path).rows) == ["maskclip"]


def test_a_row_with_other_knobs_is_measured_again(tmp_path: Path, measured: list[str]) -> None:
    path = tmp_path / "figures.json"
    wanted = small("naclip", path=path).rows["naclip"]
    stored = json.loads(path.read_text())
    stored["rows"]["naclip"]["knobs"]["neighbourhood_std"] = 1.0
    path.write_text(json.dumps(stored))
    assert small("naclip", path=path).rows["naclip"].iou == wanted.iou
    assert measured == ["naclip", "naclip"]
    assert Evaluation.read(path).rows["naclip"].knobs == wanted.knobs


# The command


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert run(*SMALL, "--methods", "maskclip, maskclip+rcs", "--json", path) == 0
    came = capsys.readouterr()
    assert came.out == mean_table(Evaluation.read(path)) + "\n"
    assert [line.split(":")[0] for line in came.err.splitlines()] == ["maskclip", "maskclip+rcs"]
    assert run(*SMALL, "--methods", "maskclip", "--json", path, "--per-class") == 0
    came = capsys.readouterr()
    assert came.err.endswith("(stored)\n")
    for name in CLASS_NAMES:
        assert f"\n{name} " in came.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "naclop"], ["unknown method 'naclop'", "did you mean 'naclip'?"]),
        (["--methods", ""], ["unknown method ''"]),
        (["--scenes", 0], ["scenes must be at least 1; got 0"]),
        (["--size", 4], ["size must be at least 8; got 4"]),
        (["--window", 3], ["window must be 0", "got 3"]),
        (["--stride", 500], ["stride must lie between 1 and the window's 112 pixels"]),
        (["--set", "training"], ["--set", "'held-out', 'validation'"]),
        (["--device", "toaster"], ["device 'toaster' cannot be used"]),
    ],
)
def test_a_wrong_request_is_one_line(
    options: list[object], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, *options) == 2
    one_line(capsys, *words)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": {"clip": {}}}', "\xff"])
def test_a_file_of_something_else_is_left_alone(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content.encode("latin-1"))
    assert run(*SMALL, "--methods", "clip", "--json", path) == 2
    one_line(capsys, str(path), "pass --fresh to replace it")
    assert path.read_bytes() == content.encode("latin-1")


def test_figures_under_other_conditions_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    small("clip", path=path)
    before = path.read_bytes()
    assert run(*SMALL, "--scenes", 3, "--methods", "clip", "--json", path) == 2
    one_line(capsys, "scenes: 2 there, 3 here", "pass --fresh")
    assert path.read_bytes() == before
    assert run(*SMALL, "--methods", "clip", "--json", tmp_path) == 1
    one_line(capsys, str(tmp_path), "Is a directory")


# Tables


def test_a_table_has_a_line_a_base_and_a_column_a_combination() -> None:
    made_up = figures(
        clip=34.0, clip_rcs=35.26, clip_sfr=33.98, clip_rcs_sfr=33.0, naclip_sfr=100.0
    )
    lines = mean_table(made_up).splitlines()
    assert lines[0].split("  ")[0] == "base"
    assert lines[0].split()[1:] == ["none", "RCS", "SFR", "RCS", "+", "SFR"]
    changes = ["35.3", "(+1.3)", "34.0", "(+0.0)", "33.0", "(-1.0)"]
    assert lines[1].split() == ["clip", "34.0", *changes]
    assert lines[2].split() == ["naclip", "-", "-", "100.0", "-"]  # no base, so no change from it
    assert lines[-1] == (
        "200 scenes, windows of 112 every 56 pixels; cpu, float32, resclip 0.1, torch 2.9."
    )
    column = lines[0].index("RCS")
    assert lines[1][column:].lstrip().startswith("35.3")
    assert lines[2][column:].lstrip().startswith("-")


def test_classes_have_a_table_a_base() -> None:
    text = class_tables(figures(clip=34.0, clip_rcs=35.0, naclip=50.0))
    clip, naclip = text.split("\n\n")
    assert clip.splitlines()[1].split() == ["sky", "44.0", "45.0", "(+1.0)", "-", "-"]
    assert clip.splitlines()[2].split() == ["night", "sky", "-", "-", "-", "-"]
    assert naclip.splitlines()[3].split() == ["car", "40.0", "-", "-", "-"]
