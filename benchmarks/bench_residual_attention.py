"""The final block's attention with every term, at ViT-B/16's shape."""

from __future__ import annotations

import pytest
import torch

from resclip_kernels import residual_attention, semantic_feedback
from resclip_kernels.testing import attention_inputs


@pytest.mark.parametrize("grid", [(14, 14), (24, 32)], ids=str)
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_residual_attention(benchmark, grid: tuple[int, int], implementation: str) -> None:
    benchmark.group = f"residual_attention, 12 heads of 64, 4 cross layers, grid {grid}"
    inputs = attention_inputs(0, batch=1, heads=12, grid=grid, layers=4)

    def run(name: str) -> torch.Tensor:
        return residual_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            grid=grid,
            neighbourhood_std=5.0,
            feedback=semantic_feedback(inputs.labels, implementation=name),
            feedback_weight=0.6,
            feedback_temperature=2.1,
            cross_layers=inputs.cross_layers,
            cross_weight=0.4,
            cross_temperature=2.0,
            implementation=name,
        ).output

    output = benchmark.pedantic(run, (implementation,), rounds=5, warmup_rounds=1)
    torch.testing.assert_close(output, run("torch"), rtol=1e-4, atol=1e-5)
