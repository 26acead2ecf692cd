"""PAMR: shifted multiply-adds against the unfolded tensor."""

from __future__ import annotations

import pytest
import torch

from benchmarks import shapes
from resclip_kernels import pamr


@pytest.mark.benchmark(group="pamr, 150 planes of 224 × 224, 10 iterations")
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_pamr(benchmark, implementation: str) -> None:
    image = shapes.images(1)
    masks = torch.randn(1, 150, 224, 224, generator=torch.Generator().manual_seed(0))
    refined = benchmark.pedantic(
        pamr, (image, masks), {"implementation": implementation}, rounds=3, warmup_rounds=1
    )
    torch.testing.assert_close(refined, pamr(image, masks), rtol=1e-4, atol=1e-5)
