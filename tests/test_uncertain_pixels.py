"""Thresholds and margins: what is too uncertain for a class has none; benchmarks with a background say otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toys import random_image, toy_clip, toy_segmenter, toy_tokenizer

from resclip import RCS, Segmenter, Vocabulary, load
from resclip.inference import pipeline as pipelines
from resclip.methods.steps import AreaRule, ClassPurification, Steps

IMAGE = random_image(60, 90)


def make(**arguments: Any) -> Segmenter:
    return toy_segmenter({"rcs": RCS()}, **arguments)


def probabilities(segmenter: Segmenter, size: tuple[int, int]) -> Any:
    """(classes, H, W) of an image, by the plain formula."""
    pixels = segmenter.prepare(IMAGE)[None]
    logits = segmenter.logits(pixels, upsample=True)
    logits = torch.nn.functional.interpolate(logits, size, mode="bilinear")[0]
    queries = (segmenter.pipeline.logit_scale * logits).softmax(dim=0)
    numbers = segmenter.vocabulary.query_to_class
    return torch.stack(
        [queries[numbers == one].amax(dim=0) for one in range(len(segmenter.classes))]
    )


def test_one_threshold_for_all_and_one_for_each() -> None:
    plain = make().segment(IMAGE)
    middle = float(np.median(plain.probabilities))
    result = make(threshold=middle).segment(IMAGE)
    np.testing.assert_array_equal(
        result.labels, np.where(plain.probabilities < np.float32(middle), -1, plain.labels)
    )
    assert 0.3 < result.unlabelled < 0.7
    assert result.settings["threshold"] == middle
    assert "threshold" not in plain.settings
    numbers = [0.0, 1.0, middle]
    named = {"dog": 1.0, "grass": middle}
    for given in (numbers, tuple(numbers), named):
        result = make(threshold=given).segment(IMAGE)
        least = np.array(numbers, np.float32)[plain.labels]
        np.testing.assert_array_equal(
            result.labels, np.where(plain.probabilities < least, -1, plain.labels)
        )


@pytest.mark.parametrize("refine", (0, 2))
def test_a_margin_between_the_two_best_classes(refine: int) -> None:
    own = make(refine_iterations=refine)
    plain = own.segment(IMAGE)
    result = make(refine_iterations=refine, min_margin=0.2).segment(IMAGE)
    kept = result.labels >= 0
    assert 0.02 < 1 - kept.mean() < 0.98
    np.testing.assert_array_equal(result.labels[kept], plain.labels[kept])
    if not refine:
        best = probabilities(own, plain.labels.shape).topk(2, dim=0).values
        margin = (best[0] - best[1]).numpy()
        # At the margin itself rounding decides.
        clear = np.abs(margin - 0.2) > 1e-4
        np.testing.assert_array_equal(kept[clear], (margin >= 0.2)[clear])


def test_every_route_leaves_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By strips, by tensors, and with all pixels uncertain, which is no sign of NaN."""
    own = make(threshold=0.3, min_margin=0.01)
    whole = own.segment(IMAGE).labels
    assert (own.predict(own.prepare(IMAGE)[None]) == -1).any()
    assert int(own.predict(own.prepare(IMAGE)[None]).min()) == -1
    monkeypatch.setitem(pipelines.STRIP_BYTES, "cpu", 16 * 90 * 60)
    assert (own.segment(IMAGE).labels == whole).mean() > 0.99
    nothing = make(threshold=1.0).segment(IMAGE)
    assert nothing.unlabelled == 1.0
    assert nothing.areas() == {}


def test_nan_is_still_found() -> None:
    own = make(threshold=0.3, min_margin=0.01)
    with pytest.raises(ValueError, match="NaN"):
        own.predict(torch.full((1, 3, 40, 40), torch.nan))


def test_with_steps() -> None:
    steps = Steps(area=AreaRule(share=0.1))
    plain = make(steps=steps).segment(IMAGE)
    result = make(steps=steps, min_margin=0.2).segment(IMAGE)
    kept = result.labels >= 0
    assert 0 < kept.mean() < 1
    np.testing.assert_array_equal(result.labels[kept], plain.labels[kept])
    encoder = make().encoder
    vocabulary = Vocabulary(torch.eye(3, 32), torch.arange(3), ("a", "b", "c"))
    steps = Steps(purification=ClassPurification())
    for option in ({"threshold": 0.2}, {"min_margin": 0.2}):
        with pytest.raises(ValueError, match="maps of class purification are none"):
            Segmenter(encoder, vocabulary, steps=steps, **option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold must lie between 0 and 1; got 1.5"),
        ({"threshold": "x"}, "threshold must be a number from 0 to 1, one for each class"),
        ({"threshold": [0.1]}, "one for each of the 3 classes; got 1"),
        ({"threshold": [0.1, 0.2, -1]}, "each of threshold must"),
        ({"threshold": {"cta": 0.5}}, "threshold names 'cta', .* did you mean 'cat'"),
        ({"threshold": {"zebra": 0.5}}, "'zebra', which is no class here: use 'cat', 'dog', 'grass'"),
        ({"threshold": {"cat": float("nan")}}, "threshold of 'cat' must"),
        ({"min_margin": 2}, "min_margin must"),
    ],
)  # fmt: skip
def test_what_is_no_threshold(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(**options)
    arguments = {"classes": ["cat", "dog", "grass"], "tokenizer": toy_tokenizer, "cache": False}
    with pytest.raises((ValueError, TypeError), match=message):
        load(toy_clip(), templates=["{}"], window=32, **arguments, **options)


def test_a_benchmarks_protocol_gives_the_background() -> None:
    arguments: dict[str, Any] = {
        "classes": ["background", "cat", "dog"], "tokenizer": toy_tokenizer, "cache": False,
        "templates": ["{}"], "window": 32, "short_side": 48, "method": "naclip+rcs",
        "rcs": {"layers": (1, 2)},
    }  # fmt: skip
    ours = load(toy_clip(), threshold=0.9, **arguments).segment(IMAGE)
    assert (ours.labels == -1).any()
    theirs = load(toy_clip(), threshold=0.9, preset="voc21", **arguments)
    assert theirs.pipeline.probability_threshold == 0.9
    assert (theirs.segment(IMAGE).labels >= 0).all()
    with pytest.raises(ValueError, match="preset 'voc21' gives improbable pixels its first class"):
        load(toy_clip(), threshold={"cat": 0.5}, preset="voc21", **arguments)
