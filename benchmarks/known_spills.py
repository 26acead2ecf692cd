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

# Float32 with feedback, heads of 80 and a Gaussian of σ = 8: Ŝ's tiles of twice the columns beside whole rows of q and
# k. Fewer rows would not help, since a thread has one score already.
KNOWN_SPILLS: KnownSpills = {
    Spill("residual_attention_kernel", "one pass wide smoothing", "H/14", "fp32", "sm_80"): {
        "3.6.0": 0,
        "3.8.0": 8,
    },
    Spill("residual_attention_kernel", "one pass wide smoothing", "H/14", "fp32", "sm_90"): {
        "3.6.0": 0,
        "3.8.0": 16,
    },
}

KnownWaits = Mapping[tuple[str, str], str]
"""Why a kernel's loops may wait for all their copies, by its name and the target's."""

KNOWN_WAITS: KnownWaits = {
    (kernel, target): reason
    for kernel, reason in {
        "residual_attention_kernel": "two stages: a third tile has no room beside the sums of several softmaxes",
        "feedback_matrix_kernel": "it copies labels alone, a few bytes a tile",
        "feedback_sums_kernel": "it copies labels alone, a few bytes a tile",
    }.items()
    for target in ("sm_80", "sm_90")
}
