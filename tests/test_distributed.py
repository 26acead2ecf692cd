"""Processes that share an evaluation: real ones that meet by gloo, how failures end them, and the machine's facts."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from evaluation_support import together, values

from resclip.evaluation import distributed
from resclip.evaluation.distributed import (
    gather,
    local_device,
    machine_name,
    peak_memory,
    process_count,
    process_group,
    rank,
)

PROMPT = 20.0
"""Seconds within which a failure must be noticed; gloo's own timeout is 30 minutes, and a test takes about 2 s."""


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": ""}])
def test_a_process_on_its_own_waits_for_nobody(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with process_group():
        assert (rank(), process_count(), gather("word")) == (0, 1, ["word"])
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is missing"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here"}, "and MASTER_PORT is missing"),
        ({"WORLD_SIZE": "two"}, "whole number in the environment's WORLD_SIZE, got 'two'"),
    ],
)
def test_an_incomplete_environment_is_refused(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said), process_group():
        pass


def exchange() -> tuple[int, int, list[dict[str, int]]]:
    if rank() == 1:
        time.sleep(0.5)  # The others wait; the first, which has the store, does not leave before.
    return rank(), process_count(), gather({"from": rank()})


def test_three_processes_exchange_values(tmp_path: Path) -> None:
    """Three: a pair could not tell the first from the only other."""
    everything = [{"from": number} for number in range(3)]
    outcomes = values(together(tmp_path, exchange, size=3))
    assert outcomes == [(number, 3, everything) for number in range(3)]


def fail(failing: int, how: str) -> None:
    """One process ends while the other waits for it."""
    gather(None)
    if rank() == failing:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("out of memory")
    gather(None)


@pytest.mark.parametrize(("failing", "how"), [(0, "error"), (1, "killed")])
def test_who_waits_for_a_process_that_failed_is_told(
    tmp_path: Path, failing: int, how: str
) -> None:
    start = time.monotonic()
    outcomes = together(tmp_path, fail, failing, how)
    assert time.monotonic() - start < PROMPT
    failed, other = outcomes[failing], outcomes[1 - failing]
    assert failed is None if how == "killed" else failed.error == "MemoryError: out of memory"
    assert other is not None
    assert "lost touch with the 1 other(s), one of which has ended" in other.error


@pytest.mark.parametrize(
    ("device", "number", "gpus", "wanted"),
    [
        ("cuda", "1", 2, "cuda:1"),
        ("cuda:0", "1", 2, "cuda:0"),  # a device that is named is used
        ("cpu", "1", 2, "cpu"),
        (None, "1", 0, None),  # no GPU: what runs without torchrun runs with it
        (None, None, 2, None),
    ],
)
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    device: str | None,
    number: str | None,
    gpus: int,
    wanted: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if number is not None:
        monkeypatch.setenv("LOCAL_RANK", number)
    assert local_device(device) == wanted


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="got 2 for process 2.*--nproc-per-node=2"):
        local_device()


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ("processor\t: 0\nmodel name\t: Fast CPU: 3 GHz \nflags: fpu\nmodel name\t: Other\n", "Fast CPU: 3 GHz"),
        ("processor\t: 0\nmodel name\t:\n", "arm"),  # as in some virtual machines
        (None, "arm"),  # another system
    ],
)  # fmt: skip
def test_a_cpu_has_the_name_that_the_system_knows(
    facts: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if facts is not None:
        path.write_text(facts)
    monkeypatch.setattr(distributed, "CPU_INFO", path)
    monkeypatch.setattr(distributed.platform, "processor", lambda: "")
    monkeypatch.setattr(distributed.platform, "machine", lambda: "arm")
    assert machine_name(torch.device("cpu")) == wanted


def test_memory_is_counted_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(sys, "platform", "darwin")
    kilobytes = peak_memory(cpu)
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory(cpu) == pytest.approx(1024 * kilobytes, rel=0.01)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(cpu) == 0
