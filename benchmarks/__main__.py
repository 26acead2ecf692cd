"""`python -m benchmarks NAME [options]`: one runner for all that is measured or drawn for the project."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from resclip.cli.commands import wait_briefly

BENCHMARKS = {
    "cpu": ("benchmarks.cpu", "time the ops on the CPU and judge their figures"),
    "gpu": ("benchmarks.gpu.__main__", "check, then time, the kernels on one GPU"),
    "check-gpu": ("benchmarks.gpu.sanitizer", "look for bad accesses and races of the kernels on one GPU"),
    "kernels-report": ("benchmarks.kernels_report", "what each kernel uses, read from machine code"),
    "kernels-matrix": ("benchmarks.kernels_matrix", "compile each kernel by other Tritons"),
    "attention-model": ("benchmarks.attention_model", "predict the residual attention's time, by counting"),
    "aggregation-memory": ("benchmarks.aggregation_memory", "count what comparing all tokens takes of memory"),
    "method-cost": ("benchmarks.method_cost", "time every method beside ClearCLIP, and count its memory"),
    "words": ("benchmarks.words", "time other words on a loaded model, and weigh embeddings"),
    "export": ("benchmarks.export", "measure how far exported encoders are from eager ones"),
    "scale": ("benchmarks.scale", "batch, high-resolution and gigapixel, one after the other"),
    "batch": ("benchmarks.batch", "time batches of windows and whole jobs on the CPU"),
    "high-resolution": ("benchmarks.high_resolution", "measure ways to segment large images"),
    "gigapixel": ("benchmarks.gigapixel", "segment one image of 30,000 × 30,000 pixels"),
    "synthetic-raster": ("benchmarks.synthetic_raster", "write one very large image of drawn scenes"),
    "comparison": ("benchmarks.comparison", "draw the README's first picture: a scene without and with RCS and SFR"),
    "gallery": ("benchmarks.gallery", "draw what each method makes of a few scenes"),
    "method-pictures": ("benchmarks.method_pictures", "draw what each method makes of one scene, for docs/"),
    "readme": ("benchmarks.readme", "write the tables of README.md and docs/ from stored results"),
}  # fmt: skip
"""Module and summary of each benchmark; its module is imported only when it runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns its exit status."""
    width = max(map(len, BENCHMARKS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Benchmarks and reports; NAME --help says what each takes.",
        epilog="\n".join(f"  {name:{width}}  {text}" for name, (_, text) in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help="one of those below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of that benchmark")
    options = parser.parse_args(arguments)
    wait_briefly()
    module = importlib.import_module(BENCHMARKS[options.name][0])
    return int(module.main(options.options))


if __name__ == "__main__":
    sys.exit(main())
