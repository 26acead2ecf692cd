"""Resize and normalise an image before it is cut into windows, as a whole or a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from resclip.io.resize import PixelArray, resize, resize_rows, resize_shape, source_rows

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

SOURCE_BYTES = 1 << 26
"""Bytes of a large image's pixels, 64 MiB, that are in memory while rows of it are resized."""


class ImageRows(Protocol):
    """An image whose rows are read on demand."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    def rows(self, first: int, last: int) -> PixelArray:
        """(last − first, width, 3) uint8, C-contiguous."""


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image in memory: (H, W, 3) uint8."""

    pixels: PixelArray

    @property
    def height(self) -> int:
        """See `ImageRows`."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """See `ImageRows`."""
        return int(self.pixels.shape[1])

    def rows(self, first: int, last: int) -> PixelArray:
        """A view, without a copy."""
        return self.pixels[first:last]


@dataclass(frozen=True, eq=False)
class ResizedImage:
    """An image at another size, resized row by row as its rows are asked for.

    Args:
        image: the image at its own size.
        size: (height, width) of this one.
    """

    image: ImageRows
    size: tuple[int, int]

    @property
    def height(self) -> int:
        """See `ImageRows`."""
        return self.size[0]

    @property
    def width(self) -> int:
        """See `ImageRows`."""
        return self.size[1]

    def rows(self, first: int, last: int) -> PixelArray:
        """The same pixels, bit for bit, as `resclip.io.resize.resize` makes of the whole image."""
        height = self.image.height
        # Where the image shrinks, each new row is made of many old ones: only as many at a time as SOURCE_BYTES hold.
        bytes_per_row = 3 * self.image.width * max(1, height // self.height)
        step = max(1, SOURCE_BYTES // bytes_per_row)
        parts = []
        for top in range(first, last, step):
            bottom = min(top + step, last)
            start, end = source_rows(height, self.height, top, bottom)
            rows = self.image.rows(start, end)
            parts.append(resize_rows(rows, start, height, self.size, top, bottom))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Preparation:
    """How images are resized and normalised for a model; can be pickled, for worker processes.

    Args:
        short_side, long_side: see `resclip.Segmenter`.
        smallest: (height, width) of the smallest image that the model takes: one patch.
        mean, std: per channel, of pixels in [0, 1].
    """

    short_side: int
    long_side: int
    smallest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize of an image of this height and width."""
        if self.short_side:
            height, width = resize_shape(height, width, self.short_side, self.long_side)
        return max(height, self.smallest[0]), max(width, self.smallest[1])

    def resize(self, image: PixelArray) -> PixelArray:
        """(H, W, 3) uint8 → (H', W', 3) uint8."""
        return resize(image, self.size(image.shape[0], image.shape[1]))

    def resized(self, image: ImageRows) -> ImageRows:
        """The same of an image whose rows are read on demand: at once where it is in memory, else row by row."""
        if isinstance(image, ArrayImage):
            return ArrayImage(self.resize(image.pixels))
        size = self.size(image.height, image.width)
        return image if size == (image.height, image.width) else ResizedImage(image, size)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(…, H', W', 3) uint8 → (…, 3, H', W') float32, on the same device."""
        return normalise(pixels, self.mean, self.std)


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(…, H, W, 3) uint8 → (…, 3, H, W) float32: (x / 255 − mean) / std per channel, the same bits on every device."""
    pixels = image.movedim(-1, -3).float()
    # Divided by a tensor: for a Python number a GPU multiplies by its reciprocal, which may differ in the last bit.
    pixels = pixels / pixels.new_tensor(255.0)
    return (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
