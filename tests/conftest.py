"""Shared fixtures: a fresh, replayable seed a test; a stand-in for the model and an image for the command line."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import StandIn
from kernel_support import fresh_seed
from PIL import Image

# Read by Triton when the first kernel is defined: without a GPU the kernels' own code runs in the interpreter.
IS_INTERPRETED = not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
if IS_INTERPRETED:
    import interpreter
    from interpreter_checks import Sanitizer

    interpreter.install()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Some tests take long for what they add to the others: they are left to those who ask for them."""
    if item.get_closest_marker("slow") and not os.environ.get("RESCLIP_SLOW_TESTS"):
        pytest.skip("slow for what it adds; RESCLIP_SLOW_TESTS=1 runs it")


LONGEST = (
    "test_every_byte_is_that_of_one_machine",
    "test_every_kernel_is_lowered_with_every_option",
    "test_the_cpu_benchmarks_run",
    "test_peak_memory_does_not_grow_with_an_images_height",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first: one that began last would leave the other processes idle."""
    items.sort(key=lambda item: item.name.partition("[")[0] not in LONGEST)


def pytest_collection_finish() -> None:
    """What libraries have made by now stays: without this Python would look through all of it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def seed() -> int:
    """Printed, so that a failure can be replayed with RESCLIP_TEST_SEED."""
    value = fresh_seed()
    print(f"replay with RESCLIP_TEST_SEED={value}")
    return value


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands keep on disk stays with the test."""
    monkeypatch.setenv("RESCLIP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    verdicts = tmp_path_factory.getbasetemp() / "kernels.json"
    monkeypatch.setenv("RESCLIP_KERNEL_VERDICTS", str(verdicts))


@pytest.fixture(autouse=True)
def kernel_checks() -> Iterator[Any]:
    """No kernel of the test touches memory that it should not, where they are interpreted; yields the sanitizer."""
    if not IS_INTERPRETED:
        yield None
        return
    with Sanitizer().watching() as sanitizer:
        yield sanitizer


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    double = StandIn()
    monkeypatch.setattr("resclip.loading.load", double.load)
    return double


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path
