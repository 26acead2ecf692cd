"""What a predictor is: a name, settings, and two methods from class names and a window's pixels to scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from torch import Tensor

from resclip.inference.preprocessing import CLIP_MEAN, CLIP_STD
from resclip.inference.windows import check_window
from resclip.methods.catalogue import MOST_PIXELS
from resclip.text.class_names import ClassEntry
from resclip_kernels import (
    check_callable,
    check_count,
    check_finite,
    check_positive,
    check_type,
    quoted,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

OWN: Literal["own"] = "own"
"""The background rule of a predictor that gives the background's channel itself, in front of the classes'."""


@dataclass(frozen=True)
class PredictorSettings:
    """How images come to a predictor, and what its scores mean. Sizes are in pixels."""

    short_side: int = 448
    """Images are resized to this short side with their aspect ratio kept; 0: their own size."""
    long_side: int = 2048
    """The resized long side is at most this."""
    window: int = 448
    """Side of the square windows; 0: the whole image. An image smaller than a window gives one smaller window."""
    stride: int = 224
    """Step between windows, at most `window`."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    """Of each channel, for pixels in [0, 1]."""
    pad_multiple: int = 0
    """Windows are padded evenly to a multiple of this with zeros after normalisation; 0: no padding."""
    smallest: int = 1
    """Smaller images are enlarged to this side: that of a patch."""
    batch_size: int = 8
    """Most windows in a call of `scores`; fewer where memory is short."""
    templates: tuple[str, ...] = ("{}",)
    """What the predictor puts names into, with "{}" for the name. It does so itself; a report says which these were."""
    background: float | Literal["own"] | None = None
    """What a dataset's class "background", its first one, is given. None: nothing special, it is a class like others.
    A number: a channel of this score, so that it wins where no class scores higher. "own": the predictor's first
    channel, which it always gives and which is left out for a dataset without a background. In the last two cases
    `prepare` gets the other classes alone."""

    def __post_init__(self) -> None:
        for name in ("mean", "std", "templates"):
            value = getattr(self, name)
            check_type(name, value, (tuple, list), "a list")
            object.__setattr__(self, name, tuple(value))
        for name, check in (("mean", check_finite), ("std", check_positive)):
            values = getattr(self, name)
            if len(values) != 3:
                raise ValueError(
                    f"{name} must be three numbers, one per channel; got {quoted(values)}"
                )
            for value in values:
                check(f"each of {name}", value)
        for template in self.templates:
            if not isinstance(template, str) or "{}" not in template:
                raise ValueError(
                    f"each of templates must be a text with {{}} for the name; got {quoted(template)}"
                )
        check_count("short_side", self.short_side, 0, MOST_PIXELS)
        check_count("pad_multiple", self.pad_multiple, 0, MOST_PIXELS)
        check_count("smallest", self.smallest, 1, MOST_PIXELS)
        for name in ("long_side", "batch_size"):
            check_count(name, getattr(self, name), 1)
        check_window(self.window, self.stride, (self.smallest, self.smallest))
        if self.background not in (None, OWN):
            if isinstance(self.background, (str, bool)):
                raise ValueError(
                    f"background must be None, a number, or {OWN!r}; got {quoted(self.background)}"
                )
            check_finite("background", self.background)


class Predictor(Protocol):
    """A model that segments by class names, of any kind; `docs/predictors.md` shows how to write one.

    It may have two attributes more: `options`, a mapping of JSON-able values that decide its results, such as the name
    of its weights (a stored row with other options is measured again); and `device`, where it wants its pixels.
    """

    @property
    def name(self) -> str:
        """What it is called in errors and reports."""

    @property
    def settings(self) -> PredictorSettings:
        """How images come to it, and what its scores mean."""

    def prepare(self, entries: Sequence[ClassEntry], /) -> Any:
        """Whatever `scores` needs to know of the classes, such as text features; called once for a dataset.

        Args:
            entries: the classes in order, each with its `name` and its `queries`, the synonyms to ask for.
        """

    def scores(self, pixels: Tensor, state: Any, /) -> Tensor:
        """How well each class fits at each place of some windows of one size; called without gradients.

        Args:
            pixels: (B, 3, H, W) float32, normalised with `settings.mean` and `settings.std`.
            state: what `prepare` returned.

        Returns:
            (B, C, h, w) finite floats on the pixels' device, a channel for each of the entries, and before them one
            for the background where `settings.background` is "own". Any grid: it is resized bilinearly to the window.
        """


@dataclass(frozen=True)
class FunctionPredictor:
    """A predictor from one function of pixels and class names."""

    name: str
    function: Callable[[Tensor, tuple[ClassEntry, ...]], Tensor]
    """(B, 3, H, W) pixels and the classes → (B, C, h, w), as `Predictor.scores` has them."""
    settings: PredictorSettings = PredictorSettings()

    def __post_init__(self) -> None:
        check_callable("function", self.function, "a function of pixels and classes")

    def prepare(self, entries: Sequence[ClassEntry]) -> tuple[ClassEntry, ...]:
        """The classes themselves."""
        return tuple(entries)

    def scores(self, pixels: Tensor, state: tuple[ClassEntry, ...]) -> Tensor:
        """What the function returns."""
        return self.function(pixels, state)


def check_predictor(value: Any, source: str) -> Predictor:
    """The value; TypeError, which names `source`, unless it is a predictor."""
    lacking = [name for name in ("prepare", "scores") if not callable(getattr(value, name, None))]
    if not isinstance(getattr(value, "name", None), str):
        lacking.append("name")
    if not isinstance(getattr(value, "settings", None), PredictorSettings):
        lacking.append("settings")
    if lacking or isinstance(value, type):
        without = f" without {', '.join(lacking)}" if lacking and value is not None else ""
        raise TypeError(
            f"{source}: expected a predictor with a name, PredictorSettings as settings, prepare() and scores(); got "
            f"{quoted(value)}{without}"
        )
    options_of(value)
    predictor: Predictor = value
    return predictor


def options_of(predictor: Any) -> dict[str, Any]:
    """The options that a predictor states; TypeError where they cannot be written as JSON."""
    options = getattr(predictor, "options", {})
    expected = f"predictor {predictor.name!r} must have options that JSON can hold; got"
    if not isinstance(options, Mapping):
        raise TypeError(f"{expected} {quoted(options)}")
    try:
        json.dumps(dict(options), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{expected} {quoted(options)} ({error})") from None
    return dict(options)


SETTINGS = tuple(field.name for field in fields(PredictorSettings))
"""The names of a predictor's settings."""
