"""One very large image through `resclip batch`, in a process whose memory is measured.

Draws a tiled TIFF of scenes unless the file exists, segments it by block with the built-in model, and writes
results/gigapixel.json: seconds, peak resident memory, and the same for a small image. docs/scale.md shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS, conditions, store, table, this_machine
from benchmarks.synthetic_raster import sew

CLASSES = "sky; grass; house; tree; sun; car; flower; balloon; cloud"
OPTIONS = (
    "--model",
    "builtin",
    "--format", "tif", "--short-side", "0", "--window", "112", "--stride", "112",
    "--method", "naclip", "--batch-size", "16",
)  # fmt: skip


def run(source: Path, out: Path) -> tuple[float, float]:
    """Seconds, and peak resident memory in GB, of one command."""
    words = ["batch", str(source), "--out", str(out), "--classes", CLASSES, *OPTIONS]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "resclip", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"resclip {shlex.join(words)} ended with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def gigapixel_table(run: dict[str, Any]) -> str:
    """What the one very large image took."""
    megapixels = run["side"] ** 2 / 1e6
    rows = [
        ["peak resident memory", f"{run['peak_gb']:.2f} GB"],
        ["the same for an image of 112 × 112", f"{run['floor_gb']:.2f} GB"],
        ["its pixels alone", f"{3 * megapixels / 1e3:.1f} GB"],
        ["its logits alone", f"{4 * run['classes'] * megapixels / 1e3:.1f} GB"],
        [
            "time",
            f"{run['seconds'] / 60:.1f} min, {megapixels / run['seconds']:.2f} megapixels/s",
        ],
        ["input", f"{run['input_bytes'] / 1e6:.0f} MB"],
        ["label map", f"{run['output_bytes'] / 1e6:.0f} MB"],
    ]
    head = [f"{run['side']:,} × {run['side']:,} pixels, {run['classes']} classes", "measured"]
    return f"{table(head, rows)}\n\n`{run['options']}`; {conditions(run)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gigapixel", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--side", type=int, default=30_000, metavar="PIXELS")
    parser.add_argument("--folder", type=Path, help="for the images (default: a temporary one)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        large, small = folder / f"raster_{options.side}.tif", folder / "raster_112.tif"
        for path, side in ((large, options.side), (small, 112)):
            if not path.exists():
                sew(path, side)
        _, floor = run(small, folder / "small")
        seconds, peak = run(large, folder / "large")
        result = folder / "large" / f"{large.stem}_labels.tif"
        figures = {
            "side": options.side,
            "classes": CLASSES.count(";") + 1,
            "options": shlex.join(OPTIONS),
            "seconds": seconds,
            "peak_gb": peak,
            "floor_gb": floor,
            "input_bytes": large.stat().st_size,
            "output_bytes": result.stat().st_size,
            **this_machine(),
        }
    print(json.dumps(figures, indent=1))
    store(RESULTS / "gigapixel.json", figures)
    return 0
