"""Times calls on one device: warm, interleaved, with a cold cache, and with the memory they took.

Knows variants and samples. Knows no op, no shape and no figure.

A sample is the device's time between two events around one call. Before each, a buffer far larger than the cache is
overwritten, so that nothing is warm and the host runs ahead of the device: launching costs show only where they exceed
that buffer's time. Variants of one case take turns, so that a drift of the clocks meets them all.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

try:
    from triton.errors import TritonError
except ImportError:  # Without triton its variants fail with the ImportError that says so.
    TritonError = ImportError

# What a variant that cannot run may raise; anything else is a mistake in the benchmark itself.
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
# Written before each sample: 20 times an H200's cache, a quarter of a millisecond at its bandwidth.
FLUSH_BYTES = 1 << 30
REASON_LENGTH = 300


@dataclass(frozen=True)
class Limits:
    """How long a case may take."""

    seconds: float = 1.2
    """Of samples a case, all variants together."""
    least: int = 5
    most: int = 30
    slow_seconds: float = 2.0
    """A call that takes longer gives one sample."""
    patient: bool = True
    """Whether what a figure needs, or what compiles, is repeated after a slow first call."""
    longest_seconds: float = 12.0
    """A call that is predicted to take longer is left out."""

    def rounds(self, estimates: Sequence[float]) -> int:
        """How many turns variants of these seconds a call get."""
        total = sum(estimates)
        return (
            self.most if total == 0 else max(self.least, min(self.most, int(self.seconds / total)))
        )


@dataclass(frozen=True)
class Variant:
    """One way to compute a case."""

    name: str
    run: Callable[[], Any] | None
    """None: it cannot be expressed; `reason` says why."""
    reason: str = ""
    held: tuple[Tensor, ...] = ()
    """What must be in memory before the call."""
    needs_bytes: int = 0
    """Predicted memory of the call beside `held`; 0 where there is nothing to fear."""
    essential: bool = False
    """Needed by a figure: runs however late it is."""
    compiles: bool = False
    """Its first call compiles, so a slow one says nothing."""
    share: float = 1.0
    """Of the case's work that one call does; samples are divided by it."""

    @property
    def held_bytes(self) -> int:
        """Bytes of `held`, each tensor once."""
        unique = {tensor.data_ptr(): tensor for tensor in self.held if tensor.numel()}
        return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


@dataclass
class Outcome:
    """What came of a variant."""

    status: str
    """"ok", "skipped", "out of memory" or "failed"."""
    reason: str = ""
    first_seconds: float | None = None
    """Of the first call, compilation included."""
    samples_ms: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    """Largest memory during a call beyond what was there before it."""
    held_bytes: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON-able values, with the median, the quartiles and the whole peak."""
        result = asdict(self)
        if self.samples_ms:
            result |= quartiles(self.samples_ms)
        if self.extra_bytes is not None:
            result["peak_bytes"] = self.extra_bytes + self.held_bytes
        return result


def quartiles(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of one sample or more."""
    if len(samples) == 1:
        low = middle = high = samples[0]
    else:
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"q1_ms": low, "median_ms": middle, "q3_ms": high}


class Clock:
    """The device's clock and memory; on the CPU, a stand-in that lets every line run without a GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        size = FLUSH_BYTES if self.cuda else 1 << 10
        self.buffer = torch.empty(size, dtype=torch.int8, device=device)

    def wait(self) -> None:
        """Until the device is idle."""
        if self.cuda:
            torch.cuda.synchronize()

    def sample(self, run: Callable[[], Any], *, whole: bool) -> float:
        """Milliseconds of one call: between events on the device, or with `whole` by the host until all is done."""
        self.buffer.zero_()
        if whole or not self.cuda:
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            return 1e3 * (time.perf_counter() - start)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))

    def peak(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Seconds of one call by the host's clock, and the most bytes it held at a time, its result included."""
        self.wait()
        before = 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        run()
        self.wait()
        seconds = time.perf_counter() - start
        return seconds, torch.cuda.max_memory_allocated() - before if self.cuda else 0

    def free_bytes(self) -> int:
        """Memory that a call could still have."""
        if not self.cuda:
            return 1 << 34
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached

    def forget(self) -> None:
        """Give cached memory back; after a fault of the device even that fails, and the fault is on record by then."""
        if self.cuda:
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:
                print(f"  memory could not be given back: {shorten(error)}")


class Pace:
    """When the run must end, and what earlier cases say about how long a variant will take."""

    def __init__(self, seconds: float, limits: Limits) -> None:
        self.limits = limits
        self.end = time.monotonic() + seconds
        self.known: dict[tuple[str, str], tuple[float, float]] = {}

    @property
    def late(self) -> bool:
        """Whether only what a figure needs may still start."""
        return time.monotonic() > self.end

    def predict(self, op: str, variant: str, work: float) -> float:
        """Seconds of a call in proportion to its work; 0 where nothing is known."""
        seconds, done = self.known.get((op, variant), (0.0, 1.0))
        return seconds * work / done

    def learn(self, op: str, variant: str, work: float, seconds: float) -> None:
        """Remember a call."""
        self.known[op, variant] = (seconds, work)


def shorten(error: BaseException) -> str:
    """The kind of an error and the start of its message, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_LENGTH]


def objection(variant: Variant, op: str, work: float, clock: Clock, pace: Pace) -> str | None:
    """Why a variant does not even start; None where it does."""
    if variant.run is None:
        return variant.reason
    free = clock.free_bytes()
    if variant.needs_bytes > free:
        return (
            f"needs {variant.needs_bytes / 1e9:.0f} GB by prediction, {free / 1e9:.0f} GB are free"
        )
    if variant.essential:
        return None
    if pace.late:
        return "the run's time was up"
    seconds = pace.predict(op, variant.name, work)
    if seconds > pace.limits.longest_seconds:
        return f"would take {seconds:.0f} s a call, by what a smaller case took"
    return None


def attempt(outcome: Outcome, step: Callable[[], None], clock: Clock) -> bool:
    """Run a step of a variant; False, with the reason in its outcome, where it fails."""
    try:
        step()
    except torch.OutOfMemoryError as error:
        outcome.status, outcome.reason = "out of memory", shorten(error)
    except FAILURES as error:
        outcome.status, outcome.reason = "failed", shorten(error)
    else:
        return True
    outcome.samples_ms.clear()
    clock.forget()
    return False


def measure(
    op: str, work: float, variants: Sequence[Variant], clock: Clock, pace: Pace, *, whole: bool
) -> dict[str, Outcome]:
    """Every variant's outcome.

    Args:
        op: under which name times are remembered.
        work: what a call's time is in proportion to, among the cases of `op`.
        variants: the ways to compute the case.
        clock, pace: of the run.
        whole: time by the host until the device is idle (a pipeline), not between events (an op).
    """
    outcomes: dict[str, Outcome] = {}
    ready: list[tuple[Variant, float]] = []
    for variant in variants:
        reason = objection(variant, op, work, clock, pace)
        if reason is not None:
            outcomes[variant.name] = Outcome("skipped", reason)
            continue
        outcome = outcomes[variant.name] = Outcome("ok", held_bytes=variant.held_bytes)
        seconds = first_calls(outcome, variant, clock, pace.limits)
        if seconds is not None:
            pace.learn(op, variant.name, work, seconds)
            if not outcome.samples_ms:
                ready.append((variant, seconds))
    slow = pace.limits.slow_seconds
    rounds = pace.limits.rounds([seconds for _, seconds in ready if seconds <= slow])
    for turn in range(rounds):
        for variant, seconds in ready:
            outcome = outcomes[variant.name]
            if outcome.status == "ok" and (turn == 0 or seconds <= slow):
                attempt(outcome, sampler(outcome, variant, clock, whole), clock)
    return outcomes


def first_calls(outcome: Outcome, variant: Variant, clock: Clock, limits: Limits) -> float | None:
    """Warm a variant up and measure its memory; seconds of a call, None where it failed.

    A slow first call that no figure needs and that compiled nothing is not repeated: it is the sample.
    """
    run = variant.run
    warm: list[float] = []

    def step() -> None:
        if run is None:
            return
        seconds, outcome.extra_bytes = clock.peak(run)
        outcome.first_seconds = seconds
        wanted = limits.patient and (variant.essential or variant.compiles)
        if seconds > limits.slow_seconds and not wanted:
            outcome.samples_ms.append(1e3 * seconds / variant.share)
            outcome.reason = "one cold call, timed by the host"
        else:
            seconds, outcome.extra_bytes = clock.peak(run)
        warm.append(seconds)

    return warm[0] if attempt(outcome, step, clock) and warm else None


def sampler(outcome: Outcome, variant: Variant, clock: Clock, whole: bool) -> Callable[[], None]:
    """A step that adds one sample."""

    def step() -> None:
        if variant.run is not None:
            outcome.samples_ms.append(clock.sample(variant.run, whole=whole) / variant.share)

    return step
