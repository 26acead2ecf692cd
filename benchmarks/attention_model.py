"""What the residual attention should take on an H200 against five plain attention calls, by counting: no GPU is needed.

The kernels are compiled for sm_90 and their machine code is counted. A tile of a loop keeps three units of a
multiprocessor busy: the schedulers (instructions), the matrix units (products) and the special function units
(exponentials). How far these overlap is the model's one guess, and its results hold to some 30 %.

    plain attention:  330 TFLOP/s on whole tiles of 128 × 128 in programs of 128 rows (FlashAttention-2 on this GPU at
                      heads of 64), 1.4 times that where cuDNN's or a newer kernel is there
    a tile of ours:   a share of the units' sum, by how many warps share a multiprocessor (`OVERLAP`), or the largest of
                      them, or its reads out of L2, whichever is more
    a program:        its tiles, and a trip to memory before the first tile of each layer
    a launch:         2 µs beside its programs, whoever makes it
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.cubin import Facts, compile_for, specialise
from benchmarks.gpu.counts import Attention
from resclip_kernels import AttentionOptions, semantic_feedback
from resclip_kernels.launch import Launch, Target, watch
from resclip_kernels.ops.residual_attention import launch_table
from resclip_kernels.ops.residual_attention import triton as kernels

CLOCK = 1.755e9
MULTIPROCESSORS = 132
SCHEDULERS = 4
MATRIX_FLOPS = 4096
"""Of float16 products, a cycle and multiprocessor."""
EXPONENTIALS = 16
"""A cycle and multiprocessor."""
L2_BYTES = 5.5e12 / CLOCK / MULTIPROCESSORS
"""A cycle and multiprocessor."""
REGISTERS = 65_536
SHARED = 227 << 10
LATENCY = 900
"""Cycles from a request to memory until a first tile's scores are there."""
LAUNCH = 2e-6
PLAIN_RATE = 330e12
NEWER = 1.4
"""How much faster than that the fastest plain kernel is."""
OVERLAP = ((16, 0.80), (12, 0.85), (8, 0.95), (0, 1.3))
"""(warps a multiprocessor, share of the units' sum that a tile takes)."""
TOLERANCE = 0.03
"""By which a prediction may differ from one version of the compiler to the next."""
TARGET = Target("cuda", 90, MULTIPROCESSORS)
SHAPES = (
    Attention(64, 12, (14, 14)),
    Attention(1, 12, (32, 32)),
    Attention(1, 12, (64, 64)),
    Attention(1, 12, (128, 128)),
)


@dataclass(frozen=True)
class Work:
    """One launch as the model sees it."""

    kernel: str
    programs: int
    warps: int
    together: int
    """Programs that share a multiprocessor."""
    tiles: int
    """Of the inner loop, a program."""
    starts: int
    """Loops that a program enters, each of which waits for memory."""
    instructions: int
    """Of the inner loop, a warp and tile."""
    flops: int
    """Of a tile on matrix units."""
    exponentials: int
    """Of a tile."""
    bytes: int
    """That a tile reads."""
    rest: int
    """Instructions of a program outside the inner loop, a warp."""

    @property
    def seconds(self) -> float:
        """From the first program to the last."""
        busiest = math.ceil(self.programs / MULTIPROCESSORS)
        at_once = min(self.together, busiest)
        units = (
            self.instructions * self.warps / SCHEDULERS,
            self.flops / MATRIX_FLOPS,
            self.exponentials / EXPONENTIALS,
        )
        share = next(share for warps, share in OVERLAP if at_once * self.warps >= warps)
        tile = max(*units, share * sum(units), self.bytes / L2_BYTES)
        program = self.tiles * tile + self.rest * self.warps / SCHEDULERS
        # Programs that share a multiprocessor wait while the others compute.
        cycles = busiest * (program + self.starts * LATENCY / at_once)
        return cycles / CLOCK + LAUNCH


def work_of(launch: Launch, facts: Facts) -> Work:
    """What a launch of this op has a GPU do."""
    name = launch.kernel.__name__
    arguments, constants = launch.arguments, launch.constants
    rows, columns = constants["BLOCK_M"], constants["BLOCK_N"]
    heads, starts, width, terms = 1, 1, 0, 0
    if name == "cross_layer_kernel":
        width = constants["WIDTH"]
        tiles = math.ceil(arguments["tokens"] / columns)
        starts = 1 if constants["APART"] else len(arguments["layers"].queries)
    elif name == "base_kernel":
        plan = constants["PLAN"]
        heads, width = plan.heads, plan.width
        tiles = math.ceil((arguments["tokens"] - plan.cls_tokens) / columns)
        starts = len(arguments["scores"].lefts)
        terms = rows * columns * arguments["stored"].data.element_size() if plan.has_terms else 0
    elif name == "additive_terms_kernel":
        # What is formed before the first tile of a strip is about one more.
        tiles = math.ceil(arguments["strip"] / columns) + 1
    else:
        # Labels compared with those before: no matrix units, and on average half of the columns.
        tiles = math.ceil(arguments["patches"] / columns / 2)
        entries = rows * columns // (32 * launch.options.num_warps)
        return Work(
            name, launch.programs, launch.options.num_warps, 4, tiles, 1, 6 * entries, 0, 0, 0, 0
        )
    loops = [loop for loop in facts.loops if not loop.inner]
    loop = max(loops, key=lambda each: (each.matrix, each.instructions))
    return Work(
        kernel=name,
        programs=launch.programs,
        warps=launch.options.num_warps,
        together=residents(launch, facts),
        tiles=starts * tiles,
        starts=starts,
        instructions=loop.instructions,
        # Two products of a tile and head; those that smooth Ŝ's tiles read a tile and a margin of the same width.
        flops=4 * rows * columns * (width or 2 * columns) * heads,
        exponentials=rows * columns * heads,
        bytes=4 * columns * width * heads + terms,
        rest=facts.outside,
    )


def residents(launch: Launch, facts: Facts) -> int:
    """Programs of a launch that share a multiprocessor."""
    threads = 32 * launch.options.num_warps
    by_registers = REGISTERS // (math.ceil(facts.registers / 8) * 8 * threads)
    return max(1, min(by_registers, SHARED // max(1, facts.shared + 1024), 2048 // threads))


def plain_seconds(shape: Attention, calls: int) -> float:
    """So many plain attention calls, each on whole tiles and on as many multiprocessors as it has programs for."""
    tokens = 128 * math.ceil(shape.tokens / 128)
    flops = 4 * shape.batch * shape.heads * tokens**2 * shape.width
    programs = shape.batch * shape.heads * tokens // 128
    busy = programs / (MULTIPROCESSORS * math.ceil(programs / MULTIPROCESSORS))
    return calls * (flops / (PLAIN_RATE * min(1.0, busy)) + LAUNCH)


def launches_of(shape: Attention) -> list[Launch]:
    """Of one call in float16 with four layers, prior and feedback, its state made before."""

    def heads() -> torch.Tensor:
        packed = torch.empty(
            shape.batch,
            shape.tokens,
            3,
            shape.heads,
            shape.width,
            dtype=torch.float16,
            device="meta",
        )
        return packed[:, :, 0].transpose(1, 2)

    labels = torch.empty(shape.batch, *shape.grid, dtype=torch.int64, device="meta")
    with watch(execute=False, target=TARGET) as watcher:
        state = semantic_feedback(labels, implementation="triton")
        watcher.launches.clear()
        kernels.residual_attention(
            heads(),
            heads(),
            heads(),
            AttentionOptions(grid=shape.grid, neighbourhood_std=5.0),
            (),
            state,
            tuple((heads(), heads()) for _ in range(shape.layers)),
            None,
        )
    return watcher.launches


@dataclass(frozen=True)
class Prediction:
    """Of one call, the state of its semantic feedback made before."""

    row: launch_table.Row
    works: tuple[Work, ...]
    seconds: float
    """By this project's kernels alone."""
    plain: float
    """Of five plain calls."""
    ratio: float
    """Of "auto" to these."""
    ratio_to_newest: float
    """To five plain calls that are `NEWER` times as fast."""


def predict(shape: Attention) -> Prediction:
    """What a call should take."""
    works = [
        work_of(launch, compile_for(specialise(launch, TARGET))) for launch in launches_of(shape)
    ]
    own = sum(work.seconds for work in works)
    row = launch_table.row_for(TARGET, torch.float16, shape.width, shape.tokens)
    plain = plain_seconds(shape, 1)
    ratios = []
    for speed in (1.0, NEWER):
        auto = own
        if row.library_layers:
            auto -= sum(work.seconds for work in works if work.kernel == "cross_layer_kernel")
            auto += shape.layers * plain / speed
        ratios.append(auto / ((shape.layers + 1) * plain / speed))
    return Prediction(row, tuple(works), own, (shape.layers + 1) * plain, *ratios)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is predicted; exit status 1 where the launch table says otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attention-model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    found = {shape: predict(shape) for shape in SHAPES}
    for shape, prediction in found.items():
        print(f"L = {shape.tokens}, batch {shape.batch}")
        for work in prediction.works:
            print(
                f"  {work.kernel:22} {1e6 * work.seconds:8.1f} µs: {work.programs} programs of {work.warps} warps, "
                f"{work.together} a multiprocessor, {work.tiles} tiles of {work.instructions} instructions"
            )
        print(
            f"  all by Triton {1e6 * prediction.seconds:,.0f} µs, five plain calls {1e6 * prediction.plain:,.0f} µs; "
            f"auto {prediction.ratio:.2f} × these, {prediction.ratio_to_newest:.2f} × calls {NEWER} times as fast"
        )
    stale = [row for row in launch_table.ROWS if is_stale(row, found.values())]
    return int(bool(stale))


def is_stale(row: launch_table.Row, predictions: Iterable[Prediction]) -> bool:
    """Whether a row's prediction is no longer the model's; says so."""
    ratios = [each.ratio for each in predictions if each.row is row]
    if not ratios or (row.predicted is not None and abs(max(ratios) - row.predicted) <= TOLERANCE):
        return False
    print(f"the launch table predicts {row.predicted} for {row}; the model {max(ratios):.2f}")
    return True


if __name__ == "__main__":
    sys.exit(main())
