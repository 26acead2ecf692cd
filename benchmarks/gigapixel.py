"""One very large image through `resclip batch`, in a process whose memory is watched; see `make bench-scale`.

Draws a quilt of scenes as a tiled TIFF unless it is there, segments it by block with the built-in model, and writes
results/gigapixel.json: seconds, peak resident memory, and what of it is there before the first pixel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.synthetic_raster import sew
from resclip.evaluation.distributed import machine_name

RESULTS = Path(__file__).parent / "results"
CLASSES = "sky; grass; house; tree; sun; car; flower; balloon; cloud"
OPTIONS = (
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


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=30_000, metavar="PIXELS")
    parser.add_argument("--folder", type=Path, help="for the images (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        large, small = folder / f"quilt_{arguments.side}.tif", folder / "quilt_112.tif"
        for path, side in ((large, arguments.side), (small, 112)):
            if not path.exists():
                sew(path, side)
        _, floor = run(small, folder / "small")
        seconds, peak = run(large, folder / "large")
        result = folder / "large" / f"{large.stem}_labels.tif"
        figures = {
            "side": arguments.side,
            "classes": CLASSES.count(";") + 1,
            "options": shlex.join(OPTIONS),
            "seconds": seconds,
            "peak_gb": peak,
            "floor_gb": floor,
            "input_bytes": large.stat().st_size,
            "output_bytes": result.stat().st_size,
            "machine": machine_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
    print(json.dumps(figures, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gigapixel.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
