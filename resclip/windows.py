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


def stitch(logits: Sequence[Tensor], windows: Sequence[Window], height: int, width: int) -> Tensor:
    """Mean of overlapping windows: (Q, h, w) grids, resized bilinearly to their windows → (Q, height, width)."""
    queries = logits[0].shape[0]
    total = logits[0].new_zeros(queries, height, width)
    count = logits[0].new_zeros(height, width)
    for grid, window in zip(logits, windows, strict=True):
        size = (window.height, window.width)
        plane = F.interpolate(grid.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
        total[:, window.rows, window.columns] += plane.squeeze(0)
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
