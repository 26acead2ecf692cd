"""PEARL's propagation on a picture of ADE20K's usual size: rows of all queries against planes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from benchmarks import shapes
from resclip_kernels import laplacian_propagation

SIZE = (500, 667)


@pytest.mark.parametrize("queries", (20, 150))
@pytest.mark.parametrize("implementation", ("torch", "reference"))
def test_laplacian_propagation(benchmark, queries: int, implementation: str) -> None:
    benchmark.group = f"laplacian_propagation, {queries} planes of {SIZE[0]} × {SIZE[1]}"
    generator = torch.Generator().manual_seed(0)
    patches = 0.2 + 0.05 * torch.randn(1, queries, 31, 41, generator=generator)
    logits, guide = (
        interpolate(planes, size=SIZE, mode="bilinear") for planes in (patches, shapes.images(1))
    )
    text = normalize(torch.randn(queries, 512, generator=generator), dim=1)
    smoothed = benchmark.pedantic(
        laplacian_propagation,
        (logits, guide, text),
        {"implementation": implementation},
        rounds=5,
        warmup_rounds=1,
    )
    expected = laplacian_propagation(logits, guide, text, implementation="reference")
    torch.testing.assert_close(smoothed, expected, rtol=0, atol=1e-5)
