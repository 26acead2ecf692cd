"""Models that are not methods of this library, measured beside them: class names and pixels in, scores out.

`base.py` says what a predictor is, `segmenter.py` runs one, `registry.py` finds one by name; the others are predictors.
"""

from __future__ import annotations

from resclip.predictors.base import FunctionPredictor, Predictor, PredictorSettings
from resclip.predictors.groups import group_scores
from resclip.predictors.segmenter import PredictorSegmenter

__all__ = [
    "FunctionPredictor",
    "Predictor",
    "PredictorSegmenter",
    "PredictorSettings",
    "group_scores",
]
