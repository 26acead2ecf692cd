"""`python -m benchmarks.gpu.first_use JSON OPS`: what the comparison at the first use of an op takes, compiling all.

A process of its own, with an empty cache of Triton's, as after an installation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.reporting import store
from resclip_kernels.dispatch import interpreting
from resclip_kernels.first_use import compare


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 where every op's kernels would be taken, else 1."""
    path, *ops = arguments
    device = torch.device("cpu" if interpreting() else "cuda")
    if device.type == "cuda":
        # Loading the device's libraries is no part of it.
        torch.ones(64, 64, device=device, dtype=torch.float16).mm(
            torch.ones(64, 64).to(device).half()
        )
        torch.cuda.synchronize()
    verdicts = {op: compare(op, device, torch.float16) for op in ops}
    for op, verdict in verdicts.items():
        print(f"first use of {op}: {verdict.seconds:.2f} s, {verdict.reason or 'sound'}")
    records = {op: {"seconds": v.seconds, "reason": v.reason} for op, v in verdicts.items()}
    store(Path(path), records)
    return int(any(verdict.reason for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
