"""The command line on images: uncommon, broken or unwritable ones, one clear line each."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_support import StandIn, as_scene, names_in, one_line, run
from PIL import Image

from resclip.io.images import save_png


def test_broken_images_are_named_in_one_line_each_and_the_others_done(
    stand_in: StandIn, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise, last = tmp_path / "noise.png", tmp_path / "last.png"
    Image.effect_noise((64, 64), 90).save(noise)
    Image.new("RGB", (5, 4)).save(last)
    (tmp_path / "cut.png").write_bytes(noise.read_bytes()[:2000])
    (tmp_path / "nothing.png").touch()
    (tmp_path / "notes.jpg").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    broken = {
        tmp_path / "cut.png": "cut short or damaged",
        tmp_path / "nothing.png": "empty file",
        tmp_path / "notes.jpg": "expected an image",
        tmp_path / "folder.png": "got no files",
        tmp_path / "missing.png": "no such file",
    }
    out = tmp_path / "out"
    assert run("segment", image, *broken, last, "--classes", "a, b", "--out", out) == 1
    came = capsys.readouterr()
    *lines, count = came.err.splitlines()
    assert count == "resclip: 2 of 7 images segmented; 5 failed"
    for (path, word), line in zip(broken.items(), lines, strict=True):
        assert line.startswith(f"resclip: {path}: ")
        assert line.count(str(path)) == 1
        assert word in line
    assert len(came.out.splitlines()) == 2
    assert len(names_in(out)) == 7


def test_same_names_do_not_overwrite_each_other(
    stand_in: StandIn, image: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    paths = [image, tmp_path / "cat-2.png", other / "CAT.jpg", other / "cat.gif", image]
    for path in paths[1:4]:
        Image.new("RGB", (9, 8)).save(path)
    out = tmp_path / "out"
    assert run("segment", *paths, "--classes", "a", "--out", out, "--no-overlay") == 0
    stems = [name.removesuffix(".json") for name in names_in(out) if name.endswith(".json")]
    stems.remove("classes")
    assert sorted(stems) == ["CAT-3", "cat", "cat-2", "cat-4", "cat-5"]


def test_the_images_themselves_are_never_overwritten(stand_in: StandIn, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "a_labels.png"]
    for path in paths:
        Image.new("RGB", (9, 8), (1, 2, 3)).save(path)
    before = [path.read_bytes() for path in paths]
    assert run("segment", *paths, "--classes", "a", "--out", tmp_path) == 0
    assert [path.read_bytes() for path in paths] == before
    assert "a-2_labels.png" in names_in(tmp_path)


def test_output_that_cannot_be_a_directory(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (image, image / "deeper"):
        assert run("segment", image, "--classes", "a", "--out", out) == 1
        one_line(capsys, str(out))
    assert names_in(tmp_path) == ["cat.png"]


def test_a_write_that_fails_is_a_failed_image(
    stand_in: StandIn,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    (out / "cat_overlay.png").mkdir(parents=True)  # A directory where a file has to go.
    assert run("segment", image, "--classes", "a", "--out", out) == 1
    one_line(capsys, "cat_overlay.png", "directory")
    assert names_in(out) == ["cat_labels.png", "cat_overlay.png", "classes.json"]


def test_errors_while_segmenting(
    stand_in: StandIn, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("segment", image, "--classes", "a", "--json")
    errors: dict[Exception, str] = {
        RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"): "smaller --batch-size",
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"): "--short-side",
        MemoryError(): "out of memory",
        RuntimeError("sizes\ndiffer"): "unexpected error: sizes differ (--debug shows where)",
        ValueError("an image too odd"): "an image too odd",
        KeyError("tile"): "unexpected error: KeyError: 'tile' (--debug shows where)",
        AssertionError(): "unexpected error: AssertionError (--debug shows where)",
    }
    for error, words in errors.items():

        def fail(_: np.ndarray, error: Exception = error) -> None:
            raise error

        stand_in.fail = fail
        assert run(*asked) == 1
        one_line(capsys, f"resclip: {image}: ", words)
    with pytest.raises(AssertionError):
        run(*asked, "--debug")


def test_large_images_need_a_word(
    stand_in: StandIn, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", image, "--classes", "a", "--json", "--max-pixels", 767) == 1
    one_line(capsys, "767 pixels", "768")
    assert run("segment", image, "--classes", "a", "--json", "--max-pixels", 768) == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 400)])
def test_images_smaller_than_a_patch(
    tmp_path: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.png"
    save_png(as_scene(np.full((size[1], size[0], 3), 120, np.uint8)), path)
    out = tmp_path / "out"
    assert run("segment", path, "--classes", "grass, sky", "--out", out, "--short-side", 0) == 0
    assert capsys.readouterr().err == ""
    assert Image.open(out / "small_labels.png").size == size


def test_the_limits_hold_for_what_names_the_images_too(
    stand_in: StandIn, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text(f"{image}\n")
    options = ("--classes", "a, b", "--json", "--max-bytes", 5)
    assert run("segment", tmp_path / "list.txt", *options) == 2
    one_line(capsys, "list.txt", "expected at most 5 bytes", "--max-bytes")


def test_names_from_the_standard_input_and_from_columns(
    stand_in: StandIn,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "dog.png"
    Image.new("RGB", (9, 8)).save(other)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"cat.png\ndog.png\n")))
    out = ["--classes", "a", "--no-overlay", "--out", tmp_path / "out"]
    assert run("segment", "-", *out) == 0
    written = names_in(tmp_path / "out")
    assert written == ["cat.json", "cat_labels.png", "classes.json", "dog.json", "dog_labels.png"]
    (tmp_path / "t.csv").write_text("photo,path\ncat.png,x\n,y\n")
    capsys.readouterr()
    assert run("segment", "t.csv", "--column", "photo", *out) == 1
    came = capsys.readouterr()
    assert came.out.startswith("cat.png: a 100%")
    bad, count = came.err.splitlines()
    assert bad.startswith("resclip: t.csv, line 3: expected a path or URL in column 'photo'")
    assert count == "resclip: 1 of 2 images segmented; 1 failed"
