"""How large a program of the residual attention is, device by device, and how a head's width is cut for it.

Knows what was counted in registers and shared memory; reads no tensor and launches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from resclip_kernels.launch import Target
from resclip_kernels.ops.residual_attention.terms import Terms


@dataclass(frozen=True)
class Blocks:
    """Shape of one program and how it is compiled."""

    heads: int
    """Most heads that a program carries, to form each tile of the additive terms once for all of them."""
    rows: int
    columns: int
    num_warps: int
    num_stages: int


# Registers decide: each entry is the largest program of its kind that the compiler fits without a spill, counted by
# benchmarks/kernels_report.py for every target. 128 rows read each key half as often as 64 do, at the same registers a
# thread. Ŝ's tiles cost registers too, so with feedback columns are 32; two heads a program halve their cost a head,
# and a third would spill.
WARPGROUP = Blocks(1, 128, 64, 8, 2)
# Three softmaxes and more take the addresses of as many tensors: two tiles in flight spill 8 bytes on sm_100.
WARPGROUP_MANY = Blocks(1, 128, 64, 8, 1)
WARPGROUP_NARROW = Blocks(1, 128, 32, 8, 2)
WARPGROUP_TOGETHER = Blocks(2, 128, 32, 8, 2)
# Before Hopper, and on consumer cards, operands pass through registers: one tile of keys in flight, or fewer rows.
WARP = Blocks(1, 128, 32, 8, 1)
WARP_WIDE = Blocks(1, 64, 32, 8, 2)
WARP_WIDE_FEEDBACK = Blocks(1, 64, 32, 8, 1)
# Float32 goes through multiply-adds, as torch's own products do by default: 16 rows.
FLOAT = Blocks(1, 16, 32, 8, 1)
FLOAT_FEEDBACK = Blocks(1, 16, 32, 4, 1)
# AMD: 102 scalar registers are what runs out. A window's masks take them too: within one, 64 rows of "qq+kk" spill 32
# bytes a thread, 128 rows 48.
AMD = Blocks(1, 128, 32, 8, 1)
AMD_WIDE = Blocks(1, 64, 32, 8, 2)
AMD_FEW_ROWS = Blocks(1, 32, 32, 8, 1)
# The interpreter has no registers: few, large steps, two heads at a time so that the tests see that too.
INTERPRETED = Blocks(2, 64, 32, 4, 1)


def choose_blocks(
    target: Target, dtype: torch.dtype, width: int, terms: Terms, branches: int
) -> Blocks:
    """The program for a device, a dtype, a head width, the terms of a call and how many softmaxes its base sums."""
    if target.backend == "interpreter":
        return INTERPRETED
    feedback = terms.feedback is not None
    recent = target.backend == "cuda" and int(target.architecture) >= 90
    if dtype == torch.float32:
        return FLOAT_FEEDBACK if feedback and recent else FLOAT
    if target.backend == "hip":
        if terms.window is not None or (feedback and width > 64):
            return AMD_FEW_ROWS
        return AMD_WIDE if width > 64 else AMD
    if not recent:
        return WARP_WIDE if width > 64 else WARP
    if int(target.architecture) >= 120:
        return WARP_WIDE_FEEDBACK if width > 64 and feedback else WARP
    if width <= 64 and not feedback:
        return WARPGROUP if branches <= 2 else WARPGROUP_MANY
    together = width <= 64 and branches == 1
    return WARPGROUP_TOGETHER if together else WARPGROUP_NARROW


def parts_of(width: int) -> tuple[int, ...]:
    """A head's width in powers of two of at least 16: 64 → (64,), 80 → (64, 16), 88 → (64, 32), 128 → (64, 64)."""
    if width <= 64:
        return (max(16, triton.next_power_of_2(width)),)
    return (64, max(16, triton.next_power_of_2(width - 64)))
