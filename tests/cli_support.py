"""What the tests of the command line share: a stand-in for the model, and ways to run and read a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resclip.batch.output_names import SUMMARY
from resclip.cli.commands import main
from resclip.io.images import SCENE_MARK, read_image
from resclip.result import Segmentation


class StandIn:
    """In place of a model: the image's left half is class 0, its right half the last class."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.fail: Callable[[np.ndarray], None] = lambda _: None

    def load(self, model: str, pretrained: str | None, **options: Any) -> SimpleNamespace:
        self.asked = {"model": model, "pretrained": pretrained, **options}
        return SimpleNamespace(segment=self.segment, settings={"model": "stand-in"})

    def segment(self, image: np.ndarray, keep: str | None = None) -> Segmentation:
        pixels = read_image(image)
        self.fail(pixels)
        names = tuple(self.asked["classes"])
        labels = np.zeros(pixels.shape[:2], np.int64)
        labels[:, pixels.shape[1] // 2 :] = len(names) - 1
        probabilities = np.full(labels.shape, 0.5, np.float32)
        return Segmentation(pixels, labels, probabilities, names, {"model": "stand-in"})


TAKE_A_MODEL = ("segment", "batch", "compare", "attention", "evaluate", "ablate")


def run(*arguments: object, model: str | None = "builtin") -> int:
    """Run a command; by the built-in model, unless the options name another, or `model` is None: the default."""
    words = [str(argument) for argument in arguments]
    if model is not None and words and words[0] in TAKE_A_MODEL and "--model" not in words:
        words += ["--model", model]
    return main(words)


def as_scene(pixels: np.ndarray) -> Image.Image:
    """An image that says that it is one of the built-in model's scenes, of which nothing is noted."""
    picture = Image.fromarray(pixels)
    key, value = SCENE_MARK
    picture.info[key] = value
    return picture


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr; nothing on stdout."""
    came = capsys.readouterr()
    assert came.out == ""
    assert came.err.startswith("resclip: ")
    assert came.err.count("\n") == 1, came.err
    for word in words:
        assert word in came.err
    return came.err


def names_in(folder: Path) -> list[str]:
    """All files and folders of a folder but a run's summary."""
    return sorted(path.name for path in folder.iterdir() if path.name != SUMMARY)
