"""`python -m benchmarks gpu`: check, measure, and write one JSON, one Markdown file and plots.

Without a GPU: `--dry-run` runs every case and every code path on tiny shapes in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS, store
from resclip import speed
from resclip.speed import Speed


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny shapes, one sample, interpreted on the CPU"
    )
    parser.add_argument("--out", type=Path, help="folder of the results [benchmarks/results]")
    parser.add_argument("--only", help="ops to measure, with commas [all]")
    parser.add_argument(
        "--redraw", type=Path, help="a JSON: write its tables and plots again, no more"
    )
    parser.add_argument(
        "--minutes", type=float, default=6.5, help="then only what a figure needs still starts"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where all figures are reached (in a dry run: where all ran), else 1."""
    start = time.monotonic()
    options = parse(arguments)
    if options.redraw:
        return present(json.loads(options.redraw.read_text()), options.redraw)
    if options.dry_run:
        # Read by Triton when the first kernel is defined.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        return refuse("torch finds no GPU here; run it on a machine with one, or pass --dry-run")
    if not options.dry_run and os.environ.get("TRITON_INTERPRET", "0") not in ("0", ""):
        return refuse("TRITON_INTERPRET is set, so no kernel would run on the GPU; unset it")
    from benchmarks.gpu import suite

    ops = tuple(options.only.split(",")) if options.only else tuple(suite.OPS)
    for name in ops:
        if name not in suite.OPS:
            return refuse(f"no op {name!r}; use some of {','.join(suite.OPS)}")
    settings = suite.Settings(options.dry_run, options.minutes, ops)
    try:
        checks = suite.check(settings)
    except suite.ChecksFailed as error:
        return refuse(str(error))
    return measure(settings, checks, start, folder_of(options))


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


def measure(settings: Any, checks: Any, start: float, folder: Path) -> int:
    """Run, write and print."""
    from benchmarks.gpu import suite

    device = suite.device_record(settings.dry_run)["name"]
    path = folder / f"gpu_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"
    status = present(suite.run(settings, checks, start, partial(store, path)), path)
    if time.monotonic() - start < 60 * settings.minutes:
        time_encoder(settings.dry_run).store(path.with_name(f"speed_{path.name}"))
    return status


def time_encoder(dry_run: bool) -> Speed:
    """What `resclip bench` measures, on this GPU; in a dry run a small tower on the CPU."""
    if dry_run:
        return speed.measure("ViT-S-32", "naclip+rcs", sizes=(64,), seconds=0.1, device="cpu")
    return speed.measure(sizes=(224, 448), names=(20, 150), batches=(1, 16), precisions=("fp16",))


def present(document: dict[str, Any], path: Path) -> int:
    """Write the tables and plots beside the document at `path`, and print the figures."""
    from benchmarks.gpu import report
    from benchmarks.gpu.figures import figures
    from resclip.io.files import write_atomically

    page = path.with_suffix(".md")
    write_atomically(page, report.markdown(document).encode())
    drawn = report.draw(document, path.parent, path.stem)
    rows = figures(document)
    print("\n".join(map(str, rows)))
    names = ", ".join(each.name for each in (path, page, *drawn))
    print(f"{document['seconds']:.0f} s; {names} in {path.parent}")
    if document["dry_run"]:
        print("a dry run: the figures above mean nothing")
        return int(any(failures(document)))
    return int(not all(row.reached for row in rows))


def failures(document: dict[str, Any]) -> list[str]:
    """Cases and variants that broke, printed; a dry run must have none."""
    broken = [
        f"{case['op']}, {case['name']}: {case['reason']}"
        for case in document["cases"]
        if case["reason"]
    ]
    broken += [
        f"{case['op']}, {case['name']}, {name}: {outcome['reason']}"
        for case in document["cases"]
        for name, outcome in case["variants"].items()
        if outcome["status"] == "failed" or outcome["reason"].startswith("could not be set up")
    ]
    for line in broken:
        print(f"broken: {line}")
    return broken


if __name__ == "__main__":
    sys.exit(main())
