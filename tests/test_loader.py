"""Reading in worker processes: what they are sent, what becomes of their errors, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from evaluation_support import CLASSES, Broken, Stub, on_disk, random_dataset

from resclip import load
from resclip.builtin.scenes import CLASS_NAMES
from resclip.evaluation import loader
from resclip.evaluation.datasets.base import Dataset
from resclip.evaluation.loader import Reader, default_workers, prefetch_groups
from resclip.evaluation.runner import evaluate_dataset


def test_what_prepares_images_goes_to_workers_without_the_model() -> None:
    segmenter = load("builtin", classes=CLASS_NAMES, method="naclip", device="cpu")
    image = np.random.default_rng(0).integers(256, size=(30, 50, 3)).astype(np.uint8)
    data = pickle.dumps(segmenter.preparation)
    assert len(data) < 1000
    preparation = pickle.loads(data)
    resized = preparation.resize(image)
    assert resized.dtype == np.uint8
    assert resized.shape == (224, 373, 3)
    prepared = preparation.normalise(torch.tensor(resized))
    assert torch.equal(prepared, segmenter.prepare(image))


def test_the_random_numbers_of_others_are_left_alone(seed: int) -> None:
    before = torch.get_rng_state()
    evaluate_dataset("naclip", Stub(), random_dataset(seed, 9), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_sent_bytes_and_images_only_where_they_are_shown(seed: int) -> None:
    dataset = random_dataset(seed, 3)
    reader = Reader(dataset.samples, 2, len(CLASSES), Stub().preparation, keep_originals=False)
    first, second = prefetch_groups(reader, [0, 1], workers=1)
    assert [first.number, second.number] == [0, 1]
    assert [one.index for one in (*first.images, *second.images)] == [0, 1, 2]
    for one in first.images:
        assert one.pixels.dtype == one.truth.dtype == torch.uint8
        assert one.pixels.is_shared()
        assert one.original is None
        assert min(one.pixels.shape[:2]) == 8


def test_a_reader_can_be_sent_to_a_process_that_starts_anew(tmp_path: Path) -> None:
    """Where processes are not forked: on macOS, on Windows, and from Python 3.14 on."""
    samples = on_disk(tmp_path, 3).samples
    reader = Reader(samples, 2, len(CLASS_NAMES), Stub().preparation, keep_originals=True)
    sent, here = pickle.loads(pickle.dumps(reader))[1], reader[1]
    assert [one.index for one in sent.images] == [2]
    for name in ("pixels", "truth", "original"):
        assert torch.equal(getattr(sent.images[0], name), getattr(here.images[0], name))


@dataclass(frozen=True)
class Deadly:
    """An image at whose sight a worker dies, as one does for want of memory."""

    def read(self) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_dies_is_an_error_and_not_a_hang(seed: int) -> None:
    dataset = random_dataset(seed, 9)
    samples = (*dataset.samples[:8], replace(dataset.samples[8], image=Deadly()))
    with pytest.raises(RuntimeError, match=r"ended from outside.*use fewer workers, or 0"):
        evaluate_dataset("naclip", Stub(), replace(dataset, samples=samples), workers=1)


def test_a_mistake_in_reading_is_no_problem_of_the_image(seed: int) -> None:
    dataset = random_dataset(seed, 2)
    broken = replace(dataset.samples[0], image=Broken(KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        evaluate_dataset("naclip", Stub(), replace(dataset, samples=(broken,)), workers=1)
    assert multiprocessing.active_children() == []


def slowly(dataset: Dataset, folder: Path) -> None:
    """In a terminal of its own, as it were: what it and its workers say goes to a file."""
    os.setsid()
    sys.stderr = (folder / "said").open("w")
    os.dup2(sys.stderr.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def look(*_: Any) -> None:
        (folder / "running").write_text(str(os.getpid()))
        time.sleep(0.05)

    evaluate_dataset("naclip", Stub(), dataset, group_size=1, workers=2, on_image=look)


def test_an_interrupt_ends_the_workers_without_a_word(tmp_path: Path, seed: int) -> None:
    dataset = random_dataset(seed, 2000)
    process = multiprocessing.get_context("fork").Process(target=slowly, args=(dataset, tmp_path))
    process.start()
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "running").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        os.killpg(process.pid, signal.SIGINT)
        process.join(20)
        assert process.exitcode == 1
        assert psutil.wait_procs(workers, timeout=10)[1] == []
    finally:
        process.kill()
    said = (tmp_path / "said").read_text()
    assert said.count("Traceback") == 1
    assert said.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("device", "cores", "processes", "wanted"),
    [
        ("cpu", 16, "", 0),
        ("cuda", 4, "", 3),
        ("cuda", 64, "", 8),
        ("cuda", 16, "4", 3),  # torchrun's four on one machine
        ("cuda", 2, "4", 0),
    ],
)
def test_as_many_workers_as_there_are_cores_to_spare(
    device: str, cores: int, processes: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert default_workers(torch.device(device)) == wanted
