"""Label maps at any size: streaming against materialised, class merging and threshold."""

from __future__ import annotations

import pytest
import torch
from kernel_support import pairwise

from resclip_kernels import upsample_argmax


def grid_logits(seed: int, queries: int = 7, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, queries, 5, 6, generator=generator) * 0.1


@pytest.mark.parametrize(
    ("size", "merge", "through"),
    # Resizing and merging are steps one after the other: any two of them meet.
    pairwise([(40, 61), (5, 6), (1, 1), (3, 100)], (False, True), (None, (23, 30))),
)
def test_torch_equals_reference(seed: int, size, merge: bool, through) -> None:
    logits = grid_logits(seed)
    classes = torch.tensor([2, 0, 1, 1, 2, 0, 3]) if merge else None
    arguments = {"query_to_class": classes, "through": through, "threshold": 0.3}
    expected = upsample_argmax(logits, size, implementation="reference", **arguments)
    labels, probabilities = upsample_argmax(logits, size, implementation="torch", **arguments)
    assert labels.shape == probabilities.shape == (2, *size)
    assert labels.dtype is torch.int64
    assert torch.allclose(probabilities, expected[1], atol=1e-5)
    clear = (expected[1] - 0.3).abs() > 1e-5
    assert (labels == expected[0])[clear].float().mean() > 0.999


def test_refinement_uses_the_guide(seed: int) -> None:
    logits = grid_logits(seed, batch=1)
    guide = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(seed))
    arguments = {"guide": guide, "refine_iterations": 3}
    expected = upsample_argmax(logits, (40, 48), implementation="reference", **arguments)
    got = upsample_argmax(logits, (40, 48), implementation="torch", **arguments)
    assert torch.allclose(got[1], expected[1], atol=1e-5)
    assert not torch.allclose(got[1], upsample_argmax(logits, (40, 48))[1], atol=1e-3)


def test_equal_queries_go_to_the_smallest_class() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    for implementation in ("torch", "reference"):
        labels, _ = upsample_argmax(
            logits,
            (2, 2),
            query_to_class=torch.tensor([2, 1, 0]),
            implementation=implementation,
        )
        assert (labels == 0).all()


def test_a_class_takes_the_best_of_its_names() -> None:
    logits = torch.tensor([0.0, 0.2, 0.3]).view(1, 3, 1, 1)
    labels, probability = upsample_argmax(
        logits, (1, 1), query_to_class=torch.tensor([0, 1, 0]), logit_scale=10.0
    )
    assert labels.item() == 0
    assert probability.item() == pytest.approx(
        torch.tensor([0.0, 2.0, 3.0]).softmax(0)[2].item(), rel=1e-5
    )


def test_under_the_threshold_is_class_zero() -> None:
    logits = torch.tensor([0.0, 0.01]).view(1, 2, 1, 1)
    assert upsample_argmax(logits, (1, 1), threshold=0.5)[0].item() == 1
    assert upsample_argmax(logits, (1, 1), threshold=0.7)[0].item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(1, 2, 0, 3)}, "side of the logits' grid must be at least 1; got 0"),
        ({"size": (0, 4)}, r"size must be .* at least 1 each; got \(0, 4\)"),
        ({"query_to_class": torch.zeros(3).long()}, r"must be \(7,\)"),
        ({"refine_iterations": 2}, "needs a guide image"),
        (
            {"refine_iterations": 2, "guide": torch.rand(2, 3, 9, 9)},
            r"guide must be of size \(8, 8\)",
        ),
        ({"threshold": -0.1}, "between 0 and 1"),
    ],
)
def test_errors_say_what_was_expected(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upsample_argmax(**{"logits": grid_logits(0), "size": (8, 8), **arguments})
