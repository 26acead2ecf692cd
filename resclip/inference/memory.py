"""How much memory there is, how much of it a process may take, and what an error says when it has run out.

Knows the system's counters and torch's allocators. Knows no model. Torch is imported where a device is asked, so that
options are read and errors described without it.
"""

from __future__ import annotations

import gc
import importlib
import mmap
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


UNKNOWN = 4 << 30
"""Bytes taken as free where neither /proc/meminfo nor psutil tells: what the smallest machines of today have."""

AMOUNT = r"([0-9]{1,15}(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgt]?)(i?)(b?)"
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def free_memory(device: torch.device | str) -> int:
    """Bytes that this process may still take on a device.

    On a GPU: what the driver has left, and what torch's allocator holds in reserve. Elsewhere: the least of what the
    system has available, what each cgroup around the process still grants, and the rest of its address space (ulimit
    -v). Other processes may take it first.
    """
    import torch

    place = torch.device(device)
    if place.type != "cuda":
        return host_memory(Path("/"), address_space_limit())
    free, _ = torch.cuda.mem_get_info(place)
    return int(free + torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place))


def held_memory(device: torch.device | str) -> int:
    """Bytes that this process holds: tensors on a GPU, else its resident pages; 0 where the system does not tell."""
    import torch

    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.memory_allocated(place))
    pages = pages_of_process(Path("/"))
    if pages is not None:
        return pages.resident
    psutil = find_psutil()
    return 0 if psutil is None else int(psutil.Process().memory_info().rss)


def parse_memory(text: str, device: torch.device | str = "cpu") -> int:
    """Bytes from text such as "8GiB", "500 MB", "2G" or "0.5".

    kB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB, and K, M, G and T alone, of 1024. A number without a
    unit is a share, above 0 and at most 1, of what the process holds and may still take on `device`.

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(AMOUNT, text.strip(), re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"memory must be like '8GiB', '500MB' or '0.5' (a share); got {text!r}")
    number, prefix = float(match[1]), match[2].lower()
    if not prefix and not match[4]:
        if not 0 < number <= 1:
            raise ValueError(
                f"memory without a unit is a share above 0 and at most 1; got {text!r}: "
                "for bytes add a unit, such as '8GiB'"
            )
        return int(number * (free_memory(device) + held_memory(device)))
    base = 1000 if match[4] and not match[3] else 1024
    size = int(number * base ** UNITS[prefix])
    if size < 1:
        raise ValueError(f"memory must be at least one byte; got {text!r}")
    return size


def format_bytes(size: int) -> str:
    """Such as "3.2 GiB"."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def release() -> None:
    """Give back what nothing holds any more: Python's unreachable cycles, and torch's reserve on the GPUs."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def cap_memory(device: torch.device | str, limit: int) -> None:
    """Have torch refuse more than `limit` bytes on a GPU, as if that were all of its memory.

    Elsewhere nothing is enforced, and a limit is a matter of planning alone: torch's allocator for the CPU takes none.

    Raises:
        ValueError: `limit` is not positive.
    """
    import torch

    if limit < 1:
        raise ValueError(f"the limit must be at least one byte; got {limit}")
    place = torch.device(device)
    if place.type == "cuda":
        number = torch.cuda.current_device() if place.index is None else place.index
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), number)


class Pages(NamedTuple):
    """What a process has, in bytes."""

    address_space: int
    resident: int


class Hierarchy(NamedTuple):
    """Where a version of cgroups keeps its numbers."""

    mount: str
    limit: str
    usage: str
    reclaimable: str
    """The entry of memory.stat for cached files that make way: they count as used and are as good as free."""


CGROUPS_1 = Hierarchy(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)
CGROUPS_2 = Hierarchy("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def host_memory(root: Path, address_space: int | None) -> int:
    """`free_memory` of a CPU, from the files under `root` ("/") and a limit of the address space in bytes, or None."""
    limits = [available_memory(root), *cgroup_memory(root)]
    pages = pages_of_process(root)
    if address_space is not None and pages is not None:
        limits.append(address_space - pages.address_space)
    return max(0, min(limits))


def available_memory(root: Path) -> int:
    """What the system can give without swapping: MemAvailable, else psutil's estimate, else `UNKNOWN`."""
    for line in read(root / "proc/meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    psutil = find_psutil()
    return UNKNOWN if psutil is None else int(psutil.virtual_memory().available)


def cgroup_memory(root: Path) -> list[int]:
    """Bytes that each cgroup with a limit still grants, from the process's own outwards."""
    granted = []
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            hierarchy = CGROUPS_1
        elif not controllers:
            hierarchy = CGROUPS_2
        else:
            continue
        # In a container the path may be the host's, of which only the outermost folder exists here.
        mount = root / hierarchy.mount
        folder = mount / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(mount):
                granted += granted_by(group, hierarchy)
    return granted


def granted_by(group: Path, hierarchy: Hierarchy) -> list[int]:
    """What one cgroup still grants: [bytes], or [] where it sets no limit."""
    limit, usage = read(group / hierarchy.limit).strip(), read(group / hierarchy.usage).strip()
    if not limit.isdecimal() or not usage.isdecimal():
        return []
    entries = dict(line.split() for line in read(group / "memory.stat").splitlines())
    return [int(limit) - int(usage) + int(entries.get(hierarchy.reclaimable, 0))]


def pages_of_process(root: Path) -> Pages | None:
    """From /proc/self/statm; None where there is none."""
    numbers = read(root / "proc/self/statm").split()
    if not numbers:
        return None
    return Pages(int(numbers[0]) * mmap.PAGESIZE, int(numbers[1]) * mmap.PAGESIZE)


def address_space_limit() -> int | None:
    """RLIMIT_AS in bytes, None where there is none."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def find_psutil() -> Any:
    """The module, None where it is not installed: only systems without /proc have a use for it."""
    try:
        return importlib.import_module("psutil")
    except ImportError:
        return None


def read(path: Path) -> str:
    """A file's text, "" where it does not exist or may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
