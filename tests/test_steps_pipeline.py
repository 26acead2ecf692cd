"""Steps behind the tokens on an image's way: any image in any company, each with any method, and in what order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_support import colours, small_tower
from models_support import timm_visual
from torch import Tensor
from torch.nn.functional import normalize

from resclip import DenseEncoder, Segmenter, Vocabulary
from resclip.methods.steps import (
    AreaRule,
    ClassPurification,
    ClusterVote,
    CrossWindowKeys,
    GraphPropagation,
    KeySmoothing,
    LaplacianPropagation,
    PromptDenoising,
    Steps,
    TextAdjustment,
)

EACH = {
    "adjustment": Steps(adjustment=TextAdjustment(0.3, 0.3, 1.0)),
    "adjustment by windows": Steps(adjustment=TextAdjustment(0.3, 0.3, 1.0, "window")),
    "prompts": Steps(prompts=PromptDenoising(0.3)),
    "smoothing": Steps(smoothing=KeySmoothing()),
    "purification": Steps(purification=ClassPurification(0.0, 0.5)),
    "windows": Steps(windows=CrossWindowKeys(threshold=0.2)),
    "propagation": Steps(propagation=GraphPropagation(neighbours=9)),
    "laplacian": Steps(laplacian=LaplacianPropagation(12)),
    "area": Steps(area=AreaRule(0.3)),
    "many": Steps(
        adjustment=TextAdjustment(0.1, 0.1, 1.0),
        prompts=PromptDenoising(0.05),
        propagation=GraphPropagation(neighbours=9),
        laplacian=LaplacianPropagation(12),
        area=AreaRule(0.05),
    ),
    "with keys of other windows": Steps(
        windows=CrossWindowKeys(threshold=0.2),
        adjustment=TextAdjustment(0.3, 0.3, 1.0),
        smoothing=KeySmoothing(),
    ),
}


def vocabulary(background: bool = False) -> Vocabulary:
    torch.manual_seed(3)
    names = ["background" if background else "sky", "tree", "house", "car"]
    numbers = [0, 0, 1, 2, 3] if background else [0, 1, 2, 3]
    rows = normalize(torch.randn(len(numbers), 32), dim=1)
    return Vocabulary(rows, torch.tensor(numbers), names)


def segmenter(steps: Steps, base: str = "clearclip", **settings: Any) -> Segmenter:
    chosen = {"window": 64, "stride": 32, "batch_size": 3, "logit_scale": 20.0, **settings}
    words = chosen.pop("vocabulary", None) or vocabulary()
    proxy = {"proxy": colours} if base == "proxyclip" else {}
    dense = DenseEncoder(small_tower(), base, **proxy)
    return Segmenter(dense, words, steps=steps, **chosen)


def images(seed: int) -> list[Tensor]:
    """One of a single window, and two of several; one is no whole number of patches."""
    torch.manual_seed(seed)
    return [
        torch.nn.functional.interpolate(torch.randn(1, 3, 5, 7), size=size, mode="bicubic")[0]
        for size in ((64, 64), (96, 128), (70, 110))
    ]


def results(made: Segmenter, pixels: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    sizes = [(one.shape[1] + 9, one.shape[2] - 3) for one in pixels]
    return made.predict_many(pixels, sizes)


@pytest.mark.parametrize("name", EACH)
def test_an_image_does_not_depend_on_its_company(name: str, seed: int) -> None:
    made, pixels = segmenter(EACH[name]), images(seed)
    together = results(made, pixels)
    for one, (labels, probabilities) in zip(pixels, together, strict=True):
        alone_labels, alone = results(made, [one])[0]
        assert (labels == alone_labels).float().mean() >= 0.999
        torch.testing.assert_close(alone, probabilities, rtol=1e-3, atol=1e-3)
    reordered = results(made, pixels[::-1])[::-1]
    for (labels, _), (others, _) in zip(together, reordered, strict=True):
        assert (labels == others).float().mean() >= 0.999


@pytest.mark.parametrize("name", EACH)
def test_each_step_changes_the_result(name: str, seed: int) -> None:
    pixels = images(seed)
    plain, changed = results(segmenter(Steps()), pixels), results(segmenter(EACH[name]), pixels)
    assert any(
        not torch.allclose(one[1], other[1], atol=1e-4)
        for one, other in zip(plain, changed, strict=True)
    )
    assert all(torch.isfinite(probabilities).all() for _, probabilities in changed)


@pytest.mark.parametrize("name", ("adjustment", "propagation", "laplacian", "windows"))
def test_steps_go_with_another_models_features(name: str, seed: int) -> None:
    for labels, _ in results(segmenter(EACH[name], "proxyclip"), images(seed)):
        assert 0 <= int(labels.min()) <= int(labels.max()) < 4


def test_purified_classes_and_their_background(seed: int) -> None:
    step = Steps(purification=ClassPurification(0.0, 2.0))
    labels, shares = results(segmenter(step, vocabulary=vocabulary(background=True)), images(seed))[
        1
    ]
    # Where no class's map reaches a half, 1 − it is more.
    assert bool((shares >= 0.5).all())
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3}
    words = vocabulary()
    twice = Vocabulary(
        torch.cat([words.embeddings, words.embeddings[:1]]),
        torch.tensor([0, 1, 2, 3, 2]),
        words.names,
    )
    with pytest.raises(ValueError, match="class 'house' has 2; leave out its synonyms"):
        segmenter(step, vocabulary=twice)


def test_a_cluster_vote_takes_whole_pictures(seed: int) -> None:
    step = Steps(clusters=ClusterVote(eps=0.9, min_samples=2))
    with pytest.raises(ValueError, match="pictures that go through the model whole.*use window=0"):
        segmenter(step)
    pixels = images(seed)
    voted = results(segmenter(step, window=0), pixels)
    plain = results(segmenter(Steps(), window=0), pixels)
    for (labels, _), (others, _) in zip(voted, plain, strict=True):
        assert set(labels.unique().tolist()) <= set(others.unique().tolist())


@pytest.mark.parametrize(
    ("steps", "base", "settings", "said"),
    [
        (EACH["windows"], "naclip", {}, "cross-window keys|CrossWindowKeys|base"),
        (Steps(), "naclip", {"second_text": torch.zeros(4, 32)}, "second_text is what class purif"),
        (EACH["purification"], "naclip", {"second_text": torch.zeros(3, 32)}, "one row for each"),
        (
            Steps(purification=ClassPurification(), area=AreaRule()),
            "naclip",
            {},
            "gives maps that are none: leave one of them",
        ),
        (
            Steps(purification=ClassPurification(), propagation=GraphPropagation()),
            "naclip",
            {},
            "gives maps that are none: leave one of them",
        ),
        (
            Steps(purification=ClassPurification()),
            "naclip",
            {"probability_threshold": 0.5},
            "leave the probability threshold out, got 0.5",
        ),
    ],
)
def test_steps_that_do_not_fit_are_refused(
    steps: Steps, base: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        segmenter(steps, base, **settings)


@pytest.mark.parametrize("name", ("adjustment", "purification", "clusters"))
def test_steps_that_need_cls_name_themselves_where_there_is_none(name: str) -> None:
    step = Steps(clusters=ClusterVote()) if name == "clusters" else EACH[name]
    visual = timm_visual("vit_base_patch16_siglip_gap_224", "avg", depth=4, fc_norm=True)
    dense = DenseEncoder(visual.float(), "clearclip")
    rows = normalize(torch.randn(2, dense.tower.output_dim), dim=1)
    words = Vocabulary(rows, torch.arange(2), ["a", "b"])
    with pytest.raises(
        ValueError, match=rf"step '{name}' needs CLIP's \[CLS\].*--step {name}:none"
    ):
        Segmenter(dense, words, window=0, steps=step)


def test_planes_that_do_not_fit_into_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of 105 × 125 pixels and 4 queries two planes of floats, and six of 11 × 12 cells of 9 × 10 pixels."""
    needed = 4 * 4 * (2 * 105 * 125 + 6 * 11 * 12)
    made, pixels = segmenter(EACH["laplacian"]), images(seed)[1:2]
    monkeypatch.setattr("resclip.inference.steps.free_memory", lambda device: needed)
    results(made, pixels)
    monkeypatch.setattr("resclip.inference.steps.free_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match="105 × 125 pixels with 4 queries takes about"):
        results(made, pixels)


def test_settings_name_the_steps_and_another_encoder_keeps_them() -> None:
    made = segmenter(EACH["many"])
    assert list(made.settings["steps"]) == [name for name, _ in EACH["many"].items()]
    assert "steps" not in segmenter(Steps()).settings
    other = made.with_encoder(DenseEncoder(small_tower(), "naclip"))
    assert other.settings["steps"] == made.settings["steps"]
    assert other.pipeline.window_steps.encoder is other.encoder
