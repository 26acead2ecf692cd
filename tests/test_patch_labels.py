"""Patch labels: streaming against materialised, and the majority vote."""

from __future__ import annotations

import pytest
import torch
from kernel_support import distinct_logits, pairwise

from resclip_kernels import online_softmax as _streaming
from resclip_kernels import patch_labels
from resclip_kernels.ops.patch_labels import portable, reference


def inputs(seed: int, queries: int = 9, height: int = 35, width: int = 50, batch: int = 2):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, height, width, generator=generator)
    logits = distinct_logits(generator, batch, queries, (height // 8, width // 8))
    return logits, image


@pytest.mark.parametrize(
    ("queries", "threshold", "iterations"), pairwise((1, 9), (0.0, 0.4), (0, 10))
)
def test_torch_equals_reference(seed: int, queries, threshold, iterations) -> None:
    logits, image = inputs(seed, queries)
    arguments = {
        "patch_size": (8, 8),
        "threshold": threshold,
        "refine_iterations": iterations,
    }
    expected = patch_labels(logits, image, implementation="reference", **arguments)
    got = patch_labels(logits, image, implementation="torch", **arguments)
    assert got.dtype is torch.int64
    assert got.shape == (2, 4, 6)
    # A pixel may stand within rounding of the threshold or of a tie; a patch of 64 hardly ever hangs on it.
    assert (got == expected).float().mean() >= 0.97


def test_the_threshold_sends_pixels_to_query_zero(seed: int) -> None:
    logits, image = inputs(seed)
    assert (patch_labels(logits, image, patch_size=(8, 8), threshold=1.0) == 0).all()
    assert patch_labels(logits, image, patch_size=(8, 8), threshold=0.0).any()


def test_groups_of_queries_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, _ = inputs(seed)
    expected = _streaming.best_query(logits, (35, 50), logit_scale=40.0)
    monkeypatch.setattr(_streaming, "GROUP_BYTES", 1)
    probability, label = _streaming.best_query(logits, (35, 50), logit_scale=40.0)
    assert torch.equal(label, expected[1])
    assert torch.allclose(probability, expected[0], rtol=1e-5)


def test_streamed_probabilities_are_a_softmax(seed: int) -> None:
    logits, image = inputs(seed)
    best, label = reference.pixel_probabilities(logits, image, 40.0, 10, (8, 16))
    streamed, query = _streaming.best_query(
        logits, (35, 50), logit_scale=40.0, guide=image, refine_iterations=10
    )
    assert torch.allclose(streamed, best, atol=1e-5)
    assert (query == label).float().mean() > 0.999


@pytest.mark.parametrize("majority", (portable.majority, reference.majority))
def test_majority_takes_the_smallest_label_on_a_tie(majority) -> None:
    labels = torch.tensor([[[5, 5, 7, 3], [2, 2, 3, 7], [9, 9, 9, 9]]])
    assert majority(labels, (2, 2)).tolist() == [[[2, 3]]]
    assert majority(labels, (1, 4)).tolist() == [[[5], [2], [9]]]


def test_majorities_agree(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (2, 34, 51), generator=generator)
    assert torch.equal(portable.majority(labels, (4, 5)), reference.majority(labels, (4, 5)))


LOGITS, IMAGE = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("logits", "image", "arguments", "message"),
    [
        (LOGITS, torch.rand(1, 3, 32, 40), {}, r"grid of \(4, 5\)"),
        (LOGITS[:, :0], IMAGE, {}, "number of queries must be at least"),
        (LOGITS[:, :, :0], torch.rand(1, 3, 7, 32), {}, "each side of the logits' grid"),
        (LOGITS, IMAGE.expand(2, -1, -1, -1), {}, "same number of images"),
        (LOGITS, IMAGE, {"threshold": 2.0}, "threshold .*between 0 and 1"),
        (LOGITS, IMAGE, {"logit_scale": 0.0}, "logit_scale .*above 0"),
    ],
)
def test_errors_say_what_was_expected(logits, image, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patch_labels(logits, image, patch_size=(8, 8), **arguments)
