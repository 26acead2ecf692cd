"""Which model is taken where none is named, what is said before it is fetched, and what the built-in model says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
from cli_support import StandIn, as_scene, run
from PIL import Image
from toys import random_image

from resclip import load
from resclip.builtin import DRAWN_ONLY
from resclip.builtin.scenes import demo_scene
from resclip.cli.commands import build_parser
from resclip.cli.options import name_weights
from resclip.errors import DownloadWarning, DrawnScenesWarning, WeightsUnavailable
from resclip.io.images import read_picture, save_png
from resclip.models import downloads, loading

ROOT = Path(__file__).parents[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The models that are loaded: nothing is fetched, the built-in one stands for all."""
    found: list[tuple[str, str | None]] = []
    load_model = loading.load_model

    def from_the_package(name: str, pretrained: str | None = None, **options: Any) -> Any:
        found.append((name, pretrained))
        return load_model("builtin", None, **options)

    monkeypatch.setattr("resclip.loading.load_model", from_the_package)
    return found


def test_load_takes_real_weights(asked: list[tuple[str, str | None]]) -> None:
    names = ["sky", "tree"]
    settings = load(classes=names, templates="name").settings
    assert (settings["model"], settings["pretrained"]) == ("ViT-B-16", "openai")
    assert settings["preset"] is None
    load(pretrained="laion2b_s34b_b88k", classes=names, templates="name")
    load("builtin", classes=names)
    # Whoever names a model names its weights too, as ever.
    load("ViT-B-32", classes=names, templates="name")
    assert asked == [
        ("ViT-B-16", "openai"),
        ("ViT-B-16", "laion2b_s34b_b88k"),
        ("builtin", None),
        ("ViT-B-32", None),
    ]


@pytest.mark.parametrize(
    ("command", "model", "pretrained"),
    [
        ("segment a.png --classes sky", "ViT-B-16", "openai"),
        ("segment a.png --classes sky --pretrained b.pt", "ViT-B-16", "b.pt"),
        ("segment a.png --classes sky --model builtin", "builtin", None),
        ("segment a.png --classes sky --model ViT-L-14", "ViT-L-14", None),
        ("batch photos --classes sky --out out", "ViT-B-16", "openai"),
        ("compare a.png --classes sky --out b.png", "ViT-B-16", "openai"),
        ("attention a.png --at 1,1 --out b.png", "ViT-B-16", "openai"),
        ("evaluate", "builtin", None),
        ("evaluate --pretrained openai", "ViT-B-16", "openai"),
        ("evaluate --dataset builtin,voc21", "ViT-B-16", "openai"),
        ("ablate", "builtin", None),
        ("ablate --dataset ade20k --root a", "ViT-B-16", "openai"),
    ],
)
def test_commands_take_real_weights_but_for_the_drawn_scenes(
    command: str, model: str, pretrained: str | None
) -> None:
    arguments = build_parser().parse_args(command.split())
    name_weights(arguments)
    assert (arguments.model, arguments.pretrained) == (model, pretrained)


def test_the_command_loads_what_it_says(stand_in: StandIn, image: Path) -> None:
    assert run("segment", image, "--classes", "a, b", "--json", model=None) == 0
    assert (stand_in.asked["model"], stand_in.asked["pretrained"]) == ("ViT-B-16", "openai")


def cached(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    """Say that the hub's cache has a file, or none."""

    def look(repository: str, name: str) -> str | None:
        return f"/cache/{name}" if name == file else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_a_download_is_announced_once_and_what_is_there_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tag = open_clip.get_pretrained_cfg("ViT-B-16", "openai")
    cached(monkeypatch, None)
    with pytest.warns(DownloadWarning) as found:
        downloads.announce_tag("ViT-B-16", "openai", tag)
    (said,) = [str(one.message) for one in found]
    for word in ("ViT-B-16, openai", "about 0.60 GB", "on the Hugging Face hub", "kept in"):
        assert word in said
    with pytest.warns(DownloadWarning, match=r"weights of a/b from a/b on"):
        downloads.announce_hub("a/b", "a/b", downloads.TRANSFORMERS_FILES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        downloads.announce_tag("ViT-B-16", "openai", tag)
        for file in downloads.OPEN_CLIP_FILES:
            cached(monkeypatch, file)
            downloads.announce_tag("ViT-B-16", "openai", tag)


def test_a_download_from_a_url_is_announced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tag = {"url": "https://example.org/weights/ViT-B-32.pt"}
    with pytest.warns(DownloadWarning, match=r"0\.61 GB, from https://example.org.*\.cache/clip"):
        downloads.announce_tag("ViT-B-32", "openai", tag)
    file = tmp_path / ".cache/clip/ViT-B-32.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        downloads.announce_tag("ViT-B-32", "openai", tag)


def test_without_a_network_one_sentence_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network. Try again")

    cached(monkeypatch, None)
    monkeypatch.setattr(open_clip, "create_model", offline)
    with (
        pytest.warns(DownloadWarning),
        pytest.raises(WeightsUnavailable, match=r"checkpoint as pretrained=.*model=\"builtin\""),
    ):
        load(classes=["sky", "tree"])
    path = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(path)
    assert run("segment", path, "--classes", "sky, tree", "--json", model=None) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("resclip: note: fetching the weights of ViT-B-16, openai")
    assert "as --pretrained" in said[1]
    assert "--model builtin for drawn scenes" in said[1]


def test_the_built_in_model_says_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter = load("builtin", classes=["sky", "tree"])
    with pytest.warns(DrawnScenesWarning, match="real one by model=") as found:
        results = segmenter.segment([random_image(40, 60), random_image(30, 30)])
    assert len(found) == 1
    for result in results:
        assert json.loads(result.to_json())["settings"]["notes"] == [DRAWN_ONLY]
    # The sheet's small print grows by it.
    settings = {name: value for name, value in results[0].settings.items() if name != "notes"}
    bare = type(result)(result.image, result.labels, result.probabilities, result.names, settings)
    assert np.asarray(bare.sheet()).tobytes() != np.asarray(result.sheet()).tobytes()
    path = tmp_path / "a.png"
    Image.fromarray(random_image(40, 60)).save(path)
    for command in (
        ["segment", path, path, "--json"],
        ["compare", path, "--methods", "clip,naclip", "--out", tmp_path / "b.png"],
        ["attention", path, "--at", "1,1", "--out", tmp_path / "c.png"],
        ["batch", path, "--out", tmp_path / "out", "--no-cache"],
    ):
        assert run(*command, "--classes", "sky, tree", model="builtin") == 0
        noted = [line for line in capsys.readouterr().err.splitlines() if DRAWN_ONLY in line]
        assert len(noted) == 1
        assert noted[0].startswith("resclip: note: ")
        assert "by --model" in noted[0]


def test_figures_of_it_on_other_datasets_have_the_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(random_image(40, 40)).save(tmp_path / "images/a.png")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "masks/a.png")
    (tmp_path / "classes.txt").write_text("sky\ntree\n")
    common = ("evaluate", "--method", "clip", "--workers", 0)
    assert run(*common, "--dataset", "folder", "--root", tmp_path) == 0
    assert capsys.readouterr().err.count(DRAWN_ONLY) == 1
    assert run(*common, "--scenes", 1, "--size", 48) == 0
    assert DRAWN_ONLY not in capsys.readouterr().err


def test_its_own_scenes_need_no_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[tuple[str, str | None]]
) -> None:
    scene = demo_scene(112, 144)
    save_png(scene.picture(), tmp_path / "scene.png")
    assert read_picture(tmp_path / "scene.png").record["scene"] is True
    assert "scene" not in read_picture(scene.image).record
    segmenter = load("builtin", classes=["sky", "tree"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (scene.picture(), tmp_path / "scene.png", ROOT / "docs/scene.png"):
            assert "notes" not in segmenter.segment(source).settings
        # A real model has nothing to say, whatever the picture.
        other = load(classes=["sky", "tree"], templates="name")
        assert "notes" not in other.segment(random_image(30, 30)).settings
    assert run("demo", "--out", tmp_path / "demo") == 0
    assert capsys.readouterr().err == ""
    assert as_scene(scene.image).info == Image.open(tmp_path / "demo/scene.png").info
