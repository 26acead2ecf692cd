"""Cut a picture into windows, and put their logits together again.

Knows geometry only: no model, no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Window(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Rows of the picture that the window covers."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Columns of the picture that the window covers."""
        return slice(self.left, self.left + self.width)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side; the last one is shifted back to end at the border."""
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(number * stride, length - window) for number in range(count)]


def plan_windows(height: int, width: int, window: int, stride: int) -> list[Window]:
    """Windows of a picture, row by row.

    Args:
        height, width: of the picture, in pixels.
        window: side of a window; a shorter side of the picture gives one shorter window; 0: the whole picture.
        stride: step between windows, at most `window`.
    """
    if window == 0:
        return [Window(0, 0, height, width)]
    return [
        Window(top, left, min(window, height), min(window, width))
        for top in window_starts(height, window, stride)
        for left in window_starts(width, window, stride)
    ]


class Padding(NamedTuple):
    """Pixels added around a window, of zeros in normalised pixels."""

    top: int
    left: int
    bottom: int
    right: int


def padding(window: Window, multiple: int) -> Padding:
    """What brings both sides to a multiple (0: none asked for), evenly, an odd pixel behind."""
    if multiple == 0:
        return Padding(0, 0, 0, 0)
    rows, columns = -window.height % multiple, -window.width % multiple
    return Padding(rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def pad(pixels: Tensor, around: Padding) -> Tensor:
    """(…, H, W) with zeros around it."""
    return F.pad(pixels, (around.left, around.right, around.top, around.bottom))


def stitch(
    logits: Sequence[Tensor],
    windows: Sequence[Window],
    height: int,
    width: int,
    pad_multiple: int = 0,
) -> Tensor:
    """Mean of overlapping windows: (Q, h, w) grids, resized bilinearly to their windows → (Q, height, width).

    Where windows were padded the grids are of the padded windows, and what lies over the padding is cut off.
    """
    queries = logits[0].shape[0]
    total = logits[0].new_zeros(queries, height, width)
    count = logits[0].new_zeros(height, width)
    for grid, window in zip(logits, windows, strict=True):
        around = padding(window, pad_multiple)
        size = (
            around.top + window.height + around.bottom,
            around.left + window.width + around.right,
        )
        plane = F.interpolate(grid.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
        plane = plane[0, :, around.top :, around.left :][:, : window.height, : window.width]
        total[:, window.rows, window.columns] += plane
        count[window.rows, window.columns] += 1
    return total.div_(count)


def check_window(window: int, stride: int, patch_size: tuple[int, int]) -> None:
    """ValueError unless the windows cover a picture and hold at least a patch."""
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer number of pixels; got {value!r}")
    if window == 0:
        return
    if window < max(patch_size):
        raise ValueError(
            f"window must be 0 (the whole picture) or at least a patch of {max(patch_size)} pixels; got {window}"
        )
    if not 1 <= stride <= window:
        raise ValueError(
            f"stride must lie between 1 and the window's {window} pixels, or parts of the picture are never seen; "
            f"got {stride}"
        )
