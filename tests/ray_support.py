"""Parts of a batch job whose processes die once, as by `kill -9`, at a given place: other processes import this too."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_support import toy_segmenter

from resclip import Segmenter, Vocabulary
from resclip.batch.items import Item
from resclip.batch.store import LocalStore
from resclip.stream import Frame, Job


def die_once(notes: str, what: str) -> None:
    """End this process the first time that anybody asks for it; the note says that it did."""
    try:
        Path(notes, f"killed-{what}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def killed(notes: Path) -> set[str]:
    """What has died."""
    return {path.name.removeprefix("killed-") for path in notes.glob("killed-*")}


def models(notes: Path) -> set[int]:
    """Processes that have loaded a model."""
    return {int(path.name.removeprefix("model-")) for path in notes.glob("model-*")}


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def load(
    notes: str,
    *,
    classes: Vocabulary,
    dies_at: int = 0,
    seconds: float = 0.0,
    error: Exception | None = None,
    **settings: Any,
) -> Segmenter:
    """The toy segmenter, in the place of `resclip.load`.

    Args:
        notes: a folder; this process's number is noted there.
        classes: the driver's.
        dies_at: which picture it does not survive, once.
        seconds: that each picture takes.
        error: that is raised instead.
    """
    if error is not None:
        raise error
    assert settings["device"] == "cpu"
    assert settings["precision"] == "fp32"
    assert settings["cache"] is None
    segmenter = toy_segmenter(batch_size=settings["batch_size"])
    segmenter.vocabulary = classes
    Path(notes, f"model-{os.getpid()}").touch()
    begin = segmenter.begin
    begun = 0

    def fragile(frame: Frame) -> Job:
        nonlocal begun
        begun += 1
        time.sleep(seconds)
        if begun == dies_at:
            die_once(notes, "model")
        return begin(frame)

    segmenter.begin = fragile
    return segmenter


@dataclass(frozen=True)
class FragileItem(Item):
    """A picture whose first reader dies."""

    notes: str = ""

    def read(self, limit: int | None = None) -> bytes:
        die_once(self.notes, "reader")
        return super().read(limit)


@dataclass(frozen=True)
class FragileStore(LocalStore):
    """A folder in which the first writer of a file dies: behind the write, before anybody knows of it."""

    notes: str = ""
    victim: str = ""

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        if name == self.victim:
            die_once(self.notes, "writer")
