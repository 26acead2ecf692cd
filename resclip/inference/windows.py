"""Where an image's windows lie, and how their logits are stitched together, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels import quoted

DOWNSAMPLE_ROWS = 512
"""Rows of a large image that are downsampled together: 184 MB of normalised pixels at a width of 30,000."""


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Rows of the image that the window covers."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Columns of the image that the window covers."""
        return slice(self.left, self.left + self.width)


def count_starts(length: int, window: int, stride: int) -> int:
    """How many windows lie along one side."""
    return 1 if length <= window else -(-(length - window) // stride) + 1


def count_windows(height: int, width: int, window: int, stride: int) -> int:
    """How many windows `plan_windows` makes."""
    if window == 0:
        return 1
    return count_starts(height, window, stride) * count_starts(width, window, stride)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side; the last one is shifted back to end at the border."""
    count = count_starts(length, window, stride)
    return [max(0, min(number * stride, length - window)) for number in range(count)]


def plan_windows(height: int, width: int, window: int, stride: int) -> list[Window]:
    """Windows of an image, row by row.

    Args:
        height, width: of the image, in pixels.
        window: side of a window; a shorter side of the image gives one shorter window; 0: the whole image.
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
    """Numbers of pixels added around a window; they are 0 after normalisation."""

    top: int
    left: int
    bottom: int
    right: int


def padding(window: Window, multiple: int) -> Padding:
    """What brings both sides of a window to a multiple (0: no padding), evenly; an odd pixel goes below or right."""
    if multiple == 0:
        return Padding(0, 0, 0, 0)
    rows, columns = -window.height % multiple, -window.width % multiple
    return Padding(rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def pad(pixels: Tensor, around: Padding) -> Tensor:
    """(…, H, W) with zeros around."""
    return F.pad(pixels, (around.left, around.right, around.top, around.bottom))


@lru_cache(maxsize=64)
def bilinear_weights(cells: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(length, cells): the weight of each cell at each position, as in F.interpolate with `align_corners=False`.

    A resize of both sides is then two small matrix products, and any rows of it can be computed alone; on two CPU
    threads this takes a third of F.interpolate's time.
    """
    position = (torch.arange(length, dtype=torch.float64) + 0.5) * (cells / length) - 0.5
    return linear_weights(position, cells).to(device, dtype)


def linear_weights(position: Tensor, cells: int) -> Tensor:
    """(n, cells): how positions, counted in cells from the first one's centre, lie between the cells; float64."""
    position = position.clamp(0, cells - 1).unsqueeze(1)
    distance = (position - torch.arange(cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)


class LogitStitcher:
    """The mean of an image's overlapping window logits, computed for the rows that are asked for.

    Memory is that of the windows' patch grids, (Q, h, w) each, and of those rows; not that of (Q, height, width).

    Args:
        height, width: of the image, in pixels.
        windows: from top left to bottom right.
        pad_multiple: to which windows were padded; logits over the padding are cut off.
    """

    def __init__(
        self, height: int, width: int, windows: Sequence[Window], pad_multiple: int = 0
    ) -> None:
        self.height = height
        self.width = width
        self.windows = windows
        self.pad_multiple = pad_multiple
        self.grids: dict[Window, Tensor] = {}
        self._added: set[Window] = set()
        self._first_missing = 0  # Windows before this one have all been added.

    @property
    def is_single(self) -> bool:
        """Whether one window, without padding, is the whole image."""
        return len(self.windows) == 1 and not any(padding(self.windows[0], self.pad_multiple))

    @property
    def complete(self) -> Sequence[Window]:
        """The windows, from the first on, up to one that is missing."""
        return self.windows[: self._first_missing]

    @property
    def complete_rows(self) -> int:
        """Rows of the image, from the top, to which no missing window contributes."""
        if self._first_missing < len(self.windows):
            return self.windows[self._first_missing].top
        return self.height

    def add(self, window: Window, grid: Tensor) -> None:
        """Keep a window's logits: (Q, h, w), of the padded window."""
        self.grids[window] = grid
        self._added.add(window)
        count = len(self.windows)
        while self._first_missing < count and self.windows[self._first_missing] in self._added:
            self._first_missing += 1

    def rows(self, first: int, last: int) -> Tensor:
        """(Q, last − first, width): mean of the windows over these rows, each resized bilinearly to its own size.

        Windows are summed from top left to bottom right, whatever the order in which they were added.

        Raises:
            ValueError: no window covers these rows.
        """
        total = count = None
        for window in sorted(self.grids):
            top, bottom = max(first, window.top), min(last, window.top + window.height)
            if top >= bottom:
                continue
            grid = self.grids[window]
            if total is None or count is None:
                total = grid.new_zeros(grid.shape[0], last - first, self.width)
                count = grid.new_zeros(last - first, self.width)
            covered = slice(top - first, bottom - first)
            count[covered, window.columns] += 1
            around = padding(window, self.pad_multiple)
            height = around.top + window.height + around.bottom
            width = around.left + window.width + around.right
            wanted = slice(around.top + top - window.top, around.top + bottom - window.top)
            across = slice(around.left, around.left + window.width)
            if tuple(grid.shape[1:]) == (height, width):
                # One value a pixel: products with weights of 1 and 0 would take longer than a model.
                total[:, covered, window.columns] += grid[:, wanted, across]
                continue
            rows = bilinear_weights(grid.shape[1], height, grid.device, grid.dtype)[wanted]
            columns = bilinear_weights(grid.shape[2], width, grid.device, grid.dtype)[across]
            total[:, covered, window.columns] += rows @ (grid @ columns.T)
        if total is None or count is None:
            raise ValueError(f"no window covers the rows {first} to {last}")
        return total.div_(count)

    def at_centres(self, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
        """(Q, h, w): the mean of the windows at the centres of a grid of cells over the image.

        Every window is read between the centres of its own patches, so that a window whose patches are the cells gives
        its logits as they are.

        Args:
            grid: (h, w) in cells, from the image's top left.
            cell: (height, width) in pixels.
        """
        mean = CentreMean(grid, cell, self.pad_multiple)
        for window in sorted(self.grids):
            mean.add(window, self.grids[window])
        return mean.result()

    def drop_above(self, row: int) -> None:
        """Free the logits of windows that end above a row."""
        for window in [one for one in self.grids if one.top + one.height <= row]:
            del self.grids[window]


class CentreMean:
    """The mean of windows' logits at the centres of a grid of cells over their image.

    Args:
        grid: (h, w) in cells, from the image's top left.
        cell: (height, width) in pixels.
        pad_multiple: to which windows were padded.
    """

    def __init__(self, grid: tuple[int, int], cell: tuple[int, int], pad_multiple: int) -> None:
        self.grid = grid
        self.cell = cell
        self.pad_multiple = pad_multiple
        self.total: Tensor | None = None
        self.count = torch.zeros(grid)

    def add(self, window: Window, logits: Tensor) -> None:
        """One window's logits, (Q, h, w); sums round by the order of the windows."""
        if self.total is None:
            self.total = logits.new_zeros(logits.shape[0], *self.grid)
            self.count = logits.new_zeros(self.grid)
        around = padding(window, self.pad_multiple)
        down, rows = cell_weights(
            logits.shape[1],
            (around.top, window.height, around.bottom),
            window.top,
            self.grid[0],
            self.cell[0],
        )
        across, columns = cell_weights(
            logits.shape[2],
            (around.left, window.width, around.right),
            window.left,
            self.grid[1],
            self.cell[1],
        )
        self.total[:, rows, columns] += down.to(logits) @ (logits @ across.to(logits).T)
        self.count[rows, columns] += 1

    def result(self) -> Tensor:
        """(Q, h, w); ValueError where no window was added."""
        if self.total is None:
            raise ValueError("no window was added")
        return self.total.div_(self.count)


def cell_weights(
    patches: int, extent: tuple[int, int, int], start: int, cells: int, cell: int
) -> tuple[Tensor, slice]:
    """How a window's patches along one axis are weighted at the centres of those of an image's cells that it covers.

    Args:
        patches: of the padded window.
        extent: pixels of padding, window, padding.
        start: the window's first pixel in the image.
        cells: of the image.
        cell: its pixels.

    Returns:
        (covered cells, patches) in float64, and which cells these are.
    """
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * cell - start
    covered = ((centres >= 0) & (centres < extent[1])).nonzero().flatten()
    position = (centres[covered] + extent[0]) * (patches / sum(extent)) - 0.5
    first = int(covered[0]) if len(covered) else 0
    return linear_weights(position, patches), slice(first, first + len(covered))


def source_range(length: int, new_length: int, first: int, last: int) -> tuple[int, int]:
    """Rows [start, end) that a bilinear resize from `length` to `new_length` reads to make rows [first, last)."""
    if first >= last or length == new_length:
        return first, last
    upper, lower, _ = bilinear_rows(length, new_length, first, last)
    return int(upper[0]), int(lower[-1]) + 1


def interpolate_rows(
    read: Callable[[int, int], Tensor], length: int, new_length: int, first: int, last: int
) -> Tensor:
    """Rows [first, last) of a bilinear resize from `length` rows to `new_length`; columns stay as they are.

    Args:
        read: (first, last) → (…, last − first, W), rows before the resize.

    Returns:
        (…, last − first, W), as in F.interpolate with `align_corners=False`.
    """
    if length == new_length:
        return read(first, last)
    upper, lower, weight = bilinear_rows(length, new_length, first, last)
    start = int(upper[0])
    rows = read(start, int(lower[-1]) + 1)
    upper, lower = (upper - start).to(rows.device), (lower - start).to(rows.device)
    weight = weight.to(rows.device, rows.dtype).unsqueeze(1)
    return torch.lerp(rows.index_select(-2, upper), rows.index_select(-2, lower), weight)


def bilinear_rows(
    length: int, new_length: int, first: int, last: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The two rows that each new row lies between, and the second one's weight: (last − first,) each."""
    position = (torch.arange(first, last, dtype=torch.float64) + 0.5) * (length / new_length) - 0.5
    position = position.clamp(0, length - 1)
    upper = position.floor().long()
    return upper, (upper + 1).clamp(max=length - 1), position - upper


def downsample(
    read: Callable[[int, int], Tensor], shape: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """An image at a smaller size, antialiased, from rows that are read a few at a time.

    Args:
        read: (first, last) → (C, last − first, W), rows of the image.
        shape: (H, W) of the image.
        size: (h, w) of the result.

    Returns:
        (C, h, w), as in F.interpolate (bilinear, `antialias=True`).
    """
    total: Tensor | None = None
    for first in range(0, shape[0], DOWNSAMPLE_ROWS):
        rows = read(first, min(first + DOWNSAMPLE_ROWS, shape[0]))
        across = rows @ triangle_weights(shape[1], size[1], rows.device, rows.dtype).T
        down = triangle_weights(shape[0], size[0], rows.device, rows.dtype)
        part = down[:, first : first + rows.shape[1]] @ across
        total = part if total is None else total + part
    if total is None:
        raise ValueError(f"expected an image of at least one row; got {shape}")
    return total


@lru_cache(maxsize=16)
def triangle_weights(length: int, cells: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(cells, length): the weight of each position in each cell, a triangle as wide as two cells."""
    support = max(length / cells, 1.0)
    centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * (length / cells) - 0.5
    distance = (centre.unsqueeze(1) - torch.arange(length, dtype=torch.float64)).abs()
    weights = (1 - distance / support).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(device, dtype)


def check_window(window: int, stride: int, patch_size: tuple[int, int]) -> None:
    """TypeError or ValueError unless windows hold at least one patch and together cover every image."""
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer number of pixels; got {quoted(value)}")
    if window == 0:
        return
    if window < max(patch_size):
        raise ValueError(
            f"window must be 0 (the whole image) or at least a patch of {max(patch_size)} pixels; got {quoted(window)}"
        )
    if not 1 <= stride <= window:
        raise ValueError(
            f"stride must lie between 1 and the window's {window} pixels, or parts of the image are never seen; "
            f"got {quoted(stride)}"
        )
