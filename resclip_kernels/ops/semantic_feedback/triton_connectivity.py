"""Triton kernels that find the pairs of one label which path decay weakens, one bit per pair.

Labels of any value become classes first: the smallest patch index of the same label, exact and under 21 bits, so that
a patch's class and its distance to the nearest other label share one int32 and a path needs one look-up per stop.

A path of samples is followed as in the portable version: from a stop of radius r it jumps to the first sample that can
differ. Every pair of a tile advances on its own, and the tile is done when its last pair is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resclip_kernels.launch import Options, Target, launch, target_of
from resclip_kernels.ops.semantic_feedback.state import sample_times
from resclip_kernels.ops.semantic_feedback.triton_tiles import ROUNDER
from resclip_kernels.options.semantic_feedback import Connectivity

# A word is class · 1024 + radius. Radii stop at 1023: a smaller one only makes a path stop more often.
RADIUS_RANGE = tl.constexpr(1 << 10)
RADIUS_MASK = tl.constexpr((1 << 10) - 1)
# Classes are under 2^20; two more stand for rows and columns past the last patch and equal nothing, each other neither.
NO_ROW = tl.constexpr(1 << 30)
NO_COLUMN = tl.constexpr(3 << 29)
# The place of a path that has met another label; no other place comes near it.
BROKEN = tl.constexpr(1 << 30)
# The bits of `ROUNDER`: less these, a rounded sum's own bits are the number.
ROUNDER_BITS = tl.constexpr(0x4B400000)
LARGEST_COUNT = 1 << 20


# Patches of a program: at least one per thread for 4 warps of 32 or 64 lanes, so that no two threads share an atomic.
PATCHES = 256
PATCH_OPTIONS = Options(num_warps=4, num_stages=1)
# Patches looked at together in the search for the first of a label, 16 × 256 compares: 32 a thread.
OTHERS = 16
# One warp, so that a tile ends with its own longest path and without a barrier. Contracting a product and a sum into
# one rounding would decide ties of "prefix" the other way.
BITS_OPTIONS = Options(num_warps=1, num_stages=1, fp_fusion=False)


@dataclass(frozen=True)
class BitsLaunch:
    """A kernel whose program fills tiles of `rows` patches times `octets` bytes of bits, one after another.

    A tile is walked bit by bit: the packing of a byte stays in one thread.
    """

    rows: int
    octets: int

    def split(self, batch: int, patches: int) -> tuple[int, int, int]:
        """Blocks of rows an image, strips a row, tiles a strip.

        16 tiles at most spread the 110 instructions before the first over 8,192 pairs and more; fewer where 8,192
        programs, two for each that an H100 holds at a time, could not be made.
        """
        row_blocks = -(-patches // self.rows)
        across = -(-patches // (8 * self.octets))
        tiles = max(1, min(16, across, batch * row_blocks * across // 8192))
        return row_blocks, -(-across // tiles), tiles


def far_pairs(labels: Tensor, connectivity: Connectivity) -> Tensor:
    """(B, h, w) int64 → (B, n, ⌈n/8⌉) uint8: bit j % 8 of byte j // 8 is set where j has i's label, unconnected.

    Raises:
        ValueError: an image has more than 2^20 patches, whose bits would fill 128 GiB.
    """
    batch, height, width = labels.shape
    patches = height * width
    if patches > LARGEST_COUNT:
        raise ValueError(
            f"the kernels take at most {LARGEST_COUNT} patches an image; got {height} × {width}: "
            "segment in windows, or use 'torch'"
        )
    labels = labels.contiguous()
    octets, steps = -(-patches // 8), max(height, width) - 1
    # Rows start on 4 bytes, so that who reads the bits can take 16 at a time; the view hides the bytes between them.
    row_bytes = -(-octets // 4) * 4
    far = torch.empty(batch, patches, row_bytes, dtype=torch.uint8, device=labels.device)
    if connectivity == "component":
        words, beside = component_words(labels)
    else:
        words, beside = boundary_words(labels), device_times(steps, labels.device)
    plan = bits_launch(target_of(labels), connectivity, patches)
    row_blocks, strips, tiles = plan.split(batch, patches)
    tensors = {"words": words, "beside": beside, "far": far}
    sizes = {"patches": patches, "octets": octets, "row_bytes": row_bytes, "width": width}
    counts = {"steps": steps, "row_blocks": row_blocks, "strips": strips, "tiles": tiles}
    blocks = {"BLOCK_ROWS": plan.rows, "BLOCK_OCTETS": plan.octets}
    launch(
        far_bits_kernel,
        batch * row_blocks * strips,
        {**tensors, **sizes, **counts},
        {"RULE": connectivity, **blocks},
        BITS_OPTIONS,
        on=labels,
    )
    return far[..., :octets]


def boundary_words(labels: Tensor) -> Tensor:
    """(B, h, w) int64 → (B, n) int32 of class · 1024 + min(Chebyshev distance to the nearest other label, 1023)."""
    along_row = torch.empty(labels.flatten(1).shape, dtype=torch.int32, device=labels.device)
    words = torch.empty_like(along_row)
    each_patch(row_distances_kernel, labels, {"labels": labels, "words": along_row})
    each_patch(radii_kernel, labels, {"along_row": along_row, "words": words})
    return words


def component_words(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, h, w) int64 → (B, n) int32 class · 1024 and (B, n) int32 smallest index of the 8-connected component."""
    words = torch.empty(labels.flatten(1).shape, dtype=torch.int32, device=labels.device)
    parents, roots = torch.empty_like(words), torch.empty_like(words)
    each_patch(row_runs_kernel, labels, {"labels": labels, "words": words, "parents": parents})
    each_patch(unite_runs_kernel, labels, {"words": words, "parents": parents})
    each_patch(component_roots_kernel, labels, {"parents": parents, "roots": roots})
    return words, roots


def each_patch(kernel: Any, labels: Tensor, tensors: dict[str, Tensor]) -> None:
    """Launch a kernel whose programs handle `PATCHES` patches of an image."""
    batch, height, width = labels.shape
    patches = height * width
    arguments = {**tensors, "patches": patches, "width": width}
    constants = {"BLOCK": PATCHES}
    if "labels" in tensors:
        constants["BLOCK_OTHERS"] = OTHERS
    launch(kernel, batch * -(-patches // PATCHES), arguments, constants, PATCH_OPTIONS, on=labels)


def bits_launch(target: Target, connectivity: Connectivity, patches: int) -> BitsLaunch:
    """The tile of a rule on a device.

    Walks: 64 pairs, two a thread, so that 32 programs fit on a multiprocessor. A tile looks up 8 points for each that
    one of its pairs needs (blobs on grids of 14 to 48), tiles of 256 pairs 12. Components: 32 bytes, one sector of
    memory, in each of 8 rows. The interpreter pays for operations and not for pairs: up to 2^15.
    """
    if target.backend == "interpreter":
        rows = min(512, triton.next_power_of_2(patches))
        return BitsLaunch(rows, max(1, rows // 8))
    return BitsLaunch(8, 32) if connectivity == "component" else BitsLaunch(8, 8)


@functools.lru_cache(maxsize=64)
def device_times(steps: int, device: torch.device) -> Tensor:
    """(M + 1,) float32 sample times on a device, copied there once."""
    return torch.tensor(sample_times(steps), dtype=torch.float32, device=device)


@triton.jit
def block_of_patches(patches, BLOCK: tl.constexpr):
    """This program's image (int64), its patches and which of them exist."""
    blocks = tl.cdiv(patches, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    patch = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    return image, patch, patch < patches


@triton.jit
def first_of_label(labels, own, exists, patches, BLOCK: tl.constexpr, BLOCK_OTHERS: tl.constexpr):
    """The smallest index of a patch with each patch's label: the search goes up and ends when all have found theirs."""
    first = tl.where(exists, patches, 0)  # [BLOCK]
    start = 0
    while tl.max(first) == patches:
        index = start + tl.arange(0, BLOCK_OTHERS)  # [BLOCK_OTHERS]
        other = tl.load(labels + index, mask=index < patches, other=0)
        equal = (own[:, None] == other[None, :]) & (index < patches)[None, :]
        found = tl.min(tl.where(equal, index[None, :], patches), axis=1)  # [BLOCK]
        first = tl.minimum(first, found)
        start += BLOCK_OTHERS
    return first


@triton.jit
def row_distances_kernel(
    labels, words, patches, width, BLOCK: tl.constexpr, BLOCK_OTHERS: tl.constexpr
):
    """Class and distance to the nearest other label of the same grid row."""
    image, patch, exists = block_of_patches(patches, BLOCK)
    labels += image * patches
    own = tl.load(labels + patch, mask=exists, other=0)
    label_class = first_of_label(labels, own, exists, patches, BLOCK, BLOCK_OTHERS)
    x = patch % width
    nearest = tl.full([BLOCK], RADIUS_MASK, tl.int32)
    for distance in range(1, tl.minimum(width, RADIUS_MASK)):
        on_left = exists & (x >= distance)
        on_right = exists & (x + distance < width)
        left = tl.load(labels + (patch - distance), mask=on_left, other=0)
        right = tl.load(labels + (patch + distance), mask=on_right, other=0)
        differs = (on_left & (left != own)) | (on_right & (right != own))
        nearest = tl.where(differs, tl.minimum(nearest, distance), nearest)
    tl.store(words + image * patches + patch, label_class * RADIUS_RANGE + nearest, mask=exists)


@triton.jit
def radii_kernel(along_row, words, patches, width, BLOCK: tl.constexpr):
    """Class and Chebyshev distance to the nearest other label, from the distances along the grid rows.

    Row y + v holds another label at |v| if the patch in this column is one, else at max(|v|, that patch's distance).
    """
    image, patch, exists = block_of_patches(patches, BLOCK)
    along_row += image * patches
    own = tl.load(along_row + patch, mask=exists, other=0)
    y = patch // width
    x = patch % width
    radius = own & RADIUS_MASK
    for row in range(patches // width):
        other = tl.load(along_row + (row * width + x), mask=exists, other=0)
        differs = (other ^ own) >= RADIUS_RANGE
        in_row = tl.where(differs, 0, other & RADIUS_MASK)
        radius = tl.minimum(radius, tl.maximum(tl.abs(row - y), in_row))
    word = (own & ~RADIUS_MASK) | radius
    tl.store(words + image * patches + patch, word, mask=exists)


@triton.jit
def row_runs_kernel(
    labels, words, parents, patches, width, BLOCK: tl.constexpr, BLOCK_OTHERS: tl.constexpr
):
    """Class, and as parent the first patch of the run of one label along the grid row."""
    image, patch, exists = block_of_patches(patches, BLOCK)
    labels += image * patches
    own = tl.load(labels + patch, mask=exists, other=0)
    label_class = first_of_label(labels, own, exists, patches, BLOCK, BLOCK_OTHERS)
    x = patch % width
    run = tl.zeros([BLOCK], dtype=tl.int32)
    going = exists & (x > 0)
    while tl.max(going.to(tl.int32)) > 0:
        left = tl.load(labels + (patch - run - 1), mask=going, other=0)
        going &= left == own
        run += going.to(tl.int32)
        going &= x > run
    tl.store(words + image * patches + patch, label_class * RADIUS_RANGE, mask=exists)
    tl.store(parents + image * patches + patch, patch - run, mask=exists)


@triton.jit
def unite_runs_kernel(words, parents, patches, width, BLOCK: tl.constexpr):
    """Unite each run with the runs of its class that touch it in the grid row above, each contact once.

    A contact is found at its first patch: N is equal and not (W and NW), or a corner alone touches, NW without W and N
    or NE without N and E.
    """
    image, patch, exists = block_of_patches(patches, BLOCK)
    words += image * patches
    parents += image * patches
    own = tl.load(words + patch, mask=exists, other=-1)
    below = exists & (patch >= width)
    x = patch % width
    left, right = x > 0, x + 1 < width
    west = tl.load(words + patch - 1, mask=exists & left, other=-2) == own
    east = tl.load(words + patch + 1, mask=exists & right, other=-2) == own
    north = tl.load(words + patch - width, mask=below, other=-2) == own
    northwest = tl.load(words + patch - width - 1, mask=below & left, other=-2) == own
    northeast = tl.load(words + patch - width + 1, mask=below & right, other=-2) == own
    unite(parents, patch, patch - width, below & north & ~(west & northwest))
    unite(parents, patch, patch - width - 1, below & northwest & ~west & ~north)
    unite(parents, patch, patch - width + 1, below & northeast & ~north & ~east)


@triton.jit
def unite(parents, first, second, going):
    """Join the trees of `first` and `second`, while other threads join theirs.

    Parents only decrease and always name a patch of the same component, so one that is read stale is a valid place to
    start from; what the atomic minimum returns is never stale. If `high` was a root, it now hangs below `low`. If not,
    the link to its old parent may be lost, so that parent and `low` are united next: the larger of the two decreases
    with every turn, and no connection is ever forgotten. Relaxed order will do: nothing but the parents is shared.
    """
    # Volatile: other threads write these places meanwhile, and a plain load may not race with their atomics.
    first = tl.load(parents + first, mask=going, other=0, volatile=True)
    second = tl.load(parents + second, mask=going, other=0, volatile=True)
    going &= first != second
    while tl.max(going.to(tl.int32)) > 0:
        high = tl.maximum(first, second)
        low = tl.minimum(first, second)
        old = tl.atomic_min(parents + high, low, mask=going, sem="relaxed")
        going &= (old != high) & (old != low)
        first = tl.where(going, old, first)
        second = tl.where(going, low, second)


@triton.jit
def component_roots_kernel(parents, roots, patches, width, BLOCK: tl.constexpr):
    """Follow the parents, which rest now, to the root: the smallest index of the component."""
    image, patch, exists = block_of_patches(patches, BLOCK)
    parents += image * patches
    root = tl.load(parents + patch, mask=exists, other=0)
    going = exists
    while tl.max(going.to(tl.int32)) > 0:
        parent = tl.load(parents + root, mask=going, other=0)
        going &= parent != root
        root = tl.where(going, parent, root)
    tl.store(roots + image * patches + patch, root, mask=exists)


@triton.jit
def far_bits_kernel(
    words,
    beside,
    far,
    patches,
    octets,
    row_bytes,
    width,
    steps,
    row_blocks,
    strips,
    tiles,
    RULE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OCTETS: tl.constexpr,
):
    """Bits of the pairs of one class that RULE does not connect, tile by tile along a strip.

    `beside` holds what the rule needs beside the words: sample times ("prefix"), component roots ("component").
    """
    strip = tl.program_id(0) % strips
    block = tl.program_id(0) // strips
    image = (block // row_blocks).to(tl.int64)
    row = block % row_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    words += image * patches
    if RULE == "component":
        beside += image * patches
    far += (image * patches + row)[:, None] * row_bytes  # [BLOCK_ROWS, 1]
    own = tl.load(words + row, mask=row < patches, other=NO_ROW)[:, None]
    first = strip * tiles * BLOCK_OCTETS
    for start in range(first, tl.minimum(first + tiles * BLOCK_OCTETS, octets), BLOCK_OCTETS):
        octet = start + tl.arange(0, BLOCK_OCTETS)  # [BLOCK_OCTETS]
        packed = tl.zeros([BLOCK_ROWS, BLOCK_OCTETS], dtype=tl.int32)
        for bit in range(8):
            column = octet * 8 + bit
            other = tl.load(words + column, mask=column < patches, other=NO_COLUMN)[None, :]
            same = (own ^ other) < RADIUS_RANGE  # [BLOCK_ROWS, BLOCK_OCTETS]
            if tl.max(same.to(tl.int32)) > 0:
                if RULE == "prefix":
                    broken = prefix_breaks(words, beside, own, same, row, column, width, steps)
                elif RULE == "line":
                    broken = line_breaks(words, own, other, same, row, column, width)
                else:
                    root = tl.load(beside + row, mask=row < patches, other=0)[:, None]
                    other_root = tl.load(beside + column, mask=column < patches, other=0)[None, :]
                    broken = same & (root != other_root)
                packed |= broken.to(tl.int32) << bit
        inside = (row < patches)[:, None] & (octet < octets)[None, :]
        tl.store(far + octet[None, :], packed.to(tl.uint8), mask=inside)


@triton.jit
def prefix_breaks(words, times, own, same, row, column, width, steps):
    """Whether samples 1 … d of the M + 1 meet another label.

    Sample k lies within k·d/M + 1/2 of the start, samples k and k + s within s·d/M + 1 of each other: with radius r
    the first (r − 1/2)·M/d samples of a path, or the next (r − 1)·M/d, need no look-up. Both are an eighth smaller
    here, which no rounding of coordinates or of M/d (8 bits after the point) reaches.
    """
    start_y = (row // width)[:, None].to(tl.float32)
    start_x = (row % width)[:, None].to(tl.float32)
    end_y = (column // width)[None, :].to(tl.float32)
    end_x = (column % width)[None, :].to(tl.float32)
    distance = tl.maximum(tl.abs(end_y - start_y), tl.abs(end_x - start_x))
    per_patch = tl.minimum(steps * 256.0 / tl.maximum(distance, 1.0), 1048576.0).to(tl.int32)
    distance = distance.to(tl.int32)
    slack = per_patch + (per_patch >> 3) + 1
    k = ((own & RADIUS_MASK) * per_patch - (slack - (per_patch >> 1))) >> 8
    k = tl.where(same, tl.maximum(k, 1), distance + 1)
    while tl.max((k <= distance).to(tl.int32)) > 0:
        going = k <= distance
        time = tl.load(times + k, mask=going, other=0.0)
        y = rounded(start_y * (1.0 - time) + end_y * time)
        x = rounded(start_x * (1.0 - time) + end_x * time)
        word = tl.load(words + (y * width + x), mask=going, other=0)
        skip = tl.maximum(((word & RADIUS_MASK) * per_patch - slack) >> 8, 1)
        following = tl.where((word ^ own) >= RADIUS_RANGE, BROKEN, k + skip)
        k = tl.where(going, following, k)
    return k >= BROKEN


@triton.jit
def rounded(coordinate):
    """Half to even, to int32; the coordinate is in [0, 2^22)."""
    return (coordinate + ROUNDER).to(tl.int32, bitcast=True) - ROUNDER_BITS


@triton.jit
def line_breaks(words, own, other, same, row, column, width):
    """Whether any sample between i and j differs: the whole segment, a sample a patch of the longer axis.

    Sample k lies k patches from one end and d − k from the other, so only r_i … d − r_j can differ, and from a stop of
    radius r the next r − 1 cannot. On the shorter axis it stands at start ± a·k/d. The quotient of a·k + 1/2 by d is at
    least 1/(2d) from any integer and a·k is under the number of patches, 2^20, so float32 finds its floor exactly.
    """
    down = (column // width)[None, :] - (row // width)[:, None]
    right = (column % width)[None, :] - (row % width)[:, None]
    down_step = tl.where(down < 0, -width, width)
    right_step = tl.where(right < 0, -1, 1)
    steep = tl.abs(down) >= tl.abs(right)
    distance = tl.maximum(tl.abs(down), tl.abs(right))
    across = tl.minimum(tl.abs(down), tl.abs(right))
    step = tl.where(steep, down_step, right_step)
    across_step = tl.where(steep, right_step, down_step)
    start = tl.where(steep, (row % width)[:, None], (row // width)[:, None])
    reciprocal = 1.0 / tl.maximum(distance, 1).to(tl.float32)
    end = distance - (other & RADIUS_MASK)
    k = tl.where(same, own & RADIUS_MASK, end + 1)
    while tl.max((k <= end).to(tl.int32)) > 0:
        going = k <= end
        product = across * k
        floor = ((product.to(tl.float32) + 0.5) * reciprocal).to(tl.int32)
        # Twice the remainder less the divisor: above 0 rounds away from the start, 0 is a tie and goes to the even one.
        excess = 2 * (product - floor * distance) - distance + ((start + floor) & 1)
        offset = tl.where(excess > 0, floor + 1, floor)
        point = row[:, None] + k * step + offset * across_step
        word = tl.load(words + point, mask=going, other=0)
        following = tl.where((word ^ own) >= RADIUS_RANGE, BROKEN, k + (word & RADIUS_MASK))
        k = tl.where(going, following, k)
    return k >= BROKEN
