"""Small datasets in memory, a segmenter that needs no model, and groups of processes, for tests of evaluations."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from resclip.builtin.scenes import CLASS_NAMES, held_out_scenes
from resclip.evaluation import runner
from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    ImageFile,
    LabelFile,
    Sample,
    Values,
)
from resclip.evaluation.datasets.builtin import ImageInMemory, InMemory
from resclip.evaluation.distributed import process_group
from resclip.inference.preprocessing import CLIP_MEAN, CLIP_STD, Preparation
from resclip.io.images import ImageError

CLASSES = ("sky", "grass", "water", "road")


@dataclass(frozen=True)
class Broken:
    """An image or a truth that cannot be had."""

    error: Exception

    def read(self) -> np.ndarray:
        raise self.error


def sample(generator: np.random.Generator, index: int) -> Sample:
    """Of 5 to 14 pixels a side; a fifth of them does not count."""
    height, width = generator.integers(5, 15, 2)
    truth = generator.integers(len(CLASSES), size=(height, width)).astype(np.uint8)
    truth[generator.random((height, width)) < 0.2] = IGNORED
    image = generator.integers(256, size=(height, width, 3)).astype(np.uint8)
    # Names whose order is not that of the samples.
    return Sample(f"image {-index % 7}.{index}", ImageInMemory(image), InMemory(truth))


def random_dataset(seed: int, count: int, broken: Sequence[int] = (), **options: Any) -> Dataset:
    """A dataset of `count` samples, of which those in `broken` cannot be read."""
    generator = np.random.default_rng(seed)
    samples = [sample(generator, index) for index in range(count)]
    for index in broken:
        broken_one = Broken(ImageError(f"number {index} is damaged"))
        samples[index] = Sample(samples[index].name, broken_one, samples[index].truth)
    return Dataset("random", f"{count} random images", CLASSES, tuple(samples), **options)


@dataclass
class Stub:
    """A segmenter whose labels follow from the pixels of the image, and from what is in its group.

    Args:
        fail_at: number of the call of `predict_many`, from 0, that raises `error`.
    """

    fail_at: int | None = None
    error: BaseException = field(default_factory=KeyboardInterrupt)
    calls: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    vocabulary: Any = field(default_factory=lambda: SimpleNamespace(names=CLASSES))
    preparation: Preparation = field(
        default_factory=lambda: Preparation(8, 64, (4, 4), CLIP_MEAN, CLIP_STD)
    )

    def predict_many(
        self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        if self.calls == self.fail_at:
            raise self.error
        self.calls += 1
        # Halves and their sums are exact in any order.
        levels = [(image * 4).round() for image in pixels]
        whole = sum(int(level.sum()) for level in levels)
        results = []
        for level, size in zip(levels, sizes, strict=True):
            small = level.sum(0, keepdim=True)[None]
            large = torch.nn.functional.interpolate(small, size=size, mode="nearest")[0, 0]
            labels = (large.long() + whole) % len(CLASSES)
            results.append((labels, labels.float()))
        return results


def on_disk(folder: Path, count: int) -> Dataset:
    """Drawn scenes as PNG files, smaller and smaller; a strip of each does not count."""
    every = Values({label: label for label in range(len(CLASS_NAMES))})
    samples = []
    for index, scene in enumerate(held_out_scenes(count, 40)):
        image, mask = folder / f"{index}.png", folder / f"{index}-mask.png"
        truth = scene.mask[: 40 - index].copy()
        truth[:3] = IGNORED
        Image.fromarray(scene.image[: 40 - index]).save(image)
        Image.fromarray(truth).save(mask)
        samples.append(Sample(f"scene {index}", ImageFile(image), LabelFile(mask, every)))
    return Dataset("scenes", "drawn scenes on disk", CLASS_NAMES, tuple(samples))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Outcome:
    """What a process returned, or what it raised: the error's class and words."""

    value: Any = None
    error: str = ""


def together(
    folder: Path, work: Callable[..., Any], *arguments: Any, size: int = 2, seconds: float = 60
) -> list[Outcome | None]:
    """What `work(*arguments)` returns in each process of a group; None for one that was killed.

    They are forked, so that nothing is imported anew.
    """
    port = free_port()
    context = multiprocessing.get_context("fork")

    def run(rank: int) -> None:
        torch.set_num_threads(1)  # The parent's threads are not there after a fork.
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank}
        variables = {"RANK": rank, "WORLD_SIZE": size, **here}
        os.environ |= {name: str(value) for name, value in variables.items()}
        try:
            with process_group():
                outcome = Outcome(work(*arguments))
        except BaseException as error:  # noqa: BLE001 (an interrupt is an outcome too)
            traceback.print_exc()
            outcome = Outcome(error=f"{type(error).__name__}: {error}")
        (folder / f"outcome-{rank}").write_bytes(pickle.dumps(outcome))

    outcomes: list[Outcome | None] = []
    processes = [context.Process(target=run, args=(rank,)) for rank in range(size)]
    for rank, process in enumerate(processes):
        (folder / f"outcome-{rank}").unlink(missing_ok=True)
        process.start()
    for rank, process in enumerate(processes):
        process.join(seconds)
        if process.is_alive():
            for other in processes:
                other.kill()
            pytest.fail(f"the process of rank {rank} of {size} hangs")
        path = folder / f"outcome-{rank}"
        outcomes.append(pickle.loads(path.read_bytes()) if path.exists() else None)
    return outcomes


def values(outcomes: Sequence[Outcome | None]) -> list[Any]:
    """What the processes returned; none may have failed."""
    assert all(outcome is not None and not outcome.error for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes if outcome is not None]


def record_measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows that `evaluate` measures, and does not read from a file, as they come."""
    methods: list[str] = []
    original = runner.evaluate_dataset

    def spy(method: str, *arguments: Any, **options: Any) -> Any:
        methods.append(method)
        return original(method, *arguments, **options)

    monkeypatch.setattr(runner, "evaluate_dataset", spy)
    return methods
