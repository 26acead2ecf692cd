"""Bilinear resizing of bytes as OpenCV does it, of a whole image or of a few of its rows."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PixelArray: TypeAlias = NDArray[np.uint8]


def resize_shape(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """The (height, width) that keeps the ratio and fits `short_side` and `long_side`, in pixels.

    scale = min(long_side / longer side, short_side / shorter side); each side becomes
    int(side * scale + 0.5), and at least 1.

    Raises:
        ValueError: any argument is below 1.
    """
    if min(height, width, short_side, long_side) < 1:
        raise ValueError(
            "expected sizes of at least 1 pixel, got "
            f"{height} x {width} to fit short side {short_side}, long side {long_side}"
        )
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: PixelArray, size: tuple[int, int]) -> PixelArray:
    """Bilinear, without antialiasing, on bytes, as OpenCV's INTER_LINEAR: within one grey level.

    The interpolation weights are OpenCV's 11-bit integers and so are the shifts: most sizes agree
    with it exactly.

    Args:
        image: (H, W, 3) uint8.
        size: new (height, width), in pixels.

    Returns:
        (height, width, 3) uint8; `image` itself if it has this size.

    Raises:
        ValueError: a side of `size` is below 1.
    """
    if image.shape[:2] == size:
        return image
    return resize_rows(image, 0, image.shape[0], size, 0, size[0])


def source_rows(height: int, new_height: int, first: int, last: int) -> tuple[int, int]:
    """The source rows that `resize_rows` needs for rows `first` to `last` of the result, `last` excluded.

    Args:
        height: of the source, in pixels.
        new_height: of the whole result, in pixels.
        first, last: rows of the result, 0 <= first <= last <= new_height.

    Returns:
        (start, end): rows of the source from `start` up to `end`; (0, 0) for no rows.

    Raises:
        ValueError: a height is below 1, or there are no such rows.
    """
    _check_rows(height, new_height, first, last)
    if first == last:
        return 0, 0
    top, bottom, _, _ = _bilinear_taps(height, new_height)
    return int(top[first]), int(bottom[last - 1]) + 1


def resize_rows(
    rows: PixelArray, source_first: int, height: int, size: tuple[int, int], first: int, last: int
) -> PixelArray:
    """Rows `first` to `last` of a resized image: the same bits as `resize(image, size)[first:last]`.

    Args:
        rows: (n, W, 3) uint8: the source's rows from `source_first` on, those of `source_rows` at least.
        source_first: which row of the source is `rows[0]`.
        height: of the whole source, in pixels.
        size: (height, width) of the whole result, in pixels.
        first, last: rows of the result, 0 <= first <= last <= size[0].

    Returns:
        (last − first, width, 3) uint8.

    Raises:
        ValueError: a side is below 1, there are no such rows, or `rows` lacks some of the source's.
    """
    new_height, width = size
    if width < 1:
        raise ValueError(f"expected a size of at least 1 x 1 pixels, got {new_height} x {width}")
    start, end = source_rows(height, new_height, first, last)
    if first < last and not source_first <= start < end <= source_first + len(rows):
        raise ValueError(
            f"expected source rows {start} to {end} to resize from, got {source_first} to "
            f"{source_first + len(rows)}; source_rows says which are needed"
        )
    top, bottom, top_weight, bottom_weight = _bilinear_taps(height, new_height, first, last)
    left, right, left_weight, right_weight = _bilinear_taps(rows.shape[1], width)
    # An image made ten times smaller looks at one row in five.
    used, position = np.unique(np.concatenate((top, bottom)), return_inverse=True)
    # `take` releases Python's lock, as arithmetic does; an index in brackets holds it.
    rows = rows.take(used - source_first, axis=0)
    across = (
        rows.take(left, axis=1) * left_weight[:, None]
    )  # [rows used, width, 3], at most 255 * 2^11
    across += rows.take(right, axis=1) * right_weight[:, None]
    across >>= 4
    upper = across.take(position[: len(top)], axis=0)  # [last − first, width, 3]
    upper *= top_weight[:, None, None]
    upper >>= 16
    lower = across.take(position[len(top) :], axis=0)
    lower *= bottom_weight[:, None, None]
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper.astype(np.uint8)


def _check_rows(height: int, new_height: int, first: int, last: int) -> None:
    if height < 1 or new_height < 1:
        raise ValueError(
            f"expected heights of at least 1 x 1 pixels, got {height} to be resized to {new_height}"
        )
    if not 0 <= first <= last <= new_height:
        raise ValueError(f"expected rows within 0 to {new_height}, got {first} to {last}")


def _bilinear_taps(
    length: int, new_length: int, first: int = 0, last: int | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
    """For new positions `first` to `last`: the two old positions each, and their weights out of 2048."""
    step = 1.0 / (new_length / length)  # As OpenCV computes it: the last bit decides some weights.
    new = np.arange(first, new_length if last is None else last)
    position = ((new + 0.5) * step - 0.5).astype(np.float32)
    before = np.floor(position).astype(np.intp)
    fraction = position - before.astype(np.float32)
    fraction[(before < 0) | (before >= length - 1)] = 0.0
    before = before.clip(0, length - 1)
    before_weight = np.rint((1 - fraction) * 2048).astype(np.int32)
    after_weight = np.rint(fraction * 2048).astype(np.int32)
    after = before + (after_weight > 0)  # A row without weight need not be read.
    return before, after, before_weight, after_weight
