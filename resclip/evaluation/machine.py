"""What a measurement runs on, and the memory that it takes.

Knows devices and operating systems; knows nothing of what is measured.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import torch


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
