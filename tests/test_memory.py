"""Memory: what a process may still take and holds, amounts as text, and errors that say there is none left."""

from __future__ import annotations

import errno
import gc
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from resclip.errors import describe, is_out_of_memory
from resclip.inference import memory
from resclip.inference.memory import (
    cap_memory,
    cgroup_memory,
    format_bytes,
    free_memory,
    held_memory,
    parse_memory,
    release,
)

MIB = 1 << 20
UNLIMITED_V1 = 9223372036854771712  # The limit of a group of version 1 that has none.


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, version: int, limit: int | None, usage: int, cached: int = 0) -> None:
    """The files of one cgroup, in MiB; without a limit where it is None."""
    if version == 2:
        names, unlimited = ("memory.max", "memory.current", "inactive_file"), "max"
    else:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        unlimited = str(UNLIMITED_V1)
    write(folder / names[0], f"{unlimited if limit is None else limit * MIB}\n")
    write(folder / names[1], f"{usage * MIB}\n")
    write(folder / "memory.stat", f"anon 12\n{names[2]} {cached * MIB}\nfile 3\n")


def test_every_cgroup_around_the_process_counts_and_no_other(tmp_path: Path) -> None:
    """Version 2; cached files make way, so they count as free."""
    assert cgroup_memory(tmp_path) == []
    write(tmp_path / "proc/self/cgroup", "0::/job/task/step\n")
    mount = tmp_path / "sys/fs/cgroup"
    group(mount / "job/task/step", 2, 800, 100)
    group(mount / "job/task", 2, 500, 450, 70)
    group(mount / "job", 2, None, 900)
    group(mount / "job/task/other", 2, 10, 1)
    assert cgroup_memory(tmp_path) == [700 * MIB, 120 * MIB]


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    """In a container the path is the host's, and only its outermost folder is here, as the mount's root."""
    lines = "5:cpu,cpuacct:/docker/ab\n4:hugetlb,memory:/docker/ab\n1:name=systemd:/ab\n0::/\n"
    write(tmp_path / "proc/self/cgroup", lines)
    group(tmp_path / "sys/fs/cgroup/memory", 1, 600, 500, 30)
    group(tmp_path / "sys/fs/cgroup", 2, None, 1)
    assert cgroup_memory(tmp_path) == [130 * MIB]
    group(tmp_path / "sys/fs/cgroup/memory", 1, None, 500)
    assert min(cgroup_memory(tmp_path)) > 1 << 60


def test_the_tightest_limit_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    available = SimpleNamespace(available=1000 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    for granted, free in (([], 1000), ([700 * MIB, 120 * MIB], 120), ([-5 * MIB], 0)):
        monkeypatch.setattr(memory, "cgroup_memory", lambda granted=granted: granted)
        assert free_memory("cpu") == free * MIB


def test_this_machine() -> None:
    """More is free than a test's few pages, and less than the machine has."""
    assert 16 * MIB < free_memory("cpu") < 1 << 50
    gc.collect()
    before = held_memory("cpu")
    block = np.ones(64 * MIB, dtype=np.uint8)
    assert held_memory("cpu") >= before + len(block) - 8 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_limit_of_the_address_space_counts() -> None:
    """Of 1 GiB more than the process has."""
    process = psutil.Process()
    soft, hard = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + (1 << 30), hard))
    try:
        free = free_memory("cpu")
    finally:
        process.rlimit(psutil.RLIMIT_AS, (soft, hard))
    assert 0 < free <= 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("8GB", 8 * 10**9),
        ("8G", 8 << 30),  # A letter alone is a power of 1024.
        (" 1.5 gib ", 3 << 29),
        ("500 MB", 500 * 10**6),
        ("123B", 123),
        (".5Mi", 1 << 19),
    ],
)
def test_amounts(text: str, size: int) -> None:
    assert parse_memory(text) == size


def test_a_share_is_of_what_is_held_and_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 600)
    monkeypatch.setattr(memory, "held_memory", lambda device: 400)
    assert parse_memory("0.5") == 500
    assert parse_memory("1", "cuda:1") == 1000


# No number, no unit, another unit, a sign, an exponent, and more than a float holds; a share; less than a byte.
@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "must be like '8GiB'") for text in ("GiB", "8 apples", "8iB", "-1GiB", "1e3")),
        ("9" * 400, "must be like '8GiB'"),
        *((text, "share above 0 and at most 1") for text in ("0", "1.01")),
        ("0.1B", "at least one byte"),
    ],
)
def test_other_amounts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_memory(text)


def test_amounts_as_text() -> None:
    sizes = (0, 1023, 1024, 3 << 29, 1 << 52)
    assert [format_bytes(size) for size in sizes] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 GiB", "4096.0 TiB",
    ]  # fmt: skip


def test_memory_that_has_run_out() -> None:
    """Errors of torch and numpy, made to happen, and of drivers, word for word."""
    with pytest.raises(RuntimeError) as torches:
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 60, dtype=np.uint8)
    errors = [
        torches.value,
        numpys.value,
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("std::bad_alloc"),
    ]
    for error in errors:
        assert is_out_of_memory(error), error
        assert isinstance(error, Exception)
        assert describe(error).startswith("out of memory; ")
    for error in (
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of resource: shared memory, Required: 262144"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ):
        assert not is_out_of_memory(error), error


def test_release_frees_cycles() -> None:
    class Node:
        other: Node

    first, second = Node(), Node()
    first.other, second.other = second, first
    seen = weakref.ref(first)
    gc.disable()
    try:
        del first, second
        assert seen() is not None
        release()
        assert seen() is None
    finally:
        gc.enable()


def test_a_limit_on_a_cpu_is_for_planning_alone() -> None:
    cap_memory("cpu", 1)
    assert torch.ones(1024).sum() == 1024
    with pytest.raises(ValueError, match="at least one byte; got 0"):
        cap_memory("cpu", 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_limit_on_a_gpu_is_kept() -> None:
    release()
    total = torch.cuda.get_device_properties(0).total_memory
    cap_memory("cuda", torch.cuda.memory_reserved(0) + (256 << 20))
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        assert is_out_of_memory(caught.value)
        held = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
        assert held_memory("cuda") >= len(held)
        assert 0 < free_memory("cuda") <= total
    finally:
        cap_memory("cuda", total)
