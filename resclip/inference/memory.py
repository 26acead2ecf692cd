"""Whether a device can be used, how many bytes this process may still take on it, and how many it holds.

Torch is imported only where a device is asked about, so that options are parsed without it.
"""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from resclip.errors import first_sentence
from resclip_kernels import check_type

if TYPE_CHECKING:
    import torch

AMOUNT = r"([0-9]{1,15}(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgt]?)(i?)(b?)"
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


CGROUP_FILES = {
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}
"""For each controller in /proc/self/cgroup (version 1's "memory", version 2's ""): the mount, the files of a group's
limit and usage in bytes, and the entry of memory.stat for cached files, which count as used but make way."""

CGROUP_FILES = {
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}
"""For each controller in /proc/self/cgroup (version 1's "memory", version 2's ""): the mount, the files of a group's
limit and usage in bytes, and the entry of memory.stat for cached files, which count as used but make way."""


def usable_device(device: str | int | torch.device) -> torch.device:
    """The device; TypeError or ValueError if it cannot be used, or holds no values."""
    import torch

    check_type("device", device, (str, int, torch.device), "a name such as 'cpu', or None")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # "meta" has no values.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, OverflowError) as error:
        raise ValueError(
            f"device {str(device)!r} cannot be used ({first_sentence(error)}); use 'cpu', or "
            "'cuda' if torch finds a GPU"
        ) from error
    return chosen


def free_memory(device: torch.device | str) -> int:
    """Bytes that this process may still take on a device; other processes may take them first.

    On a GPU: what the driver has left, and what torch's allocator holds in reserve. Elsewhere: the least of what the
    system has available, what each cgroup around the process still grants, and the rest of its address space (ulimit
    -v).
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    limits = [psutil.virtual_memory().available, *cgroup_memory()]
    process = psutil.Process()
    if hasattr(psutil, "RLIMIT_AS"):  # Linux and FreeBSD.
        limit, _ = process.rlimit(psutil.RLIMIT_AS)
        if limit != psutil.RLIM_INFINITY:
            limits.append(limit - process.memory_info().vms)
    return int(max(0, min(limits)))


def cgroup_memory(root: Path = Path("/")) -> list[int]:
    """Bytes that each cgroup with a limit still grants, from the process's own outwards; psutil does not know them."""
    granted = []
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller not in CGROUP_FILES:
                continue
            mount, limit_file, usage_file, cached = CGROUP_FILES[controller]
            # In a container the path may be the host's, of which only the outermost folder exists here.
            folder = root / mount / path.lstrip("/")
            for group in (folder, *folder.parents):
                limit, usage = read(group / limit_file).strip(), read(group / usage_file).strip()
                if limit.isdecimal() and usage.isdecimal():
                    stat = dict(line.split() for line in read(group / "memory.stat").splitlines())
                    granted.append(int(limit) - int(usage) + int(stat.get(cached, 0)))
                if group == root / mount:
                    break
    return granted


def read(path: Path) -> str:
    """A file's text, "" where it does not exist or may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def held_memory(device: torch.device | str) -> int:
    """Bytes that this process holds: tensors on a GPU, else its resident pages."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


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
    size = int(number * base ** POWERS[prefix])
    if size < 1:
        raise ValueError(f"memory must be at least one byte; got {text!r}")
    return size


def format_bytes(size: int) -> str:
    """A number of bytes as text, such as "3.2 GiB"."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def release() -> None:
    """Free what is no longer used: Python's unreachable cycles, and torch's reserve on the GPUs."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def cap_memory(device: torch.device | str, limit: int) -> None:
    """Have torch refuse more than `limit` bytes on a GPU, as if that were all of its memory.

    Elsewhere nothing is enforced, since torch's allocator for the CPU takes no limit; batches are planned by it.

    Raises:
        ValueError: `limit` is not positive.
    """
    import torch

    if limit < 1:
        raise ValueError(f"the limit must be at least one byte; got {limit}")
    device = torch.device(device)
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(number).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), number)
