"""Models, images and folders of a batch job on Ray whose processes die once, as by `kill -9`, at a given place.

Other processes import this too, so it imports little.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resclip.batch.items import Item
from resclip.batch.storage import Store
from resclip.inference.pipeline import ImageTask, WindowPixels
from resclip.io.limits import DEFAULT_LIMITS, Limits


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
    segmenter.pipeline.vocabulary = settings["classes"]
    Path(notes, f"model-{os.getpid()}").touch()
    encode_overview = segmenter.pipeline.encode_overview
    begun = 0

    def fragile(task: ImageTask) -> Any:
        nonlocal begun
        begun += 1
        if begun == dies_at:
            die_once(notes, "model")
        return encode_overview(task)

    segmenter.pipeline.encode_overview = fragile
    return segmenter


def load_slow(notes: str, *, seconds: float = 0.0, stuck_on: str = "", **settings: Any) -> Any:
    """A model whose classes are shades of grey, that takes so long for each image; on one machine, for ever."""
    import ray

    Path(notes, f"model-{os.getpid()}").touch()
    here = ray.get_runtime_context().get_node_id()
    return shades(3600.0 if here == stuck_on else seconds)


def load_nothing(error: Exception, **settings: Any) -> Any:
    """A model that cannot be loaded."""
    raise error


def shades(seconds: float) -> Any:
    """A segmenter whose classes are three shades of grey, and that takes so long for each image."""
    from batch_support import toy_segmenter

    def encode_windows(windows: Sequence[WindowPixels], limit: int) -> list[Tensor]:
        time.sleep(seconds * len(windows))
        levels = [one.pixels.mean(0).clamp(-1, 1) for one in windows]
        limits = torch.tensor([-1 / 3, 1 / 3])
        first_query = torch.tensor([0, 2, 3])  # Of each class: the first one has two queries.
        queries = [first_query[torch.bucketize(level, limits)] for level in levels]
        return [torch.nn.functional.one_hot(one, 4).movedim(-1, 0).float() for one in queries]

    segmenter = toy_segmenter(window=0, batch_size=1)  # So that a sleep lasts for one image alone.
    segmenter.pipeline.encode_windows = encode_windows
    return segmenter


@dataclass(frozen=True)
class FragileItem(Item):
    """An image whose first reader dies."""

    notes: str = ""

    def source(self, limits: Limits = DEFAULT_LIMITS) -> Path | bytes:
        die_once(self.notes, "reader")
        # Not super(): a dataclass with slots is made anew, without the cell of `super`.
        return Item.source(self, limits)


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
