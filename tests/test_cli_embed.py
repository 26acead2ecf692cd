"""`resclip embed`, and `resclip segment` of what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import names_in, run
from PIL import Image

from resclip.io.images import read_image

SCENE = Path(__file__).parents[1] / "docs/scene.png"
HOW = ("--model", "builtin", "--method", "naclip+rcs", "--short-side", "112")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    assert run("embed", SCENE, "--out", folder, *HOW) == 0
    return folder


def test_its_labels_are_those_of_the_image(embedded: Path, tmp_path: Path) -> None:
    assert names_in(embedded) == ["scene.safetensors"]
    words = ("--classes", "sun; sky; grass", *HOW)
    assert run("segment", embedded / "scene.safetensors", "--out", tmp_path / "one", *words) == 0
    assert run("segment", SCENE, "--out", tmp_path / "two", *words, "--heatmaps") == 0
    labels = [read_image(tmp_path / name / "scene_labels.png") for name in ("one", "two")]
    assert (labels[0] == labels[1]).mean() > 0.999
    heat = tmp_path / "two/scene_heatmaps"
    assert sorted(path.name for path in heat.iterdir()) == ["grass.png", "sky.png", "sun.png"]
    assert Image.open(heat / "sky.png").size == Image.open(SCENE).size
    # A folder of them, and a pattern that no shell has expanded.
    for asked in (embedded, embedded / "*.safetensors"):
        assert run("segment", asked, "--out", tmp_path / "one", *words) == 0
    # What a run wrote is no input of the next one.
    assert run("segment", tmp_path / "two", "--out", tmp_path / "two", *words) == 2


def test_what_the_method_needs_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--model", "builtin", "--method", "naclip+pamr", "--short-side", "112")
    assert run("embed", SCENE, "--out", tmp_path, *how) == 0
    words = ("--classes", "sky; grass", "--json", *how)
    capsys.readouterr()
    assert run("segment", tmp_path / "scene.safetensors", *words) == 0
    assert "not kept" not in json.loads(capsys.readouterr().out)["input"]
    assert run("embed", SCENE, "--out", tmp_path, "--no-image", "--keep", "int8", *how) == 0
    capsys.readouterr()
    assert run("segment", tmp_path / "scene.safetensors", *words) == 1
    assert "looks at the image's pixels again" in capsys.readouterr().err


def test_what_cannot_be_done(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "one.png")
    (tmp_path / "two.png").write_text("no image")
    status = run(
        "embed", tmp_path / "one.png", tmp_path / "two.png", "--out", tmp_path / "out", *HOW
    )
    assert status == 1
    said = capsys.readouterr().err
    assert "two.png: expected an image" in said
    assert "1 of 2 images embedded; 1 failed" in said
    assert run("embed", embedded / "scene.safetensors", "--out", tmp_path / "out", *HOW) == 1
    assert "expected an image" in capsys.readouterr().err
    other = ("--model", "builtin", "--method", "sclip", "--classes", "sky; grass", "--json")
    assert run("segment", embedded / "scene.safetensors", *other) == 1
    assert "got one with other base, 'naclip' instead of 'sclip'" in capsys.readouterr().err
    assert run("segment", SCENE, "--classes", "sky; grass", "--json", "--heatmaps", *HOW) == 2
    assert "expected --out DIR to write --heatmaps to" in capsys.readouterr().err


def test_files_of_others_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(SCENE).save(tmp_path / "one.png")
    (tmp_path / "one.json").write_text("mine")
    asked = ("segment", tmp_path / "one.png", "--out", tmp_path, "--classes", "sky; grass", *HOW)
    assert run(*asked) == 0
    assert (tmp_path / "one.json").read_text() == "mine"
    assert (tmp_path / "one-2.json").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "classes.json").write_text("mine")
    for command in ("segment", "batch"):
        words = (command, tmp_path / "one.png", "--out", other, "--classes", "sky; grass", *HOW)
        capsys.readouterr()
        assert run(*words) == 2
        assert "without a classes.json of yours" in capsys.readouterr().err
    assert (other / "classes.json").read_text() == "mine"
