"""Numbers of any kind as levels: by the values that there are, exactly, and whatever one of them is."""

from __future__ import annotations

import numpy as np
import pytest

from resclip.io.levels import PERCENTILES, Levels, find_levels


def levels_of(values: np.ndarray) -> Levels:
    """Of values that come in two blocks."""
    return find_levels(values.dtype, lambda: [values[:100], values[100:]])


@pytest.mark.parametrize("dtype", ["int16", "uint32", "int32", "float32", "float64"])
def test_percentiles_whatever_a_few_values_are(dtype: str) -> None:
    values = np.random.default_rng(2).normal(900, 100, 5000).astype(dtype)
    if dtype != "uint32":
        values -= 1000
    is_float = np.dtype(dtype).kind == "f"
    values[7] = 3e38 if is_float else np.iinfo(dtype).max
    values[8] = -3e38 if is_float else np.iinfo(dtype).min
    if is_float:
        values[9:11] = np.nan, np.inf
    known = values[np.isfinite(values)]
    found = levels_of(values)
    wanted = np.percentile(known, PERCENTILES, method="inverted_cdf")
    assert (found.low, found.high) == pytest.approx(wanted.tolist(), rel=1e-6)
    assert "percentiles" in found.reason


def test_decibels_and_fractions() -> None:
    values = np.linspace(-25, -1, 1000, dtype=np.float32)
    assert (levels_of(values).low, levels_of(values).high) == pytest.approx((-24.9, -1.1), abs=0.05)
    assert levels_of(np.linspace(0, 1, 1000)) == Levels(0.0, 1.0, "the type's range")
    assert levels_of(np.linspace(0, 0.4, 1000)).high == pytest.approx(0.398, abs=1e-3)


@pytest.mark.parametrize("value", [0, -5, 7])
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_one_value_everywhere(dtype: str, value: int) -> None:
    values = np.full(200, value, dtype)
    found = levels_of(values)
    assert found.low == value < found.high
    assert (found.to_bytes(values) == 0).all()
    # A few others than that are the range, and said to be.
    values[:1] = value + 100
    assert levels_of(np.concatenate([values] + [values[1:]] * 5)) == Levels(
        0.0 if value == 0 else value, value + 100, "the file's lowest and highest value"
    )


def test_no_value_at_all() -> None:
    assert levels_of(np.full(200, np.nan)).reason == "no pixel"
