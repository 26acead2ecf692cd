"""What commands say while they work, as lines, events or not at all, and the summary that a run leaves."""

from __future__ import annotations

import json
import re
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import StandIn, names_in, one_line, run
from PIL import Image

from resclip.batch.output_names import SUMMARY
from resclip.cli.progress import EVERY, MOST_NAMES, Console, console, duration
from resclip.errors import UnknownWordsWarning
from resclip.version import __version__

FIELDS = {
    "start": {"command", "version"},
    "progress": {"done", "total", "unit", "rate", "eta"},
    "image": {"name", "status", "error"},
    "message": {"message"},
    "warning": {"message"},
    "error": {"message"},
    "end": {"status", "exit_status", "seconds"},
}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a log, each with the fields that are documented, in the order of their times."""
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        more = set(event) - {"time", "event", "doing", "done", "failed", "skipped"}
        assert FIELDS[event["event"]] - {"done", "failed"} <= more | {"done"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
    times = [datetime.fromisoformat(event["time"].replace("Z", "+00:00")) for event in events]
    assert times == sorted(times)
    assert [event["event"] for event in events].count("start") <= 1
    assert events[-1]["event"] in ("end", "error")
    return events


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Two images, and a file between them that is none."""
    paths = [tmp_path / name for name in ("one.png", "bad.png", "two.png")]
    for path in paths:
        Image.new("RGB", (9, 8)).save(path)
    paths[1].write_text("no image")
    return paths


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("resclip.cli.progress.time.monotonic", lambda: self.now)


def test_a_log_has_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image takes 7 s; 100 of them were there already."""
    clock = Clock(monkeypatch)
    with Console().progress(130) as progress:
        progress.update(100, stored=True)
        for _ in range(30):
            clock.now += 7
            progress.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "resclip: 105 of 130 images, 0.14 images/s, 2 min 55 s left"
    assert lines[-1] == "resclip: 130 of 130 images in 3 min 30 s, 0.14 images/s"
    assert len(lines) == 30 // 5
    assert EVERY == 30


def test_nothing_to_do_needs_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress(3):
        pass
    assert "0 of 3 images in 0 s\n" in capsys.readouterr().err
    with Console().progress(0):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (275, "4 min 35 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("mode", ["text", "quiet", "json"])
def test_a_bar_on_a_terminal_alone_and_only_of_text(
    mode: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = Console(mode)
    with said.progress(2) as progress:
        said.image_failed("a.png", "why", "a.png: why")
        progress.update(remark="7 MP/s")
        said.line("done")
        progress.update()
    came = capsys.readouterr()
    assert ("it/s" in came.err or "image/s" in came.err) == (mode == "text")
    assert ("7 MP/s" in came.err) == (mode == "text")
    assert ("resclip: a.png: why\n" in came.err) == (mode != "json")
    assert came.out == ("" if mode == "quiet" else "done\n")


def test_events_of_images_that_are_done_and_failed(
    stand_in: StandIn, three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("segment", *three, "--classes", "a", "--out", tmp_path / "out", "--log-json") == 1
    events = events_of(capsys.readouterr().err)
    assert events[0]["event"] == "start"
    assert (events[0]["command"], events[0]["version"]) == ("segment", __version__)
    assert [event["status"] for event in events if event["event"] == "image"] == [
        "done", "failed", "done",
    ]  # fmt: skip
    (failed,) = [event for event in events if event.get("status") == "failed"][:1]
    assert failed["name"] == str(three[1])
    assert "expected an image" in failed["error"]
    first, *_, last = [event for event in events if event["event"] == "progress"]
    assert (first["done"], first["total"], first["rate"]) == (0, 3, None)
    assert (last["done"], last["total"], last["eta"]) == (3, 3, 0)
    end = events[-1]
    assert (end["status"], end["exit_status"]) == ("failed", 1)
    assert (end["done"], end["failed"]) == (2, 1)
    assert "error" not in [event["event"] for event in events]


def test_warnings_and_errors_are_events(
    stand_in: StandIn,
    three: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def warn(_: np.ndarray) -> None:
        warnings.warn("unknown window=", UnknownWordsWarning, stacklevel=1)

    stand_in.fail = warn
    where = ["segment", three[0], "--classes", "a", "--json"]
    assert run(*where, "--log-json") == 0
    came = capsys.readouterr()
    assert json.loads(came.out)["file"] == str(three[0])
    (warning,) = [one for one in events_of(came.err) if one["event"] == "warning"]
    assert warning["message"] == "unknown --window"

    def interrupt(_: np.ndarray) -> None:
        raise KeyboardInterrupt

    stand_in.fail = interrupt
    assert run(*where, "--log-json") == 130
    *_, error, end = events_of(capsys.readouterr().err)
    assert (error["message"], end["status"], end["exit_status"]) == ("interrupted",) * 2 + (130,)
    assert run("segment", "nothing.png", "x*.png", "--classes", "a,", "--json", "--log-json") == 2
    *_, error, end = events_of(capsys.readouterr().err)
    assert error["event"] == "error"
    assert (end["status"], end["exit_status"]) == ("failed", 2)
    # What cannot be understood at all neither starts nor ends.
    assert run("segment", "--log-json") == 2
    (error,) = events_of(capsys.readouterr().err)
    assert "required" in error["message"]
    stand_in.fail = lambda _: 1 // 0  # type: ignore[return-value]
    with pytest.raises(ZeroDivisionError):
        run(*where, "--log-json", "--debug")
    assert events_of(capsys.readouterr().err)[-1]["exit_status"] == 1
    assert console().mode == "text"
    # Of processes that work together the first one writes.
    monkeypatch.setenv("RANK", "1")
    stand_in.fail = lambda _: None
    assert run(*where, "--log-json") == 0
    assert capsys.readouterr().err == ""


def test_quiet_says_errors_and_results(
    stand_in: StandIn, three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["segment", *three, "--classes", "a", "--out", tmp_path / "out"]
    assert run(*where, "--quiet") == 1
    one_line(capsys, "bad.png")
    assert run(*where, "--quiet", "--json") == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run("segment", three[0], "--classes", "a", "--out", tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run(*where, "--quiet", "--log-json") == 2
    assert "not allowed with" in capsys.readouterr().err


def test_an_evaluation_is_followed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["evaluate", "--scenes", 2, "--size", 48, "--method", "clip", "--json", tmp_path / "r"]
    assert run(*where, "--log-json") == 0
    came = capsys.readouterr()
    assert "clip" in came.out
    progress = [event for event in events_of(came.err) if event["event"] == "progress"]
    assert (progress[-1]["done"], progress[-1]["total"]) == (2, 2)
    assert progress[-1]["doing"] == "builtin, clip"
    assert run(*where, "--quiet") == 0
    came = capsys.readouterr()
    assert "clip" in came.out
    assert came.err == ""


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    return summary


def test_the_summary_of_a_run(
    stand_in: StandIn, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    seen = []
    stand_in.fail = lambda _: seen.append(summary_of(out)["status"])
    assert run("segment", *three, "--classes", "a", "--out", out, "--quiet") == 1
    assert seen == ["running", "running"]
    summary = summary_of(out)
    assert summary["command"] == "resclip segment"
    assert summary["source"] == list(map(str, three))
    assert summary["status"] == "failed"
    assert summary["error"] is None
    assert summary["counts"] == {"total": 3, "done": 2, "failed": 1, "skipped": 0}
    ((name, error),) = [one.values() for one in summary["failed"]]
    assert name == str(three[1])
    assert "expected an image" in error
    assert summary["settings"] == {"model": "stand-in"}
    assert summary["versions"]["resclip"] == __version__
    began, ended = (datetime.fromisoformat(summary[key][:-1]) for key in ("started", "ended"))
    assert began <= ended
    assert run("segment", three[0], "--classes", "a", "--out", out, "--quiet") == 0
    assert summary_of(out)["status"] == "done"

    def interrupt(_: np.ndarray) -> None:
        raise KeyboardInterrupt

    stand_in.fail = interrupt
    assert run("segment", *three, "--classes", "a", "--out", out) == 130
    assert summary_of(out)["status"] == "interrupted"
    assert summary_of(out)["counts"]["done"] == 0
    monkeypatch.setattr("resclip.cli.segment.output_stems", lambda *_: [])
    assert run("segment", *three, "--classes", "a", "--out", out) == 2
    assert summary_of(out)["status"] == "failed"
    assert "zip" in summary_of(out)["error"]


def test_failures_of_a_summary_are_bounded() -> None:
    said = Console("json")
    for number in range(MOST_NAMES + 5):
        said.image_failed(str(number), "why", "")
    assert len(said.failures) == MOST_NAMES
    assert said.counts["failed"] == MOST_NAMES + 5


def test_no_image_s_json_has_the_summary_s_name(stand_in: StandIn, tmp_path: Path) -> None:
    image = tmp_path / "Run-Summary.png"
    Image.new("RGB", (9, 8)).save(image)
    out = tmp_path / "out"
    assert run("segment", image, "--classes", "a", "--out", out, "--no-overlay") == 0
    assert names_in(out) == ["Run-Summary-2.json", "Run-Summary-2_labels.png", "classes.json"]
    assert summary_of(out)["counts"]["done"] == 1
