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


class Wait(NamedTuple):
    """A kernel in one dtype on one target, in all calls."""

    kernel: str
    dtype: str
    target: str


KnownWaits = Mapping[Wait, str]
"""Why loops may wait for all their copies at once."""

STAGES = "two stages: what is copied at the end of a turn is waited for at the head of the next"
LABELS = "copies labels alone, a few bytes a tile, and waits for no tensor"
DTYPES = ("fp16", "bf16", "fp32")

KNOWN_WAITS: KnownWaits = {
    **{Wait("residual_attention_kernel", dtype, "sm_90"): STAGES for dtype in DTYPES},
    Wait("residual_attention_kernel", "fp32", "sm_80"): STAGES,
    **{
        Wait(kernel, dtype, target): LABELS
        for kernel in ("feedback_matrix_kernel", "feedback_sums_kernel")
        for dtype in DTYPES
        for target in ("sm_80", "sm_90")
    },
}
