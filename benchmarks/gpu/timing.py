"""Times the ways to compute a case, which take turns on one device, and measures the memory that each takes.

In a turn, `triton.testing.do_bench` calls a kernel many times with a cold cache and gives the median of the device's
times. What a CUDA graph can hold is replayed from one, so that short kernels are not timed by how fast Python queues
them; that time is measured apart. A slow call, or a whole pipeline, is timed once a turn by the host until the device
is idle. A drift of the clocks meets all variants of a case alike, because they take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

try:
    from triton.errors import TritonError
except ImportError:  # Without triton its variants fail with the ImportError that says so.
    TritonError = ImportError

FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    ImportError,
    AssertionError,
    OSError,
    subprocess.SubprocessError,
    TritonError,
)
"""What a variant that cannot run may raise; anything else is a mistake in the benchmark itself."""
LATE = "the run's time was up"
REASON_LENGTH = 300
"""Characters of an error's message that a report shows."""


class Tier(IntEnum):
    """How much the time of a variant is worth, and so when it is measured."""

    FIGURE = 0
    """A figure to reach needs it."""
    RIVAL = 1
    """What one would use instead, or what part of the work a figure's time goes into."""
    REST = 2


@dataclass(frozen=True)
class Limits:
    """How long a case may take."""

    turns: int = 5
    turn_ms: float = 20.0
    """Milliseconds of timed calls in one turn of a variant."""
    host_seconds: float = 0.02
    """A call that takes longer is timed by the host: launches hardly count, and do_bench would make eight calls."""
    slow_seconds: float = 2.0
    """A call that takes longer gives one sample."""
    longest_seconds: float = 12.0
    """A call that is predicted to take longer is left out."""
    patient: bool = True
    """Whether what a figure needs, or what compiles, is repeated after a slow first call."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a case."""

    name: str
    run: Callable[[], Any] | None
    """None where the case cannot be expressed; `reason` says why."""
    reason: str = ""
    held: tuple[Tensor, ...] = ()
    """Tensors that must be in memory before the call."""
    needs_bytes: int = 0
    """Predicted memory of the call beside `held`; 0 where it certainly fits."""
    tier: Tier = Tier.REST
    compiles: bool = False
    """Whether its first call compiles, so that a slow one says nothing."""
    captured: bool = False
    """Whether a CUDA graph can hold it."""
    setup: Callable[[], Variant] | None = None
    """Makes the variant that this one stands for, when its turn comes: some inputs are large."""
    share: float = 1.0
    """Part of the case's work that one call does; samples are divided by it."""

    @property
    def held_bytes(self) -> int:
        """Bytes of `held`, each tensor once."""
        unique = {tensor.data_ptr(): tensor for tensor in self.held if tensor.numel()}
        return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


@dataclass
class Outcome:
    """What came of a variant."""

    status: str = "ok"
    """"ok", "skipped", "out of memory" or "failed"."""
    reason: str = ""
    first_seconds: float | None = None
    """Seconds of the first call, compilation included."""
    queue_ms: float | None = None
    """Milliseconds until the host has queued a call; None where it was not measured."""
    from_graph: bool = False
    """Whether a CUDA graph was replayed."""
    samples_ms: list[float] = field(default_factory=list)
    """One a turn."""
    extra_bytes: int | None = None
    """Largest memory during a call beyond what was there before it."""
    held_bytes: int = 0

    def record(self) -> dict[str, Any]:
        """As values that JSON can hold, with the median, the quartiles and the whole peak."""
        result = asdict(self)
        if self.samples_ms:
            result |= quartiles(self.samples_ms)
        if self.extra_bytes is not None:
            result["peak_bytes"] = self.extra_bytes + self.held_bytes
        return result


def quartiles(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of one sample or more."""
    many = samples if len(samples) > 1 else [*samples, *samples]
    low, middle, high = statistics.quantiles(many, n=4, method="inclusive")
    return {"q1_ms": low, "median_ms": middle, "q3_ms": high}


class Clock:
    """The device's clock and memory; on the CPU, a stand-in that lets every line run without a GPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.cuda = device == "cuda"

    def wait(self) -> None:
        """Until the device is idle."""
        if self.cuda:
            torch.cuda.synchronize()

    def kernel_ms(self, run: Callable[[], Any], milliseconds: float) -> float:
        """Median time of a call on the device with a cold cache, over about this long."""
        if not self.cuda:
            return self.host_ms(run)
        from triton.testing import do_bench

        return float(do_bench(run, warmup=5, rep=milliseconds, return_mode="median"))

    def host_ms(self, run: Callable[[], Any]) -> float:
        """Time of one call by the host, until the device is idle."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def queue_ms(self, run: Callable[[], Any], count: int = 5) -> float:
        """Mean time until the host has queued a call; on the CPU, that of a call."""
        self.wait()
        start = time.perf_counter()
        for _ in range(count if self.cuda else 1):
            run()
        queued = time.perf_counter() - start
        self.wait()
        return 1e3 * queued / (count if self.cuda else 1)

    def replayed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """A call captured in a CUDA graph, to be replayed; on the CPU, the call itself.

        It must have run before, since what is compiled or copied from the host at a first call cannot be captured.
        """
        if not self.cuda:
            return run
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def is_alive(self) -> bool:
        """Whether the device still answers: after an illegal access it does nothing more for this process."""
        try:
            self.wait()
        except RuntimeError:
            return False
        return True

    def peak(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Seconds of one call by the host, and the most bytes it held at a time, its result included."""
        before = 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        seconds = 1e-3 * self.host_ms(run)
        return seconds, torch.cuda.max_memory_allocated() - before if self.cuda else 0

    def free_bytes(self) -> int:
        """Memory that a call could still have."""
        if not self.cuda:
            return 1 << 34
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached

    def release(self) -> None:
        """Give cached memory back; after a fault of the device even that fails, and the fault is on record by then."""
        if self.cuda:
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:
                print(f"  memory could not be given back: {shorten(error)}")


class Pace:
    """When nothing starts any more, by time.monotonic(), and what earlier cases say about how long a variant takes."""

    def __init__(self, end: float, limits: Limits) -> None:
        self.limits = limits
        self.end = end
        self.seconds_by_work: dict[tuple[str, str], float] = {}

    def is_over(self) -> bool:
        """Whether nothing starts any more."""
        return time.monotonic() > self.end

    def objection(self, variant: Variant, op: str, work: float, free: int) -> str:
        """Why a variant does not even start with this much memory free; "" where it does."""
        if variant.run is None:
            return variant.reason
        if variant.needs_bytes > free:
            needed = f"needs {variant.needs_bytes / 1e9:.0f} GB by prediction"
            return f"{needed}, {free / 1e9:.0f} GB are free"
        if self.is_over():
            return LATE
        seconds = work * self.seconds_by_work.get((op, variant.name), 0.0)
        if seconds > self.limits.longest_seconds:
            return f"would take {seconds:.0f} s a call, by what a smaller case took"
        return ""


def shorten(error: BaseException) -> str:
    """The kind of an error and the start of its message, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_LENGTH]


def attempt(
    outcome: Outcome, clock: Clock, step: Callable[..., float], *arguments: Any
) -> float | None:
    """What a step returns; None, with the reason in the outcome of its variant, where it fails."""
    try:
        return step(*arguments)
    except torch.OutOfMemoryError as error:
        outcome.status, outcome.reason = "out of memory", shorten(error)
    except FAILURES as error:
        outcome.status, outcome.reason = "failed", shorten(error)
    outcome.samples_ms.clear()
    clock.release()
    return None


def measure(
    op: str, work: float, variants: Sequence[Variant], clock: Clock, pace: Pace, *, whole: bool
) -> dict[str, Outcome]:
    """Every variant's outcome.

    Args:
        op: under which name times are remembered.
        work: what a call's time is in proportion to, among the cases of `op`; above 0.
        variants: the ways to compute the case.
        clock, pace: of the run.
        whole: time by the host (a pipeline, whose launches are part of it), not on the device (an op).
    """
    limits = pace.limits
    outcomes = {variant.name: Outcome() for variant in variants}
    ready: list[tuple[Variant, Callable[[], Any], float]] = []
    for variant in variants:
        outcome = outcomes[variant.name]
        reason = pace.objection(variant, op, work, clock.free_bytes())
        if reason or variant.run is None:
            outcome.status, outcome.reason = "skipped", reason
            continue
        outcome.held_bytes = variant.held_bytes
        seconds = attempt(outcome, clock, first_calls, outcome, variant, clock, limits)
        if seconds is not None:
            pace.seconds_by_work[op, variant.name] = seconds / work
            if not outcome.samples_ms:
                by_host = whole or seconds > limits.host_seconds
                run = variant.run if by_host else replay(outcome, variant, variant.run, clock)
                ready.append((variant, run, seconds))
    for turn in range(limits.turns):
        for variant, run, seconds in ready:
            outcome = outcomes[variant.name]
            if outcome.status != "ok" or (turn and seconds > limits.slow_seconds):
                continue
            if whole or seconds > limits.host_seconds:
                taken = attempt(outcome, clock, clock.host_ms, run)
            else:
                taken = attempt(outcome, clock, clock.kernel_ms, run, limits.turn_ms)
            if taken is not None:
                outcome.samples_ms.append(taken / variant.share)
    return outcomes


def replay(
    outcome: Outcome, variant: Variant, run: Callable[[], Any], clock: Clock
) -> Callable[[], Any]:
    """What is timed on the device: a graph of the call where there can be one, whose queueing is then timed apart."""
    if not variant.captured:
        return run
    try:
        outcome.queue_ms = clock.queue_ms(run)
        replayed = clock.replayed(run)
    except FAILURES as error:
        outcome.reason = f"in no CUDA graph: {shorten(error)}"
        return run
    outcome.from_graph = True
    return replayed


def first_calls(outcome: Outcome, variant: Variant, clock: Clock, limits: Limits) -> float:
    """Warm a variant up and measure its memory; returns the seconds of a call.

    A slow first call that no figure needs and that compiled nothing is not repeated: it is the sample.
    """
    run = variant.run
    if run is None:
        raise ValueError(f"{variant.name}: expected something to call, got none")
    seconds, outcome.extra_bytes = clock.peak(run)
    outcome.first_seconds = seconds
    repeated = limits.patient and (variant.tier == Tier.FIGURE or variant.compiles)
    if seconds > limits.slow_seconds and not repeated:
        outcome.samples_ms.append(1e3 * seconds / variant.share)
        outcome.reason = "one cold call, timed by the host"
    else:
        seconds, outcome.extra_bytes = clock.peak(run)
    return seconds
