"""What of the masks is in no figure, and how masks that are read with the wrong meaning look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from evaluation_support import CLASSES, random_dataset

from resclip.evaluation.checkpoint import DatasetResult
from resclip.evaluation.coverage import Coverage, coverage_of
from resclip.evaluation.datasets.base import Dataset

READ_AS_THEY_ARE = {"ignore_index": 255, "label_offset": 0}


def dataset(**mask_options: int) -> Dataset:
    return replace(random_dataset(1, 1), mask_options=mask_options)


def result(counts: Sequence[Sequence[int]], ignored: int = 0) -> DatasetResult:
    return DatasetResult(np.array(counts, np.int64), 1, ignored=ignored)


def taken_for(places: Sequence[int | None]) -> list[list[int]]:
    """A confusion in which each class was taken for one of these; None: it is not there."""
    counts = np.zeros((len(places), len(places) + 1), int)
    for row, place in enumerate(places):
        if place is not None:
            counts[row, place] = 7
    return counts.tolist()


def test_pixels_are_counted_and_missing_classes_named() -> None:
    counts = [[5, 0, 1, 0, 2], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 0, 0]]
    wanted = Coverage(11, 4, 2, (CLASSES[1], CLASSES[3]), None)
    assert coverage_of(dataset(), result(counts, 4)) == wanted


@pytest.mark.parametrize(
    ("places", "ignored", "options", "said"),
    [
        ([0, None, None, None], 5, {}, "0 and 255 alone"),
        ([0, None, None, None], 0, {}, None),  # Nothing is ignored: an image of one class.
        ([0, None, None, None], 5, {"ignore_index": 9}, None),
        ([None, None, None, None], 5, {}, None),
        ([0, 0, 1, 2], 0, {}, "3 classes .* before them .*--label-offset 1"),
        ([1, 2, 3, None], 5, {"label_offset": 1}, "3 classes .* after them .*--label-offset 0"),
        ([1, 2, 2, None], 0, {}, "2 classes .* after them .*--label-offset -1"),
        ([0, 1, 1, 2], 0, {}, None),  # As many are right as are shifted.
        ([None, None, None, 2], 0, {}, None),  # One class alone.
        ([4, 4, 4, 4], 0, {}, None),  # No class at all is predicted.
    ],
)
def test_masks_that_seem_to_be_misread_have_a_hint(
    places: Sequence[int | None], ignored: int, options: dict[str, int], said: Any
) -> None:
    options = {**READ_AS_THEY_ARE, **options}
    hint = coverage_of(dataset(**options), result(taken_for(places), ignored)).hint
    assert hint is None if said is None else re.search(said, str(hint))
    # Masks of a benchmark have one meaning.
    assert coverage_of(dataset(), result(taken_for(places), ignored)).hint is None
