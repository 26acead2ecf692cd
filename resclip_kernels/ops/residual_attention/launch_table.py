"""How the residual attention's kernels are cut into programs: by device, dtype, width of a head and length."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from resclip_kernels.launch import Target


@dataclass(frozen=True)
class Program:
    """Shape of one program and how it is compiled."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    heads: int = 1
    """Most heads that a program carries, to form what is added to the scores once for all of them."""
    registers: int | None = None
    """Most a thread, where that lets two programs share a multiprocessor."""


class Family(Enum):
    """Devices whose products take their operands alike."""

    HOPPER = "sm_90"
    """Matrix units read shared memory, sums are in registers."""
    BLACKWELL = "sm_100"
    """Of the data centre: sums are in a memory of their own."""
    NVIDIA = "sm_80"
    """All others, consumer cards of the same years too: operands pass through registers."""
    AMD = "gfx9"
    INTERPRETER = "interpreter"


def family_of(target: Target) -> Family:
    """Of a device, one that did not exist when this was written too."""
    if target.backend == "interpreter":
        return Family.INTERPRETER
    if target.backend == "hip":
        return Family.AMD
    architecture = int(target.architecture)
    if architecture < 90 or architecture >= 120:
        return Family.NVIDIA
    return Family.HOPPER if architecture < 100 else Family.BLACKWELL


@dataclass(frozen=True)
class Row:
    """What holds for some devices, dtypes, widths and lengths."""

    families: tuple[Family, ...]
    dtypes: tuple[torch.dtype, ...]
    width: int
    """Widest head."""
    tokens: int
    """Longest sequence."""
    layers: Program
    """Of the middle blocks' mean."""
    base: Program
    reason: str
    """Why these."""
    library_layers: bool = False
    """Whether "auto" has PyTorch's own attention do the middle blocks."""
    predicted: float | None = None
    """Time of the whole op by "auto", with four layers, prior and feedback, over that of five plain attention calls of
    FlashAttention-2's speed: the largest of the lengths of `python -m benchmarks attention-model` that the row covers.
    None where nothing was predicted."""


HALF = (torch.float16, torch.bfloat16)
SINGLE = (torch.float32,)
ANY = (*HALF, *SINGLE)
NO_LIMIT = 1 << 62
# A multiprocessor's four schedulers hide little of each other's waits with less than two warps each.
WARPS_WANTED = 8
HOPPER, BLACKWELL, NVIDIA = (Family.HOPPER,), (Family.BLACKWELL,), (Family.NVIDIA,)

ROWS = (
    Row(
        HOPPER,
        HALF,
        64,
        256,
        Program(128, 32, 8, 3),
        Program(128, 64, 8, 3, registers=128),
        "197 tokens are 7 tiles of 32 columns, or 4 of 64 with a quarter of them empty",
        predicted=1.17,
    ),
    Row(
        HOPPER,
        HALF,
        64,
        2048,
        Program(64, 64, 4, 3),
        Program(128, 64, 8, 3, registers=128),
        "few rows: small programs fill the device; the base reads its terms from L2, which wants large ones",
        predicted=1.04,
    ),
    Row(
        HOPPER,
        HALF,
        64,
        NO_LIMIT,
        Program(128, 64, 8, 3),
        Program(128, 64, 8, 3, registers=128),
        "long sequences are what the library's plain attention is made for, and adding results costs nothing there",
        library_layers=True,
        predicted=1.05,
    ),
    Row(
        HOPPER,
        HALF,
        128,
        NO_LIMIT,
        Program(128, 64, 8, 3),
        Program(128, 64, 8, 3),
        "wide heads leave one program a multiprocessor",
    ),
    Row(
        BLACKWELL,
        HALF,
        64,
        NO_LIMIT,
        Program(128, 64, 8, 3),
        Program(128, 64, 8, 3),
        "as on Hopper",
    ),
    Row(
        BLACKWELL,
        HALF,
        128,
        NO_LIMIT,
        Program(128, 32, 8, 3),
        Program(128, 32, 8, 3),
        "64 columns of a wide head spill where several scores are summed",
    ),
    Row(
        NVIDIA,
        HALF,
        64,
        NO_LIMIT,
        Program(128, 64, 8, 3),
        Program(128, 32, 8, 3),
        "operands pass through registers, which the base's terms take too",
    ),
    Row(
        NVIDIA,
        HALF,
        128,
        NO_LIMIT,
        Program(128, 32, 8, 3),
        Program(128, 32, 8, 3),
        "operands of wide heads take more registers still",
    ),
    Row(
        HOPPER,
        SINGLE,
        64,
        NO_LIMIT,
        Program(64, 32, 8, 3),
        Program(64, 32, 8, 3),
        "three products hold six operand tiles",
    ),
    Row(
        (*BLACKWELL, *NVIDIA),
        SINGLE,
        64,
        NO_LIMIT,
        Program(64, 32, 8, 3),
        Program(64, 16, 8, 3),
        "three products hold six operand tiles, and several scores their sum",
    ),
    Row(
        (*HOPPER, *BLACKWELL, *NVIDIA),
        SINGLE,
        128,
        NO_LIMIT,
        Program(64, 16, 8, 3),
        Program(32, 16, 8, 3),
        "the largest tiles of a wide head that do not spill",
    ),
    Row(
        (Family.AMD,),
        ANY,
        128,
        NO_LIMIT,
        Program(128, 32, 8, 1),
        Program(128, 32, 8, 1),
        "scalar registers run out with more, or with tiles in flight",
    ),
    Row(
        (Family.INTERPRETER,),
        ANY,
        128,
        NO_LIMIT,
        Program(64, 32, 4, 1),
        Program(64, 32, 4, 1, 2),
        "it pays by the instruction: few, large steps; two heads, so that tests see that too",
    ),
)


def row_for(target: Target, dtype: torch.dtype, width: int, tokens: int) -> Row:
    """The first row that holds for heads of at most 128."""
    family = family_of(target)
    return next(
        row
        for row in ROWS
        if family in row.families
        and dtype in row.dtypes
        and width <= row.width
        and tokens <= row.tokens
    )


def layers_apart(row: Row, target: Target, heads_of_images: int, tokens: int, layers: int) -> bool:
    """Whether each layer's part of the mean has programs of its own: where the device would else be half idle."""
    warps = heads_of_images * -(-tokens // row.layers.rows) * row.layers.num_warps
    return layers > 1 and warps < WARPS_WANTED * target.programs_at_once
