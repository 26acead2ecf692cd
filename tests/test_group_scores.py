"""Scores from groups: the recorded outputs of the released rule and of the port, and what must hold of any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import predictor_arrays, predictor_cases
from torch import Tensor

from resclip.predictors import group_scores

CASES = [name for name, case in predictor_cases().items() if case["method"] == "groupvit"]


def same(got: Tensor, recorded: Tensor) -> None:
    """Within 1e-5 of the largest entry, and the same labels in at least 99.9 % of the pixels."""
    assert got.shape == recorded.shape
    assert (got - recorded).abs().max() <= 1e-5 * recorded.abs().max()
    assert (got.argmax(0) == recorded.argmax(0)).float().mean() >= 0.999


def inputs(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    recorded = predictor_arrays(name)
    height, width = predictor_cases()[name]["size"]
    arguments = (
        [recorded["soft_1"][None], recorded["soft_2"][None]],
        recorded["groups"][None],
        recorded["average"][None],
        recorded["text"],
        float(recorded["logit_scale"]),
    )
    return arguments, {"grid": (height // 16, width // 16), "size": (height, width)}


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_scores(name: str) -> None:
    arguments, sizes = inputs(name)
    recorded = predictor_arrays(name)
    same(group_scores(*arguments, **sizes)[0, :, ::4, ::4], recorded["scores"])
    threshold = predictor_cases()[name]["background_threshold"]
    with_background = group_scores(*arguments, **sizes, threshold=threshold)[0, :, ::4, ::4]
    same(with_background, recorded["scores_background"])
    assert 0 < recorded["scores_background"][0].mean() < 1


def test_the_recorded_logits_of_the_port() -> None:
    arguments, sizes = inputs("groupvit_trained_grid")
    logits = group_scores(*arguments, **sizes, rule="hugging-face")[0, :, ::4, ::4]
    same(logits, predictor_arrays("groupvit_trained_grid")["hf_segmentation_logits"])


def random_inputs(batch: int, grid: tuple[int, int]) -> tuple[list[Any], dict[str, Any]]:
    """One stage of three groups, as SegCLIP has, and seven classes."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    soft = (4 * draw(batch, 3, grid[0] * grid[1])).softmax(dim=1)
    arguments = [[soft], draw(batch, 3, 8), draw(batch, 8), draw(7, 8), 20.0]
    return arguments, {"grid": grid, "size": (4 * grid[0], 4 * grid[1])}


@pytest.mark.parametrize("rule", ["original", "hugging-face"])
def test_an_image_does_not_depend_on_the_others(rule: Any) -> None:
    (soft, groups, average, text, scale), sizes = random_inputs(3, (3, 5))
    whole = group_scores(soft, groups, average, text, scale, **sizes, rule=rule)
    for number in range(3):
        part = slice(number, number + 1)
        alone = group_scores(
            [soft[0][part]], groups[part], average[part], text, scale, **sizes, rule=rule
        )
        assert torch.allclose(alone, whole[part], rtol=1e-5, atol=1e-6)


def test_at_most_five_classes_have_a_score_and_a_pixels_scores_are_its_groups() -> None:
    """Those five are the most similar to the average feature, whatever the groups are like."""
    arguments, sizes = random_inputs(2, (4, 4))
    scores = group_scores(*arguments, **sizes)
    _, _, average, text, _ = arguments
    for image, feature in zip(scores, average, strict=True):
        similar = torch.cosine_similarity(feature[None], text).argsort(descending=True)
        kept = (image > 0).flatten(1).any(dim=1).nonzero().flatten()
        assert kept.tolist() == sorted(similar[:5].tolist())
        assert len(image.flatten(1).T.unique(dim=0)) <= 3
    all_kept = group_scores(*arguments, **sizes, kept=7)
    assert ((all_kept > 0).flatten(2).any(dim=2)).all()


def test_some_group_is_never_background() -> None:
    """However high the threshold, what is most certain of an image stays."""
    arguments, sizes = random_inputs(2, (4, 4))
    for threshold in (0.0, 0.5, 1.0):
        background = group_scores(*arguments, **sizes, threshold=threshold)[:, 0]
        assert set(background.unique().tolist()) <= {0.0, 1.0}
        assert threshold > 0 or not background.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": "soft"}, "rule must be one of 'original', 'hugging-face'; got 'soft'"),
        ({"rule": "hugging-face", "threshold": 0.5}, "has no background"),
        ({"threshold": 2.0}, "threshold must"),
        ({"kept": 0}, "kept must be at least 1"),
        ({"grid": (2, 4)}, "for a grid of 2 × 4 patches"),
        ({"logit_scale": 0.0}, "logit_scale must"),
        ({"groups": torch.zeros(2, 4, 8)}, r"groups must be \(2, 3, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    arguments, sizes = random_inputs(2, (4, 4))
    names = ("assignments", "groups", "average", "text", "logit_scale")
    call: dict[str, Any] = {**dict(zip(names, arguments, strict=True)), **sizes, **change}
    with pytest.raises(ValueError, match=words):
        group_scores(**call)
