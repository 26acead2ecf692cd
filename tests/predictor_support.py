"""Predictors that need no model: what they say follows from the pixels, so that labels are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resclip.predictors import FunctionPredictor, PredictorSettings
from resclip.text.class_names import ClassEntry

SMALL = {"short_side": 0, "window": 16, "stride": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}


class Brightness:
    """Class c of C where the brightness, in [0, 1], is nearest to c / (C − 1); one score for each pixel."""

    def __init__(self, **settings: Any) -> None:
        self.name = "brightness"
        self.settings = PredictorSettings(**{**SMALL, **settings})
        self.options = {"levels": "even"}
        self.calls: list[tuple[int, ...]] = []

    def prepare(self, entries: Sequence[ClassEntry]) -> Tensor:
        return torch.linspace(0, 1, len(entries))

    def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
        self.calls.append(tuple(pixels.shape))
        return 1 - (pixels.mean(dim=1, keepdim=True) - state.view(1, -1, 1, 1)).abs()


class OwnBackground(Brightness):
    """Pixels darker than a quarter are background; the brightness decides between the other classes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(background="own", **settings)

    def scores(self, pixels: Tensor, state: Tensor) -> Tensor:
        dark = (pixels.mean(dim=1, keepdim=True) < 0.25).float()
        return torch.cat([2 * dark, super().scores(pixels, state)], dim=1)


def make() -> Brightness:
    """As `--method predictor_support:make` finds it."""
    return Brightness()


def make_with(*, device: Any, dataset: str | None, level: float = 0.0) -> FunctionPredictor:
    """With the keywords that are given, and an option."""
    function = uniform(level)
    name = f"{device}, {dataset}, {level}"
    return FunctionPredictor(name, function, PredictorSettings(**SMALL))


def uniform(level: float) -> Any:
    def function(pixels: Tensor, entries: tuple[ClassEntry, ...]) -> Tensor:
        return pixels.new_full((len(pixels), len(entries), 2, 2), level)

    return function


READY = Brightness()
NUMBER = 7


def make_number() -> int:
    """No predictor."""
    return 7


class Nameless:
    """Lacks a name and its settings."""

    def prepare(self, entries: Any) -> None: ...

    def scores(self, pixels: Any, state: Any) -> None: ...
