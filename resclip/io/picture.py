"""An image as the library sees it: RGB bytes, where it has no pixels, where it lies, and what was done to read it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resclip.io.limits import DEFAULT_LIMITS, Limits
from resclip.io.resize import PixelArray

Mask: TypeAlias = NDArray[np.bool_]

FILLING = (123, 117, 104)
"""RGB of pixels that an image does not have: the mean of CLIP's training images, which says nothing to a model."""

ALPHA_BETWEEN = 0.05
"""In a file with a georeference, and beside bands that were named, a band marked as alpha is none if more of it lies
between clear and opaque."""

NO_PLACE = "not written: a PNG has no place for it, a tif has"
"""What is said of a georeference where the labels are written as PNG."""


class Georeference(NamedTuple):
    """Where an image lies on the earth, by rasterio's types; None or empty for what it does not say."""

    crs: Any = None
    """Coordinate reference system."""
    transform: Any = None
    """Affine transform from pixels to its coordinates."""
    gcps: tuple[Any, ...] = ()
    """Ground control points."""
    gcps_crs: Any = None
    """The coordinate reference system of `gcps`."""
    rpcs: Any = None
    """Rational polynomial coefficients, from longitude, latitude and height to pixels."""

    @property
    def is_known(self) -> bool:
        """Whether the image says anything about its place."""
        return any(part is not None for part in (self.crs, self.transform, self.rpcs)) or bool(
            self.gcps
        )


NOWHERE = Georeference()
"""Of an image that does not say where it lies."""


@dataclass(frozen=True)
class ReadOptions:
    """How an image file becomes RGB bytes; small, and can be pickled.

    Args:
        bands: three bands that are taken as red, green and blue, or one as grey: numbers from 1, or names by the file's
            own descriptions. None: by the file's colour interpretation and descriptions.
        value_range: (low, high) of the values that become black and white. None: 8 bits, and 16 bits that use their
            range, as they are; others from the file's percentiles.
        limits: bounds of a single image.

    Raises:
        TypeError, ValueError: a value that does not fit.
    """

    bands: Sequence[int | str] | None = None
    value_range: tuple[float, float] | None = None
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.bands is not None:
            object.__setattr__(self, "bands", _checked_bands(self.bands))
        if self.value_range is not None:
            object.__setattr__(self, "value_range", _checked_range(self.value_range))

    @property
    def described(self) -> dict[str, Any]:
        """What decides the pixels, as values for JSON."""
        return {
            "bands": None if self.bands is None else list(self.bands),
            "value_range": None if self.value_range is None else list(self.value_range),
        }


DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in memory.

    Attributes:
        pixels: (H, W, 3) uint8, C-contiguous; upright sRGB; `FILLING` where the image has no pixels.
        absent: (H, W), where the image has no pixels: by a nodata value, a mask or full transparency. None: nowhere.
        georeference: where it lies.
        record: what was done to read it, as values for JSON.
    """

    pixels: PixelArray
    absent: Mask | None = None
    georeference: Georeference = NOWHERE
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])


def over_filling(pixels: PixelArray, opacity: NDArray[np.uint8]) -> PixelArray:
    """(…, 3) colours of (…) opacities, 255 for opaque, over the filling."""
    share = opacity[..., None].astype(np.uint32)
    mixed = pixels * share + np.array(FILLING, np.uint32) * (255 - share)
    return ((mixed + 127) // 255).astype(np.uint8)


def share_absent(absent: Mask) -> float:
    """The fraction of an image's pixels that it does not have, as a record states it: to six digits."""
    return round(float(absent.mean()), 6)


def runs_of(count: int, step: int) -> Iterator[tuple[int, int]]:
    """(first, last) of neighbouring runs of at most `step` of `count` rows."""
    for first in range(0, count, step):
        yield first, min(first + step, count)


def _checked_bands(bands: Sequence[int | str]) -> tuple[int | str, ...]:
    if isinstance(bands, (str, bytes)) or not isinstance(bands, Sequence):
        raise TypeError(
            f"bands must be three numbers or names, as in bands=(4, 3, 2), or one; got {str(bands)[:80]!r}"
        )
    for band in bands:
        if isinstance(band, bool) or not isinstance(band, (str, Integral)):
            raise TypeError(f"bands must be whole numbers or names; got {str(band)[:80]!r}")
        is_wrong = not band.strip() if isinstance(band, str) else band < 1
        if is_wrong:
            raise ValueError("bands must be numbers from 1 or names; got 0 or an empty name")
    if len(bands) not in (1, 3):
        raise ValueError(
            f"bands must be three, for red, green and blue, or one for grey; got {len(bands)}"
        )
    return tuple(band.strip() if isinstance(band, str) else int(band) for band in bands)


def _checked_range(value_range: Sequence[float]) -> tuple[float, float]:
    if isinstance(value_range, (str, bytes)) or not isinstance(value_range, Sequence):
        raise TypeError(
            f"value_range must be (low, high), as in value_range=(0, 3000); got {str(value_range)[:80]!r}"
        )
    if len(value_range) != 2:
        raise ValueError(f"value_range must be (low, high); got {len(value_range)} values")
    for value in value_range:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"value_range must be two numbers; got {str(value)[:80]!r}")
    low, high = map(float, value_range)
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"value_range must be (low, high) with low < high; got {low:g}, {high:g}")
    return low, high
