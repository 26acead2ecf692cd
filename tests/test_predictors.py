"""Predictors: windows to labels, the background's rules, and what a predictor that does something else is told."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from predictor_support import SMALL, Brightness, OwnBackground
from torch import Tensor

from resclip.inference.windows import plan_windows
from resclip.predictors import FunctionPredictor, PredictorSegmenter, PredictorSettings
from resclip.predictors import segmenter as segmenter_module

CLASSES = ["black", "grey", "white"]
SIZES = [(16, 16), (16, 40), (37, 16), (40, 25), (5, 7)]


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        F.interpolate(torch.rand(1, 1, 5, 6, generator=generator), size, mode="bilinear")[0].expand(
            3, -1, -1
        )
        for size in sizes
    ]


def by_hand(predictor: Any, image: Tensor, size: tuple[int, int], classes: int) -> Tensor:
    """(C, H, W): scores of all windows, each resized to its window, their mean, resized."""
    height, width = image.shape[1:]
    settings = predictor.settings
    state = predictor.prepare([None] * classes)
    total, count = torch.zeros(classes, height, width), torch.zeros(height, width)
    for window in plan_windows(height, width, settings.window, settings.stride):
        scores = predictor.scores(image[None, :, window.rows, window.columns], state)
        total[:, window.rows, window.columns] += F.interpolate(
            scores, (window.height, window.width), mode="bilinear"
        )[0]
        count[window.rows, window.columns] += 1
    return F.interpolate((total / count)[None], size, mode="bilinear")[0]


class Coarse(Brightness):
    """On a grid of its own."""

    def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
        return super().scores(F.adaptive_avg_pool2d(pixels, (3, 4)), state)


@pytest.mark.parametrize("kind", [Brightness, Coarse])
def test_windows_are_averaged_and_resized_to_the_image(kind: type[Brightness]) -> None:
    """Images of one window, of several along one side or both, and smaller than one; results larger and smaller."""
    predictor = kind()
    segmenter = PredictorSegmenter(predictor, CLASSES)
    sizes = [(33, 21), (16, 40), (20, 50), (61, 13), (9, 9)]
    for image, size, (labels, best) in zip(
        images(*SIZES), sizes, segmenter.predict_many(images(*SIZES), sizes), strict=True
    ):
        expected = by_hand(predictor, image, size, 3)
        assert labels.dtype == torch.int64
        assert labels.shape == best.shape == size
        two = expected.topk(2, dim=0).values
        clear = two[0] - two[1] > 1e-5
        assert clear.float().mean() > 0.9
        assert torch.equal(labels[clear], expected.argmax(0)[clear])
        assert torch.allclose(best, two[0], atol=1e-5)


def test_results_depend_on_no_other_image_nor_on_strips_or_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = PredictorSegmenter(Coarse(), CLASSES).predict_many(images(*SIZES), SIZES)
    alone = PredictorSegmenter(Coarse(), CLASSES, batch_size=1)
    monkeypatch.setattr(segmenter_module, "STRIP_BYTES", {"cpu": 1000})
    for image, size, (labels, best) in zip(images(*SIZES), SIZES, together, strict=True):
        ((labels_alone, best_alone),) = alone.predict_many([image], [size])
        assert torch.equal(labels, labels_alone)
        assert torch.allclose(best, best_alone, atol=1e-6)


def test_padded_windows_are_cut_back() -> None:
    """A predictor that takes multiples of 8 gets them, zeros around, and the labels are those of the pixels."""
    image, size = images((20, 26)), [(20, 26)]
    predictor = Brightness(window=13, stride=7, pad_multiple=8)
    ((labels, _),) = PredictorSegmenter(predictor, CLASSES).predict_many(image, size)
    assert {shape[2:] for shape in predictor.calls} == {(16, 16)}
    plain = PredictorSegmenter(Brightness(window=0, stride=1), CLASSES)
    assert torch.equal(labels, plain.predict_many(image, size)[0][0])

    class Halved(Brightness):
        """On half the grid of the padded window: 8 × 8 for 16, of which the window's 13 are cut."""

        def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
            return F.avg_pool2d(super().scores(pixels, state), 2)

    coarse = Halved(window=13, stride=13, pad_multiple=8)
    ((_, best),) = PredictorSegmenter(coarse, CLASSES).predict_many([image[0][:, :13, :13]], [(13, 13)])  # fmt: skip
    around = F.pad(image[0][:, :13, :13], (1, 2, 1, 2))[None]
    expected = F.interpolate(coarse.scores(around, torch.linspace(0, 1, 3)), (16, 16), mode="bilinear")  # fmt: skip
    assert torch.allclose(best, expected[0, :, 1:14, 1:14].amax(dim=0), atol=1e-6)


def test_a_batch_that_does_not_fit_into_memory_runs_in_smaller_ones() -> None:
    class Hungry(Brightness):
        def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
            if len(pixels) > limit:
                raise RuntimeError("CUDA out of memory")
            return super().scores(pixels, state)

    limit, predictor = 2, Hungry()
    segmenter = PredictorSegmenter(predictor, CLASSES)
    ((labels, _),) = segmenter.predict_many(images((40, 40)), [(40, 40)])
    assert max(shape[0] for shape in predictor.calls) == 2
    expected = PredictorSegmenter(Brightness(), CLASSES).predict_many(images((40, 40)), [(40, 40)])
    assert torch.equal(labels, expected[0][0])
    limit = 0
    with pytest.raises(MemoryError, match="one window of 16 × 16 pixels by brightness"):
        segmenter.predict_many(images((16, 16)), [(16, 16)])


# Background


def ramp() -> Tensor:
    """(3, 16, 16): columns from black to white."""
    return torch.linspace(0, 1, 16).expand(3, 16, 16)


def columns(predictor: Any, classes: list[str]) -> list[int]:
    ((labels, _),) = PredictorSegmenter(predictor, classes).predict_many([ramp()], [(16, 16)])
    assert (labels == labels[0]).all()
    return labels[0].tolist()


def test_a_constant_background_wins_where_no_class_is_above_it() -> None:
    """Black and white are 1 − the distance: 0.7 and less in the middle."""
    with_background = ["background: sky, wall", "black", "white"]
    assert columns(Brightness(background=0.7), with_background) == [1] * 5 + [0] * 6 + [2] * 5
    # Without a rule it is a class like another; a dataset without a background needs none.
    assert columns(Brightness(), with_background) == [0] * 4 + [1] * 8 + [2] * 4
    assert columns(Brightness(background=0.7), CLASSES) == columns(Brightness(), CLASSES)
    # On a tie the background wins, as the first of equal scores.
    assert columns(Brightness(background=1.0), with_background) == [0] * 16


def test_a_predictors_own_background_is_its_first_channel() -> None:
    assert columns(OwnBackground(), ["background", "black", "white"]) == [0] * 4 + [1] * 4 + [2] * 8
    assert columns(OwnBackground(), ["black", "white"]) == [0] * 8 + [1] * 8


def test_prepare_gets_the_classes_that_are_to_be_asked_for() -> None:
    asked: list[Any] = []

    class Asking(Brightness):
        def prepare(self, entries: Any) -> Tensor:
            asked.append([entry.queries for entry in entries])
            return super().prepare(entries)

    classes = ["background: sky, wall", "cat, kitten", "dog"]
    segmenter = PredictorSegmenter(Asking(background=0.5), classes)
    assert segmenter.vocabulary.names == ("background", "cat", "dog")
    PredictorSegmenter(Asking(), classes)
    foreground = [("cat", "kitten"), ("dog",)]
    assert asked == [foreground, [("sky", "wall"), *foreground]]


def test_one_function_is_enough() -> None:
    def function(pixels: Tensor, entries: Any) -> Tensor:
        assert [entry.name for entry in entries] == ["dark", "light"]
        light = pixels.mean(dim=1)
        return torch.stack([1 - light, light], dim=1)

    predictor = FunctionPredictor("mine", function, PredictorSettings(**SMALL))
    assert columns(predictor, ["dark", "light"]) == [0] * 8 + [1] * 8
    with pytest.raises(TypeError, match="function must be a function of pixels and classes"):
        FunctionPredictor("mine", "no function")  # type: ignore[arg-type]


# What does not fit


class Wrong(Brightness):
    """Returns what it is told to."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def scores(self, pixels: Tensor, state: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        ([1, 2], TypeError, "a tensor (B, C, h, w); got [1, 2]"),
        (torch.zeros(3, 2, 2), ValueError, "(1, 3, h, w), of 1 window and 3 classes; got (3, 2, 2)"),
        (torch.zeros(1, 4, 2, 2), ValueError, "(1, 3, h, w), of 1 window and 3 classes; got (1, 4, 2, 2)"),
        (torch.zeros(1, 3, 0, 2), ValueError, "got (1, 3, 0, 2)"),
        (torch.zeros(1, 3, 2, 2).long(), TypeError, "floats; got torch.int64"),
        (torch.zeros(1, 3, 2, 2, device="meta"), ValueError, "on the pixels' device, cpu; got them on meta"),
        (torch.full((1, 3, 2, 2), torch.nan), ValueError, "finite scores; got NaN"),
        (torch.full((1, 3, 2, 2), -torch.inf), ValueError, "finite scores; got infinity"),
    ],
)  # fmt: skip
def test_wrong_scores_are_told_in_one_sentence(
    result: Any, kind: type[Exception], words: str
) -> None:
    segmenter = PredictorSegmenter(Wrong(result), CLASSES)
    with pytest.raises(kind, match=re.escape(words)) as caught:
        segmenter.predict_many([ramp()], [(16, 16)])
    assert str(caught.value).startswith("scores() of predictor 'brightness' must return ")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_predictors_code_names_it() -> None:
    class Failing(Brightness):
        def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
            raise KeyError("weights")

    segmenter = PredictorSegmenter(Failing(), CLASSES)
    with pytest.raises(
        RuntimeError, match=r"'brightness' failed in scores\(\): KeyError: 'weights'"
    ):
        segmenter.predict_many([ramp()], [(16, 16)])

    class Unprepared(Brightness):
        def prepare(self, entries: Any) -> Tensor:
            raise error

    error: Exception = KeyError("vocab")
    with pytest.raises(RuntimeError, match=r"'brightness' failed in prepare\(\): KeyError"):
        PredictorSegmenter(Unprepared(), CLASSES)
    error = ValueError("expected names in Latin letters")
    with pytest.raises(ValueError, match="^expected names in Latin letters$"):
        PredictorSegmenter(Unprepared(), CLASSES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 4, "smallest": 8}, "at least a patch of 8 pixels; got 4"),
        ({"stride": 17}, "stride must lie between 1 and the window's 16"),
        ({"mean": (0, 0)}, "mean must be three numbers"),
        ({"std": (1, 0, 1)}, "each of std must"),
        ({"templates": ("a photo",)}, "each of templates must be a text with {}"),
        ({"templates": "a photo of {}"}, "templates must be a list"),
        ({"background": "none"}, "background must be None, a number, or 'own'; got 'none'"),
        ({"background": float("nan")}, "background must"),
        ({"short_side": -1}, "short_side must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        PredictorSettings(**{**SMALL, **change})


def test_what_is_no_predictor_is_refused() -> None:
    for value, lacking in (
        (None, "got None"),
        (7, "without prepare, scores, name, settings"),
        (Brightness, "Brightness.* without name, settings"),
    ):
        with pytest.raises(TypeError, match=lacking):
            PredictorSegmenter(value, CLASSES)  # type: ignore[arg-type]
    predictor = Brightness()
    predictor.options = {"weights": torch.zeros(1)}  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="'brightness' must have options that JSON can hold"):
        PredictorSegmenter(predictor, CLASSES)


def test_requests_in_place_of_the_settings() -> None:
    segmenter = PredictorSegmenter(Brightness(), CLASSES, window=10, short_side=None)
    assert (segmenter.chosen.window, segmenter.chosen.stride) == (10, 5)
    assert segmenter.chosen == replace(Brightness().settings, window=10, stride=5)
    with pytest.raises(TypeError, match="expected settings among short_side.*; got 'widnow'"):
        PredictorSegmenter(Brightness(), CLASSES, widnow=10)
    few = PredictorSegmenter(Brightness(), CLASSES, max_windows=3)
    with pytest.raises(ValueError, match="takes 16 windows of 16 pixels, one every 8; 3 are allow"):
        few.predict_many(images((40, 40)), [(40, 40)])


def test_images_that_do_not_fit_are_refused() -> None:
    segmenter = PredictorSegmenter(Brightness(), CLASSES)
    good, size = torch.zeros(3, 8, 8), (8, 8)
    wrong: Any
    for wrong, sizes, words in (
        ([good], [], r"one \(height, width\) for each of 1 images; got 0"),
        ([torch.zeros(8, 8)], [size], r"\(3, H, W\) tensor; got \(8, 8\)"),
        ([good.byte()], [size], "normalised floats; got torch.uint8"),
        ([np.zeros((3, 8, 8))], [size], r"must be a \(3, H, W\) tensor"),
        ([good], [(0, 8)], "each of sizes"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            segmenter.predict_many(wrong, sizes)


def test_no_gradients_are_kept() -> None:
    class Learning(Brightness):
        weight = torch.nn.Parameter(torch.ones(1))

        def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
            return super().scores(pixels, state) * self.weight

    ((_, best),) = PredictorSegmenter(Learning(), CLASSES).predict_many([ramp()], [(16, 16)])
    assert not best.requires_grad
