"""What the kernels' report accepts: spills, each with what it measured, and loops that prefetch nothing, with a reason.

Larger spills and all else fail it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Spill(NamedTuple):
    """A kernel of one call on one target, named as in the report's table."""

    kernel: str
    case: str
    model: str
    dtype: str
    target: str


KnownSpills = Mapping[Spill, Mapping[str, int]]
"""Bytes a thread by Triton's version."""

KNOWN_SPILLS: KnownSpills = {}


class Wait(NamedTuple):
    """A kernel in one dtype on one target, in all calls."""

    kernel: str
    dtype: str
    target: str


KnownWaits = Mapping[Wait, str]
"""Why loops may wait for all their copies at once."""

LABELS = "copies labels alone, a few bytes a tile, and waits for no tensor"

KNOWN_WAITS: KnownWaits = {
    Wait(kernel, dtype, target): LABELS
    for kernel in ("additive_terms_kernel", "feedback_matrix_kernel", "feedback_sums_kernel")
    for dtype in ("fp16", "bf16", "fp32")
    for target in ("sm_80", "sm_90")
}
