"""Models, images and folders of a batch job on Ray whose processes die once, as by `kill -9`, at a given place.

Other processes import this too, so it imports little.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resclip.batch.items import Item
from resclip.batch.storage import Store
from resclip.inference.scheduler import Failure, Frame, Job, Strip


def die_once(notes: str, what: str) -> None:
    """End this process the first time that anybody comes here; a note says that it did."""
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


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def load_fragile(notes: str, *, dies_at: int, **settings: Any) -> Any:
    """The toy segmenter; its process dies once, as it begins the image of this number."""
    from batch_support import toy_segmenter

    assert (settings["device"], settings["precision"]) == ("cpu", "fp32")
    assert torch.get_num_threads() == 1  # A share of a machine with one core.
    segmenter = toy_segmenter(batch_size=settings["batch_size"])
    segmenter.vocabulary = settings["classes"]
    Path(notes, f"model-{os.getpid()}").touch()
    begin = segmenter.begin
    begun = 0

    def fragile(frame: Frame) -> Job:
        nonlocal begun
        begun += 1
        if begun == dies_at:
            die_once(notes, "model")
        return begin(frame)

    segmenter.begin = fragile
    return segmenter


def load_slow(notes: str, *, seconds: float = 0.0, stuck_on: str = "", **settings: Any) -> Any:
    """A model whose classes are shades of grey, that takes so long for each image; on one machine, for ever."""
    import ray

    Path(notes, f"model-{os.getpid()}").touch()
    here = ray.get_runtime_context().get_node_id()
    return Shades(3600.0 if here == stuck_on else seconds)


def load_nothing(error: Exception, **settings: Any) -> Any:
    """A model that cannot be loaded."""
    raise error


class Shades:
    """What a batch job needs of a segmenter."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def stream(self, frames: Iterable[Frame | Failure]) -> Iterator[Strip | Failure]:
        for frame in frames:
            if isinstance(frame, Failure):
                yield frame
                continue
            time.sleep(self.seconds)
            pixels = torch.tensor(frame.pixels.rows(0, frame.shape[0])).float()
            shades = pixels.mean(2)[None, None]
            labels = torch.nn.functional.interpolate(shades, frame.size)[0, 0].long() * 3 // 256
            yield Strip(frame, 0, labels, labels / 3)


@dataclass(frozen=True)
class FragileItem(Item):
    """An image whose first reader dies."""

    notes: str = ""

    def read(self) -> bytes:
        die_once(self.notes, "reader")
        return Item.read(
            self
        )  # Not super(): a dataclass with slots is made anew, without the cell of `super`.


@dataclass(frozen=True)
class FragileStore(Store):
    """A folder in which the first writer of a file dies, before anybody knows that it is written."""

    notes: str = ""
    victim: str = ""

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        if name == self.victim:
            die_once(self.notes, "writer")


class FullStore(Store):
    """A folder on a disk that is full."""

    def write(self, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.location(name))
