"""Models that are not methods of this library, measured beside them: class names and pixels in, scores out.

`base.py` says what a predictor is, `segmenter.py` runs one, `registry.py` finds one by name; the others are predictors.
The names below load on first use: predictors are listed without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resclip.predictors.base import FunctionPredictor, Predictor, PredictorSettings
    from resclip.predictors.groups import group_scores
    from resclip.predictors.segmenter import PredictorSegmenter

# The module that defines each name.
HOMES = {
    "FunctionPredictor": "base",
    "Predictor": "base",
    "PredictorSegmenter": "segmenter",
    "PredictorSettings": "base",
    "group_scores": "groups",
}
__all__ = [
    "FunctionPredictor",
    "Predictor",
    "PredictorSegmenter",
    "PredictorSettings",
    "group_scores",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
