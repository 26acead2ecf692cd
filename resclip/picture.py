"""Pictures of any size as runs of rows, so that one too large for memory is a picture like any other.

Knows pixels and their resizing. Knows no file format, no model and no class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from resclip.images import PixelArray
from resclip.resizing import resize_rows, source_rows



SOURCE_BYTES = 1 << 26
"""Pixels of a large picture that are in memory while it is resized: 64 MiB."""


class Picture(Protocol):
    """Rows of pixels, on demand."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    def rows(self, first: int, last: int) -> PixelArray:
        """(last − first, width, 3) uint8, C-contiguous."""


@dataclass(frozen=True, eq=False)
class ArrayPicture:
    """A picture in memory: (H, W, 3) uint8."""

    pixels: PixelArray

    @property
    def height(self) -> int:
        """See `Picture`."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """See `Picture`."""
        return int(self.pixels.shape[1])

    def rows(self, first: int, last: int) -> PixelArray:
        """A view, without a copy."""
        return self.pixels[first:last]


@dataclass(frozen=True, eq=False)
class ResizedPicture:
    """Another picture at another size; its rows are made when they are asked for.

    Args:
        picture: the picture.
        size: (height, width) wanted.
    """

    picture: Picture
    size: tuple[int, int]

    @property
    def height(self) -> int:
        """See `Picture`."""
        return self.size[0]

    @property
    def width(self) -> int:
        """See `Picture`."""
        return self.size[1]

    def rows(self, first: int, last: int) -> PixelArray:
        """The same pixels as those of the whole picture after `resclip.resizing.resize`."""
        height = self.picture.height
        # A picture made much smaller takes many of its rows for each new one: some new rows at a time.
        source = 3 * self.picture.width * max(1, height // self.height)
        step = max(1, SOURCE_BYTES // source)
        runs = []
        for top in range(first, last, step):
            bottom = min(top + step, last)
            start, end = source_rows(height, self.height, top, bottom)
            rows = self.picture.rows(start, end)
            runs.append(resize_rows(rows, start, height, self.size, top, bottom))
        return np.concatenate(runs)
