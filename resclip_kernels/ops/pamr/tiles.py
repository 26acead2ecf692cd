"""How PAMR's kernels share out the pixels: plain arithmetic on sizes, which loads without triton."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from resclip_kernels.launch import Options, Target


@dataclass(frozen=True)
class Tile:
    """How `pamr_step_kernel` shares out a plane."""

    strip: int
    """Pixels a thread owns, gcd(dilations) rows apart; each holds 8·|dilations| weights in registers."""
    block_strips: int
    """Strips, one below another, in a program's tile."""
    block_width: int
    """Columns in a program's tile."""
    options: Options


@dataclass(frozen=True)
class Reads:
    """What the pixels of one strip read, each element once."""

    rows: tuple[int, ...]
    """Distinct rows, counted from the strip's first pixel."""
    places: tuple[tuple[int, int], ...]
    """(index into `rows`, column offset) of each element."""
    terms: tuple[tuple[int, ...], ...]
    """For each pixel and each of its neighbours, the index into `places`."""


def obstacle(masks: Tensor) -> str | None:
    """Why the kernels cannot take these planes, and what to do; None where they can."""
    if masks.shape[2] * masks.shape[3] < 1 << 31:
        return None
    height, width = masks.shape[2:]
    return f"a plane must have fewer than 2**31 pixels; got {height} by {width}: cut it, or use 'torch'"


def shifts(dilations: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(dy, dx) of every neighbour, in the order of the weights' axis 1."""
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    return tuple((dilation * dy, dilation * dx) for dilation in dilations for dy, dx in around)


@lru_cache
def strip_reads(dilations: tuple[int, ...], strip: int) -> Reads:
    """What `strip` pixels gcd(dilations) rows apart read."""
    apart = math.gcd(*dilations)
    wanted = [[(pixel * apart + dy, dx) for dy, dx in shifts(dilations)] for pixel in range(strip)]
    places = sorted({place for pixel in wanted for place in pixel})
    rows = sorted({row for row, _ in places})
    return Reads(
        tuple(rows),
        tuple((rows.index(row), column) for row, column in places),
        tuple(tuple(places.index(place) for place in pixel) for pixel in wanted),
    )


def tile_for(dilations: tuple[int, ...], target: Target) -> Tile:
    """The tile for a set of dilations.

    A thread's 64 weights and 36 loads in flight fill 128 registers: two programs of 256 threads to a multiprocessor.
    The tile's 16 rows by 64 columns reach into 20 by 96, so the L2 cache is read 1.9 times for each pixel, not 16.
    Interpreted, an operation costs the same however large it is: there the tile is four times as high.
    """
    strip = max(1, min(4, 8 // len(dilations)))
    block_strips = 16 if target.backend == "interpreter" else 4
    return Tile(strip, block_strips, 64, Options(num_warps=8, num_stages=1))


def inner_width(width: int, dilations: tuple[int, ...], tile: Tile) -> int:
    """Columns all of whose neighbours are in the plane; 0 where they do not fill a tile."""
    inner = width - 2 * max(dilations)
    return inner if inner >= tile.block_width else 0


def tiles_of(height: int, width: int, dilations: tuple[int, ...], tile: Tile) -> int:
    """How many programs cover one plane: tiles of strips, then the columns near the left and right edges."""
    apart = math.gcd(*dilations)
    inner = inner_width(width, dilations, tile)
    strips = apart * ceil_div(ceil_div(height, apart), tile.strip)
    block = tile.block_strips * tile.block_width
    inner_tiles = ceil_div(inner, tile.block_width) * ceil_div(strips, tile.block_strips)
    return inner_tiles + ceil_div((width - inner) * height, block)


def share(planes: int, tiles: int) -> int:
    """Planes that a program refines: enough to pay for its weights (64 bytes per pixel), few enough to fill a GPU."""
    most = min(32, max(4, ceil_div(planes * tiles, 1024)))
    return max(1, ceil_div(planes, max(1, ceil_div(planes, most))))


def ceil_div(total: int, part: int) -> int:
    """How many parts it takes."""
    return -(-total // part)
