"""Figures that were never measured, for tests of tables."""

from __future__ import annotations

from resclip.evaluation.record import Evaluation, Row


def figures(**means: float) -> Evaluation:
    """A row a mean ("naclip_rcs" for naclip+rcs): one class 10 above it, one not there, one 10 below it."""
    rows = {
        name.replace("_", "+"): Row(mean, (mean + 10, None, mean - 10), 1.0, 1, {})
        for name, mean in means.items()
    }
    settings = {
        "window": 112,
        "stride": 56,
        "device": "cpu",
        "precision": "float32",
        "resclip": "0.1",
        "torch": "2.9",
    }
    return Evaluation("200 scenes", settings, ("sky", "night sky", "car"), rows)
