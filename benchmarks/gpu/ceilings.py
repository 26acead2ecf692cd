"""What this device can do at best, measured in the same run: matrix products and a copy.

Knows two library calls. Knows no op.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu.timing import Clock

ROUNDS = 20


@dataclass(frozen=True)
class Ceilings:
    """Rates that no op can pass."""

    fp16_tflops: float
    bf16_tflops: float
    copy_gbps: float
    """Bytes read plus bytes written."""

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)


def measure_ceilings(clock: Clock, *, side: int = 8192, copy_bytes: int = 4 << 30) -> Ceilings:
    """Products of random square matrices (zeros run faster than real data), and a copy beyond any cache."""
    device = clock.buffer.device
    rates = []
    for dtype in (torch.float16, torch.bfloat16):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(left)
        rates.append(
            2e-9
            * side**3
            / median_ms(clock, lambda a=left, b=right, c=product: torch.mm(a, b, out=c))
        )
    source = torch.empty(copy_bytes, dtype=torch.int8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = 2e-6 * copy_bytes / median_ms(clock, lambda: target.copy_(source))
    return Ceilings(rates[0], rates[1], copied)


def median_ms(clock: Clock, run: Any) -> float:
    """Of `ROUNDS` calls after three."""
    for _ in range(3):
        run()
    rounds = ROUNDS if clock.cuda else 1
    return statistics.median(clock.sample(run, whole=False) for _ in range(rounds))
