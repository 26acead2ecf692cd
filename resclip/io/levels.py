"""Numbers of any kind as levels from 0 to 255: a file's bits say what it can hold, not which values it uses."""

from __future__ import annotations

import math
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
_FLOAT32 = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))


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
    values = _Values(dtype, blocks)
    if values.total == 0:
        return Levels(0.0, 1.0, "no pixel")
    # Ranks: how many values come before. The third is reached by the share that says whether a range is used.
    last = values.total - 1
    used = values.total - math.ceil(USED_SHARE * values.total)
    inner = [max(0, math.ceil(values.total * percent / 100) - 1) for percent in PERCENTILES]
    lowest, highest, upper, low, high = values.at_ranks([0, last, used, *inner])
    white = FULL_RANGES.get(dtype.name)
    in_range = lowest >= 0 and (dtype == np.uint16 or highest <= (white or 0.0) * (1 + 1e-6))
    if white is not None and in_range and upper >= white / 2:
        return Levels(0.0, white, "the type's range")
    reason = f"the file's percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}"
    if lowest == highest:
        return Levels(lowest, lowest + max(1.0, abs(lowest)), "a file of a single value")
    if low == high:  # Nearly all values are one.
        low, high, reason = lowest, highest, "the file's lowest and highest value"
    elif 0 <= low <= BLACK_SHARE * high:
        low, reason = 0.0, f"0 and the file's percentile {PERCENTILES[1]:g}"
    return Levels(low, high, reason)


class _Values:
    """All values of a file in their order, without holding them: only counted, by 16 bits at a time.

    Values of more than 16 bits are counted by the upper half of a key of 32 bits that is ordered as they are; a value
    of a rank is then looked for among those of one upper half. So one value that is out of all proportion takes nothing
    from the others, as it would from bins of equal width. Fractions of 64 bits are rounded to 32.

    Args:
        dtype: of the values.
        blocks: returns them piece by piece; what is not finite is passed over.
    """

    def __init__(self, dtype: np.dtype[Any], blocks: Callable[[], Iterable[NDArray[Any]]]) -> None:
        self._is_short = np.issubdtype(dtype, np.integer) and dtype.itemsize <= 2
        self._is_whole = np.issubdtype(dtype, np.integer) and dtype.itemsize <= 4
        self._first = np.iinfo(dtype).min if self._is_whole else 0
        self._blocks = blocks
        self._upper = np.zeros(_BINS, np.int64)
        for values in blocks():
            keys = self._keys(values)
            self._upper += np.bincount(keys if self._is_short else keys >> 16, minlength=_BINS)
        self.total = int(self._upper.sum())

    def at_ranks(self, ranks: list[int]) -> list[float]:
        """For each rank, from 0 up to `total`, the value that so many others come before."""
        running = self._upper.cumsum()
        uppers = np.searchsorted(running, ranks, side="right").tolist()
        if self._is_short:
            return [float(upper + self._first) for upper in uppers]
        lowers = {upper: np.zeros(_BINS, np.int64) for upper in uppers}
        for values in self._blocks():
            keys = self._keys(values)
            for upper in lowers:
                lowers[upper] += np.bincount(keys[keys >> 16 == upper] & 0xFFFF, minlength=_BINS)
        found = []
        for rank, upper in zip(ranks, uppers, strict=True):
            within = rank - int(running[upper] - self._upper[upper])
            lower = int(np.searchsorted(lowers[upper].cumsum(), within, side="right"))
            found.append(self._value(upper << 16 | lower))
        return found

    def _value(self, key: int) -> float:
        if self._is_whole:
            return float(key + self._first)
        # The sign's bit is set in keys of positive numbers, whose other bits are their own.
        bits = key ^ 0x80000000 if key >> 31 else key ^ 0xFFFFFFFF
        return float(np.array(bits, np.uint32).view(np.float32))

    def _keys(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Whole numbers from 0 up, below 65,536 or 2**32, that are ordered as the values are."""
        values = values.ravel()
        if self._is_whole:
            return values.astype(np.int64) - self._first
        numbers = np.clip(values[np.isfinite(values)], *_FLOAT32).astype(np.float32)
        bits = numbers.view(np.uint32)
        is_negative = bits >> 31 == 1
        keys: NDArray[np.uint32] = np.where(is_negative, ~bits, bits | np.uint32(0x80000000))
        return keys.astype(np.int64)
