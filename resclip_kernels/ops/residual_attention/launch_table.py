"""How the residual attention's kernels are cut into programs: by device, dtype, width of a head and length."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Row:
    """What holds for some devices, dtypes, widths and lengths."""

    architectures: tuple[int | str, ...]
    """Compute capabilities times ten; "hip" and "interpreter" stand for all of their kind."""
    dtypes: tuple[torch.dtype, ...]
    width: int
    """Widest head."""
    tokens: int
    """Longest sequence."""
    layers: Program
    """Of the middle blocks' mean."""
    base: Program
    library_layers: bool = False
    """Whether "auto" has PyTorch's own attention do the middle blocks."""


HALF = (torch.float16, torch.bfloat16)
SINGLE = (torch.float32,)
ANY = (*HALF, *SINGLE)
NO_LIMIT = 1 << 62
HOPPER = (90,)
DATA_CENTRE_BLACKWELL = (100, 103)
# Before Hopper, and on consumer cards, operands of products pass through registers.
OTHER_NVIDIA = (80, 86, 87, 89, 120, 121)
NVIDIA = (*OTHER_NVIDIA, *HOPPER, *DATA_CENTRE_BLACKWELL)

ROWS = (
    Row(HOPPER, HALF, 64, 2048, Program(64, 64, 4, 3), Program(64, 64, 4, 3)),
    Row(
        HOPPER, HALF, 64, NO_LIMIT, Program(128, 64, 8, 3), Program(128, 64, 8, 3, registers=128),
        library_layers=True,
    ),
    Row(HOPPER, HALF, 128, NO_LIMIT, Program(128, 64, 8, 3), Program(128, 64, 8, 3)),
    Row(DATA_CENTRE_BLACKWELL, HALF, 64, NO_LIMIT, Program(128, 64, 8, 3), Program(128, 64, 8, 3)),
    Row(DATA_CENTRE_BLACKWELL, HALF, 128, NO_LIMIT, Program(128, 32, 8, 3), Program(128, 32, 8, 3)),
    Row(OTHER_NVIDIA, HALF, 64, NO_LIMIT, Program(128, 64, 8, 3), Program(128, 32, 8, 3)),
    Row(OTHER_NVIDIA, HALF, 128, NO_LIMIT, Program(128, 32, 8, 3), Program(128, 32, 8, 3)),
    Row(HOPPER, SINGLE, 64, NO_LIMIT, Program(64, 32, 8, 2), Program(64, 32, 8, 2)),
    Row(NVIDIA, SINGLE, 64, NO_LIMIT, Program(64, 32, 8, 2), Program(64, 16, 8, 2)),
    Row(NVIDIA, SINGLE, 128, NO_LIMIT, Program(64, 16, 8, 2), Program(32, 16, 8, 2)),
    Row(("hip",), ANY, 128, NO_LIMIT, Program(128, 32, 8, 1), Program(128, 32, 8, 1)),
    # The interpreter pays by the instruction: few, large steps, two heads at a time so that tests see that too.
    Row(("interpreter",), ANY, 128, NO_LIMIT, Program(64, 32, 4, 1), Program(64, 32, 4, 1, 2)),
)  # fmt: skip


def row_for(target: Target, dtype: torch.dtype, width: int, tokens: int) -> Row:
    """The first row that holds."""
    kind = target.architecture if target.backend == "cuda" else target.backend
    for row in ROWS:
        fits = width <= row.width and tokens <= row.tokens
        if kind in row.architectures and dtype in row.dtypes and fits:
            return row
    return ROWS[1]


def layers_apart(row: Row, target: Target, heads_of_images: int, tokens: int, layers: int) -> bool:
    """Whether the middle blocks' mean is cut by layers too: where that takes fewer turns of the device."""
    programs = heads_of_images * -(-tokens // row.layers.rows)
    turns = -(-programs // target.programs_at_once) * layers
    return -(-programs * layers // target.programs_at_once) < turns
