"""ProxyCLIP's attention at ViT-B/16's shape, guided by a DINO-B's features on a finer grid."""

from __future__ import annotations

import pytest
import torch

from resclip_kernels.proxy_attention import proxy_attention

GRID = (21, 21)
"""CLIP's patches of a window of 336 × 336."""


@pytest.mark.parametrize("size", [(21, 21), (42, 42)], ids=str)
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_proxy_attention(benchmark, size: tuple[int, int], implementation: str) -> None:
    benchmark.group = f"proxy_attention, 768 channels, 12 heads of 64, grid {size}"
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 768, 1, 1, generator=generator)
    features = common + torch.randn(1, 768, *size, generator=generator)
    value = torch.randn(1, 12, GRID[0] * GRID[1], 64, generator=generator)

    def run(name: str) -> torch.Tensor:
        return proxy_attention(features, value, grid=GRID, implementation=name)

    # An entry within rounding of the threshold may fall on either side of it: one of a row's few hundred weights.
    oracle = proxy_attention(features.double(), value, grid=GRID, implementation="reference")
    error = run(implementation) - oracle
    assert error.abs().max() < 0.05
    assert error.square().mean().sqrt() < 1e-4
    benchmark.pedantic(run, (implementation,), rounds=5, warmup_rounds=1)
