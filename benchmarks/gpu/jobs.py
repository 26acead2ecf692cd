"""Programs in processes of their own, ended with all that they started when their time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reporting import ROOT

LATE = 124
"""Status of a job whose time was up, as of the program `timeout`."""


@dataclass(frozen=True)
class Job:
    """A program to run."""

    command: Sequence[str]
    output: Path | None = None
    """A file that takes what it prints; None: it prints where this process does."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside this process's own."""
    seconds: float = float("inf")
    """How long it may take."""


def run_jobs(jobs: Sequence[Job], *, at_once: int, end: float) -> list[int]:
    """Run every job, in order, some of them at once; none outlives this call.

    Args:
        jobs: to run.
        at_once: how many.
        end: when all are ended, by time.monotonic().

    Returns:
        The exit status of each; minus the number of the signal that ended it; LATE where its time was up, which may
        have been before it began.
    """
    statuses = [LATE] * len(jobs)
    waiting = list(enumerate(jobs))
    running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < at_once:
                number, job = waiting.pop(0)
                running[number] = start(job), time.monotonic() + job.seconds
            for number, (process, limit) in list(running.items()):
                status = process.poll()
                if status is not None:
                    statuses[number] = status
                elif time.monotonic() < limit:
                    continue
                kill(process)
                del running[number]
            time.sleep(0.02)
    finally:
        for process, _ in running.values():
            kill(process)
    return statuses


def start(job: Job) -> subprocess.Popen[bytes]:
    """The job's process, first of a group of its own."""
    with contextlib.ExitStack() as stack:
        output = None if job.output is None else stack.enter_context(job.output.open("wb"))
        return subprocess.Popen(
            job.command,
            cwd=ROOT,
            env={**os.environ, **job.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
