"""Times on a CPU: the files bench_*.py by pytest-benchmark, `resclip bench`, and the published figures judged."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.reporting import RESULTS, ROOT, Figure

SPEEDS = {
    "speed": "--names 20,150,847",
    "speed-448": "--sizes 448",
    "speed-bf16": "--names 20,150 --precision bf16",
    "speed-reference": "--names 150 --implementation torch,reference",
}
"""Files of `resclip bench`, and the options of each."""


def figures(run: dict[str, Any]) -> list[Figure]:
    """The published figures of a pytest-benchmark run."""
    best = {entry["name"]: entry["stats"]["min"] for entry in run["benchmarks"]}
    extra = {entry["name"]: entry["extra_info"] for entry in run["benchmarks"]}

    def against_reference(what: str, test: str) -> Figure:
        slow, fast = best[f"{test}[reference]"], best[f"{test}[torch]"]
        measured = f"{slow / fast:.1f} × ({slow:.2f} s against {fast:.2f} s)"
        what = f"{what}: torch against reference"
        return Figure(what, measured, "≥ 15 × faster", slow / fast >= 15)

    names = best["test_names[847]"] / best["test_names[20]"]
    batch = best["test_batch[8]"] / best["test_batch[1]"]
    large = extra["test_large_image"]
    return [
        against_reference("encoder, ViT-B/16, 224 × 224, 150 queries", "test_encoder"),
        against_reference("PAMR alone, 150 planes of 224 × 224", "test_pamr"),
        Figure(
            "2048 × 2048 image, whole, ViT-B/16, 20 queries",
            f"{large['seconds']:.0f} s, peak memory {large['peak_gb']:.1f} GB",
            "under 8 GB",
            large["peak_gb"] < 8,
        ),
        Figure("847 names against 20, same image", f"{names:.1f} × the time", "≤ 8 ×", names <= 8),
        Figure(
            "batch of 8 against 8 singles: time per image (labels identical)",
            f"{batch:.2f} ×",
            "≤ 1 ×",
            batch <= 1,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 where every benchmark ran and every figure is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cpu", description=__doc__)
    parser.parse_args(arguments)
    RESULTS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only"]
    command.append(f"--benchmark-json={RESULTS / 'benchmark.json'}")
    judge = [sys.executable, "-m", "benchmarks", "readme", "--figures"]
    bench = [sys.executable, "-m", "resclip", "bench", "--device", "cpu"]
    encoders = [
        [*bench, *options.split(), "--json", str(RESULTS / f"{name}.json")]
        for name, options in SPEEDS.items()
    ]
    return any(
        subprocess.run(words, cwd=ROOT, check=False).returncode
        for words in (command, *encoders, judge)
    )
