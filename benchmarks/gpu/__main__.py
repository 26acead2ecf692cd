"""`python -m benchmarks gpu`: check, measure, and write one JSON, one Markdown file and plots for the device.

Without a GPU: `--dry-run` runs every step and every code path on tiny shapes in Triton's interpreter. What a run that
is stopped has measured is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS, Document, store


class Stopped(BaseException):
    """A signal ends the run; its number."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny shapes, one sample, interpreted on the CPU"
    )
    parser.add_argument("--out", type=Path, help="folder of the results [benchmarks/results]")
    parser.add_argument("--only", help="ops to measure, with commas [all]")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all of it [6]")
    parser.add_argument(
        "--tune", action="store_true", help="try programs for the launch table, and propose rows"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD.json",
        help="an earlier run on this device: say what changed; status 1 where a figure got worse by over 5 %%",
    )
    parser.add_argument(
        "--redraw", type=Path, metavar="JSON", help="write its tables and plots again, no more"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where all figures are reached (in a dry run: where all ran), else 1; 128 + a signal's number."""
    start = time.monotonic()
    options = parse(arguments)
    if options.dry_run:
        # Read by Triton when the first kernel is defined.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from benchmarks.gpu import compare, suite

    try:
        old = compare.read(options.compare, suite.SCHEMA) if options.compare else None
        if options.redraw:
            new = compare.read(options.redraw, suite.SCHEMA)
            return conclude(new, options.redraw, old, options.compare)
        if not options.dry_run and not torch.cuda.is_available():
            return refuse(
                "torch finds no GPU here; run it on a machine with one, or pass --dry-run"
            )
        if not options.dry_run and os.environ.get("TRITON_INTERPRET", "0") not in ("0", ""):
            return refuse("TRITON_INTERPRET is set, so no kernel would run on the GPU; unset it")
        ops = tuple(options.only.split(",")) if options.only else tuple(suite.OPS)
        for name in ops:
            if name not in suite.OPS:
                return refuse(f"no op {name!r}; use some of {','.join(suite.OPS)}")
        settings = suite.Settings(options.dry_run, options.minutes, ops, options.tune)
        document = suite.new_document(settings)
        if old is not None:
            compare.check_device(old, document["device"]["name"], options.compare)
    except compare.Incomparable as error:
        return refuse(str(error))
    device = re.sub(r"[^a-z0-9]+", "_", document["device"]["name"].lower()).strip("_")
    path = folder_of(options) / f"gpu_{device}.json"
    document, stopped = measure(settings, document, path, start)
    status = conclude(document, path, old, options.compare)
    return 128 + stopped if stopped else status


def refuse(reason: str) -> int:
    """Say in one line why nothing is measured; the exit status."""
    print(f"bench-gpu: {reason}", file=sys.stderr)
    return 1


def folder_of(options: argparse.Namespace) -> Path:
    """Where results go: never among the published ones where they mean nothing."""
    folder: Path = options.out or (
        Path(tempfile.mkdtemp(prefix="bench-gpu-")) if options.dry_run else RESULTS
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise Stopped."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def measure(settings: Any, document: Document, path: Path, start: float) -> tuple[Document, int]:
    """Check, then take every step, each kept at `path` as it ends.

    Args:
        settings: of the run.
        document: before its first step.
        path: of the document.
        start: when the run began, by time.monotonic().

    Returns:
        The document as it was kept last, and the number of the signal that ended the run, or 0.
    """
    from benchmarks.gpu import jobs, suite
    from benchmarks.gpu.figures import figures

    last = start + 60 * settings.minutes
    end = last - min(suite.LAST_SECONDS, 0.1 * 60 * settings.minutes)
    stopped, has_begun = 0, False
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch, stoppable():
        try:
            document["checks"] = suite.check(settings, Path(scratch), end)
            store(path, document)
            has_begun = True
            command = [sys.executable, "-m", "benchmarks.gpu.suite", str(path), str(end), scratch]
            status = None
            while status != 0 and time.monotonic() < end:
                before = len(document["steps"])
                status = jobs.run_jobs([jobs.Job(command)], at_once=1, end=last)[0]
                document = json.loads(path.read_text())
                if status and len(document["steps"]) == before:
                    document["stopped"] = f"no step can be taken: status {status}"
                    break
        except Stopped as stop:
            stopped = stop.args[0]
            if has_begun:
                # The process that took the steps has kept each that ended.
                document = json.loads(path.read_text())
            document["stopped"] = signal.Signals(stopped).name
    if not document["complete"] and not document["stopped"]:
        document["stopped"] = "the run's time was up, or a step failed"
    document["seconds"] = time.monotonic() - start
    document["figures"] = [figure.record() for figure in figures(document)]
    store(path, document)
    return document, stopped


def conclude(document: Document, path: Path, old: Document | None, old_path: Path | None) -> int:
    """Write the tables and plots beside the document at `path`, print the figures and what changed; the status."""
    from benchmarks.gpu import compare, report
    from benchmarks.gpu.figures import figures
    from resclip.io.files import write_atomically

    page = path.with_suffix(".md")
    write_atomically(page, report.markdown(document).encode())
    drawn = report.draw(document, path.parent, path.stem)
    rows = figures(document)
    print("\n".join(map(str, rows)))
    names = ", ".join(each.name for each in (path, page, *drawn))
    print(f"{document['seconds']:.0f} s; {names} in {path.parent}")
    if old is not None and old_path is not None:
        compare.check_device(old, document["device"]["name"], old_path)
        print(compare.report(old, document))
        worse = compare.got_worse(old, document)
        print("".join(f"worse by more than 5 %: {what}\n" for what in worse), end="")
        return int(bool(worse))
    if document["dry_run"]:
        print("a dry run: the figures above mean nothing")
        return int(any(failures(document)))
    return int(not all(row.reached for row in rows))


def failures(document: Document) -> list[str]:
    """Checks, steps and variants that broke, printed; a dry run must have none."""
    broken = [
        f"check of {check['op']} {check['dtype']}, {check['way']}: {check['reason']}"
        for check in document["checks"]
        if check["status"] == "failed"
    ]
    broken += [f"{name}: {status}" for name, status in document["steps"].items() if status != "ok"]
    broken += [
        f"{case['op']}, {case['name']}, {name}: {outcome['reason']}"
        for case in document["cases"]
        for name, outcome in case["variants"].items()
        if outcome["status"] == "failed"
        or outcome["reason"].startswith(("could not be set up", "in no CUDA graph"))
    ]
    if document["stopped"]:
        broken.append(document["stopped"])
    for line in broken:
        print(f"broken: {line}")
    return broken


if __name__ == "__main__":
    sys.exit(main())
