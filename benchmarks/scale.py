"""The benchmarks of `make bench-scale`, each in a process of its own: one's memory is no part of another's."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

NAMES = ("batch", "high-resolution", "gigapixel")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them one after the other; the exit status of the first that fails, else 0."""
    argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__).parse_args(
        arguments
    )
    for name in NAMES:
        status = subprocess.run([sys.executable, "-m", "benchmarks", name], check=False).returncode
        if status:
            return status
    return 0
