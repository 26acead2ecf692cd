"""A run of the GPU benchmark: checks, ceilings and cases in their order, and the document that they become.

checks.py     the fused ops against float64, in every dtype; nothing is timed unless all hold
attention.py, planes.py, pipeline.py    the cases: op, shape, and each way to compute it
counts.py     their operations, bytes and predicted memory
timing.py     samples
figures.py    what must be reached
"""

from __future__ import annotations

import datetime as dt
import gc
import importlib.metadata
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import resclip
from benchmarks.gpu.attention import attention_cases, feedback_cases
from benchmarks.gpu.case import Bench, Case
from benchmarks.gpu.checks import CHECKS, Check, run_checks
from benchmarks.gpu.figures import figures
from benchmarks.gpu.inputs import Device
from benchmarks.gpu.pipeline import OP as PIPELINE
from benchmarks.gpu.pipeline import pipeline_cases
from benchmarks.gpu.planes import pamr_cases, patch_label_cases, proxy_cases, upsample_cases
from benchmarks.gpu.timing import FAILURES, Clock, Limits, Outcome, Pace, measure, shorten
from benchmarks.reporting import ROOT, Document

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
        """How long a case may take."""
        return Limits(turns=1, slow_seconds=0.1, patient=False) if self.dry_run else Limits()

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
        document: Document = {
            "schema": SCHEMA,
            "dry_run": settings.dry_run,
            "complete": False,
            "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "device": device_record(settings.dry_run),
            "versions": versions(),
            "settings": {**asdict(settings), "limits": asdict(settings.limits)},
            "ceilings": ceilings(clock),
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
    """Measure one case, print a line and return its part of the document."""
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
    clock.release()
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


def ceilings(clock: Clock) -> dict[str, float]:
    """What this device can do at best: TFLOP/s of large products, and GB/s of a copy, read and written.

    The matrices are random, since zeros run faster than real data; the copy is far larger than any cache.
    """
    side, copy_bytes = (8192, 4 << 30) if clock.cuda else (32, 1 << 12)
    rates = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
        taken = clock.kernel_ms(partial(torch.mm, left, right, out=torch.empty_like(left)), 100)
        rates[f"{name}_tflops"] = 2e-9 * side**3 / taken
    source = torch.ones(copy_bytes, dtype=torch.int8, device=clock.device)
    taken = clock.kernel_ms(partial(torch.empty_like(source).copy_, source), 100)
    return {**rates, "copy_gbps": 2e-6 * copy_bytes / taken}


def device_record(dry_run: bool) -> Document:
    """Name, driver and size of the device."""
    if dry_run:
        return {"name": "interpreter", "driver": "none", "memory_bytes": 0, "capability": ""}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "name": properties.name,
        "driver": output_of(query).split("\n", maxsplit=1)[0],
        "memory_bytes": properties.total_memory,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "multiprocessors": properties.multi_processor_count,
    }


def versions() -> dict[str, str]:
    """The version of everything that a time depends on."""
    found = {"resclip": resclip.__version__, "python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "open_clip_torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    found["cuda"] = torch.version.cuda or torch.version.hip or "none"
    return found


def commit() -> str:
    """The commit, with a plus sign where files were changed since."""
    name = output_of(["git", "rev-parse", "--short=12", "HEAD"])
    changed = output_of(["git", "status", "--porcelain", "-uno"]) not in ("", "unknown")
    return name + "+" * (changed and name != "unknown")


def output_of(command: list[str]) -> str:
    """The output of a command; "unknown" where it cannot run."""
    try:
        finished = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return finished.stdout.strip()
