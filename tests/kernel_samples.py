"""Kernels made to be reported, sound and unsound: run as a program, it prints as JSON what the report makes of them.

A process of its own, since kernels cannot be compiled where the interpreter is on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl

from benchmarks import kernels_report
from benchmarks.cubin import specialise
from benchmarks.kernel_calls import Call
from benchmarks.kernels_matrix import compile_all
from benchmarks.known_spills import KnownSpills, KnownWaits, Spill, Wait
from resclip_kernels.launch import Launch, Options, Target, launch


@triton.jit
def plain_kernel(values, BLOCK: tl.constexpr):
    """Doubles a block."""
    at = tl.arange(0, BLOCK)
    tl.store(values + at, 2 * tl.load(values + at))


@triton.jit
def spilling_kernel(values, BLOCK: tl.constexpr):
    """A softmax that holds all of a block at once."""
    at = tl.arange(0, BLOCK)
    powers = tl.exp(tl.load(values + at))
    tl.store(values + at, powers / tl.sum(powers, 0))


@triton.jit
def product_kernel(values, steps, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """Sums products of tiles: [BLOCK_M, BLOCK_K] times its transpose."""
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    left = values + rows[:, None] * BLOCK_K + columns[None, :]
    right = values + columns[:, None] + rows[None, :] * BLOCK_K
    total = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    for step in range(steps):
        offset = step * BLOCK_M * BLOCK_K
        total = tl.dot(tl.load(left + offset), tl.load(right + offset), total)
    tl.store(values + rows[:, None] * BLOCK_M + rows[None, :], total.to(values.dtype.element_ty))


@triton.jit
def broken_kernel(values, BLOCK: tl.constexpr):
    """Uses a name that is not there."""
    tl.store(values + tl.arange(0, BLOCK), nothing_of_that_name)  # noqa: F821


@triton.jit
def factor_of(factor, IS_KNOWN: tl.constexpr):
    """Forgets what to return where the factor is not known."""
    return factor if IS_KNOWN else None


@triton.jit
def branching_kernel(values, factor, IS_KNOWN: tl.constexpr, BLOCK: tl.constexpr):
    """Sound with one constant, and not with the other."""
    at = tl.arange(0, BLOCK)
    tl.store(values + at, tl.load(values + at) * factor_of(factor, IS_KNOWN))


@triton.jit
def arguments_kernel(
    aligned, shifted, pair, round_number, one, odd, large, factor, absent, flag, BLOCK: tl.constexpr
):
    """Has an argument of every kind; is not compiled."""


def call(kernel: Any, options: Options, dtype: torch.dtype, **constants: int) -> Call:
    """A call that launches one kernel on 65,536 values."""

    def run() -> None:
        values = torch.empty(1 << 16, dtype=dtype, device="meta")
        scalars = {product_kernel: {"steps": 7}, branching_kernel: {"factor": 2.5}}
        arguments = {"values": values} | scalars.get(kernel, {})
        launch(kernel, 1, arguments, constants, options, on=values)

    return Call("samples", kernel.__name__, "none", str(dtype), run)


def outcome(
    calls: list[Call],
    *arguments: str,
    known: KnownSpills | None = None,
    waits: KnownWaits | None = None,
) -> dict[str, Any]:
    """The report's exit status and what it printed, where these spills and waits are known: none by default."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = kernels_report.main([*arguments, "--jobs", "1"], calls, known or {}, waits or {})
    return {"status": status, "output": output.getvalue()}


def listed(spilling: Call, plain: Call) -> dict[str, Any]:
    """What the report makes of a kernel that spills, and of one that does not, by what is listed of it."""
    rows = kernels_report.report([spilling, plain], [Target("cuda", 90)], 1, {})
    facts = {row.compilation.key: row.facts for row in rows}
    (spill,) = rows[0].spills()
    assert rows[0].facts is not None
    spilled = rows[0].facts.spilled
    this, other = triton.__version__, "0.1.0"
    lists: dict[str, KnownSpills] = {
        "as measured": {spill: {this: spilled, other: 4}},
        "less": {spill: {this: spilled - 1, other: spilled}},
        "another version": {spill: {other: spilled}},
        "another target": {spill._replace(target="sm_80"): {this: spilled}},
        "no spill": {Spill("plain_kernel", "plain_kernel", *spill[2:]): {this: 8}},
        "no spill, as listed": {
            Spill("plain_kernel", "plain_kernel", *spill[2:]): {this: 0, other: 8}
        },
    }
    outcomes: dict[str, Any] = {"spilled": spilled}
    # Compiled once: what differs is the list.
    compiled = mock.patch.object(
        kernels_report,
        "compile_all",
        lambda compilations, _: [facts[one.key] for one in compilations],
    )
    with compiled:
        for name, known in lists.items():
            calls = [plain if name.startswith("no spill") else spilling]
            outcomes[name] = outcome(calls, "--targets", "sm_90", known=known)
    return outcomes


def specialised() -> dict[str, Any]:
    """What arguments of every kind become."""
    values = torch.empty(64, dtype=torch.float16, device="meta")
    arguments = {
        "aligned": values,
        "shifted": values.float()[1:],
        "pair": (values.bfloat16(), values[8:].long()[2:]),
        "round_number": 48,
        "one": 1,
        "odd": 49,
        "large": 1 << 40,
        "factor": 1.0,
        "absent": None,
        "flag": True,
    }
    collected = Launch(arguments_kernel, 1, arguments, {"BLOCK": 32}, Options(num_warps=8))
    compilation = specialise(collected, Target("cuda", 90))
    names = [*arguments, "BLOCK"]

    def by_name(found: Any) -> dict[str, Any]:
        return {".".join([names[at], *map(str, rest)]): value for (at, *rest), value in found}

    return {
        "signature": compilation.signature,
        "constants": by_name(compilation.constants.items()),
        "divisible": sorted(by_name((k, v) for k, v in compilation.attributes.items() if v)),
        "warps": compilation.options["num_warps"],
    }


def main() -> None:
    half, single = torch.float16, torch.float32
    quick = Options(num_warps=4, num_stages=3)
    plain = call(plain_kernel, quick, single, BLOCK=1024)
    tiles = call(product_kernel, quick, half, BLOCK_M=64, BLOCK_K=64)
    waiting = call(product_kernel, replace(quick, num_stages=2), half, BLOCK_M=64, BLOCK_K=64)
    listed_waits = {Wait("product_kernel", str(half), "sm_90"): "a reason"}
    spilling = call(spilling_kernel, Options(num_warps=1), single, BLOCK=8192)
    deep = call(product_kernel, Options(num_warps=4, num_stages=9), half, BLOCK_M=64, BLOCK_K=128)
    narrow = call(product_kernel, quick, half, BLOCK_M=16, BLOCK_K=64)
    broken = call(broken_kernel, quick, single, BLOCK=1024)
    branches = [
        call(branching_kernel, quick, single, IS_KNOWN=known, BLOCK=64)
        for known in (True, True, False)
    ]
    raising = Call("samples", "raising", "none", "none", lambda: torch.empty(-1))
    sm_90 = ("--targets", "sm_90")
    results = {
        "names": outcome([tiles, plain, plain], *sm_90, "--list"),
        "sound": outcome([plain, plain, tiles], "--targets", "sm_80,sm_90,gfx942"),
        "waiting": outcome([waiting, plain], "--targets", "sm_80,sm_90", waits=listed_waits),
        "waiting no more": outcome([tiles, plain], *sm_90, waits=listed_waits),
        "spilling": outcome([plain, spilling], *sm_90),
        "deep": outcome([deep], *sm_90),
        "narrow": outcome([narrow], *sm_90),
        "broken": outcome([broken, plain], *sm_90),
        "branches": outcome([*branches[:2], tiles], "--combinations", "2"),
        "wrong branches": outcome([*branches, raising, plain], "--combinations", "2"),
        "listed": listed(spilling, plain),
        "specialised": specialised(),
    }
    results["matrix"] = asdict(compile_all([plain, tiles, broken, spilling, plain], "sm_90"))
    # Last: a compiler whose process ends without a word.
    kernels_report.compile_for = lambda compilation: os._exit(7)
    results["crash"] = outcome([plain], *sm_90)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
