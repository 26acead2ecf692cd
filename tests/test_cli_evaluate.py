"""`resclip evaluate`: what it prints and writes, which settings reach the methods, and its errors."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import StandIn, names_in, one_line, run
from PIL import Image

from resclip import RCS, load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.cli.options import open_datasets, preset_of, segmenter_for
from resclip.evaluation.datasets import open_dataset
from resclip.evaluation.report import Report
from resclip.evaluation.runner import report_lock
from resclip.evaluation.tables import report_tables

SMALL = ["evaluate", "--scenes", 2, "--size", 48, "--device", "cpu", "--workers", 0]
FOLDER = ["evaluate", "--dataset", "folder", "--device", "cpu", "--workers", 0, "--method", "clip"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three of the scenes as files, the last one's mask cut short."""
    root = tmp_path / "mine"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for sample in open_dataset("builtin", count=3, size=48).samples:
        Image.fromarray(sample.image.read().pixels).save(root / "images" / f"{sample.name}.png")
        Image.fromarray(sample.truth.read()).save(root / "masks" / f"{sample.name}.png")
    last = root / "masks" / "held-out-0002.png"
    last.write_bytes(last.read_bytes()[:-40])
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES), encoding="utf-8")
    return root


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert run(*SMALL, "--method", "maskclip, maskclip+rcs", "--json", path) == 0
    came = capsys.readouterr()
    assert came.out == report_tables(Report.read(path)).text + "\n"
    told = [line.split(":")[0] for line in came.err.splitlines()]
    assert told == ["builtin, maskclip", "builtin, maskclip+rcs"]
    assert run(*SMALL, "--method", "maskclip", "--json", path, "--per-class") == 0
    came = capsys.readouterr()
    assert came.err.endswith("(stored)\n")
    for name in CLASS_NAMES:
        assert f"\n{name} " in came.out


def test_a_folder_gets_the_report_and_what_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["--save-predictions", "--qualitative", 1, "--plot"]
    assert run(*SMALL, "--method", "clip", "--out", out, *asked) == 0
    assert names_in(out) == [
        *("classes_builtin.png", "predictions", "report.csv", "report.json", "report.md", "sheets")
    ]
    assert (out / "report.md").read_text(encoding="utf-8").startswith("| method ")
    with (out / "report.csv").open(encoding="utf-8", newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert (line["set"], line["method"], line["images"]) == ("builtin", "clip", "2")
    predictions = out / "predictions" / "builtin" / "clip"
    assert names_in(predictions) == ["held-out-0000.png", "held-out-0001.png"]
    with Image.open(predictions / "held-out-0000.png") as image:
        assert image.size == (48, 48)
        assert np.asarray(image).max() < len(CLASS_NAMES)
    assert len(names_in(out / "sheets" / "builtin" / "clip")) == 1


def test_an_image_that_is_left_out_is_named_and_tells_by_the_exit_status(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert run(*FOLDER, "--root", folder, "--json", path) == 1
    came = capsys.readouterr()
    (told,) = [line for line in came.err.splitlines() if "left out" in line]
    assert "held-out-0002" in told
    assert "expected a whole mask" in told
    assert "1 image" in came.out
    row = Report.read(path).datasets["folder"].rows["clip"]
    assert (row.images, len(row.problems)) == (2, 1)
    # The figures from the file tell as well.
    assert run(*FOLDER, "--root", folder, "--json", path) == 1
    assert "held-out-0002" in capsys.readouterr().err


def test_names_can_be_given_in_place_of_the_datasets_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, names = tmp_path / "figures.json", tmp_path / "names.txt"
    entries = [f"{name}, {name} image" for name in CLASS_NAMES]
    names.write_text("\n".join(entries), encoding="utf-8")
    assert run(*FOLDER, "--root", folder, "--classes", names, "--json", path) == 1
    assert Report.read(path).datasets["folder"].settings["entries"] == entries
    names.write_text("sky\ngrass\n", encoding="utf-8")
    capsys.readouterr()
    assert run(*FOLDER, "--root", folder, "--classes", names) == 2
    one_line(capsys, "a name for each of the 17 classes of folder, got 2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "naclop"], ["unknown method 'naclop'", "did you mean 'naclip'?"]),
        (["--window", 3], ["window must be 0", "got 3"]),
        (["--split", "training"], ["unknown split 'training'", "held-out, validation"]),
        (["--device", "toaster"], ["device 'toaster' cannot be used"]),
        (["--dataset", "builtin,pascal"], ["unknown dataset 'pascal'", "voc21"]),
        (["--dataset", "builtin,builtin"], ["each dataset once, got 'builtin' twice"]),
        (["--dataset", "voc21"], ["--scenes is for builtin"]),
        (["--out", ""], ["argument --out: expected a folder"]),
        (["--plot"], ["--out DIR", "--plot"]),
        (["--save-predictions"], ["--out DIR", "--save-predictions"]),
        (["--qualitative", -1, "--out", "x"], ["at least 0 images, got -1"]),
        (["--root", "a", "--root", "b"], ["one --root for all datasets, got several"]),
        (["--root", "voc=/nowhere"], ["NAME=DIR with NAME one of builtin", "voc=/nowhere"]),
    ],
)
def test_a_wrong_request_is_one_line(
    options: list[object], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, *options) == 2
    one_line(capsys, *words)


def test_a_dataset_needs_its_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("evaluate", "--dataset", "voc21") == 2
    one_line(capsys, "voc21", "expected the folder")
    assert run("evaluate", "--dataset", "voc21", "--root", tmp_path) == 2
    one_line(capsys, str(tmp_path), "VOC2012", "found nothing")


def arguments(**given: Any) -> Namespace:
    usual = {
        "model": "builtin", "pretrained": None, "preset": None, "correlation": None, "rcs": None, "sfr": None,
        "proxy": None, "device": "cpu", "precision": None, "implementation": "auto", "short_side": None,
        "templates": None, "cache": False, "window": None, "stride": None, "threshold": None, "min_margin": None,
        "batch_size": None,
        "max_windows": None, "piece": [], "step": [], "refine": None,
        "dataset": "builtin", "root": [], "split": None, "classes": None, "scenes": 1, "size": 48,
        "ignore_index": None, "label_offset": None,
    }  # fmt: skip
    return Namespace(**{**usual, **given})


OWN = {"rcs": "weight=0.3", "sfr": "weight=0.2", "proxy": "colour"}
WHOLE = {"window": 0, "probability_threshold": 0.1}


@pytest.mark.parametrize(
    ("given", "method", "wanted"),
    [
        # `load` gives a method a module that is named: here the row's name says which it has.
        (OWN, "naclip", {"rcs": None, "sfr": None, "proxy": None}),
        (OWN, "naclip+rcs+sfr", {"rcs": {"weight": 0.3}, "sfr": {"weight": 0.2}}),
        (OWN, "proxyclip", {"proxy": {"model": "colour"}}),
        # VOC21's preset has λ_r 0.3, τ_r 2.0, λ_s 0.7, θ 0.5, the image whole and a threshold.
        (
            {"preset": "voc21", "rcs": "weight=0.9", "sfr": "rounds=2"},
            "resclip",
            {
                "rcs": {"weight": 0.9, "temperature": 2.0},
                "sfr": {"rounds": 2, "label_threshold": 0.5},
            },
        ),
        ({"preset": "voc21"}, "naclip", WHOLE),
        # ProxyCLIP's own windows stand above a benchmark's preset, and the model's preset above them.
        (
            {"preset": "voc21"},
            "proxyclip",
            {"window": 336, "stride": 112, "pad_multiple": 56, "probability_threshold": 0.1},
        ),
        ({}, "proxyclip", {"window": 112, "stride": 56}),
        # Scenes are segmented at their own size, unless an option says otherwise.
        ({}, "naclip", {"short_side": 0, "window": 112, "stride": 56}),
        (
            {"short_side": 64, "window": 40, "threshold": 0.2},
            "clip",
            {"short_side": 64, "window": 40, "stride": 20, "threshold": 0.2},
        ),
    ],
)
def test_settings_are_those_of_options_dataset_and_method(
    given: dict[str, Any], method: str, wanted: dict[str, Any]
) -> None:
    options = arguments(**given)
    (dataset,) = open_datasets(options)
    settings = segmenter_for(options, method, dataset, "cpu").settings
    for name, value in wanted.items():
        found = settings[name]
        if isinstance(value, dict):
            found = {option: found[option] for option in value}
        assert found == value


def test_what_load_is_told_stands_above_the_preset() -> None:
    """A value of its own as a whole, a mapping option by option."""
    whole = load(
        "builtin", classes=["sky", "tree"], preset="voc21", rcs=RCS(weight=0.9), device="cpu"
    )
    assert whole.settings["rcs"] == asdict(RCS(weight=0.9))
    added = load(
        "builtin",
        classes=["sky", "tree"],
        method="naclip",
        preset="voc21",
        rcs={"weight": 0.9},
        device="cpu",
    )
    assert (added.settings["rcs"]["weight"], added.settings["rcs"]["temperature"]) == (0.9, 2.0)
    assert added.settings["sfr"] is None


@pytest.mark.parametrize(("terminal", "rank"), [(True, 0), (True, 1), (False, 0)])
def test_the_first_process_shows_how_far_the_names_are(
    terminal: bool, rank: int, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr("resclip.evaluation.distributed.rank", lambda: rank)
    options = arguments()
    (dataset,) = open_datasets(options)
    segmenter_for(options, "naclip", dataset, "cpu")
    assert stand_in.asked["progress"] == (terminal and rank == 0)


def test_a_benchmark_has_its_preset() -> None:
    assert preset_of("voc21", "ViT-B-16") == "voc21"
    assert preset_of("voc21", "builtin") is None
    assert preset_of("builtin", "ViT-B-16") is None
    assert preset_of("folder", "ViT-B-16") is None


def test_roots_are_one_for_all_or_one_each(folder: Path, tmp_path: Path) -> None:
    for given in ([str(folder)], [f"folder={folder}"], [str(tmp_path), f"folder={folder}"]):
        _, found = open_datasets(arguments(dataset="builtin, folder", root=given))
        assert found.name == "folder"
    (tmp_path / "a=b").symlink_to(folder, target_is_directory=True)
    (found,) = open_datasets(
        arguments(dataset="folder", root=[str(tmp_path / "a=b")], scenes=None, size=None)
    )
    assert len(found) == 3


@pytest.mark.slow
def test_two_processes_print_one_table_with_the_figures_of_one(tmp_path: Path) -> None:
    """torchrun, with more scenes than a group holds: both processes have some to do."""
    common = [*SMALL[:1], "--scenes", "10", "--size", "48", "--device", "cpu", "--workers", "0"]
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    assert run(*common, "--method", "naclip+rcs", "--json", alone) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "resclip", *common, "--method", "naclip+rcs", "--json", together]
    finished = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == report_tables(Report.read(together)).text + "\n"
    one, two = (Report.read(path).datasets["builtin"] for path in (alone, together))
    assert one.settings == two.settings
    assert one.rows["naclip+rcs"].scores == two.rows["naclip+rcs"].scores
    assert two.rows["naclip+rcs"].processes == 2


def test_what_a_folder_s_masks_mean_is_an_option_and_a_condition(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks that count from 1: without the option they are named as that, and with it right."""
    path = tmp_path / "figures.json"
    for mask in (folder / "masks").glob("*[01].png"):
        values = np.asarray(Image.open(mask))
        Image.fromarray(np.where(values == values.max(), 0, values + 1).astype(np.uint8)).save(mask)
    common = [*FOLDER, "--root", folder, "--json", path]
    assert run(*common) == 1
    came = capsys.readouterr()
    assert "classes without ground truth: " in came.out
    assert run(*common, "--label-offset", 1) == 2
    one_line(capsys, "under other conditions (label_offset: 0 there, 1 here)")
    assert run(*common, "--label-offset", 1, "--ignore-index", 7, "--fresh") == 1
    column = Report.read(path).datasets["folder"]
    assert (column.settings["label_offset"], column.settings["ignore_index"]) == (1, 7)
    assert "of the masks' pixels do not count" in capsys.readouterr().out
    assert run(*SMALL, "--label-offset", 1) == 2
    one_line(capsys, "--label-offset is for folder; leave it out for builtin")
    assert run(*common, "--ignore-index", -1) == 2
    one_line(capsys, "expected --ignore-index from 0 to 65535, got -1")


def test_a_row_that_is_replaced_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for window in (48, 24):
        assert run(*SMALL, "--method", "clip", "--out", tmp_path, "--window", window) == 0
    came = capsys.readouterr().err.splitlines()
    assert len(came) == 2
    assert "measured again: window was 48, now 24" in came[1]


def test_two_runs_on_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the second has its JSON file elsewhere, and at once."""
    with report_lock(tmp_path / "report.json"):
        for more in ([], ["--json", tmp_path / "other.json"]):
            assert run(*SMALL, "--out", tmp_path, *more) == 1
            one_line(capsys, "expected a report's file that no other run is writing to", "wait")
    here = ["--json", tmp_path / "x" / ".." / "report.json"]
    (tmp_path / "x").mkdir()
    assert run(*SMALL, "--method", "clip", "--out", tmp_path, *here) == 0


def test_names_that_are_no_utf_8_are_done_or_named_in_every_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((folder / "images").iterdir())[:2]
    for image, name in ((first, "m\udcff"), (second, "n\udcff")):
        image.rename(image.with_name(f"{name}.png"))
        mask = folder / "masks" / image.name
        mask.rename(mask.with_name(f"{name}.png"))
    (folder / "masks" / "n\udcff.png").write_bytes(b"no mask")
    out = tmp_path / "out\udcff"
    asked = ["--out", out, "--save-predictions", "--qualitative", 3, "--plot"]
    for _ in range(2):
        assert run(*FOLDER, "--root", folder, *asked) == 1
        assert "left out: folder, n\\udcff" in capsys.readouterr().err.replace("\udcff", "\\udcff")
    assert "n\\udcff" in (out / "report.md").read_text(encoding="utf-8")
    assert names_in(out / "predictions" / "folder" / "clip") == ["m\udcff.png"]


def test_a_missing_package_is_a_request_that_cannot_be_carried_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(*SMALL, "--out", tmp_path, "--plot") == 2
    one_line(capsys, "plots need matplotlib")
