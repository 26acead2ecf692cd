"""Which programs the launch table of the residual attention should name on this GPU, by measuring them.

Every program is tried in the whole op, beside the others of today's row: what counts is the op. A program is proposed
only if the op's result is right with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as TimeUp
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.attention import attention_name, attention_options, attention_shape
from benchmarks.gpu.case import AUTO
from benchmarks.gpu.inputs import FUSED, Device, feedback_state
from benchmarks.gpu.timing import FAILURES, Clock, shorten
from benchmarks.reporting import Document
from resclip_kernels import residual_attention
from resclip_kernels.launch import Launch, target_of, watch
from resclip_kernels.ops.residual_attention import triton as attention_kernels
from resclip_kernels.ops.residual_attention.launch_table import Program, Row, row_for

SPACE: dict[str, tuple[int, ...]] = {
    "rows": (128, 64),
    "columns": (64, 32, 128),
    "num_warps": (8, 4),
    "num_stages": (3, 2, 4),
    "heads": (1, 2),
}
TINY_SPACE: dict[str, tuple[int, ...]] = {"rows": (32,), "columns": (16,)}
ROUNDINGS = 4
"""Steps of the dtype at the largest value by which results of two programs may differ: they sum in another order."""
TURNS = 3
"""Times that a proposal and today's row are measured in turn."""


@dataclass(frozen=True)
class Place:
    """A line of the launch table, by what is measured for it."""

    batch: int
    grid: tuple[int, int]
    dry_run: bool

    @property
    def name(self) -> str:
        """As the case of the benchmark is called."""
        return attention_name(self.batch, 1 + self.grid[0] * self.grid[1])


class Op:
    """The whole op on the inputs of one place."""

    def __init__(self, place: Place) -> None:
        shape = attention_shape(place.batch, place.grid, tiny=place.dry_run)
        device = Device("cpu" if place.dry_run else "cuda")
        dtype = torch.float32 if place.dry_run else torch.float16
        self.tensors = device.attention(shape, dtype)
        self.options = attention_options(shape)
        self.state = feedback_state(device.labels(shape.batch, shape.grid))
        value = self.tensors.value
        self.today = row_for(target_of(value), dtype, shape.width, shape.tokens)

    def run(self, implementation: str = FUSED) -> Tensor:
        """Call it."""
        output: Tensor = residual_attention(
            *self.tensors[:3],
            self.options,
            feedback=self.state,
            cross_layers=self.tensors.cross_layers,
            implementation=implementation,
        ).output
        return output

    def launches(self, row: Row) -> list[Launch]:
        """What the op launches with a row; nothing runs."""
        with row_of(row), watch(execute=False) as seen:
            self.run()
        return seen.launches

    def signature(self, row: Row) -> list[tuple[Any, ...]]:
        """All that tells the launches of two rows apart."""
        return [
            (each.kernel.__name__, each.programs, dict(each.constants), each.options)
            for each in self.launches(row)
        ]


@contextmanager
def row_of(row: Row) -> Iterator[None]:
    """Within it the op launches the programs of this row."""
    with mock.patch.object(attention_kernels, "row_for", return_value=row):
        yield


def programs_of(row: Row) -> dict[str, Program]:
    """The programs that a row names, by the field."""
    values = {each.name: getattr(row, each.name) for each in fields(row)}
    return {name: value for name, value in values.items() if isinstance(value, Program)}


def candidates(op: Op, space: dict[str, tuple[int, ...]]) -> list[tuple[str, Program, Row]]:
    """(part, program, row) of every other program that changes what is launched here, the nearest to today's first."""
    found = []
    seen = [op.signature(op.today)]
    for part, today in programs_of(op.today).items():
        for values in product(*space.values()):
            program = replace(today, **dict(zip(space, values, strict=True)))
            row = replace(op.today, **{part: program})
            signature = op.signature(row)
            if signature not in seen:
                seen.append(signature)
                found.append((part, program, row))

    def distance(candidate: tuple[str, Program, Row]) -> int:
        part, program, _ = candidate
        today = getattr(op.today, part)
        return sum(getattr(program, name) != getattr(today, name) for name in space)

    return sorted(found, key=distance)


@cache
def op_of(place: Place) -> Op:
    """One a process, for all the programs that it compiles."""
    with torch.no_grad():
        return Op(place)


def compile_row(place: Place, row: Row) -> None:
    """Fill Triton's cache with the kernels of a row, and run none: an illegal access would end this process's use."""
    with torch.no_grad():
        for each in op_of(place).launches(row):
            each.kernel.warmup(
                **each.arguments,
                **each.constants,
                num_warps=each.options.num_warps,
                num_stages=each.options.num_stages,
                enable_fp_fusion=each.options.fp_fusion,
                grid=(each.programs,),
            )


@cache
def compilers() -> ProcessPoolExecutor:
    """Processes that compile, on all cores but one."""
    count = max(1, len(os.sched_getaffinity(0)) - 1)
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def compiled(
    place: Place, found: list[tuple[str, Program, Row]], seconds: float
) -> Iterator[tuple[tuple[str, Program, Row], str]]:
    """Each candidate once its kernels are compiled, and why they could not be, for at most so long."""
    if place.dry_run:
        yield from ((candidate, "") for candidate in found)
        return
    pool = compilers()
    waiting: dict[Future[None], tuple[str, Program, Row]] = {
        pool.submit(compile_row, place, candidate[2]): candidate for candidate in found
    }
    try:
        for future in as_completed(waiting, timeout=seconds):
            problem = future.exception()
            yield waiting[future], "" if problem is None else shorten(problem)
    except TimeUp:
        return
    finally:
        for future in waiting:
            future.cancel()


def tune(
    place: Place,
    clock: Clock,
    seconds: float,
    records: list[Document],
    keep: Callable[[], None],
) -> None:
    """Measure programs at one place.

    Args:
        place: where.
        clock: of the run.
        seconds: after which no other program is tried.
        records: takes the place's record, which is filled as programs are measured.
        keep: called after each.
    """
    op = Op(place)
    wanted = op.run()
    allowed = ROUNDINGS * torch.finfo(wanted.dtype).eps * wanted.abs().max().item()
    today = milliseconds(op, op.today, clock)
    record: Document = {
        "name": place.name,
        "tokens": wanted.shape[2],
        "batch": place.batch,
        "today": describe(op.today),
        "today_ms": today,
        "tried": [],
    }
    records.append(record)
    found = candidates(op, TINY_SPACE if place.dry_run else SPACE)
    for (part, program, row), problem in compiled(place, found, seconds):
        outcome: Document = {"part": part, "program": asdict(program), "reason": problem}
        if not problem:
            outcome |= try_row(op, row, wanted, allowed, clock)
        record["tried"].append(outcome)
        keep()
    record |= proposal(op, record, clock)
    keep()
    print(f"tuning, {proposal_text(record)}", flush=True)


def try_row(op: Op, row: Row, wanted: Tensor, allowed: float, clock: Clock) -> Document:
    """Its time in milliseconds, or why it has none."""
    try:
        with row_of(row):
            off = (op.run() - wanted).abs().max().item()
        if not off <= allowed:  # NaN comes here too.
            return {"reason": f"wrong: off by {off:.1e}, allowed {allowed:.1e}"}
        return {"ms": milliseconds(op, row, clock)}
    except FAILURES as error:
        return {"reason": shorten(error)}


def milliseconds(op: Op, row: Row, clock: Clock, implementation: str = FUSED) -> float:
    """Time of the op with a row, from a CUDA graph, after a call that compiles."""
    run = partial(op.run, implementation)
    with row_of(row):
        run()
        return clock.kernel_ms(clock.replayed(run), 20.0)


def proposal(op: Op, record: Document, clock: Clock) -> Document:
    """The fastest right program of each part together, measured in turn with today's row."""
    best: dict[str, Document] = {}
    for outcome in record["tried"]:
        time = outcome.get("ms", record["today_ms"])
        if time < best.get(outcome["part"], {"ms": record["today_ms"]})["ms"]:
            best[outcome["part"]] = outcome
    row = replace(
        op.today,
        **{part: Program(**outcome["program"]) for part, outcome in best.items()},
    )
    turns = [
        [milliseconds(op, each, clock) for each in (op.today, row)]
        for _ in range(TURNS if clock.cuda else 1)
    ]
    today, proposed = (min(times) for times in zip(*turns, strict=True))
    if proposed >= today:
        row, proposed = op.today, today
    by_library = replace(row, library_layers=True)
    return {
        "today_ms": today,
        "proposed": describe(row),
        "proposed_ms": proposed,
        "library_layers_ms": milliseconds(op, by_library, clock, AUTO),
    }


def describe(row: Row) -> dict[str, Any]:
    """A row's programs as values that JSON can hold."""
    return {name: asdict(program) for name, program in programs_of(row).items()}


def proposal_text(record: Document) -> str:
    """One line: the programs that differ from today's, and both times."""
    changed = {
        name: f"Program({', '.join(f'{key}={value}' for key, value in program.items())})"
        for name, program in record["proposed"].items()
        if program != record["today"][name]
    }
    what = ", ".join(f"{name}={program}" for name, program in changed.items())
    right = sum("ms" in outcome for outcome in record["tried"])
    return (
        f"{record['name']}: {what or 'the row of today'}: {record['proposed_ms']:.3f} ms, "
        f"today's row {record['today_ms']:.3f} ms, with the layers by the library "
        f"{record['library_layers_ms']:.3f} ms; {right} of {len(record['tried'])} programs ran and were right"
    )
