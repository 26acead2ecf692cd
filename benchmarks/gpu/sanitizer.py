"""`python -m benchmarks check-gpu`: the ops' checks under compute-sanitizer, memcheck and then racecheck, on one GPU.

memcheck finds accesses outside of any allocation, racecheck threads of a block that meet in shared memory without a
barrier. Each op is a process of its own, so that one which hangs or crashes says so and hides no other.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import jobs

TOOLS = ("memcheck", "racecheck")
PROGRAM = "compute-sanitizer"
FOUND = 86
"""Exit status that the sanitizer is told to end with where it finds an error."""
AT_ONCE = 4
JOB_SECONDS = 100.0
SUMMARY = re.compile(
    r"^=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", re.MULTILINE
)
SHOWN_LINES = 12
"""Lines of a failed check's output that are shown."""


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer: on PATH, or where CUDA's toolkit puts it."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        folder = os.environ.get(variable)
        if folder and (found := shutil.which(PROGRAM, path=str(Path(folder) / "bin"))):
            return found
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/local/cuda/bin")


def verdict(output: str, status: int) -> str:
    """Why a check under the sanitizer does not count as clean; "" where it does."""
    if status == jobs.LATE:
        return "its time was up"
    summaries = [int(first or second) for first, second in SUMMARY.findall(output)]
    if not summaries:
        return f"no summary of the sanitizer's; status {status}"
    if any(summaries):
        return f"{sum(summaries)} found; status {status}"
    return "" if status == 0 else f"no error of the sanitizer's, but status {status}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every check is clean under every tool, else 1."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks check-gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="for all of it [4]")
    parser.add_argument("--only", help="ops to check, with commas [all]")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="on the CPU, interpreted: proves that every step runs",
    )
    options = parser.parse_args(arguments)
    if options.dry_run:
        # Read by Triton when the first kernel is defined.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from benchmarks.gpu.checks import CHECKS

    ops = options.only.split(",") if options.only else list(CHECKS)
    for op in ops:
        if op not in CHECKS:
            return refuse(f"no op {op!r}; use some of {','.join(CHECKS)}")
    if not options.dry_run and not torch.cuda.is_available():
        return refuse("torch finds no GPU here; run it on a machine with one, or pass --dry-run")
    sanitizer = find_sanitizer()
    if sanitizer is None:
        return refuse(
            "compute-sanitizer is not installed; it is part of NVIDIA's CUDA toolkit: put it on PATH, or set CUDA_HOME"
        )
    end = start + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as scratch:
        return check(sanitizer, ops, Path(scratch), end)


def refuse(reason: str) -> int:
    """Say in one line why nothing is checked; the exit status."""
    print(f"check-gpu: {reason}", file=sys.stderr)
    return 1


def check(sanitizer: str, ops: Sequence[str], scratch: Path, end: float) -> int:
    """Every op under every tool; prints a line each, and what was found. The exit status."""
    names = [(tool, op) for tool in TOOLS for op in ops]
    runs = [
        jobs.Job(
            [
                *(sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)),
                # A graph's memory comes from the caching allocator, which would hide what lies next to a tensor.
                *(sys.executable, "-m", "benchmarks.gpu.checks", "--no-graphs", op),
            ],
            scratch / f"{tool}-{op}.txt",
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            JOB_SECONDS,
        )
        for tool, op in names
    ]
    statuses = jobs.run_jobs(runs, at_once=AT_ONCE, end=end)
    failed = 0
    for (tool, op), run, status in zip(names, runs, statuses, strict=True):
        path = run.output
        output = path.read_text(errors="replace") if path is not None and path.exists() else ""
        reason = verdict(output, status)
        print(f"{'FAILED' if reason else 'clean '} {tool} {op}{': ' if reason else ''}{reason}")
        if reason:
            failed += 1
            print("\n".join(f"    {line}" for line in telling_lines(output)))
    print(f"{len(names) - failed} of {len(names)} are clean", flush=True)
    return int(failed > 0)


def telling_lines(output: str) -> list[str]:
    """The first lines of the sanitizer's own, which name the access; else the last of all."""
    lines = output.splitlines()
    own = [line for line in lines if line.startswith("=========")]
    return own[:SHOWN_LINES] or lines[-SHOWN_LINES:]


if __name__ == "__main__":
    sys.exit(main())
