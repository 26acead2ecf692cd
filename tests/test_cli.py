"""The command line: what it writes, what it says, and one line instead of a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resclip
from resclip.cli import main
from resclip.errors import WeightsUnavailable
from resclip.images import read_image
from resclip.result import Segmentation

ROOT = Path(resclip.__file__).parents[1]


class StandIn:
    """In place of a model: the picture's left half is class 0, its right half the last class."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.fail: Callable[[np.ndarray], None] = lambda _: None

    def load(self, model: str, pretrained: str | None, **options: Any) -> SimpleNamespace:
        self.asked = {"model": model, "pretrained": pretrained, **options}
        return SimpleNamespace(segment=self.segment)

    def segment(self, image: np.ndarray) -> Segmentation:
        pixels = read_image(image)
        self.fail(pixels)
        names = tuple(self.asked["classes"])
        labels = np.zeros(pixels.shape[:2], np.int64)
        labels[:, pixels.shape[1] // 2 :] = len(names) - 1
        probabilities = np.full(labels.shape, 0.5, np.float32)
        return Segmentation(pixels, labels, probabilities, names, {"model": "stand-in"})


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    double = StandIn()
    monkeypatch.setattr("resclip.segmenter.load", double.load)
    return double


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr; nothing on stdout."""
    came = capsys.readouterr()
    assert came.out == ""
    assert came.err.startswith("resclip: ")
    assert came.err.count("\n") == 1, came.err
    for word in words:
        assert word in came.err
    return came.err


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_segment_writes_three_files_and_says_what_it_saw(
    stand_in: StandIn, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert run("segment", picture, "--classes", "sky, tree", "--out", out) == 0
    assert names_in(out) == ["cat.json", "cat_labels.png", "cat_overlay.png"]
    came = capsys.readouterr()
    assert came.err == ""
    assert came.out == (
        f"{picture}: sky 50%, tree 50% (mean probability 0.50) -> {out / 'cat_overlay.png'}\n"
    )
    assert json.loads((out / "cat.json").read_text())["names"] == ["sky", "tree"]


def test_options_reach_the_segmenter(stand_in: StandIn, picture: Path, tmp_path: Path) -> None:
    options = "--model ViT-B-16 --pretrained openai --method naclip --preset paper --device cpu"
    options += " --precision bf16 --window 336 --stride 56 --batch-size 3 --short-side 448"
    options += " --threshold 0.25 --implementation torch --no-overlay"
    where = ["segment", picture, "--classes", "a", "--out", tmp_path / "out"]
    assert run(*where, *options.split()) == 0
    progress = stand_in.asked.pop("progress")
    assert progress is False
    assert stand_in.asked == {
        "model": "ViT-B-16",
        "pretrained": "openai",
        "classes": ["a"],
        "method": "naclip",
        "preset": "paper",
        "device": "cpu",
        "precision": "bf16",
        "window": 336,
        "stride": 56,
        "batch_size": 3,
        "short_side": 448,
        "probability_threshold": 0.25,
        "implementation": "torch",
    }
    assert names_in(tmp_path / "out") == ["cat.json", "cat_labels.png"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("sky, tree", ["sky", "tree"]),
        ("cat, kitten; dog", ["cat, kitten", "dog"]),
        ("cat,kitten;", ["cat, kitten"]),
        ("  a   b ,c", ["a b", "c"]),
        ("猫, собака, قطة, बिल्ली, 🐈", ["猫", "собака", "قطة", "बिल्ली", "🐈"]),
        ("cat, Cat; dog", ["cat", "dog"]),  # The same synonym twice is once.
        ("wall, bed; bed", ["wall, bed", "bed"]),  # A synonym may be another class's name.
    ],
)
def test_classes_in_text(stand_in: StandIn, picture: Path, text: str, wanted: list[str]) -> None:
    assert run("segment", picture, "--classes", text, "--json") == 0
    assert stand_in.asked["classes"] == wanted


def test_classes_in_a_file(stand_in: StandIn, picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffcat, kitten\r\n\r\n  猫; dog \r\n".encode())
    assert run("segment", picture, "--classes", path, "--json") == 0
    assert stand_in.asked["classes"] == ["cat, kitten", "猫; dog"]


def test_10_000_classes(stand_in: StandIn, picture: Path, tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(10_000)]
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(names))
    for classes in (path, ",".join(names)):
        assert run("segment", picture, "--classes", classes, "--out", tmp_path / "out") == 0
        assert stand_in.asked["classes"] == names
    assert Image.open(tmp_path / "out" / "cat_labels.png").mode == "I;16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["got nothing for class 1"]),
        ("a,,b", ["got nothing for class 2"]),
        ("a; ;b", ["got nothing for class 2"]),
        ("a, , b; c", ["remove the empty name"]),
        ("sky, tree, Sky", ["'sky' (class 1)", "'Sky' (class 3)"]),
        ("é, e\u0301", ["(class 1)", "(class 2)"]),
        ("STRASSE, straße", ["'STRASSE' (class 1)", "'straße' (class 2)"]),
        ("cat, kitten; kitten, cat", ["'cat, kitten' (class 1)", "'kitten, cat' (class 2)"]),
        ("a\udcff", ["not valid UTF-8"]),
    ],
)
def test_wrong_classes(
    picture: Path, tmp_path: Path, text: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("segment", picture, "--classes", text, "--out", out) == 2
    one_line(capsys, *words)
    assert not out.exists()


def test_wrong_class_files(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(" \n")
    assert run("segment", picture, "--classes", path, "--json") == 2
    one_line(capsys, str(path), "empty file")
    path.write_bytes(b"sky\n\xff\xfe")
    assert run("segment", picture, "--classes", path, "--json") == 2
    one_line(capsys, str(path), "UTF-8", "position 4")


def broken_pictures(folder: Path) -> dict[str, str]:
    """File names, each with a word that its message has to have."""
    Image.effect_noise((64, 64), 90).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    (folder / "whole.png").unlink()
    (folder / "nothing.png").touch()
    (folder / "notes.jpg").write_text("not a picture")
    (folder / "folder.png").mkdir()
    return {
        "cut.png": "cut short or damaged",
        "nothing.png": "empty file",
        "notes.jpg": "expected a picture",
        "folder.png": "got a directory",
        "missing.png": "no such file",
    }


def test_each_broken_picture_is_named_in_one_line(
    stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, word in broken_pictures(tmp_path).items():
        path = tmp_path / name
        assert run("segment", path, "--classes", "a", "--out", tmp_path / "out") == 1
        assert one_line(capsys, word).count(str(path)) == 1
    assert names_in(tmp_path / "out") == []


def test_broken_pictures_among_good_ones(
    stand_in: StandIn, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [tmp_path / name for name in broken_pictures(tmp_path)]
    last = tmp_path / "last.png"
    Image.new("RGB", (5, 4)).save(last)
    out = tmp_path / "out"
    assert run("segment", picture, *broken, last, "--classes", "a, b", "--out", out) == 1
    came = capsys.readouterr()
    lines = came.err.splitlines()
    assert lines[-1] == "resclip: 2 of 7 pictures segmented; 5 failed"
    for path, line in zip(broken, lines[:-1], strict=True):
        assert line.startswith(f"resclip: {path}: ")
    assert len(came.out.splitlines()) == 2
    assert len(names_in(out)) == 6


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("dot.png", Image.new("RGB", (1, 1)), {}),
        ("print.jpg", Image.new("CMYK", (9, 8)), {}),
        ("deep.png", Image.fromarray(np.full((8, 9), 40000, np.uint16)), {}),
        ("palette.gif", Image.new("P", (9, 8), 3), {}),
        ("alpha.png", Image.new("RGBA", (9, 8), (1, 2, 3, 4)), {}),
        ("turned.jpg", Image.new("RGB", (8, 9)), {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),  # noqa: E501
        ("moving.gif", Image.new("P", (9, 8)), {"save_all": True, "append_images": [Image.new("P", (9, 8), 5)]}),
    ],
)  # fmt: skip
def test_uncommon_pictures(
    stand_in: StandIn,
    tmp_path: Path,
    name: str,
    image: Image.Image,
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    image.save(path, **options)
    assert run("segment", path, "--classes", "a, b", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().err == ""
    size = (1, 1) if name == "dot.png" else (9, 8)
    assert Image.open(tmp_path / "out" / f"{path.stem}_overlay.png").size == size


def test_same_names_do_not_overwrite_each_other(
    stand_in: StandIn, picture: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    paths = [picture, tmp_path / "cat-2.png", other / "CAT.jpg", other / "cat.gif", picture]
    for path in paths[1:4]:
        Image.new("RGB", (9, 8)).save(path)
    out = tmp_path / "out"
    assert run("segment", *paths, "--classes", "a", "--out", out, "--no-overlay") == 0
    stems = [name.removesuffix(".json") for name in names_in(out) if name.endswith(".json")]
    assert sorted(stems) == ["CAT-3", "cat", "cat-2", "cat-4", "cat-5"]


def test_the_pictures_themselves_are_never_overwritten(stand_in: StandIn, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "a_labels.png"]
    for path in paths:
        Image.new("RGB", (9, 8), (1, 2, 3)).save(path)
    before = [path.read_bytes() for path in paths]
    assert run("segment", *paths, "--classes", "a", "--out", tmp_path) == 0
    assert [path.read_bytes() for path in paths] == before
    assert "a-2_labels.png" in names_in(tmp_path)


def test_json_on_stdout_is_one_object_a_picture(
    stand_in: StandIn, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.png"
    assert run("segment", picture, missing, picture, "--classes", "猫, b", "--json") == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == second
    assert first["file"] == str(picture)
    assert first["written"] == []
    assert first["classes"][0] == {"index": 0, "name": "猫", "area": 0.5, "score": 0.5}
    assert names_in(tmp_path) == ["cat.png"]
    out = tmp_path / "out"
    assert run("segment", picture, "--classes", "a", "--json", "--out", out) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert written == [str(out / f"cat{end}") for end in ("_labels.png", "_overlay.png", ".json")]


def test_neither_out_nor_json(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", picture, "--classes", "a") == 2
    one_line(capsys, "--out DIR", "--json")


def test_output_that_cannot_be_a_directory(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (picture, picture / "deeper"):
        assert run("segment", picture, "--classes", "a", "--out", out) == 1
        one_line(capsys, str(out))
    assert names_in(tmp_path) == ["cat.png"]


def test_a_write_that_fails_is_a_failed_picture(
    stand_in: StandIn,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    (out / "cat_overlay.png").mkdir(parents=True)  # A directory where a file has to go.
    assert run("segment", picture, "--classes", "a", "--out", out) == 1
    one_line(capsys, "cat_overlay.png", "directory")
    assert names_in(out) == ["cat_labels.png", "cat_overlay.png"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), "smaller --batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "--short-side"),
        (MemoryError(), "out of memory"),
        (RuntimeError("sizes\ndiffer"), "unexpected error: sizes differ (--debug shows where)"),
        (ValueError("a picture too odd"), "a picture too odd"),
    ],
)
def test_errors_while_segmenting(
    stand_in: StandIn,
    picture: Path,
    error: Exception,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: np.ndarray) -> None:
        raise error

    stand_in.fail = fail
    assert run("segment", picture, "--classes", "a", "--json") == 1
    one_line(capsys, f"resclip: {picture}: ", words)
    with pytest.raises(type(error)):
        run("segment", picture, "--classes", "a", "--json", "--debug")


def test_weights_that_cannot_be_fetched(
    monkeypatch: pytest.MonkeyPatch, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise WeightsUnavailable("no network;\nuse a local checkpoint")

    monkeypatch.setattr("resclip.segmenter.load", load)
    assert run("segment", picture, "--classes", "a", "--json") == 1
    assert one_line(capsys) == "resclip: no network; use a local checkpoint\n"


def test_interrupt(
    stand_in: StandIn, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: np.ndarray) -> None:
        raise KeyboardInterrupt

    stand_in.fail = interrupt
    assert run("segment", picture, "--classes", "a", "--out", tmp_path / "out") == 130
    one_line(capsys, "interrupted")
    assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "no-such"], "no-such"),
        (["--method", "no-such"], "resclip"),
        (["--preset", "no-such"], "paper"),
        (["--device", "no-such"], "no-such"),
        (["--precision", "fp13"], "fp16"),
        (["--window", "1"], "window"),
        (["--window", "112", "--stride", "113"], "stride"),
        (["--window", "-5"], "window"),
        (["--batch-size", "0"], "batch"),
        (["--short-side", "-1"], "short_side"),
        (["--implementation", "no-such"], "torch"),
        (["--threshold", "1.5"], "0 to 1"),
        (["--threshold", "half"], "half"),
        (["--window", "wide"], "wide"),
        (["--max-pixels", "0"], "at least 1"),
        (["--no-such"], "--no-such"),
    ],
)
def test_wrong_options(
    picture: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("segment", picture, "--classes", "sky, tree", "--out", out, *options) == 2
    one_line(capsys, words)
    assert not out.exists() or names_in(out) == []


def test_large_pictures_need_a_word(
    stand_in: StandIn, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", picture, "--classes", "a", "--json", "--max-pixels", 767) == 1
    one_line(capsys, "767 pixels", "768")
    assert run("segment", picture, "--classes", "a", "--json", "--max-pixels", 768) == 0


@pytest.mark.parametrize("arguments", [[], ["no-such"], ["segment"], ["segment", "a.png"]])
def test_incomplete_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    one_line(capsys, "--help")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"resclip {resclip.__version__}\n"
    for command in ("segment", "demo", "models", "methods"):
        assert run(command, "--help") == 0
        assert f"usage: resclip {command}" in capsys.readouterr().out


def test_methods_have_their_papers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    out = capsys.readouterr().out
    for word in ("resclip", "sclip", "CVPR 2025", "WACV", "Presets", "paper", "cityscapes"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 100


def test_models_begin_with_the_one_in_the_box(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("builtin ")
    named = dict(line.split(maxsplit=1) for line in lines)
    assert "openai" in named["ViT-B-16"].split(", ")
    assert "RN50" not in named


def test_demo_draws_the_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--out", tmp_path / "demo") == 0
    came = capsys.readouterr()
    assert came.err == ""
    assert "probability" in came.out.splitlines()[0]
    assert came.out.endswith(f"open {tmp_path / 'demo' / 'demo.png'}\n")
    assert names_in(tmp_path / "demo") == ["demo.png", "scene.png"]
    sheet = Image.open(tmp_path / "demo" / "demo.png")
    assert sheet.width > 2 * 440


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (2, 400)])
def test_pictures_smaller_than_a_patch(
    tmp_path: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", size, (10, 200, 30)).save(path)
    out = tmp_path / "out"
    assert run("segment", path, "--classes", "grass, sky", "--out", out, "--short-side", 0) == 0
    assert capsys.readouterr().err == ""
    assert Image.open(out / "small_labels.png").size == size


def in_a_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resclip", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        **options,
    )


def test_help_and_wrong_requests_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from resclip.cli import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'open_clip', 'numpy') if name in sys.modules])"
    )
    for arguments, loaded in (
        (["--help"], "[]"),
        (["segment", "x.png"], "[]"),
        (["segment", "x.png", "--json", "--classes", "a, a"], "['numpy']"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert result.stdout.splitlines()[-1] == loaded


def test_what_libraries_warn_of_and_log_stays_out_of_the_way(picture: Path) -> None:
    code = (
        "import logging, sys, types, warnings\n"
        "from resclip.errors import WeightsUnavailable\n"
        "def load(*_, **__):\n"
        "    warnings.warn('noise')\n"
        "    logging.error('noise')\n"
        "    raise WeightsUnavailable('no network')\n"
        "module = types.ModuleType('resclip.segmenter'); module.load = load\n"
        "sys.modules['resclip.segmenter'] = module\n"
        "from resclip.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for options, quiet in (([], True), (["-W", "default"], False)):
        result = subprocess.run(
            [sys.executable, *options, "-c", code, "segment", picture, "--classes", "a", "--json"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert result.returncode == 1
        assert result.stderr.endswith("resclip: no network\n")
        assert ("noise" not in result.stderr) is quiet


def test_a_process_says_one_line_and_leaves_with_the_status(tmp_path: Path) -> None:
    result = in_a_process("segment", "x.png", "--classes", "a,a", "--json", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("resclip: expected each class once")
    assert result.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "resclip", "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_compare_draws_methods_side_by_side(
    stand_in: StandIn, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    assert run("compare", picture, "--classes", "sky, grass", "--out", sheet) == 0
    assert stand_in.asked["method"] == "resclip"
    assert capsys.readouterr().out == f"clip, naclip, resclip side by side: open {sheet}\n"
    single = tmp_path / "one.png"
    run("compare", picture, "--classes", "sky, grass", "--out", single, "--methods", "clip")
    with Image.open(sheet) as three, Image.open(single) as one:
        assert three.height == one.height
        assert three.width > 2 * one.width - 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "sheet.jpg"), ("a .png file", "sheet.jpg")),
        (("--out", "sheet.png", "--methods", "clip,magic"), ("unknown method 'magic'", "naclip")),
        (("--out", "sheet.png", "--methods", "clip, clip"), ("'clip' more than once",)),
    ],
)
def test_compare_says_what_it_expected(
    stand_in: StandIn,
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    assert run("compare", picture, "--classes", "sky, grass", *options) == 2
    one_line(capsys, *words)
    assert not Path("sheet.png").exists()
