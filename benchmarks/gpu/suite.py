"""What a run of the GPU benchmark does, step by step, and the document that it becomes.

checks.py, graphs.py      the ops against float64, in every dtype, and in CUDA graphs; what is wrong is not timed
attention.py, planes.py, pipeline.py    the cases: op, shape, and each way to compute it
counts.py                 their operations, bytes and predicted memory
timing.py                 samples
first_use.py              what the comparison at an op's first use takes
tuning.py                 programs for the launch table
figures.py, compare.py    what must be reached, and whether it was better before

`python -m benchmarks.gpu.suite DOCUMENT END SCRATCH` works off the steps that a stored document has not had yet. It is
a process of its own, so that one which ends it, or the use that it can make of its device, costs that step alone.
"""

from __future__ import annotations

import datetime as dt
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

import resclip
from benchmarks.gpu import jobs
from benchmarks.gpu.attention import FIGURE_GRIDS, TINY_GRIDS, attention_cases, feedback_cases
from benchmarks.gpu.case import LIBRARY, Bench, Case, missing, ready
from benchmarks.gpu.checks import CHECKS, GRAPH, Check, planned
from benchmarks.gpu.figures import figures
from benchmarks.gpu.inputs import FUSED, Device
from benchmarks.gpu.pipeline import NEEDS as PIPELINE_NEEDS
from benchmarks.gpu.pipeline import OP as PIPELINE
from benchmarks.gpu.pipeline import pipeline_cases
from benchmarks.gpu.planes import (
    aggregation_cases,
    pamr_cases,
    patch_label_cases,
    propagation_cases,
    proxy_cases,
    upsample_cases,
)
from benchmarks.gpu.timing import (
    FAILURES,
    LATE,
    Clock,
    Limits,
    Outcome,
    Pace,
    Tier,
    Variant,
    measure,
    shorten,
)
from benchmarks.reporting import ROOT, Document, store

SCHEMA = 2
OPS: dict[str, Callable[..., list[Case]]] = {
    "residual_attention": attention_cases,
    PIPELINE: pipeline_cases,
    "pamr": pamr_cases,
    "patch_labels": patch_label_cases,
    "proxy_attention": proxy_cases,
    "upsample_argmax": upsample_cases,
    "semantic_feedback": feedback_cases,
    "similarity_aggregation": aggregation_cases,
    "laplacian_propagation": propagation_cases,
}
"""In the order of their worth."""
ENDED = "the process ended in this step"
NEEDS_NO_KERNEL = ("torch", "reference", "compiled", "flash", "cudnn", "efficient", "flex")
CHECK_SECONDS = 120.0
LAST_SECONDS = 30.0
"""Between the moment from which nothing starts and the one at which all is ended."""


@dataclass(frozen=True)
class Settings:
    """What a run does."""

    dry_run: bool = False
    """Tiny shapes on the CPU, one sample each: proves that every line runs, measures nothing."""
    minutes: float = 6.0
    """For all of it."""
    ops: tuple[str, ...] = tuple(OPS)
    tune: bool = False
    """Whether programs for the launch table are tried."""

    @property
    def limits(self) -> Limits:
        """How long a case may take."""
        return Limits(turns=1, slow_seconds=0.1, patient=False) if self.dry_run else Limits()

    @property
    def checked(self) -> list[str]:
        """Ops whose errors are judged: those that are measured, alone or in the pipeline."""
        return [
            name
            for name in CHECKS
            if name in self.ops or (PIPELINE in self.ops and name in PIPELINE_NEEDS)
        ]


def check(settings: Settings, scratch: Path, end: float) -> list[Document]:
    """The records of all checks, each op's in a process of its own; in a dry run one process has them all."""
    groups = [settings.checked] if settings.dry_run else [[op] for op in settings.checked]
    paths = [scratch / f"checks-{number}.json" for number in range(len(groups))]
    command = [sys.executable, "-m", "benchmarks.gpu.checks", "--json"]
    runs = [
        jobs.Job([*command, str(path), *ops], seconds=CHECK_SECONDS)
        for path, ops in zip(paths, groups, strict=True)
    ]
    statuses = jobs.run_jobs(runs, at_once=max(1, len(os.sched_getaffinity(0)) // 2), end=end)
    records: list[Document] = []
    for path, ops, status in zip(paths, groups, statuses, strict=True):
        found = json.loads(path.read_text())["checks"] if path.exists() else []
        due = [(op, *each) for op in ops for each in planned(op)]
        records += found
        for number, (op, dtype, way) in enumerate(due[len(found) :]):
            reason = f"{ENDED}, with status {status}" if not number else "the process had ended"
            records.append(
                Check(op, dtype, way, "skipped" if number else "failed", reason).record()
            )
    return records


def new_document(settings: Settings) -> Document:
    """A run's document before its first step."""
    return {
        "schema": SCHEMA,
        "dry_run": settings.dry_run,
        "complete": False,
        "stopped": "",
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": device_record(settings.dry_run),
        "versions": versions(),
        "settings": {**asdict(settings), "limits": asdict(settings.limits)},
        "checks": [],
        "steps": {},
        "ceilings": {},
        "cases": [],
        "first_use": {},
        "tuning": [],
        "figures": [],
        "seconds": 0.0,
    }


class Run:
    """The steps of a document, and what they share."""

    def __init__(self, path: Path, end: float, scratch: Path) -> None:
        self.path, self.scratch = path, scratch
        self.document: Document = json.loads(path.read_text())
        known = {key: value for key, value in self.document["settings"].items() if key != "limits"}
        self.settings = Settings(**{**known, "ops": tuple(known["ops"])})
        device = Device("cpu" if self.settings.dry_run else "cuda")
        self.clock = Clock(device.name)
        self.pace = Pace(end, self.settings.limits)
        self.bench = Bench(device, self.settings.dry_run, scratch)

    def keep(self) -> None:
        """Store what there is."""
        store(self.path, self.document)

    def steps(self) -> dict[str, Callable[[], None]]:
        """All steps by name, in the order of their worth."""
        position = {op: number for number, op in enumerate(OPS)}
        cases = [case for op in self.settings.ops for case in OPS[op](tiny=self.settings.dry_run)]

        def timed(*tiers: Tier) -> dict[str, Callable[[], None]]:
            chosen = [(case, tier) for case in cases for tier in tiers if tier in case.tiers]
            # An op's figures, then its rivals.
            chosen.sort(key=lambda each: (each[0].rank, position[each[0].op], each[1]))
            return {
                f"{case.op}, {case.name}, {tier.name.lower()}": partial(
                    self.measure_case, case, tier
                )
                for case, tier in chosen
            }

        return {
            "ceilings": self.measure_ceilings,
            **timed(Tier.FIGURE, Tier.RIVAL),
            "first use": self.measure_first_use,
            **self.tuning_steps(),
            **timed(Tier.REST),
        }

    def work(self) -> bool:
        """Take every step that was not taken; False where the device was lost, and another process must go on."""
        taken = self.document["steps"]
        for name, step in self.steps().items():
            if name in taken:
                continue
            if self.pace.is_over():
                taken[name] = LATE
                continue
            taken[name] = ENDED
            self.keep()
            start = time.monotonic()
            try:
                step()
                taken[name] = "ok"
            except FAILURES as error:
                taken[name] = shorten(error)
            print(f"[{time.monotonic() - start:.1f} s] {name}: {taken[name]}", flush=True)
            self.document["figures"] = [figure.record() for figure in figures(self.document)]
            self.keep()
            # Closures over tensors in cycles would hold their memory into the next step.
            gc.collect()
            self.clock.release()
            if not self.clock.is_alive():
                return False
        self.document["complete"] = all(status == "ok" for status in taken.values())
        self.keep()
        return True

    def measure_ceilings(self) -> None:
        """What the device can do at best."""
        self.document["ceilings"] = ceilings(self.clock)

    def measure_first_use(self) -> None:
        """The comparison of every op with an empty cache; of one op in a dry run."""
        path = self.scratch / "first_use.json"
        ops = ["upsample_argmax"] if self.settings.dry_run else list(CHECKS)
        command = [sys.executable, "-m", "benchmarks.gpu.first_use", str(path), *ops]
        empty = {"TRITON_CACHE_DIR": str(self.scratch / "empty")}
        jobs.run_jobs([jobs.Job(command, environment=empty)], at_once=1, end=self.pace.end)
        self.document["first_use"] = json.loads(path.read_text())

    def tuning_steps(self) -> dict[str, Callable[[], None]]:
        """One for each length of the figures; the time left is shared among them and all that comes after."""
        if not self.settings.tune:
            return {}
        # Imported here: only who tunes needs the launch table as it is.
        from benchmarks.gpu.tuning import Place, tune

        grids = TINY_GRIDS[:1] if self.settings.dry_run else FIGURE_GRIDS

        def step(place: Place, left: int) -> None:
            seconds = max(0.0, self.pace.end - time.monotonic()) / (left + 1)
            tune(place, self.clock, seconds, self.document["tuning"], self.keep)

        places = [Place(batch, grid, self.settings.dry_run) for batch, grid in grids]
        return {
            f"tuning, {place.name}": partial(step, place, len(places) - number)
            for number, place in enumerate(places)
        }

    def measure_case(self, case: Case, tier: Tier) -> None:
        """Measure a case's variants of one tier into its record."""
        made = [each for each in case.variants(self.bench) if each.tier == tier]
        variants = [
            missing(each.name, fault) if fault else self.as_checked(ready(each), case)
            for each in made
            for fault in [self.fault(each, case)]
        ]
        # A pipeline's time is in proportion to no single number, so it says nothing about another.
        key = case.name if case.whole else case.op
        outcomes = measure(key, case.flops, variants, self.clock, self.pace, whole=case.whole)
        found = {name: with_rates(outcome, case) for name, outcome in outcomes.items()}
        self.record_of(case)["variants"] |= found
        medians = ", ".join(
            f"{name} {outcome['median_ms']:.3f} ms"
            if "median_ms" in outcome
            else f"{name} {outcome['status']}"
            for name, outcome in found.items()
        )
        print(f"{case.op}, {case.name}: {medians}", flush=True)

    def record_of(self, case: Case) -> Document:
        """The case's part of the document."""
        for record in self.document["cases"]:
            if (record["op"], record["name"]) == (case.op, case.name):
                found: Document = record
                return found
        made: Document = {
            "op": case.op,
            "name": case.name,
            "shape": dict(case.shape),
            "flops": case.flops,
            "bytes": case.bytes,
            "items": case.items,
            "variants": {},
        }
        self.document["cases"].append(made)
        return made

    def fault(self, variant: Variant, case: Case) -> str:
        """Why a variant is not timed: its op, in one of the case's dtypes, was wrong; "" where it was right."""
        if variant.name in NEEDS_NO_KERNEL:
            return ""
        way = LIBRARY if variant.name == LIBRARY else FUSED
        wrong = [
            f"{each['op']} {each['dtype']}"
            for each in self.document["checks"]
            if each["status"] == "failed"
            and each["op"] in (case.needs or (case.op,))
            and each["dtype"] in case.dtypes
            and each["way"] == way
        ]
        return f"not within budget, so it is not timed: {', '.join(wrong)}" if wrong else ""

    def as_checked(self, variant: Variant, case: Case) -> Variant:
        """The variant, captured in no graph if its op failed that check: a capture that fails may cost the process."""
        failed = any(
            each["status"] != "ok" and (each["op"], each["way"]) == (case.op, GRAPH)
            for each in self.document["checks"]
        )
        is_ours = variant.name not in (*NEEDS_NO_KERNEL, LIBRARY)
        return replace(variant, captured=False) if failed and is_ours else variant


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 where every step was taken, else 1."""
    path, end, scratch = arguments
    with torch.no_grad():
        return int(not Run(Path(path), float(end), Path(scratch)).work())


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
