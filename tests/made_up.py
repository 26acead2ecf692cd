"""Figures that were never measured, for tests of tables."""

from __future__ import annotations

from resclip.evaluation.metrics import Scores
from resclip.evaluation.record import Cost, Evaluation, Row


def figures(seconds: float = 1.0, /, **means: float) -> Evaluation:
    """A row a mean ("naclip_rcs" for naclip+rcs): one class 10 above it, one not there, one 10 below it."""
    rows = {name.replace("_", "+"): row(mean, seconds) for name, mean in means.items()}
    settings = {
        "model": "builtin",
        "pretrained": None,
        "device": "cpu",
        "precision": "float32",
        "resclip": "0.1",
        "torch": "2.9",
    }
    return Evaluation("builtin", "200 scenes", settings, ("sky", "night sky", "car"), rows)


def row(mean: float, seconds: float) -> Row:
    iou = (mean + 10, None, mean - 10)
    scores = Scores(mean, mean, mean, mean, iou, iou)
    knobs = {"window": 112, "stride": 56}
    return Row(scores, 200, (), Cost(seconds, 1, 2, "a CPU", 2**30), knobs)
