"""Steps that give the same bits for any number of threads, and torch's values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from thread_support import with_threads

from resclip_kernels import deterministic
from resclip_kernels.deterministic import deterministic_attention as attention
from resclip_kernels.deterministic import resize_planes, softmax_over_first

THREADS = (1, 2, 3, 5)


@pytest.mark.parametrize(("batch", "channels"), [(0, 3), (1, 1), (2, 3)])
def test_planes_are_those_of_torch(seed: int, batch: int, channels: int) -> None:
    planes = torch.randn(batch, channels, 6, 9, generator=torch.Generator().manual_seed(seed))
    resized = resize_planes(planes, (13, 5))
    assert resized.shape == (batch, channels, 13, 5)
    if batch:
        expected = F.interpolate(planes.double(), size=(13, 5), mode="bilinear").float()
        torch.testing.assert_close(resized, expected, atol=1e-5, rtol=0)


def test_three_planes_do_not_depend_on_the_number_of_threads(seed: int) -> None:
    planes = torch.randn(2, 3, 69, 56, generator=torch.Generator().manual_seed(seed))
    first, *others = with_threads(THREADS, lambda: resize_planes(planes, (79, 64)))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("masked", (False, True))
# torch's own steps up to 3, its fused attention from 4 on.
@pytest.mark.parametrize("queries", (1, 3, 4, 33))
def test_attention_does_not_depend_on_the_number_of_threads(
    seed: int, queries: int, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 5, 3, 197, 32, generator=generator)
    query = query[:, :, :queries]
    mask = torch.randn(5, 1, queries, 197, generator=generator) if masked else None
    first, *others = with_threads(THREADS, lambda: attention(query, key, value, mask, 0.2))
    assert all(torch.equal(first, other) for other in others)
    bias = 0 if mask is None else mask.double()
    weights = (0.2 * query.double() @ key.double().mT + bias).softmax(-1)
    torch.testing.assert_close(first.double(), weights @ value.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("masked", (False, True))
def test_rows_of_queries_are_the_same_attention(
    seed: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a rule would have it: a CPU with units of 512 bits."""
    monkeypatch.setattr(deterministic, "multiplies_512_bits", lambda: True)
    monkeypatch.setattr(deterministic, "is_on", lambda: True)
    monkeypatch.setattr(deterministic, "ROWS", 100)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 3, 1030, 16, generator=generator)
    mask = torch.randn(2, 1, 1030, 1030, generator=generator) if masked else None
    assert deterministic.is_by_rows(query, key, value, mask)
    exact = F.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), None if mask is None else mask.double()
    )
    came = attention(query, key, value, mask)
    assert (came - exact).norm() < 1e-6 * exact.norm()
    few = attention(query[:, :, :50], key, value, None if mask is None else mask[:, :, :50])
    torch.testing.assert_close(few, came[:, :, :50])
    for other in (query.double(), query.requires_grad_()):
        assert not deterministic.is_by_rows(other, key, value, mask)


def test_attention_scales_by_the_width_of_a_head(seed: int) -> None:
    query, key, value = torch.randn(
        3, 2, 3, 9, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    expected = F.scaled_dot_product_attention(query, key, value)
    for queries in (1, 9):
        came = attention(query[:, :, :queries], key, value)
        torch.testing.assert_close(came, expected[:, :, :queries])


def test_softmax_does_not_depend_on_the_number_of_threads(seed: int) -> None:
    """Odd planes, so that a thread's run of positions ends anywhere."""
    scores = torch.randn(16, 3, 1, 231, 173, generator=torch.Generator().manual_seed(seed))
    first, *others = with_threads(THREADS, lambda: softmax_over_first(scores.clone()))
    assert all(torch.equal(first, other) for other in others)
    expected = scores.double().softmax(dim=0)
    torch.testing.assert_close(first.double(), expected, atol=1e-6, rtol=0)


def test_softmax_has_a_gradient(seed: int) -> None:
    scores = torch.randn(
        4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    assert torch.autograd.gradcheck(softmax_over_first, scores.requires_grad_())
