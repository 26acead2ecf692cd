"""Label maps at full size: queries streamed against (Q, H, W) planes."""

from __future__ import annotations

import pytest
import torch

from resclip_kernels import upsample_argmax


@pytest.mark.parametrize("queries", (20, 150))
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_upsample_argmax(benchmark, queries: int, implementation: str) -> None:
    benchmark.group = f"upsample_argmax, {queries} queries to 512 × 512"
    logits = torch.randn(1, queries, 28, 28, generator=torch.Generator().manual_seed(0)) * 0.1
    labels, _ = benchmark.pedantic(
        upsample_argmax,
        (logits, (512, 512)),
        {"implementation": implementation},
        rounds=5,
        warmup_rounds=1,
    )
    assert (labels == upsample_argmax(logits, (512, 512))[0]).float().mean() > 0.9999
