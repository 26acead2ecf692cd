"""How large a program of the residual attention is, device by device, and how a head's width is cut for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from resclip_kernels.launch import Target


@dataclass(frozen=True)
class TileConfig:
    """Shape of one program and how it is compiled."""

    heads: int
    """Largest number of heads that a program carries, to form each tile of the additive terms once for all of them."""
    rows: int
    columns: int
    num_warps: int
    num_stages: int


# Registers decide: of the calls of `benchmarks/kernels_report.py --quick` none spills in float16 or bfloat16 on sm_80,
# sm_90 and gfx942, compiled by triton 3.6.0 and by 3.8.0; where one spills in float32, benchmarks/known_spills.py says
# how much. 128 rows read each key half as often as 64 do, with as many registers a thread. Ŝ's tiles cost registers,
# so with feedback columns are 32; two heads a program halve their cost a head.
WARPGROUP = TileConfig(1, 128, 64, 8, 2)
# Three softmaxes and more take the addresses of as many tensors: one tile in flight.
WARPGROUP_MANY = TileConfig(1, 128, 64, 8, 1)
WARPGROUP_NARROW = TileConfig(1, 128, 32, 8, 2)
WARPGROUP_TOGETHER = TileConfig(2, 128, 32, 8, 2)
# Before Hopper, and on consumer cards, operands pass through registers: one tile of keys in flight, and fewer rows of
# wide heads or with feedback.
WARP = TileConfig(1, 128, 32, 8, 1)
WARP_FEW_ROWS = TileConfig(1, 64, 32, 8, 1)
# Float32 goes through multiply-adds, as torch's own products do by default, and there a thread holds whole rows of q
# and of k: 256 threads of one score each. Ŝ's tiles are 32 columns, which leaves 8 rows. Two stages fetch keys and
# values straight into shared memory, past the registers.
FLOAT = TileConfig(1, 16, 16, 8, 2)
FLOAT_FEEDBACK = TileConfig(1, 8, 32, 8, 2)
# AMD: 102 scalar registers are what runs out, sooner with a window, whose masks take them too, and with the feedback of
# wide heads.
AMD = TileConfig(1, 128, 32, 8, 1)
AMD_WIDE = TileConfig(1, 64, 32, 8, 2)
AMD_BFLOAT = TileConfig(1, 64, 32, 8, 1)
AMD_FEW_ROWS = TileConfig(1, 16, 32, 8, 1)
# The interpreter has no registers: few, large steps, two heads at a time so that the tests see that too.
INTERPRETED = TileConfig(2, 64, 32, 4, 1)


def choose_config(
    target: Target, dtype: torch.dtype, width: int, feedback: bool, window: bool, branches: int
) -> TileConfig:
    """The program for a device, a dtype, a head width, the terms of a call and how many softmaxes its base sums."""
    if target.backend == "interpreter":
        return INTERPRETED
    if target.backend == "hip":
        if dtype == torch.float32 or window or (feedback and width > 64):
            return AMD_FEW_ROWS
        if width > 64:
            return AMD_WIDE
        return AMD_BFLOAT if dtype == torch.bfloat16 else AMD
    if dtype == torch.float32:
        return FLOAT_FEEDBACK if feedback else FLOAT
    if not warpgroups(target):
        return WARP_FEW_ROWS if width > 64 or feedback else WARP
    if width <= 64 and not feedback:
        return WARPGROUP if branches <= 2 else WARPGROUP_MANY
    together = width <= 64 and branches == 1
    return WARPGROUP_TOGETHER if together else WARPGROUP_NARROW


def layers_apart(target: Target, dtype: torch.dtype, width: int, feedback: bool) -> bool:
    """Whether the middle blocks' mean and the base are a launch each, since one kernel of both would spill.

    On AMD the addresses of four layers and of all else that a base with feedback, or one in bfloat16, reads are more
    than its scalar registers hold. Elsewhere a wide head's tiles and the feedback's leave the layers no registers
    where operands pass through them.
    """
    if target.backend == "interpreter":
        return False
    if target.backend == "hip":
        return feedback or dtype == torch.bfloat16
    return feedback and width > 64 and (dtype == torch.float32 or not warpgroups(target))


def warpgroups(target: Target) -> bool:
    """Whether products of float16 take their operands out of shared memory: Hopper and data-centre Blackwell."""
    return 90 <= int(target.architecture) < 120


def parts_of(width: int) -> tuple[int, ...]:
    """A head's width in powers of two of at least 16: 64 → (64,), 80 → (64, 16), 88 → (64, 32), 128 → (64, 64)."""
    if width <= 64:
        return (max(16, triton.next_power_of_2(width)),)
    return (64, max(16, triton.next_power_of_2(width - 64)))
