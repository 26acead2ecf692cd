"""`resclip batch` as a user meets it: a run with bad files, a killed run that goes on, and its errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "resclip[batch]"')

from batch_support import files_in, make_images, rows_of, toy_segmenter
from cli_support import one_line, run
from PIL import Image

CLASSES = "sky; tree; grass"
SMALL = ("--window", "56", "--stride", "56", "--short-side", "56", "--method", "naclip")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of the built-in model: a smaller one, which notes what was asked of `resclip.load`."""
    asked: dict[str, Any] = {}

    def load(model: str, pretrained: str | None, **options: Any) -> Any:
        asked.update(options)
        segmenter = toy_segmenter(pad_batches=options["pad_batches"])
        segmenter.source = {"method": options["method"]}
        return segmenter

    monkeypatch.setattr("resclip.loading.load", load)
    return asked


def batch(source: object, out: object, *options: object) -> int:
    return run("batch", source, "--out", out, "--classes", CLASSES, *options)


def arguments(source: Path, out: Path) -> list[str]:
    """A job for the built-in model."""
    words = ["batch", source, "--out", out, "--classes", CLASSES, "--no-cache", *SMALL]
    return list(map(str, words))


def test_two_hundred_images_ten_of_them_broken(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = make_images(tmp_path / "in", 200, broken=10)
    (tmp_path / "in" / "notes.md").write_text("no image by its name")
    assert batch(tmp_path / "in", tmp_path / "out") == 1
    said = capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["name"] for row in rows] == names
    assert len(failed) == 10
    assert len(files_in(tmp_path / "out")) == 190
    assert "200 files" in said
    assert "1 other file" in said
    assert "190 of 200 images done" in said
    assert "10 failed" in said
    for row in failed:
        assert row["name"] in said
        assert row["error"] in said
    assert said.count("\n") == 10 + 3
    assert toy["pad_batches"] is True

    # Again: what is done is left alone, what failed is tried again.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert batch(tmp_path / "in", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "0 of 200 images done, 190 earlier" in said
    assert rows_of(tmp_path / "out") == rows
    assert len(written) == 190
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())

    # Once the ten are mended, they alone are done, and the status is 0.
    make_images(tmp_path / "in", 200)
    assert batch(tmp_path / "in", tmp_path / "out") == 0
    assert "10 of 200 images done, 190 earlier" in capsys.readouterr().err
    assert {row["status"] for row in rows_of(tmp_path / "out")} == {"done"}


def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the middle of 200 images: nothing half-written, nothing lost, nothing done twice."""
    make_images(tmp_path / "in", 200, broken=10)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "resclip", *arguments(tmp_path / "in", out)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (parts := list(out.glob("manifest.parts/*.parquet"))):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = files_in(out)
    half = {name for name in before if name.endswith("_labels.png")}
    assert parts
    assert 0 < len(half) < 190
    for name in half:
        with Image.open(out / name) as labels:
            labels.load()
    stamps = {name: (out / name).stat().st_mtime_ns for name in half}

    assert run(*arguments(tmp_path / "in", out)) == 1
    said = capsys.readouterr().err
    assert "10 failed" in said
    earlier = int(said.split(" earlier")[0].split(", ")[-1])
    assert 0 < earlier <= len(half) + 10
    assert sum((out / name).stat().st_mtime_ns == stamps[name] for name in half) >= earlier

    whole = tmp_path / "whole"
    assert run(*arguments(tmp_path / "in", whole)) == 1
    assert files_in(out) == files_in(whole)
    assert rows_of(out) == rows_of(whole)
    assert len(files_in(out)) == 190


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", ("nowhere",)),
        ("empty", ("empty", "expected images", "got no files")),
        ("nothing-*.jpg", ("nothing-*.jpg",)),
    ],
)
def test_a_source_that_is_none(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str], source: str, words: Any
) -> None:
    (tmp_path / "empty").mkdir()
    assert batch(tmp_path / source, tmp_path / "out") != 0
    one_line(capsys, *words)
    assert not toy, "the model was loaded for nothing"


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("sky", ("2 to 65,536 classes", "got 1")),
        ("sky; tree; sky", ("each class once", "'sky' (class 3)")),
        ("", ("class",)),
    ],
)
def test_classes_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: str, words: Any
) -> None:
    make_images(tmp_path / "in", 1)
    options = ("--out", tmp_path / "out", "--classes", classes, "--no-cache", *SMALL)
    assert run("batch", tmp_path / "in", *options) == 2
    came = capsys.readouterr().err.splitlines()[-1]
    for word in words:
        assert word in came
    assert not list((tmp_path / "out").glob("*.png"))


def test_an_output_that_cannot_be(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 1)
    (tmp_path / "file").write_text("in the way")
    assert batch(tmp_path / "in", tmp_path / "file" / "out") == 1
    one_line(capsys, "expected a folder, got a file")
    assert not toy


def test_images_without_pixels_are_rows(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 2)
    header = bytearray((tmp_path / "in/000.png").read_bytes())
    header[20:24] = bytes(4)  # The height.
    (tmp_path / "in/000.png").write_bytes(bytes(header))
    assert batch(tmp_path / "in", tmp_path / "out") == 1
    assert "000.png" in capsys.readouterr().err
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["failed", "done"]


def test_another_method_does_not_mix_into_a_folder(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 3)
    assert batch(tmp_path / "in", tmp_path / "out", "--method", "naclip") == 0
    capsys.readouterr()
    assert batch(tmp_path / "in", tmp_path / "out", "--method", "sclip") == 2
    said = capsys.readouterr().err
    assert "method: 'naclip' there, 'sclip' now" in said
    assert "--overwrite" in said
    assert batch(tmp_path / "in", tmp_path / "out", "--method", "sclip", "--overwrite") == 0
    assert "3 of 3 images done" in capsys.readouterr().err


def test_options_of_the_other_engine_are_refused(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in", 1)
    assert batch(tmp_path / "in", tmp_path / "out", "--actors", 2) == 2
    one_line(capsys, "--engine ray")


def test_images_of_nearly_every_kind(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each comes out upright, at its own size."""
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "rgb.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("P").save(folder / "palette.gif")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[274] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "moving.gif", save_all=True, append_images=[image.convert("L")])
    assert batch(folder, tmp_path / "out") == 0
    sizes = {row["name"]: (row["height"], row["width"]) for row in rows_of(tmp_path / "out")}
    assert sizes.pop("turned.jpg") == (50, 40)
    assert len(sizes) == 7
    assert set(sizes.values()) == {(40, 50)}
