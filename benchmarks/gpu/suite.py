"""What is measured, in which order, and how a run becomes a document.

Knows the stages of a run. Each stage is a module that knows nothing of the others:

    checks.py     the fused ops against float64, in every dtype; nothing is timed unless all hold
    ceilings.py   what this device can do at best
    attention.py, planes.py, pipeline.py, files.py    the cases: op, shape, and each way to compute it
    counts.py     their operations, bytes and predicted memory
    timing.py     samples
    figures.py    what must be reached
"""

from __future__ import annotations

import datetime as dt
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import environment
from benchmarks.gpu.attention import attention_cases, feedback_cases
from benchmarks.gpu.case import Bench, Case
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.checks import CHECKS, Check, run_checks
from benchmarks.gpu.figures import figures
from benchmarks.gpu.inputs import Device
from benchmarks.gpu.pipeline import OP as PIPELINE
from benchmarks.gpu.pipeline import pipeline_cases
from benchmarks.gpu.planes import pamr_cases, patch_label_cases, proxy_cases, upsample_cases
from benchmarks.gpu.timing import FAILURES, Clock, Limits, Outcome, Pace, measure, shorten

SCHEMA = 1
OPS: dict[str, Callable[..., list[Case]]] = {
    "residual_attention": attention_cases,
    "semantic_feedback": feedback_cases,
    "pamr": pamr_cases,
    "patch_labels": patch_label_cases,
    "upsample_argmax": upsample_cases,
    "proxy_attention": proxy_cases,
    PIPELINE: pipeline_cases,
}
Document = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a run does."""

    dry_run: bool = False
    """Tiny shapes on the CPU, one sample each: proves that every line runs, measures nothing."""
    minutes: float = 6.5
    """After this long only what a figure needs still starts."""
    ops: tuple[str, ...] = tuple(OPS)

    @property
    def limits(self) -> Limits:
        """Of a case."""
        return (
            Limits(least=1, most=1, slow_seconds=0.1, patient=False) if self.dry_run else Limits()
        )

    @property
    def checked(self) -> list[str]:
        """Ops whose errors are judged: the pipeline needs them all."""
        return [name for name in CHECKS if name in self.ops or PIPELINE in self.ops]


class ChecksFailed(Exception):
    """An op is wrong, so nothing was timed."""


def check(settings: Settings) -> list[Check]:
    """Errors of every op; ChecksFailed where one is over its budget."""
    device = Device("cpu" if settings.dry_run else "cuda")
    with torch.no_grad():
        results = run_checks(settings.checked, device)
    failed = [f"{result.op} {result.dtype}" for result in results if result.status == "failed"]
    if failed:
        raise ChecksFailed(f"not within budget, so nothing is timed: {', '.join(failed)}")
    return results


def ordered_cases(settings: Settings) -> list[Case]:
    """All cases of a run, those that figures need first."""
    cases = [case for op in settings.ops for case in OPS[op](tiny=settings.dry_run)]
    return sorted(cases, key=lambda case: case.rank)


def run(
    settings: Settings, checks: Sequence[Check], start: float, keep: Callable[[Document], None]
) -> Document:
    """Measure everything.

    Args:
        settings: of the run.
        checks: what `check` returned.
        start: when the run began, by time.monotonic().
        keep: called with the document after every case, so that a run that is stopped leaves what it has.

    Returns:
        The whole document.
    """
    device = Device("cpu" if settings.dry_run else "cuda")
    clock = Clock(device.name)
    pace = Pace(60 * settings.minutes - (time.monotonic() - start), settings.limits)
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        bench = Bench(device, settings.dry_run, Path(scratch))
        sizes = {"side": 32, "copy_bytes": 1 << 12} if settings.dry_run else {}
        ceilings = measure_ceilings(clock, **sizes)
        document: Document = {
            "schema": SCHEMA,
            "dry_run": settings.dry_run,
            "complete": False,
            "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            "commit": environment.commit(),
            "device": environment.device_record(settings.dry_run),
            "versions": environment.versions(),
            "settings": {**asdict(settings), "limits": asdict(settings.limits)},
            "ceilings": ceilings.record(),
            "checks": [each.record() for each in checks],
            "cases": [],
            "figures": [],
            "seconds": 0.0,
        }
        for case in ordered_cases(settings):
            document["cases"].append(run_case(case, bench, clock, pace))
            document["seconds"] = time.monotonic() - start
            document["figures"] = [figure.record() for figure in figures(document)]
            keep(document)
    position = {name: number for number, name in enumerate(OPS)}
    document["cases"].sort(key=lambda case: position[case["op"]])
    document["complete"] = True
    keep(document)
    return document


def run_case(case: Case, bench: Bench, clock: Clock, pace: Pace) -> Document:
    """One case's part of the document; a line is printed."""
    start = time.monotonic()
    reason = ""
    outcomes: dict[str, Outcome] = {}
    try:
        variants = case.variants(bench)
        # A pipeline's time is in proportion to no single number, so it says nothing about another.
        key = case.name if case.whole else case.op
        outcomes = measure(key, case.flops, variants, clock, pace, whole=case.whole)
        del variants
    except FAILURES as error:
        reason = shorten(error)
    gc.collect()  # Closures over tensors in cycles would hold their memory into the next case.
    clock.forget()
    result: Document = {
        "op": case.op,
        "name": case.name,
        "shape": dict(case.shape),
        "flops": case.flops,
        "bytes": case.bytes,
        "items": case.items,
        "reason": reason,
        "variants": {name: with_rates(outcome, case) for name, outcome in outcomes.items()},
    }
    medians = ", ".join(
        f"{name} {outcome['median_ms']:.3f}"
        if "median_ms" in outcome
        else f"{name} {outcome['status']}"
        for name, outcome in result["variants"].items()
    )
    print(
        f"{case.op}, {case.name}: {reason or medians} ms [{time.monotonic() - start:.1f} s]",
        flush=True,
    )
    return result


def with_rates(outcome: Outcome, case: Case) -> Document:
    """An outcome's record with its achieved rates."""
    record = outcome.record()
    if outcome.samples_ms:
        record["tflops"] = 1e-9 * case.flops / record["median_ms"]
        record["gbps"] = 1e-6 * case.bytes / record["median_ms"]
    return record
