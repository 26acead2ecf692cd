"""`resclip ablate --study NAME` for the papers' own studies: what each prints and writes, and errors in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import names_in, one_line, run
from PIL import Image

from resclip.cli import ablate as command
from resclip.errors import WeightsUnavailable
from resclip.evaluation.ablation import STUDIES as OWN
from resclip.evaluation.report import Report
from resclip.evaluation.studies import other_models
from resclip.evaluation.studies.catalogue import STUDIES

SMALL = ("ablate", "--scenes", 2, "--size", 48, "--device", "cpu", "--workers", 0)


def test_the_list_names_every_study_and_measures_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_datasets", None)
    assert run("ablate", "--study", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in STUDIES.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert entry.summary in line
    assert run("ablate", "--help") == 0
    text = "".join(capsys.readouterr().out.split())  # Lines end at hyphens too.
    for name, entry in STUDIES.items():
        assert "".join(f"{name}: {entry.summary}".split()) in text


def test_all_is_what_it_says() -> None:
    assert command.names_of("all") == [study.name for study in OWN]


@pytest.mark.parametrize(
    "name", ["attention-by-layer", "spatial-invariance", "patch-similarity", "proxy-similarity", "maps"]
)  # fmt: skip
def test_a_study_that_is_no_sweep_prints_its_table_and_writes_its_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, "--study", name, "--out", tmp_path, "--images", 1) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}: ")
    assert names_in(tmp_path) == [f"{name}_builtin.{ending}" for ending in ("csv", "json", "png")]
    stored = json.loads((tmp_path / f"{name}_builtin.json").read_text())
    assert (stored["study"], stored["subject"]) == (name, "builtin")
    with (tmp_path / f"{name}_builtin.csv").open(newline="", encoding="utf-8") as stream:
        lines = [*csv.DictReader(stream)]
    assert len(lines) == len(stored["lines"]) > 1
    for line, kept in zip(lines, stored["lines"], strict=True):
        assert line == {key: "" if value is None else str(value) for key, value in kept.items()}
    with Image.open(tmp_path / f"{name}_builtin.png") as picture:
        assert min(picture.size) > 100
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_a_projection_is_learned_measured_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*SMALL, "--study", "sclip-projection", "--learn-images", 2, "--out", tmp_path]
    assert run(*asked) == 0
    first = capsys.readouterr()
    assert first.out.startswith(
        "builtin: W_r is learned from 2 of 2 validation scenes of 48 × 48, in 200 steps"
    )
    (file,) = tmp_path.glob("projection_builtin_*.safetensors")
    rows = Report.read(tmp_path / "ablation.json").datasets["builtin"].rows
    assert [*rows] == [
        "sclip", "sclip(xx)", "sclip(qq)", "sclip(kk)", "sclip(random)", f"sclip(learned,{file.stem})",
    ]  # fmt: skip
    assert rows[f"sclip(learned,{file.stem})"].options["correlation"]["path"] == str(file)
    assert "learned" in (tmp_path / "ablation.md").read_text()
    # Again: nothing is learned or measured anew, and what is printed is the same.
    monkeypatch.setattr("resclip.evaluation.studies.learning.learn", None)
    assert run(*asked) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.count("(stored)\n") == len(rows)


def test_a_dataset_without_a_training_part_is_measured_without_what_is_learned_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(4):
        pixels = generator.integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        mask = np.arange(48, dtype=np.uint8)[None].repeat(48, axis=0) // 24
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("sky\ngrass\n")
    given = ["--dataset", "folder", "--root", root, "--short-side", 48, "--device", "cpu"]
    out = tmp_path / "out"
    assert run("ablate", *given, "--study", "sclip-projection", "--out", out, "--workers", 0) == 0
    assert "W_r is learned from 1 of 4 images of 2 classes" in capsys.readouterr().out
    rows = Report.read(out / "ablation.json").datasets["folder"]
    assert {row.images for row in rows.rows.values()} == {3}
    assert "without 1 that a projection is learned from" in rows.description


@pytest.mark.parametrize("name", ["proxy-switches", "proxy-size", "sclip-blocks"])
def test_sweeps_of_other_papers_start_from_their_own_bases(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*SMALL, "--study", name, "--out", tmp_path, "--plot") == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")
    rows = Report.read(tmp_path / "ablation.json").datasets["builtin"].rows
    base = "sclip" if name.startswith("sclip") else "proxyclip"
    assert next(iter(rows)) == base
    assert all(row.startswith(base) for row in rows)
    assert (tmp_path / f"{name}_builtin.png").exists()
    if name == "proxy-size":  # Half of the built-in model's windows of 112 pixels.
        assert rows["proxyclip(input_size=56)"].options["proxy"]["input_size"] == 56


def test_gain_goes_through_bases_and_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*SMALL, "--study", "gain", "--base", "maskclip", "--out", tmp_path]
    asked += ["--plot", "--scenes", 1]
    assert run(*asked) == 0
    first = capsys.readouterr()
    assert first.out.startswith("gain: what RCS and SFR add to each base")
    assert names_in(tmp_path) == ["gain.csv", "gain.md", "gain.png", "gain_builtin.json"]
    rows = Report.read(tmp_path / "gain_builtin.json").datasets["builtin"].rows
    assert {*rows} == {"maskclip", "maskclip+rcs"}  # There is no score for SFR.
    with (tmp_path / "gain.csv").open(newline="") as stream:
        lines = {(line["base"], line["modules"]): line for line in csv.DictReader(stream)}
    miou = [rows[name].scores.miou for name in ("maskclip+rcs", "maskclip")]
    assert float(lines["maskclip", "rcs"]["gain"]) == miou[0] - miou[1]  # type: ignore[operator]
    assert run(*asked) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.count("(stored)\n") == len(rows)


@pytest.mark.parametrize(
    ("model", "tags", "found"),
    [
        ("a,b", None, [("a", None), ("b", None)]),
        ("a, b", "x", [("a", "x"), ("b", "x")]),
        ("builtin,b", ",y", [("builtin", None), ("b", "y")]),
    ],
)
def test_each_model_has_its_tag(model: str, tags: str | None, found: list[Any]) -> None:
    import argparse

    assert command.models_of(argparse.Namespace(model=model, pretrained=tags)) == found


def test_a_model_that_cannot_be_fetched_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = other_models.find_proxy

    def offline(name: str, **options: Any) -> Any:
        if name != "colour":
            raise WeightsUnavailable(f"cannot load the weights of timm's {name!r}")
        return find(name, **options)

    monkeypatch.setattr(other_models, "find_proxy", offline)
    maps = [*SMALL, "--study", "maps", "--out", tmp_path, "--others"]
    assert run(*maps, "vit_base_patch8_224.dino,colour") == 0
    assert "vit_base_patch8_224.dino is left out: cannot load" in capsys.readouterr().out
    assert run(*maps, "vit_base_patch8_224.dino") == 1
    one_line(capsys, "cannot load the weights of timm's 'vit_base_patch8_224.dino'")


def test_an_image_of_ones_own_and_a_point(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["ablate", "--study", "attention-by-layer", "--image", image, "--device", "cpu"]
    asked += ["--short-side", 50, "--scenes", 1]
    assert run(*asked, "--query", "31,3", "--out", out) == 0
    printed = capsys.readouterr().out
    # 24 × 32 pixels become 50 × 67, which 6 × 8 patches of 8 do not cover.
    assert "cat.png, patch row 0, column 7 of 6 x 8 (x 29, y 2 of 32 x 24 pixels)" in printed
    assert names_in(out) == [f"attention-by-layer_cat.{end}" for end in ("csv", "json", "png")]
    assert "same class" not in printed  # Nobody knows its classes.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--study", "maps"], ["expected --out DIR for the picture", "'maps'"]),
        (["--study", "map"], ["unknown study 'map' (did you mean 'maps'?)", "patch-similarity"]),
        (["--study", ","], ["unknown study ''"]),
        (["--study", "modules", "--image", "a.png"], ["--image is for the studies attention-by-"]),
        (["--study", "gain", "--query", "1,1"], ["--query is for the studies"]),
        (["--study", "spatial-invariance", "--refine", "3"], ["does not read --refine"]),
        (["--study", "proxy-similarity", "--others", "colour"], ["does not read --others"]),
        (["--study", "modules,sclip-blocks"], ["'modules' starts from base 'naclip'", "'sclip'"]),
        (["--study", "sclip-blocks", "--base", "proxyclip"], ["for a base without one", "'sclip'"]),
        (["--study", "proxy-beta", "--base", "naclip"], ["for a base with a proxy", "'proxyclip'"]),
        (["--study", "gain", "--base", "naclip,x"], ["one of the bases", "got 'x'"]),
        (["--study", "modules", "--base", "naclip,clip"], ["one of the bases", "'naclip,clip'"]),
        (["--study", "gain", "--model", "a,b", "--pretrained", "x,y,z"], ["2 models", "got 3"]),
        (["--study", "sclip-projection", "--learn-images", "-1"], ["--learn-images of at least 0"]),
        (["--study", "attention-by-layer", "--out", "OUT", "--query", "x"], ["--query X,Y"]),
        (["--study", "attention-by-layer", "--out", "OUT", "--query", "48,0"], ["got 48,0"]),
        (["--study", "proxy-similarity", "--base", "naclip"], ["'proxy-similarity' is for a base"]),
    ],
)
def test_a_wrong_request_is_one_line(
    options: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [str(tmp_path) if option == "OUT" else option for option in options]
    assert run(*SMALL, *given) == 2
    one_line(capsys, *words)
