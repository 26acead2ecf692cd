"""What every Triton kernel uses on every target, read from its machine code: no GPU is needed.

The report makes the calls of `kernel_calls` on tensors without values, collects the launches, compiles each different
one and prints a table. It fails where a kernel does not compile, spills more than `known_spills` lists, needs
more shared memory than the target has, forms half-precision products without matrix units, or waits for all copies in a
loop with matrix instructions, so that nothing is prefetched. What the kernels use is kept in
benchmarks/results/kernels.json when all ops are reported, so that a change shows in a diff.

`--list` prints the kernels' names and compiles nothing; `--combinations` makes Triton's first representation of what
`kernel_combinations` calls, which covers more options and takes less time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import triton

from benchmarks.cubin import Compilation, Facts, compile_for, specialise
from benchmarks.kernel_calls import OPS, Call, standard_calls
from benchmarks.kernel_combinations import combined_calls, lower_all
from benchmarks.known_spills import KNOWN_SPILLS, KNOWN_WAITS, KnownSpills, KnownWaits, Spill, Wait
from benchmarks.reporting import RESULTS, in_order, store
from resclip_kernels.dispatch import interpreting
from resclip_kernels.launch import Target, watch

TARGETS = "sm_80,sm_90,sm_100,sm_120,gfx942"
HALVES = {"f16", "bf16"}
TENSOR_MEMORY = 512
"""Columns of tensor memory that a block may have on sm_100."""
HEADER = (
    *("kernel", "target", "models", "dtypes", "case", "compiled", "warps", "stages"),
    *("registers", "spilled", "shared", "limit", "matrix"),
)
WAITS_JUDGED = ("sm_80", "sm_90")
"""Where a loop's copies are waited for by groups, as these instructions tell."""
LAST_LINES = 12
"""Lines of a failed compiler's output that are shown: enough for the message of an assertion."""


@dataclass
class Row:
    """One kernel as one target gets it, and which calls want it so."""

    compilation: Compilation
    calls: list[Call] = field(default_factory=list)
    facts: Facts | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def op(self) -> str:
        return self.calls[0].op

    @property
    def kernel(self) -> str:
        return str(self.compilation.kernel.__name__)

    @property
    def target(self) -> str:
        return target_name(self.compilation.target)

    def spills(self) -> list[Spill]:
        """The names under which a spill of this kernel may be listed: one a call."""
        return [
            Spill(self.kernel, call.case, call.model, call.dtype, self.target)
            for call in self.calls
        ]

    def waits(self) -> list[Wait]:
        """The names under which loops of this kernel that prefetch nothing may be listed: one a dtype."""
        return in_order(Wait(self.kernel, call.dtype, self.target) for call in self.calls)

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        options = self.compilation.options
        return {
            "op": self.op,
            "kernel": self.kernel,
            "models": in_order(call.model for call in self.calls),
            "dtypes": in_order(call.dtype for call in self.calls),
            "calls": in_order(f"{call.op}: {call.case}" for call in self.calls),
            "target": self.target,
            "warps": options["num_warps"],
            "stages": options["num_stages"],
            "shared_limit": self.compilation.target.shared_memory,
            **(asdict(self.facts) if self.facts else {}),
            "problems": self.problems,
        }


def parse_target(name: str) -> Target:
    """As on the command line, "sm_90" or "gfx942"; ValueError for anything else."""
    if name.startswith("sm_") and name[3:].isdigit():
        return Target("cuda", int(name[3:]))
    if name.startswith("gfx"):
        return Target("hip", name)
    raise ValueError(f"a target is sm_ and a number, or a gfx name; got {name!r}")


def target_name(target: Target) -> str:
    return f"sm_{target.architecture}" if target.backend == "cuda" else str(target.architecture)


def collect(calls: Sequence[Call], targets: Sequence[Target]) -> list[Row]:
    """Every different compilation that these calls need: launch choices differ by target, so each target is asked."""
    rows: dict[str, Row] = {}
    for target in targets:
        for call in calls:
            with watch(execute=False, target=target) as watcher:
                try:
                    call.run()
                except Exception as error:
                    where = f"{call.op}, {call.case}, {call.model}, {call.dtype}"
                    raise RuntimeError(f"{where}, for {target_name(target)}: {error}") from error
            for launch in watcher.launches:
                compilation = specialise(launch, target)
                rows.setdefault(compilation.key, Row(compilation)).calls.append(call)
    return list(rows.values())


def compile_all(compilations: Sequence[Compilation], jobs: int) -> list[Facts | str]:
    """What each uses, or why it could not be told: a compiler that aborts takes only its own process with it."""
    results: list[Facts | str] = [""] * len(compilations)
    waiting = list(reversed(range(len(compilations))))
    idle: list[Worker] = []
    busy: dict[Connection, tuple[Worker, int]] = {}
    while waiting or busy:
        while waiting and len(busy) < jobs:
            worker = idle.pop() if idle else Worker(compilations)
            number = waiting.pop()
            worker.pipe.send(number)
            busy[worker.pipe] = worker, number
        for pipe in wait(list(busy)):
            worker, number = busy.pop(pipe)
            try:
                results[number] = worker.pipe.recv()
                idle.append(worker)
            except EOFError:
                results[number] = worker.failure()
    return results


class Worker:
    """A process that compiles one thing after the other, and ends with the first that fails."""

    def __init__(self, compilations: Sequence[Compilation]) -> None:
        # A fork holds the kernels already; they could not be sent.
        context = multiprocessing.get_context("fork")
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, self.errors.fileno(), compilations), daemon=True
        )
        self.process.start()
        theirs.close()

    def failure(self) -> str:
        """Why the process ended."""
        self.process.join()
        self.errors.seek(0)
        output = self.errors.read().decode(errors="replace")
        return error_message(output) or f"its process ended with status {self.process.exitcode}"


def error_message(output: str) -> str:
    """The compiler's errors and the exception's message; the last lines where there is no exception."""
    before, traceback, after = output.rpartition("Traceback (most recent call last):\n")
    if not traceback:
        return "\n".join(output.splitlines()[-LAST_LINES:])
    errors = [line for line in before.splitlines() if "error:" in line]
    message = itertools.dropwhile(lambda line: line.startswith(" "), after.splitlines())
    return "\n".join([*errors[-LAST_LINES:], *message])


def serve(pipe: Connection, errors: int, compilations: Sequence[Compilation]) -> None:
    """The loop of a worker, which writes errors to the file `errors` and ends."""
    os.dup2(errors, sys.stderr.fileno())
    while True:
        pipe.send(compile_for(compilations[pipe.recv()]))


def allowance(spill: Spill, known: KnownSpills) -> int:
    """Bytes that a kernel may spill: what was measured with this Triton, else the most with any; 0 if not listed."""
    measured = known.get(spill, {})
    return measured.get(triton.__version__, max(measured.values(), default=0))


def judge(target: Target, facts: Facts, allowed: int = 0, *, may_wait: bool = False) -> list[str]:
    """What is wrong with a kernel that may spill `allowed` bytes and may wait for all copies, in words."""
    problems = []
    if facts.spilled > allowed:
        listed = f"; {allowed} are listed" if allowed else ""
        problems.append(f"spills {facts.spilled} bytes a thread{listed}")
    if facts.shared > target.shared_memory:
        problems.append(
            f"needs {facts.shared} bytes of shared memory; a block has {target.shared_memory}"
        )
    if facts.tensor_memory > TENSOR_MEMORY:
        problems.append(
            f"needs {facts.tensor_memory} columns of tensor memory; a block has {TENSOR_MEMORY}"
        )
    if HALVES.intersection(facts.dots):
        # HMMA, the instruction of sm_80, exists on sm_90 as well and does not reach its rate.
        wanted = "HGMMA" if target == Target("cuda", 90) else ""
        if not any(name.startswith(wanted) for name in facts.matrix_instructions):
            problems.append(f"has a half-precision tl.dot and no {wanted or 'matrix'} instruction")
    if target_name(target) in WAITS_JUDGED and not may_wait:
        problems += [
            f"prefetches nothing: a loop of {loop.instructions} instructions, {loop.matrix} on matrix units, "
            "waits for all its copies"
            for loop in facts.loops
            if not loop.prefetches
        ]
    return problems


def stale_spills(rows: Sequence[Row], known: KnownSpills) -> list[Spill]:
    """The listed spills that no longer occur, of those whose kernels are all among these rows and compile."""
    spilled: dict[Spill, int] = {}
    failed: set[Spill] = set()
    for row in rows:
        for spill in row.spills():
            if row.facts is None:
                failed.add(spill)
            else:
                spilled[spill] = max(spilled.get(spill, 0), row.facts.spilled)
    return [
        spill
        for spill in known
        if allowance(spill, known) and spilled.get(spill) == 0 and spill not in failed
    ]


def stale_waits(rows: Sequence[Row], waits: KnownWaits) -> list[Wait]:
    """The listed kernels all of whose loops, in these rows, prefetch."""
    prefetches: dict[Wait, bool] = {}
    for row in rows:
        sound = row.facts is not None and all(loop.prefetches for loop in row.facts.loops)
        for name in row.waits():
            prefetches[name] = prefetches.get(name, True) and sound
    return [name for name in waits if prefetches.get(name, False)]


def report(
    calls: Sequence[Call],
    targets: Sequence[Target],
    jobs: int,
    known: KnownSpills = KNOWN_SPILLS,
    waits: KnownWaits = KNOWN_WAITS,
) -> list[Row]:
    """Compile and judge everything that these calls launch."""
    rows = collect(calls, targets)
    results = compile_all([row.compilation for row in rows], jobs)
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, str):
            row.problems = [f"does not compile:\n{result}"]
        else:
            row.facts = result
            allowed = max(allowance(spill, known) for spill in row.spills())
            may_wait = any(wait in waits for wait in row.waits())
            row.problems = judge(row.compilation.target, result, allowed, may_wait=may_wait)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Columns aligned, ops apart; one line for all compilations of a kernel that use the same."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.op, row.kernel, row.target, *uses(row)), []).append(row)
    lines = [HEADER, *(cells(*key[1:], rows=group) for key, group in groups.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text, last = [f"  {padded[0]}"], ""
    for (op, *_), group, line in zip(groups, groups.values(), padded[1:], strict=True):
        if op != last:
            text.append(f"\n{op}")
        text.append(f"{'!' if any(row.problems for row in group) else ' '} {line}")
        last = op
    return "\n".join(text)


def uses(row: Row) -> tuple[str, ...]:
    """The table's cells that tell what was compiled and what it uses."""
    options, facts = row.compilation.options, row.facts
    launch = str(options["num_warps"]), str(options["num_stages"])
    limit = str(row.compilation.target.shared_memory)
    if facts is None:
        return *launch, "?", "?", "?", limit, "?"
    matrix = " ".join(f"{name}×{count}" for name, count in facts.matrix_instructions.items())
    return (
        *launch,
        str(facts.registers),
        str(facts.spilled),
        str(facts.shared),
        limit,
        matrix or ("none" if facts.dots else "-"),
    )


def cells(kernel: str, target: str, *used: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """One line of the table, for rows that use the same."""
    calls = [call for row in rows for call in row.calls]
    cases = in_order(f"{call.op}: {call.case}" for call in calls)
    first = calls[0].case + (f" +{len(cases) - 1}" if len(cases) > 1 else "")
    models = " ".join(sorted({call.model for call in calls}))
    dtypes = " ".join(sorted({call.dtype for call in calls}))
    return kernel, target, models, dtypes, first, str(len(rows)), *used


def main(
    arguments: Sequence[str] | None = None,
    calls: Sequence[Call] | None = None,
    known: KnownSpills = KNOWN_SPILLS,
    waits: KnownWaits = KNOWN_WAITS,
) -> int:
    """Report these calls, those of `kernel_calls` by default; returns 0 where every kernel is sound, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kernels-report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--targets", default=TARGETS, help=f"default: {TARGETS}")
    parser.add_argument("--ops", default=",".join(OPS), help=f"default: {','.join(OPS)}")
    parser.add_argument("--quick", action="store_true", help="few pairs of model and dtype")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile; default: 2")
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    parser.add_argument("--list", action="store_true", help="print the kernels' names, no more")
    parser.add_argument(
        "--combinations",
        type=int,
        metavar="N",
        help="lower the kernels of calls in which any N values of N options meet, no more",
    )
    options = parser.parse_args(arguments)
    if interpreting():
        parser.error("kernels are compiled, not interpreted: unset TRITON_INTERPRET")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {options.jobs}")
    if options.combinations is not None:
        if options.combinations < 1:
            parser.error(f"--combinations must be at least 1; got {options.combinations}")
        return show_lowered(combined_calls(options.combinations) if calls is None else calls)
    try:
        targets = [parse_target(name) for name in options.targets.split(",")]
    except ValueError as error:
        parser.error(str(error))
    wanted = set(options.ops.split(","))
    if unknown := wanted - OPS.keys():
        parser.error(f"an op is one of {', '.join(OPS)}; got {', '.join(sorted(unknown))}")
    ops = [op for op in OPS if op in wanted]
    is_whole = calls is None and wanted == OPS.keys() and not options.quick
    calls = list(standard_calls(ops, quick=options.quick)) if calls is None else calls
    if options.list:
        print("\n".join(sorted({row.kernel for row in collect(calls, targets)})))
        return 0
    rows = report(calls, targets, options.jobs, known, waits)
    status = show(rows, options.json, known, waits)
    if is_whole:
        keep(rows, RESULTS / "kernels.json")
    return status


def keep(rows: Sequence[Row], file: Path) -> None:
    """Write a line a kernel, in an order that stays; what the file says of other targets is left there."""
    targets = {row.target for row in rows}
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"kernels": {}}
    lines = {
        name: line
        for name, line in before["kernels"].items()
        if name.partition(", ")[0] not in targets
    }
    for row in rows:
        if row.facts is not None:
            for call in row.calls:
                name = f"{row.target}, {row.kernel}, {call.model}, {call.dtype}, {call.case}"
                lines[name] = one_line(row.facts)
    store(file, {"triton": triton.__version__, "kernels": dict(sorted(lines.items()))})


def one_line(facts: Facts) -> str:
    """What a kernel uses, in words."""
    parts = [
        f"{facts.registers} registers",
        f"{facts.spilled} spilled",
        f"{facts.shared} shared",
        *(f"{name}×{count}" for name, count in sorted(facts.matrix_instructions.items())),
    ]
    for loop in facts.loops:
        waits = " ".join(map(str, loop.waits)) or "none"
        parts.append(
            f"loop of {loop.instructions} ({loop.matrix} matrix, {loop.barriers} barriers, waits {waits})"
        )
    return ", ".join(parts)


def show_lowered(calls: Iterable[Call]) -> int:
    """Print which kernels of these calls cannot be lowered, and the count; the exit status."""
    count, problems = lower_all(calls)
    for problem in problems:
        print(f"{problem}\n")
    print(f"{count} kernels lowered, {len(problems)} problems")
    return int(bool(problems))


def show(
    rows: list[Row], file: Path | None, known: KnownSpills, waits: KnownWaits = KNOWN_WAITS
) -> int:
    """Print the table, what is wrong, what is listed and gone, and the count; the exit status."""
    order = {op: number for number, op in enumerate(OPS)}
    rows = sorted(rows, key=lambda row: (order.get(row.op, -1), row.kernel))
    print(table(rows))
    for row in rows:
        for problem in row.problems:
            call = row.calls[0]
            wanted = f"{call.model}, {call.dtype}, {call.case}"
            print(f"\n{row.kernel} on {row.target} ({wanted}): {problem}")
    for spill in stale_spills(rows, known):
        print(f"\nno spill any more with triton {triton.__version__}, in known_spills.py: {spill}")
    for name in stale_waits(rows, waits):
        print(f"\nall loops prefetch with triton {triton.__version__}, in known_spills.py: {name}")
    if file is not None:
        content = {"triton": triton.__version__, "kernels": [row.summary() for row in rows]}
        store(file, content)
    compiled = [row.facts for row in rows if row.facts is not None]
    missing = f" of {len(rows)}" if len(compiled) < len(rows) else ""
    spilling = [row for row in rows if row.facts is not None and row.facts.spilled > 0]
    listed = sum(any(spill in known for spill in row.spills()) for row in spilling)
    among = f", {listed} of them listed" if listed else ""
    print(f"\n{len(compiled)}{missing} kernels × targets compiled, {len(spilling)} spills{among}")
    return int(any(row.problems for row in rows))
