"""What this machine's CPU is: its maker, its family, and what it multiplies."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names under which Linux lists the instructions: of AVX-512, of AMX, and of ARM."""


@functools.cache
def cpu_info() -> dict[str, str]:
    """What Linux says of the first core, by the names of /proc/cpuinfo; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_kind() -> str:
    """The CPU's family and torch's name of its vector instructions, such as "family 25, AVX512"."""
    family = cpu_info().get("cpu family")
    capability = torch.backends.cpu.get_cpu_capability()
    return capability if family is None else f"family {family}, {capability}"


def is_amd() -> bool:
    """Whether the CPU is AMD's."""
    return "AuthenticAMD" in (cpu_info().get("vendor_id"), *platform.processor().split())


def multiplies_512_bits() -> bool:
    """Whether the CPU is AMD's of family 26 (Zen 5) or later, whose units for AVX-512 are 512 bits wide."""
    family = cpu_info().get("cpu family", "")
    return is_amd() and family.isdecimal() and int(family) >= 26


def multiplies_bfloat16() -> bool | None:
    """Whether the CPU has instructions for products of bfloat16 matrices; None where that cannot be asked.

    With them (AMD since Zen 4; Intel's Xeon since Cooper Lake; ARM since Neoverse V1) such a product takes about half
    the time of a float32 one. Without them PyTorch converts, which takes longer than float32.
    """
    info = cpu_info()
    flags = info.get("flags", info.get("Features"))
    return None if flags is None else not BFLOAT16_FLAGS.isdisjoint(flags.split())
