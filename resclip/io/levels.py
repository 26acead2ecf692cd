"""Numbers of any kind as levels from 0 to 255: a file's bits say what it can hold, not which values it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.io.resize import PixelArray

PERCENTILES = (0.5, 99.5)
"""Per cent of a file's values below what becomes black and white, where its type's range is not used."""

BLACK_SHARE = 0.25
"""Black stays 0 where the low percentile is at most this share of the high one: nothing but dark pixels lies below."""

USED_SHARE = 1e-3
"""A type's range is used if at least this share of the values lies in its upper half."""

FULL_RANGES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0, "float64": 1.0}
"""The value of white, by convention, in types that have one."""

_BINS = 1 << 16


@dataclass(frozen=True)
class Levels:
    """The values that become black and white; those between are spread evenly.

    Attributes:
        low, high: these values; `low` < `high`.
        reason: how they were found, in words.
    """

    low: float
    high: float
    reason: str

    def to_bytes(self, values: NDArray[Any]) -> PixelArray:
        """Values of any shape and type as the nearest of 256 levels; what is not finite as 0."""
        if values.dtype == np.uint8 and (self.low, self.high) == (0.0, 255.0):
            return values
        if values.dtype == np.uint16:
            table = self._of_numbers(np.arange(_BINS))
            return table.take(values)
        return self._of_numbers(values)

    def _of_numbers(self, values: NDArray[Any]) -> PixelArray:
        # Float64 holds the difference of any two 32-bit integers.
        levels = (values.astype(np.float64) - self.low) * (255.0 / (self.high - self.low))
        levels = np.nan_to_num(levels, nan=0.0, posinf=255.0, neginf=0.0)
        rounded: PixelArray = np.rint(levels.clip(0.0, 255.0)).astype(np.uint8)
        return rounded


BYTES = Levels(0.0, 255.0, "8 bits")


def find_levels(dtype: np.dtype[Any], blocks: Callable[[], Iterable[NDArray[Any]]]) -> Levels:
    """The levels of a whole file, whose values come in blocks; twice for types of more than 16 bits.

    8 bits stay as they are. So do 16 bits without a sign and fractions from 0 to 1, if they use their range. All others
    are stretched to their percentiles, of all colours together, so that hues stay.

    Args:
        dtype: of the values.
        blocks: returns the file's values piece by piece, without absent pixels.
    """
    if dtype == np.uint8:
        return BYTES
    counts, edges = _histogram(dtype, blocks)
    total = int(counts.sum())
    if total == 0:
        return Levels(0.0, 1.0, "no pixel")
    used = counts.nonzero()[0]
    lowest, highest = float(edges[used[0]]), float(edges[used[-1] + 1])
    white = FULL_RANGES.get(dtype.name)
    if white is not None and lowest >= 0 and (dtype == np.uint16 or highest <= white * (1 + 1e-6)):
        upper = counts[edges[:-1] >= white / 2].sum()
        if upper >= USED_SHARE * total:
            return Levels(0.0, white, "the type's range")
    running = counts.cumsum()
    low_bin, high_bin = (
        int(np.searchsorted(running, total * percent / 100)) for percent in PERCENTILES
    )
    low, high = float(edges[low_bin]), float(edges[high_bin])
    if not low < high:  # Nearly all values are one.
        low, high = lowest, highest
    if 0 <= low <= BLACK_SHARE * high:
        return Levels(0.0, high, f"0 and the file's percentile {PERCENTILES[1]:g}")
    return Levels(low, high, f"the file's percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}")


def _histogram(
    dtype: np.dtype[Any], blocks: Callable[[], Iterable[NDArray[Any]]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(65536,) counts and the (65537,) values at which their bins begin: one a value for 16 bits."""
    counts = np.zeros(_BINS, np.int64)
    if np.issubdtype(dtype, np.integer) and dtype.itemsize <= 2:
        first = np.iinfo(dtype).min
        for values in blocks():
            counts += np.bincount((values.astype(np.int32) - first).ravel(), minlength=_BINS)
        return counts, np.arange(_BINS + 1, dtype=np.float64) + first
    lowest, highest = np.inf, -np.inf
    for values in blocks():
        finite = _finite(values)
        if finite.size:
            lowest = min(lowest, float(finite.min()))
            highest = max(highest, float(finite.max()))
    if lowest > highest:
        return counts, np.linspace(0.0, 1.0, _BINS + 1)
    if lowest == highest:
        highest = lowest + max(1.0, abs(lowest))
    for values in blocks():
        counts += np.histogram(_finite(values), bins=_BINS, range=(lowest, highest))[0]
    return counts, np.linspace(lowest, highest, _BINS + 1)


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.astype(np.float64).ravel()
    return numbers[np.isfinite(numbers)]
