"""Reports that were never measured, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resclip.evaluation.datasets.base import Problem
from resclip.evaluation.metrics import Scores
from resclip.evaluation.report import Cost, Evaluation, Report, Row

CLASSES = ("sky", "night sky", "car")
SETTINGS = {
    "window": 112,
    "stride": 56,
    "device": "cpu",
    "precision": "float32",
    "resclip": "0.1",
    "torch": "2.9",
}


def row(
    miou: float | None,
    *,
    problems: Sequence[Problem] = (),
    options: Mapping[str, Any] | None = None,
    seconds: float = 20.0,
) -> Row:
    """One class 10 above the mean, one not there, one 10 below it; None: nothing could be measured."""
    if miou is None:
        scores = Scores(None, None, None, None, (None,) * 3, (None,) * 3)
    else:
        accuracy = (miou + 9, None, miou - 1)
        scores = Scores(miou, miou + 4, miou + 7, miou + 6, (miou + 10, None, miou - 10), accuracy)
    cost = Cost(seconds, 1, 2, "a CPU", 3_000_000)
    return Row(scores, 0 if miou is None else 200, tuple(problems), cost, dict(options or {}))


def evaluation(dataset: str, rows: Mapping[str, Row], **settings: Any) -> Evaluation:
    """Rows on 200 images, under `SETTINGS` and these."""
    return Evaluation(dataset, f"200 of {dataset}", {**SETTINGS, **settings}, CLASSES, dict(rows))


def figures(seconds: float = 20.0, /, **means: float) -> Evaluation:
    """A row a mean on the drawn scenes, each of these seconds: "naclip_rcs" for naclip+rcs."""
    rows = {name.replace("_", "+"): row(mean, seconds=seconds) for name, mean in means.items()}
    return Evaluation("scenes", "200 scenes", SETTINGS, CLASSES, rows)


def report(*sets: Evaluation) -> Report:
    return Report({some.dataset: some for some in sets})
