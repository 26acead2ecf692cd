"""Memory: what a system's counters add up to, amounts as text, and errors that say there is none left."""

from __future__ import annotations

import errno
import gc
import mmap
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
    host_memory,
    parse_memory,
    release,
)

MIB = 1 << 20
UNLIMITED_1 = "9223372036854771712\n"
"""What version 1 of cgroups says where there is no limit."""


def system(root: Path, **files: str) -> Path:
    """A root folder with 1,000 MiB available, no cgroup, and files of the given names, "__" for "/"."""
    files = {
        "proc__meminfo": f"MemTotal: 9999999 kB\nMemAvailable:    {1000 * 1024} kB\n",
        **files,
    }
    for name, text in files.items():
        write(root / name.replace("__", "/"), text)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, version: int, limit: str, usage: int, reclaimable: int) -> None:
    """The files of one cgroup; usage in MiB."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    if version == 2:
        names = ("memory.max", "memory.current", "inactive_file")
    write(folder / names[0], limit + "\n")
    write(folder / names[1], f"{usage * MIB}\n")
    write(folder / "memory.stat", f"anon 12\n{names[2]} {reclaimable * MIB}\nfile 3\n")


def mib(count: int) -> str:
    return str(count * MIB)


def test_what_is_available_decides_where_nothing_limits(tmp_path: Path) -> None:
    root = system(tmp_path, proc__self__cgroup="0::/\n")
    group(root / "sys/fs/cgroup", 2, "max", 300, 0)
    assert host_memory(root, None) == 1000 * MIB


def test_the_tightest_of_nested_cgroups_decides(tmp_path: Path) -> None:
    """Version 2: the process's own group has room, a group around it less, with cached files that make way."""
    root = system(tmp_path, proc__self__cgroup="0::/job/task/step\n")
    mount = root / "sys/fs/cgroup"
    group(mount / "job/task/step", 2, mib(800), 100, 0)
    group(mount / "job/task", 2, mib(500), 450, 70)
    group(mount / "job", 2, "max", 900, 0)
    assert cgroup_memory(root) == [700 * MIB, 120 * MIB]
    assert host_memory(root, None) == 120 * MIB


def test_a_group_of_another_process_does_not_count(tmp_path: Path) -> None:
    root = system(tmp_path, proc__self__cgroup="0::/mine\n")
    group(root / "sys/fs/cgroup/mine", 2, mib(900), 100, 0)
    group(root / "sys/fs/cgroup/other", 2, mib(10), 1, 0)
    assert host_memory(root, None) == 800 * MIB


def test_version_1_in_a_container(tmp_path: Path) -> None:
    """The path is the host's; here there is its folder alone, as the root of the mount."""
    lines = (
        "5:cpu,cpuacct:/docker/ab\n4:hugetlb,memory:/docker/ab\n1:name=systemd:/docker/ab\n0::/\n"
    )
    root = system(tmp_path, proc__self__cgroup=lines)
    group(root / "sys/fs/cgroup/memory", 1, mib(600), 500, 30)
    group(root / "sys/fs/cgroup", 2, "max", 1, 0)
    assert host_memory(root, None) == 130 * MIB


def test_version_1_nested_and_unlimited(tmp_path: Path) -> None:
    root = system(tmp_path, proc__self__cgroup="4:memory:/slice/job\n")
    mount = root / "sys/fs/cgroup/memory"
    group(mount / "slice/job", 1, UNLIMITED_1, 10, 0)
    group(mount / "slice", 1, mib(400), 100, 0)
    group(mount, 1, UNLIMITED_1, 999, 0)
    assert host_memory(root, None) == 300 * MIB


def test_the_address_space_decides(tmp_path: Path) -> None:
    pages = 50 * MIB // mmap.PAGESIZE
    root = system(tmp_path, proc__self__statm=f"{pages} 12 3 4 0 5 0\n")
    assert host_memory(root, 250 * MIB) == 200 * MIB
    assert host_memory(root, 20 * MIB) == 0, "more is held than the limit allows"


def test_a_full_group_leaves_nothing(tmp_path: Path) -> None:
    """Usage may stand above a limit that was lowered."""
    root = system(tmp_path, proc__self__cgroup="0::/\n")
    group(root / "sys/fs/cgroup", 2, mib(100), 130, 0)
    assert host_memory(root, None) == 0


def test_systems_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available = SimpleNamespace(available=77 * MIB)
    module = SimpleNamespace(virtual_memory=lambda: available)
    monkeypatch.setattr(memory, "find_psutil", lambda: module)
    assert host_memory(tmp_path, None) == 77 * MIB
    monkeypatch.setattr(memory, "find_psutil", lambda: None)
    assert host_memory(tmp_path, None) == memory.UNKNOWN


def test_this_machine() -> None:
    """More is free than a test's few pages, and less than the machine has."""
    assert 16 * MIB < free_memory("cpu") < 1 << 50
    before = held_memory("cpu")
    block = np.ones(64 * MIB, dtype=np.uint8)
    assert held_memory("cpu") >= before + len(block) - 8 * MIB


@pytest.mark.skipif(sys.platform == "win32", reason="has no ulimit")
def test_an_address_space_limit_is_read() -> None:
    """In a process of its own, which loads no torch for it, nor for reading options and errors."""
    code = (
        "import resource, sys; from resclip import memory; "
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); "
        "memory.parse_memory('8GiB'); memory.is_out_of_memory(RuntimeError('no')); "
        "print(memory.address_space_limit(), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(8 << 30), "False"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("8GB", 8 * 10**9),
        ("8G", 8 << 30),
        (" 1.5 gib ", 3 << 29),
        ("500 MB", 500 * 10**6),
        ("2t", 2 << 40),
        ("64k", 64 << 10),
        ("1kB", 1000),
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


@pytest.mark.parametrize(
    "text", ["", "GiB", "8 apples", "-1GiB", "8iB", "8GiBs", "1e3", "nan", "8,5GB", "9" * 400]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="must be like '8GiB'"):
        parse_memory(text)


def test_amounts_out_of_range() -> None:
    for text in ("0", "8", "1.01"):
        with pytest.raises(ValueError, match="share above 0 and at most 1.*add a unit"):
            parse_memory(text)
    for text in ("0GiB", "0.1B"):
        with pytest.raises(ValueError, match="at least one byte"):
            parse_memory(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 52, "4096.0 TiB"),
    ],
)
def test_amounts_as_text(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_memory_that_has_run_out() -> None:
    """What torch, numpy and the system raise, made to happen; and what drivers say, word for word."""
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
        RuntimeError("CUDA error: out of memory"),
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


def test_errors_that_are_of_something_else() -> None:
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
