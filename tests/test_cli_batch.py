"""`resclip batch` as a user meets it: a run with bad files, a killed run that goes on, and its errors."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "resclip[batch]"')

import pyarrow as pa
from batch_support import files_in, make_images, rows_of, toy_segmenter
from cli_support import one_line, run
from PIL import Image
from pyarrow import parquet as pq
from source_support import archive

from resclip.batch.output_names import SUMMARY
from resclip.cli.options import add_reading_options, explain, reading_from
from resclip.io.limits import Limits
from resclip.io.picture import ReadOptions

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
    words += ["--model", "builtin"]
    return list(map(str, words))


def test_images_some_of_them_broken(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = make_images(tmp_path / "in", 40, broken=5)
    (tmp_path / "in" / "notes.md").write_text("no image by its name")
    assert batch(tmp_path / "in", tmp_path / "out") == 1
    said = capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    failed = [row for row in rows if row["status"] == "failed"]
    assert [row["name"] for row in rows] == names
    assert len(failed) == 5
    assert len(files_in(tmp_path / "out")) == 35
    for words in ("40 files", "1 other file", "35 of 40 images done", "5 failed"):
        assert words in said
    for row in failed:
        assert row["name"] in said
        assert row["error"] in said
    # What the source holds, what the model does not know, what was done, where it stands.
    assert said.count("\n") == 5 + 4
    assert toy["pad_batches"] is True

    # Again: what is done is left alone, what failed is tried again.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert batch(tmp_path / "in", tmp_path / "out") == 1
    assert "0 of 40 images done, 35 earlier" in capsys.readouterr().err
    assert rows_of(tmp_path / "out") == rows
    assert len(written) == 35
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())

    # Once the five are mended, they alone are done, and the status is 0.
    make_images(tmp_path / "whole", 40)
    for row in failed:
        shutil.copy(tmp_path / "whole" / row["name"], tmp_path / "in" / row["name"])
    assert batch(tmp_path / "in", tmp_path / "out") == 0
    assert "5 of 40 images done, 35 earlier" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    assert {row["status"] for row in rows} == {"done"}
    assert {row["source"] for row in rows} == {str(tmp_path / "in")}
    for row in rows:
        path = tmp_path / "in" / row["name"]
        assert row["location"] == str(path)
        assert row["size"] == path.stat().st_size
        assert row["version"] == str(path.stat().st_mtime_ns)


# The command line, whose manifest goes to the disk after a fifth of a second instead of two.
EARLY = """
from resclip.batch import manifest
from resclip.cli.commands import main
manifest.MAX_UNWRITTEN_SECONDS = 0.2
raise SystemExit(main())
"""


def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the middle of 80 images: nothing half-written, nothing lost, nothing done twice."""
    make_images(tmp_path / "in", 80, broken=10)
    out = tmp_path / "out"
    command = [sys.executable, "-c", EARLY, *arguments(tmp_path / "in", out)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(pq.read_metadata(part).num_rows for part in out.glob("manifest.parts/*.parquet")):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    half = {name for name in files_in(out) if name.endswith("_labels.png")}
    assert 0 < len(half) < 70
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
    assert len(files_in(out)) == 70


@pytest.mark.parametrize(
    ("source", "out", "options", "status", "words"),
    [
        ("nothing-*.jpg", "out", (), 2, "nothing-*.jpg"),
        ("nothing", "out", (), 2, "nothing: expected a folder, a pattern"),
        ("s3.txt", "out", ("--column", "x"), 2, "got a list; leave the column out"),
        ("words.parquet", "out", (), 2, "name one by --column\n"),
        ("empty", "out", (), 2, "got no files"),
        ("in", "file/out", (), 1, "expected a folder, got a file"),
        ("in", "out", ("--actors", 2), 2, "--engine ray"),
    ],
)
def test_refusals(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str],
    source: str, out: str, options: tuple[object, ...], status: int, words: str,
) -> None:  # fmt: skip
    """In one line, and before the model is loaded."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "s3.txt").write_text("s3://bucket/a.png\n")
    pq.write_table(pa.table({"caption": ["a cat"]}), tmp_path / "words.parquet")
    make_images(tmp_path / "in", 1)
    assert batch(tmp_path / source, tmp_path / out, *options) == status
    one_line(capsys, words)
    assert not toy
    assert not list(tmp_path.glob("out/*"))


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


def test_one_member_of_each_key_and_a_pipe(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was left out of shards is named; what is no file is a failed row, and nothing waits for it."""
    make_images(tmp_path / "in", 1)
    data = (tmp_path / "in" / "000.png").read_bytes()
    shard = archive(tmp_path / "s.tar", {"a.png": data, "a.input.png": data, "a.mask.png": data})
    assert batch(shard, tmp_path / "shards", "--member", "input.png") == 0
    assert "1 image in 1 archive, left out: 1 png, 1 mask.png" in capsys.readouterr().err
    assert [row["name"] for row in rows_of(tmp_path / "shards")] == ["s/a.input.png"]
    assert batch(tmp_path / "in", tmp_path / "none", "--member", "png") == 2
    one_line(capsys, "leave the member out")
    os.mkfifo(tmp_path / "in" / "pipe.tif")
    assert batch(tmp_path / "in", tmp_path / "out") == 1
    assert "expected a file, got a named pipe" in capsys.readouterr().err
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["done", "failed"]


def test_a_package_that_is_missing_is_a_request_that_cannot_be_carried_out(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    make_images(tmp_path / "in", 1)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for module in ("resclip.io.geotiff", "resclip.io.raster"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert batch(tmp_path / "in", tmp_path / "out", "--format", "tif") == 2
    one_line(capsys, "rasterio")


@pytest.mark.parametrize(
    "command",
    [
        ("batch", "in", "--classes", CLASSES),
        ("segment", "in/000.png", "--classes", CLASSES),
        ("evaluate",),
        ("ablate",),
        ("demo",),
    ],
)
def test_an_empty_name_is_no_output_folder(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command, "--out", "") == 2
    one_line(capsys, "--out: expected a folder to write to, got nothing; name one")


def test_a_folder_is_no_file_of_speeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--json", "--compare"):
        assert run("bench", option, tmp_path) == 2
        one_line(capsys, str(tmp_path))


def test_limits(tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_reading_options(parser)
    assert reading_from(parser.parse_args([])) == ReadOptions()
    words = ["--max-pixels", "9", "--max-bytes", "2kB", "--timeout", "0.5"]
    words += ["--bands", "4, red,2", "--value-range=-5,3000"]
    wanted = ReadOptions((4, "red", 2), (-5.0, 3000.0), Limits(9, max_bytes=2000, timeout=0.5))
    assert reading_from(parser.parse_args(words)) == wanted
    for option, value in (("--max-bytes", "0"), ("--max-bytes", "x"), ("--timeout", "0")):
        assert batch(tmp_path, tmp_path / "out", option, value) == 2
        one_line(capsys, f"{option}: expected a number")
    for option, value, words_of_error in (
        ("--bands", "1,2", "--bands must be three"),
        ("--bands", "0", "--bands must be numbers from 1"),
        ("--value-range", "5,1", "--value-range must be (low, high)"),
        ("--value-range", "5", "--value-range must be LOW,HIGH"),
    ):
        assert batch(tmp_path, tmp_path / "out", option, value) == 2
        one_line(capsys, words_of_error)
    assert (
        explain("allow more by max_bytes=, or timeout=")
        == "allow more by --max-bytes, or --timeout"
    )


def test_an_image_that_takes_more_memory_than_is_allowed_fails_alone(
    tmp_path: Path,
    toy: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("resclip.inference.memory.held_memory", lambda _: 0)
    make_images(tmp_path / "in", 2)
    Image.new("1", (400, 300)).save(tmp_path / "in" / "large.png")
    assert batch(tmp_path / "in", tmp_path / "out", "--max-memory", "3MB", "--workers", 2) == 1
    told = capsys.readouterr().err
    assert "large.png: expected at most 93,750 pixels" in told
    assert "raise --max-memory" in told
    assert "2 of 3 images done" in told


def test_a_run_leaves_its_summary_which_is_no_input(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    names = make_images(folder, 9, broken=2)
    assert batch(folder, folder) == 1
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["command"] == "resclip batch"
    assert summary["status"] == "failed"
    assert summary["source"] == [str(folder)]
    assert summary["counts"] == {"total": 9, "done": 7, "failed": 2, "skipped": 0}
    assert {one["name"] for one in summary["failed"]} < set(names)
    assert summary["settings"]["names"] == ["cat", "dog", "grass"]
    capsys.readouterr()
    assert batch(folder, folder, "--log-json") == 1
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["counts"] == {"total": 9, "done": 0, "failed": 2, "skipped": 7}
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "9 files, 9 earlier outputs left out" in events[1]["message"]
    assert {key: events[-1][key] for key in ("done", "failed", "skipped")} == {
        "done": 0, "failed": 2, "skipped": 7,
    }  # fmt: skip
    # What is wrong with the request leaves the summary of the run before.
    assert batch(folder, folder, "--scores") == 2
    assert json.loads((folder / SUMMARY).read_text()) == summary
    for name in names:
        (folder / name).unlink()
    make_images(folder, 3)
    assert batch(folder, folder) == 0
    assert json.loads((folder / SUMMARY).read_text())["status"] == "done"


def test_names_that_clash_and_files_that_take_others_names(
    tmp_path: Path, toy: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path, 1)
    image = (tmp_path / "000.png").read_bytes()
    names = ["a", "manifest.parquet/x", "manifest.lock/x", "manifest.parts/000000.parquet/x"]
    names += ["a_labels.png/x", "2024:01?", "CON", "b.", "b"]
    pq.write_table(pa.table({"image": [image] * 9, "name": names}), tmp_path / "t.parquet")
    assert batch(tmp_path / "t.parquet", tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert [row["name"] for row in rows] == names
    assert {output for row in rows for output in row["outputs"]} == set(files_in(tmp_path / "out"))
    assert len(files_in(tmp_path / "out")) == 9
    assert "9 of 9 images done" in capsys.readouterr().err
    assert batch(tmp_path / "t.parquet", tmp_path / "out") == 0
    assert "0 of 9 images done, 9 earlier" in capsys.readouterr().err
