"""ProxyCLIP's attention at ViT-B/16's shape, guided by a DINO-B's features on a finer grid; plain and with feedback."""

from __future__ import annotations

import pytest
import torch

from benchmarks.label_maps import label_map
from resclip_kernels import proxy_attention, semantic_feedback

GRID = (21, 21)
"""CLIP's patches of a window of 336 × 336."""


@pytest.mark.parametrize("fed_back", (False, True), ids=("plain", "feedback"))
@pytest.mark.parametrize("size", [(21, 21), (42, 42)], ids=str)
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_proxy_attention(
    benchmark, size: tuple[int, int], implementation: str, fed_back: bool
) -> None:
    kind = ", with feedback" if fed_back else ""
    benchmark.group = f"proxy_attention, 768 channels, 12 heads of 64, grid {size}{kind}"
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 768, 1, 1, generator=generator)
    features = common + torch.randn(1, 768, *size, generator=generator)
    value = torch.randn(1, 12, GRID[0] * GRID[1], 64, generator=generator)
    feedback = None
    if fed_back:
        feedback = semantic_feedback(label_map(0, grid=size, blob=5), implementation="torch")

    def run(name: str, features: torch.Tensor = features) -> torch.Tensor:
        return proxy_attention(features, value, grid=GRID, feedback=feedback, implementation=name)

    # An entry within rounding of the threshold may fall on either side of it: one of a row's few hundred weights.
    error = run(implementation) - run("reference", features.double())
    assert error.abs().max() < 0.05
    assert error.square().mean().sqrt() < 1e-4
    benchmark.pedantic(run, (implementation,), rounds=5, warmup_rounds=1)
