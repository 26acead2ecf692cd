"""Several processes that share an evaluation, as torchrun starts them, and what is said about the machine.

Objects are exchanged on the CPU by gloo: each process computes on a device of its own, and what they exchange is small.
When one process fails, torchrun ends all others.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

TORCHRUN_VARIABLES = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for each process, beside WORLD_SIZE and LOCAL_RANK."""

TIMEOUT = timedelta(days=1)
"""How long a process waits for the results of another, whose part of a dataset may take hours. A process that ends is
noticed at once."""

CPU_INFO = Path("/proc/cpuinfo")
"""Linux's description of the CPU."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, for as long as the context lasts; nothing without torchrun.

    Raises:
        ValueError: WORLD_SIZE is above 1, and one of `TORCHRUN_VARIABLES` is missing.
        RuntimeError: the other processes cannot be reached.
    """
    size = environment_number("WORLD_SIZE", 1)
    if size == 1:
        yield
        return
    missing = [name for name in TORCHRUN_VARIABLES if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {size}, so expected {', '.join(TORCHRUN_VARIABLES)} too, and {', '.join(missing)} is "
            "missing: start the processes with torchrun, or unset WORLD_SIZE"
        )
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0; 0 for a process on its own."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def process_count() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """The picklable `value` of every process, by rank. All processes must call this the same number of times.

    Raises:
        RuntimeError: another process has ended.
    """
    if process_count() == 1:
        return [value]
    values = [value] * process_count()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise RuntimeError(
            f"the process of rank {rank()} lost touch with the {process_count() - 1} other(s), one of which has ended: "
            "see what that one wrote"
        ) from error
    return values


def local_device(device: str | None = None) -> str | None:
    """The device of this process: under torchrun each process of a machine has a GPU of its own.

    Args:
        device: the requested device. "cuda" and None stand for any GPU; other names are used as they are.

    Returns:
        "cuda:LOCAL_RANK", or `device` without torchrun, without a GPU, and where another device is named.

    Raises:
        ValueError: the machine has fewer GPUs than processes.
    """
    if device not in (None, "cuda") or not os.environ.get("LOCAL_RANK"):
        return device
    number, available = environment_number("LOCAL_RANK", 0), torch.cuda.device_count()
    if available == 0:
        return device
    if number >= available:
        raise ValueError(
            f"expected a GPU for each process of this machine, got {available} for process {number} (counted from 0): "
            f"run torchrun with --nproc-per-node={available}"
        )
    return f"cuda:{number}"


def environment_number(name: str, default: int) -> int:
    """The whole number in an environment variable; `default` if it is unset or empty."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise ValueError(f"expected a whole number in the environment's {name}, got {text[:40]!r}")
    return int(text)


def machine_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = []
    with contextlib.suppress(OSError):
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                names.append(value.strip())
    return next(filter(None, [*names, platform.processor(), platform.machine()]), "unknown")


def reset_peak_memory(device: torch.device) -> None:
    """Start a GPU's peak anew; that of a process cannot be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU's tensors since `reset_peak_memory`, else of this process since its start; 0 on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes.
