"""The final block's attention with every term, at ViT-B/16's shape."""

from __future__ import annotations

import pytest
import torch

from benchmarks.label_maps import label_map
from resclip_kernels import AttentionOptions, residual_attention, semantic_feedback


@pytest.mark.parametrize("grid", [(14, 14), (24, 32)], ids=str)
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_residual_attention(benchmark, grid: tuple[int, int], implementation: str) -> None:
    benchmark.group = f"residual_attention, 12 heads of 64, 4 cross layers, grid {grid}"
    generator = torch.Generator().manual_seed(0)
    shape = (1, 12, 1 + grid[0] * grid[1], 64)
    query, key, value, *rest = (torch.randn(shape, generator=generator) for _ in range(3 + 2 * 4))
    cross_layers = tuple(zip(rest[::2], rest[1::2], strict=True))
    labels = label_map(0, grid=grid)
    options = AttentionOptions(grid=grid, neighbourhood_std=5.0)

    def run(name: str) -> torch.Tensor:
        return residual_attention(
            query,
            key,
            value,
            options,
            feedback=semantic_feedback(labels, implementation=name),
            cross_layers=cross_layers,
            implementation=name,
        ).output

    output = benchmark.pedantic(run, (implementation,), rounds=5, warmup_rounds=1)
    torch.testing.assert_close(output, run("torch"), rtol=1e-4, atol=1e-5)
