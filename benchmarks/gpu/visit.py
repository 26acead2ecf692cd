"""The first three minutes on a GPU: whether the kernels are right there, then the times that decide their design.

From the project's root:

    python3 -m benchmarks gpu-visit                       # about 3 minutes on an H100
    TRITON_INTERPRET=1 python3 -m benchmarks gpu-visit    # tiny shapes on the CPU: proves that every line runs

It runs without open_clip, which a machine with a GPU may lack. Each result is printed at once. A part that fails prints
a line with FAILED and stops nothing else; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from benchmarks.gpu.checks import CHECKS, run_check
from benchmarks.gpu.counts import Attention
from benchmarks.gpu.inputs import FUSED, AttentionTensors, Device
from benchmarks.gpu.prototype_base import base_branch, stored_bonus
from benchmarks.gpu.prototype_layers import Program, layers_mean
from benchmarks.gpu.timing import FAILURES, shorten
from resclip_kernels import (
    SemanticFeedback,
    feedback_matrix,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
)
from resclip_kernels.dispatch import interpreting
from resclip_kernels.ops.residual_attention import triton as attention_kernels
from resclip_kernels.ops.residual_attention.tile_configs import TileConfig

T = TypeVar("T")

TERMS: dict[str, float] = {
    "neighbourhood_std": 5.0,
    "feedback_weight": 0.6,
    "feedback_temperature": 2.1,
    "cross_weight": 0.4,
    "cross_temperature": 2.0,
}
FEEDBACK_RULES: tuple[dict[str, Any], ...] = (
    {"connectivity": None},
    {"smoothing_std": 8.0},
    {"connectivity": "component"},
    {"connectivity": "line"},
)
FLOAT16_STEP = 2.0**-11
"""Between float16 numbers from 0.5 to 1, the largest that entries of Ŝ have."""
ROUNDINGS = 4
"""Float16 steps of the largest value by which a prototype may differ: the fused op rounds its sum after each layer."""
SHAPES = (
    Attention(batch=64, heads=12, grid=(14, 14)),
    Attention(batch=1, heads=12, grid=(14, 14)),
    Attention(batch=1, heads=12, grid=(32, 32)),
    Attention(batch=1, heads=12, grid=(64, 64)),
    Attention(batch=1, heads=12, grid=(128, 128)),
)
TINY_SHAPES = (Attention(batch=1, heads=2, grid=(5, 9)),)
BONUS_BYTES = 1 << 31
"""Bytes of the largest stored bonus that is tried."""
LAYER_PROGRAMS = (
    Program(rows=128, columns=64, num_warps=8),
    Program(rows=64, columns=64, num_warps=4),
    Program(rows=128, columns=128, num_warps=8),
)
BASE_PROGRAM = Program(rows=128, columns=64, num_warps=8)
TINY_PROGRAM = Program(rows=32, columns=32, num_warps=4)


class Visit:
    """The device that a visit runs on, what it prints, and what failed."""

    def __init__(self, *, dry: bool) -> None:
        self.dry = dry
        self.device = Device("cpu" if dry else "cuda")
        self.start = time.monotonic()
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        """Print a line at once, with the seconds since the start."""
        print(f"[{time.monotonic() - self.start:6.1f} s] {text}", flush=True)

    def fail(self, name: str, reason: str) -> None:
        """Report a failure, and remember it for the exit status."""
        self.failed.append(name)
        self.say(f"FAILED {name}: {reason}")

    def attempt(self, name: str, function: Callable[[], T]) -> T | None:
        """What `function` returns; None, and a line that says why, where it fails."""
        try:
            return function()
        except FAILURES as error:
            self.fail(name, shorten(error))
            return None

    def judge(self, name: str, got: Tensor, wanted: Tensor, allowed: float) -> None:
        """Report the largest difference, which may be at most `allowed`."""
        worst = (got.double() - wanted.double()).abs().max().item()
        if worst <= allowed:
            self.say(f"check {name}: ok, worst {worst:.1e} of {allowed:.1e}")
        else:  # NaN comes here too.
            self.fail(f"check {name}", f"worst {worst:.1e}, allowed {allowed:.1e}")

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Median time of a call on the device with a cold cache; 0 in a dry run, which calls once."""
        if self.dry:
            call()
            return 0.0
        return float(triton.testing.do_bench(call, warmup=20, rep=60, return_mode="median"))

    def host_milliseconds(self, call: Callable[[], Any], count: int) -> float:
        """Mean time until the last launch of a call is queued; 0 in a dry run, which calls once."""
        call()
        if self.dry:
            return 0.0
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        queued = time.perf_counter() - start
        torch.cuda.synchronize()
        return 1e3 * queued / count

    def rate(self, name: str, flops: float, call: Callable[[], Any]) -> None:
        """Time a call and print the rate of its products."""
        taken = self.attempt(name, lambda: self.milliseconds(call))
        if taken is not None:
            rate = f"{1e-9 * flops / taken:6.0f} TFLOP/s" if taken else "(dry)"
            self.say(f"    {name:36} {taken:8.3f} ms {rate}")


@contextmanager
def program_of(config: TileConfig | None) -> Iterator[None]:
    """Within it the fused op launches programs of this shape; None: those of its own choice."""
    if config is None:
        yield
    else:
        with mock.patch.object(attention_kernels, "choose_config", return_value=config):
            yield


def checks(visit: Visit) -> None:
    """Every op in every dtype, then the rules of feedback that `CHECKS` leaves out.

    A dry run checks one op in one dtype: the benchmark's, which is the next step of a dry visit, has them all.
    """
    every = [(op, dtype) for op, (_, dtypes) in CHECKS.items() for dtype in dtypes]
    for op, dtype in [("pamr", "fp32")] if visit.dry else every:
        result = run_check(op, dtype, visit.device)
        if result.status == "failed":
            visit.fail(f"check {op} {dtype}", result.reason)
        else:
            numbers = f"worst {result.error:.1e} of {result.allowed:.1e}"
            visit.say(f"check {op} {dtype}: {result.status}, {result.reason or numbers}")
    labels = visit.device.labels(1, (4, 5)) if visit.dry else visit.device.labels(2, (9, 8))
    for rules in FEEDBACK_RULES:
        name = "semantic_feedback " + ", ".join(f"{key}={value}" for key, value in rules.items())
        visit.attempt(f"check {name}", lambda: check_rules(visit, name, labels, rules))  # noqa: B023 - called at once.


def check_rules(visit: Visit, name: str, labels: Tensor, rules: dict[str, Any]) -> None:
    """Ŝ of the kernels within one float16 step of the reference's."""
    got, wanted = (
        feedback_matrix(semantic_feedback(labels, implementation=implementation, **rules))
        for implementation in (FUSED, "reference")
    )
    visit.judge(name, got, wanted, FLOAT16_STEP)


def attention(visit: Visit, shape: Attention) -> None:
    """Plain attention, the fused op whole and by halves, and both prototypes, at one shape in float16."""
    inputs = visit.device.attention(shape, torch.float16)
    query, key, value, layers = inputs
    branch = shape.flops / (shape.layers + 1)
    visit.say(
        f"L = {shape.tokens}, batch {shape.batch}: {1e-9 * shape.flops:.0f} GFLOP in "
        f"{shape.layers + 1} branches"
    )

    def fused(config: TileConfig | None = None, **options: Any) -> Any:
        with program_of(config):
            return residual_attention(
                query, key, value, grid=shape.grid, implementation=FUSED, **options
            )

    def plain() -> None:
        for left, right in ((key, key), *layers):
            F.scaled_dot_product_attention(left, right, value)

    visit.rate("plain attention, 5 calls", 5 * branch, plain)
    batched = [torch.cat(tensors) for tensors in zip(*layers, strict=True)]
    batched.append(value.repeat(len(layers), 1, 1, 1))
    visit.rate(
        "plain attention, 4 layers in a batch",
        4 * branch,
        lambda: F.scaled_dot_product_attention(*batched),
    )

    alone: dict[str, Any] = {"cross_layers": layers, "correlation": "identity"}
    three_stages = TileConfig(heads=1, rows=128, columns=64, num_warps=8, num_stages=3)
    visit.rate("layers alone, now", 4 * branch, lambda: fused(**alone))
    visit.rate("layers alone, 3 stages", 4 * branch, lambda: fused(three_stages, **alone))
    mean = visit.attempt("layers alone", lambda: fused(**alone).cross_layer)
    if mean is None:
        return
    for program in (TINY_PROGRAM,) if visit.dry else LAYER_PROGRAMS:
        compare(
            visit,
            f"prototype layers {program.rows}x{program.columns}, {program.num_warps} warps",
            4 * branch,
            mean,
            lambda: layers_mean(layers, value, program),  # noqa: B023 - called at once.
        )

    labels = visit.device.labels(shape.batch, shape.grid)
    state = visit.attempt(
        "semantic_feedback", lambda: semantic_feedback(labels, implementation=FUSED)
    )
    if state is None:
        return
    whole: dict[str, Any] = {**TERMS, "feedback": state, "cross_layers": layers}
    base: dict[str, Any] = {**TERMS, "feedback": state, "cross_layer": mean}
    one_head = TileConfig(heads=1, rows=128, columns=32, num_warps=8, num_stages=3)
    two_heads = TileConfig(heads=2, rows=128, columns=32, num_warps=8, num_stages=3)
    visit.rate("fused, now", 5 * branch, lambda: fused(**whole))
    visit.rate("fused, 3 stages", 5 * branch, lambda: fused(two_heads, **whole))
    visit.rate("fused, 3 stages, 1 head", 5 * branch, lambda: fused(one_head, **whole))
    visit.rate("base alone, now", branch, lambda: fused(**base))
    visit.rate("base alone, 3 stages, 1 head", branch, lambda: fused(one_head, **base))
    host = visit.attempt(
        "host time", lambda: visit.host_milliseconds(lambda: fused(**whole), count=20)
    )
    if host is not None:
        visit.say(f"    host time of a fused call {host:.3f} ms")
    output = visit.attempt("fused", lambda: fused(**whole).output)
    if output is not None and 2 * shape.batch * shape.tokens**2 <= BONUS_BYTES:
        stored_base(visit, shape, inputs, state, mean, output)


def stored_base(
    visit: Visit,
    shape: Attention,
    inputs: AttentionTensors,
    state: SemanticFeedback,
    mean: Tensor,
    output: Tensor,
) -> None:
    """The prototype of the base branch against the fused op's `output`."""
    bonus = stored_bonus(feedback_matrix(state), TERMS["feedback_weight"])
    program = TINY_PROGRAM if visit.dry else BASE_PROGRAM
    compare(
        visit,
        "prototype base, stored bonus",
        shape.flops / (shape.layers + 1),
        output,
        lambda: base_branch(
            inputs.key, inputs.value, bonus, mean, program, grid=shape.grid, **TERMS
        ),
    )


def compare(
    visit: Visit, name: str, flops: float, wanted: Tensor, call: Callable[[], Tensor]
) -> None:
    """Check a prototype against the fused op, then time it."""
    got = visit.attempt(name, call)
    if got is not None:
        allowed = ROUNDINGS * torch.finfo(wanted.dtype).eps * wanted.abs().max().item()
        visit.judge(name, got, wanted, allowed)
        visit.rate(name, flops, call)


def planes(visit: Visit, batch: int, queries: int, side: int) -> None:
    """`patch_labels` and `pamr` on `batch` square images."""
    iterations = 1 if visit.dry else 10
    image = visit.device.images(batch, (side, side), torch.float32)
    logits = visit.device.logits(batch, queries, (side // 16, side // 16), torch.float32)
    masks = visit.device.normal(batch, queries, side, side)

    def label() -> Tensor:
        return patch_labels(
            logits,
            image,
            patch_size=(16, 16),
            implementation=FUSED,
            refine_iterations=iterations,
        )

    taken, host = visit.milliseconds(label), visit.host_milliseconds(label, count=5)
    visit.say(f"patch_labels {batch} × {queries} at {side}: {taken:.3f} ms, host {host:.3f} ms")
    taken = visit.milliseconds(
        lambda: pamr(image, masks, implementation=FUSED, iterations=iterations)
    )
    moved = 1e-9 * 2 * masks.nbytes * iterations
    visit.say(f"pamr {batch} × {queries} at {side}: {taken:.3f} ms, {moved:.2f} GB counted")


def proxies(visit: Visit, batch: int, side: int, grid: int) -> None:
    """`proxy_attention` from side² features to grid² values, against two plain products of its size."""
    features = visit.device.features(batch, 768, (side, side), torch.float16)
    value = visit.device.normal(batch, 12, grid**2, 64, dtype=torch.float16)
    rows = features.flatten(2).mT.contiguous()
    columns = visit.device.normal(batch, side**2, 768, dtype=torch.float16)
    taken = visit.milliseconds(
        lambda: proxy_attention(features, value, grid=(grid, grid), implementation=FUSED)
    )
    plain = visit.milliseconds(lambda: (rows @ rows.mT) @ columns)
    visit.say(f"proxy {batch} × {side}²: {taken:.3f} ms, two plain products {plain:.3f} ms")


def parts(dry: bool) -> Iterator[tuple[str, Callable[[Visit], None]]]:
    """What a visit does, what decides most first."""
    yield "checks", checks
    for shape in TINY_SHAPES if dry else SHAPES:
        name = f"attention {shape.batch} × {shape.grid[0]} × {shape.grid[1]}"
        yield name, lambda visit, shape=shape: attention(visit, shape)
    for batch, queries, side in ((1, 2, 32),) if dry else ((1, 150, 224), (16, 150, 224)):
        yield (
            f"planes {batch} × {queries} at {side}",
            lambda visit, sizes=(batch, queries, side): planes(visit, *sizes),
        )
    for batch, side, grid in ((1, 4, 3),) if dry else ((8, 42, 14), (1, 128, 14)):
        yield (
            f"proxies {batch} × {side}²",
            lambda visit, sizes=(batch, side, grid): proxies(visit, *sizes),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where everything ran and every check held, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu-visit", description=(__doc__ or "").splitlines()[0]
    )
    parser.parse_args(arguments)
    dry = interpreting()
    if not dry and not torch.cuda.is_available():
        print(
            "visit: torch finds no GPU here; run it on a machine with one, or with TRITON_INTERPRET=1",
            file=sys.stderr,
        )
        return 1
    visit = Visit(dry=dry)
    name = "the CPU, interpreted" if dry else torch.cuda.get_device_name()
    visit.say(f"torch {torch.__version__}, triton {triton.__version__} on {name}")
    with torch.no_grad():
        for part, run in parts(dry):
            visit.attempt(part, lambda: run(visit))  # noqa: B023 - called at once.
    visit.say(f"done, {len(visit.failed)} failures" if visit.failed else "done")
    return int(bool(visit.failed))


if __name__ == "__main__":
    sys.exit(main())
