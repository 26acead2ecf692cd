"""The processes that share an evaluation: who this one is, and how they put their numbers together.

Knows torchrun's environment and torch.distributed. Knows no image, model or dataset.

Numbers meet on the CPU, by gloo: each process computes on a device of its own, and what they exchange is small.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]


CPU_FACTS = Path("/proc/cpuinfo")
"""Linux's own description of the CPU."""


def machine_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's brand as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_FACTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    brands = [value.strip() for name, _, value in (line.partition(":") for line in lines)
              if name.strip() == "model name"]  # fmt: skip
    return next(filter(None, [*brands, platform.processor(), platform.machine()]), "unknown")


def forget_peak_memory(device: torch.device) -> None:
    """Let a GPU's peak begin anew; a process's cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU's tensors since `forget_peak_memory`, else of this process since its start; 0 on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        peak if sys.platform == "darwin" else peak * 1024
    )  # macOS counts bytes, others kilobytes.


T = TypeVar("T")

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process, beside WORLD_SIZE and LOCAL_RANK."""

JOINING = timedelta(minutes=10)
"""How long the processes wait for one another at the start: loading weights over a slow disk takes minutes."""

WAITING = timedelta(days=1)
"""How long a process waits for the figures of another, whose share may take hours. One that ends is noticed at once."""

FAILURE = "failure"
"""Under which key a process that fails says why."""

IMAGES = "images"
"""Under which key the processes count their images."""

JOINED = itertools.count()
"""Tells a program's worlds apart: torchrun keeps one store for all of them."""


class WorldError(RuntimeError):
    """Another process failed, so that this one cannot go on."""


@dataclass
class World:
    """One process on its own, whose numbers are everybody's; `join` gives those of several.

    Every process must make the same calls in the same order, `advance` excepted.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that reports and writes for all."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """The first process's `value`, which must be picklable."""
        return value

    def gather(self, value: T) -> list[T]:
        """Everybody's `value`, by rank; they must be picklable."""
        return [value]

    def advance(self, images: int) -> int:
        """Count images of this process; how many all have counted since this one last asked, its own included.

        Waits for nobody.

        Raises:
            WorldError: a process has failed.
        """
        return images


ALONE = World()
"""A process on its own. It needs no torch.distributed."""


@dataclass
class SharedWorld(World):
    """One of several processes.

    Raises:
        WorldError: by every method, where another process has failed.
    """

    store: Store = field(kw_only=True)
    """What all can write to and read from without waiting."""
    seen: int = 0
    """Images of all that `advance` has returned so far."""

    def broadcast(self, value: T) -> T:
        """The first process's `value`, which must be picklable."""
        import torch.distributed as dist

        values = [value]
        with self.together():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Everybody's `value`, by rank; they must be picklable."""
        import torch.distributed as dist

        values = [value] * self.size
        with self.together():
            dist.all_gather_object(values, value)
        return values

    def advance(self, images: int) -> int:
        """Count images of this process; how many all have counted since this one last asked."""
        with self.together():
            total = self.store.add(IMAGES, images)
            failed = self.store.check([FAILURE])
        if failed:
            raise WorldError(self.reason())
        news, self.seen = total - self.seen, total
        return news

    def announce(self, error: BaseException) -> None:
        """Tell the others why this process ends."""
        lines = str(error).splitlines() or [""]
        text = f"the process of rank {self.rank} failed: {type(error).__name__}: {lines[0]}"
        with contextlib.suppress(RuntimeError):  # Where the store is gone, they know already.
            self.store.set(FAILURE, text)

    def reason(self) -> str:
        """Why another process failed, as far as is known."""
        with contextlib.suppress(RuntimeError):
            if self.store.check([FAILURE]):
                return self.store.get(FAILURE).decode()
        return (
            f"the process of rank {self.rank} lost touch with the {self.size - 1} other(s), one of which has ended: "
            "see what that one wrote"
        )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Where the processes talk: what breaks off there is another's failure."""
        try:
            yield
        except RuntimeError as error:
            raise WorldError(self.reason()) from error


@contextlib.contextmanager
def join() -> Iterator[World]:
    """The processes that torchrun started, for as long as the context lasts; `ALONE` where it did not, or only one.

    An error that leaves the context in one process makes the others fail with a `WorldError` that names it: those that
    wait for figures at once, those that compute when they next ask.

    Raises:
        ValueError: WORLD_SIZE is above 1 and what goes with it is missing.
        WorldError: another process failed, or did not come within ten minutes.
    """
    size = whole_number("WORLD_SIZE", 1)
    if size == 1:
        yield ALONE
        return
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {size}, so expected {', '.join(NEEDED)} too, and {', '.join(missing)} is missing: "
            "start the processes with torchrun, or unset WORLD_SIZE"
        )
    import torch.distributed as dist

    world = meet(whole_number("RANK", 0), size)
    try:
        yield world
        with world.together():
            dist.barrier()  # The first may hold the store, which others still use.
    except WorldError:
        raise
    except BaseException as error:
        world.announce(error)
        raise
    finally:
        dist.destroy_process_group()


def meet(rank: int, size: int) -> SharedWorld:
    """Wait for the other processes."""
    import torch.distributed as dist

    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=JOINING))  # type: ignore[attr-defined]
        store = dist.PrefixStore(f"resclip/{next(JOINED)}", store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=WAITING)
    except RuntimeError as error:
        raise WorldError(
            f"expected {size} processes to meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, and not "
            f"all came to meet rank {rank} ({str(error).splitlines()[0]}); see whether one of them has failed"
        ) from error
    return SharedWorld(rank, size, store=store)


def local_device(device: str | None = None) -> str | None:
    """The device of this process: under torchrun each of a machine's has a GPU of its own.

    Args:
        device: as it is asked for. "cuda" and None stand for any GPU; other names are taken at their word.

    Returns:
        "cuda:LOCAL_RANK", or `device` where torchrun is not there, no GPU is, or another device is meant.

    Raises:
        ValueError: the machine has fewer GPUs than processes.
    """
    if device not in (None, "cuda") or not os.environ.get("LOCAL_RANK"):
        return device
    import torch

    number, there = whole_number("LOCAL_RANK", 0), torch.cuda.device_count()
    if there == 0:
        return device
    if number >= there:
        raise ValueError(
            f"expected a GPU for each process of this machine, got {there} for process {number} (counted from 0): "
            f"run torchrun with --nproc-per-node={there}"
        )
    return f"cuda:{number}"


def whole_number(name: str, default: int) -> int:
    """An environment variable's value; `default` where it is not set, or empty."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise ValueError(f"expected a whole number in the environment's {name}, got {text!r}")
    return int(text)
