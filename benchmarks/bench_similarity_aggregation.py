"""SC-CLIP's aggregation at ViT-B/16's width: rows of similarities in turn against the whole map."""

from __future__ import annotations

import pytest
import torch

from resclip_kernels import similarity_aggregation


@pytest.mark.parametrize("tokens", (441, 1764))
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_similarity_aggregation(benchmark, tokens: int, implementation: str) -> None:
    benchmark.group = f"similarity_aggregation, {tokens} tokens of 768"
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 1, 768, generator=generator)
    features = 0.8 * common + torch.randn(1, tokens, 768, generator=generator)
    value = torch.randn(1, tokens, 768, generator=generator)

    def run(name: str, features: torch.Tensor = features) -> torch.Tensor:
        return similarity_aggregation(features, value, threshold=0.4, implementation=name)

    # A similarity within rounding of the threshold may fall on either side of it.
    error = run(implementation) - run("reference", features.double())
    assert error.square().mean().sqrt() < 1e-3
    benchmark.pedantic(run, (implementation,), rounds=5, warmup_rounds=1)
