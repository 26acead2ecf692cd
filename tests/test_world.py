"""Processes that share an evaluation: two real ones that meet by gloo, and how the failure of one ends both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from measure_support import free_port, gathered, together, values

from resclip.evaluation import distributed as module
from resclip.evaluation.distributed import ALONE, World, join, local_device

ROOT = Path(__file__).parents[1]
AT_ONCE = 20.0
"""Seconds; gloo's own patience is 30 minutes, and what a test takes on a busy machine about 2 s."""


def test_alone_a_process_hears_itself() -> None:
    assert ALONE.is_first
    assert ALONE.broadcast("word") == "word"
    assert ALONE.gather(3) == [3]
    assert ALONE.advance(5) == 5


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": ""}])
def test_without_torchrun_or_with_one_process_nobody_is_waited_for(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with join() as world:
        assert world is ALONE
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is missing"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here"}, "and MASTER_PORT is missing"),
        ({"WORLD_SIZE": "two"}, "whole number in the environment's WORLD_SIZE, got 'two'"),
    ],
)
def test_half_an_environment_is_refused(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said), join():
        pass


def everything(world: World) -> dict[str, Any]:
    """Each call once; the second world of a program counts from nought again."""
    heard = world.broadcast({"from": world.rank})
    ranks = gathered(world)
    news = [world.advance(world.rank + 1)]
    world.gather(None)  # From here on all have counted.
    news.append(world.advance(0))
    return {"heard": heard, "ranks": ranks, "news": sum(news), "first": world.is_first}


def test_three_processes_hear_one_another(tmp_path: Path) -> None:
    """Three: a pair could not tell the first from the only other."""
    came = values(together(tmp_path, everything, size=3))
    assert [each["heard"] for each in came] == [{"from": 0}] * 3
    assert [each["ranks"] for each in came] == [[0, 1, 2]] * 3
    assert [each["news"] for each in came] == [1 + 2 + 3] * 3
    assert [each["first"] for each in came] == [True, False, False]


def test_a_program_may_join_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = join

    def twice():
        with original() as first:
            first.gather(first.advance(100))
        return original()

    monkeypatch.setattr("measure_support.join", twice)
    assert [each["news"] for each in values(together(tmp_path, everything))] == [3, 3]


def linger(world: World) -> int:
    """The first has nothing left to do, and the store with it."""
    if world.rank == 1:
        time.sleep(0.5)
    return world.advance(1)


def test_nobody_leaves_before_the_last_is_done(tmp_path: Path) -> None:
    assert values(together(tmp_path, linger)) == [1, 2]


def fail(world: World, rank: int, how: str) -> float:
    """One process ends at once; the others wait for it, or ask whether all is well."""
    start = time.monotonic()
    world.gather(None)
    if world.rank == rank:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("out of memory\nand more lines")
    if how == "asked":
        while time.monotonic() - start < AT_ONCE:
            world.advance(1)
            time.sleep(0.05)
    world.gather(None)
    return time.monotonic() - start


@pytest.mark.parametrize("how", ["waited for", "asked"])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_failure_of_one_ends_all_and_says_why(tmp_path: Path, rank: int, how: str) -> None:
    """Rank 0 holds the store where torchrun does not, so that its words may be lost with it."""
    start = time.monotonic()
    outcomes = together(tmp_path, fail, rank, how)
    assert time.monotonic() - start < AT_ONCE
    failed, other = outcomes[rank], outcomes[1 - rank]
    assert failed is not None
    assert other is not None
    assert failed.error.startswith("MemoryError: out of memory")
    known = f"WorldError: the process of rank {rank} failed: MemoryError: out of memory"
    lost = f"WorldError: the process of rank {1 - rank} lost touch with the 1 other(s)"
    assert other.error == known or (rank == 0 and other.error.startswith(lost))


def test_the_death_of_one_ends_all(tmp_path: Path) -> None:
    start = time.monotonic()
    outcomes = together(tmp_path, fail, 1, "killed")
    assert time.monotonic() - start < AT_ONCE
    assert outcomes[1] is None
    assert outcomes[0] is not None
    assert "lost touch with the 1 other(s), one of which has ended" in outcomes[0].error


def absent():
    if os.environ["RANK"] == "1":
        raise FileNotFoundError("weights")
    return join()


def test_who_does_not_come_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JOINING", module.timedelta(seconds=1))
    monkeypatch.setattr("measure_support.join", absent)
    start = time.monotonic()
    first, other = together(tmp_path, gathered)
    assert time.monotonic() - start < AT_ONCE
    assert first is not None
    assert first.error.startswith("WorldError: expected 2 processes to meet at 127.0.0.1:")
    assert "not all came to meet rank 0" in first.error
    assert other is not None
    assert other.error.startswith("FileNotFoundError")


SCRIPT = """
    import sys
    from pathlib import Path

    from resclip.evaluation.distributed import join

    for number in range(2):
        with join() as world:
            news = world.advance(1)
            world.gather(None)
            ranks = world.gather((world.rank, news + world.advance(0)))
            Path(sys.argv[1], f"{number}-{world.rank}").write_text(str(ranks))
"""


def test_torchrun_is_understood(tmp_path: Path) -> None:
    """The real one, which keeps one store for two worlds after one another, as long as its agent lives."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--master-addr=127.0.0.1", f"--master-port={free_port()}", script, tmp_path],
        check=True, timeout=170, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for name in ("0-0", "0-1", "1-0", "1-1"):
        assert (tmp_path / name).read_text() == "[(0, 2), (1, 2)]"


@pytest.mark.parametrize(
    ("device", "rank", "gpus", "wanted"),
    [
        (None, "1", 2, "cuda:1"),
        ("cuda", "0", 2, "cuda:0"),
        ("cuda:0", "1", 2, "cuda:0"),  # taken at its word
        ("cpu", "1", 2, "cpu"),
        (None, "1", 0, None),  # no GPU: what runs without torchrun runs with it
        ("cuda", "1", 0, "cuda"),
        (None, None, 2, None),
    ],
)
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    device: str | None,
    rank: str | None,
    gpus: int,
    wanted: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert local_device(device) == wanted


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="got 2 for process 2.*--nproc-per-node=2"):
        local_device()
