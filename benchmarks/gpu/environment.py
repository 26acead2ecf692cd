"""Which device, versions and commit a run was made with.

Knows how to ask for them; what cannot be had is "unknown".
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import resclip

ROOT = Path(__file__).parents[2]


def device_record(dry_run: bool) -> dict[str, Any]:
    """Name, driver and size of the device."""
    if dry_run:
        return {"name": "interpreter", "driver": "none", "memory_bytes": 0, "capability": ""}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "name": properties.name,
        "driver": output(query).split("\n", maxsplit=1)[0],
        "memory_bytes": properties.total_memory,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "multiprocessors": properties.multi_processor_count,
    }


def versions() -> dict[str, str]:
    """Of everything that decides a time."""
    known = {"resclip": resclip.__version__, "python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "open_clip_torch"):
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            known[name] = "missing"
    known["cuda"] = torch.version.cuda or torch.version.hip or "none"
    return known


def commit() -> str:
    """The commit, with a plus sign where files were changed since."""
    name = output(["git", "rev-parse", "--short=12", "HEAD"])
    changed = name != "unknown" and output(["git", "status", "--porcelain", "-uno"]) not in (
        "",
        "unknown",
    )
    return name + "+" * changed


def output(command: list[str]) -> str:
    """What a command prints; "unknown" where it cannot run."""
    try:
        finished = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return finished.stdout.strip()


def slug(name: str) -> str:
    """A device's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
