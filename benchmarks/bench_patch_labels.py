"""Patch labels: queries streamed against (Q, H, W) probabilities."""

from __future__ import annotations

import pytest
import torch

from benchmarks import shapes
from resclip_kernels import patch_labels


@pytest.mark.parametrize(
    ("queries", "implementation"), [(20, "torch"), (20, "reference"), (847, "torch")]
)
def test_patch_labels(benchmark, queries: int, implementation: str) -> None:
    benchmark.group = f"patch_labels, {queries} queries, 224 × 224"
    logits = torch.randn(1, queries, 14, 14, generator=torch.Generator().manual_seed(0)) * 0.1
    image = shapes.images(1)
    arguments = {"patch_size": (16, 16), "implementation": implementation}
    labels = benchmark.pedantic(patch_labels, (logits, image), arguments, rounds=3, warmup_rounds=1)
    agreement = (labels == patch_labels(logits, image, patch_size=(16, 16))).float().mean()
    assert agreement > 0.99
