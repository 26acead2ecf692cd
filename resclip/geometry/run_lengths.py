"""Masks as run lengths, the way COCO stores them: column by column, pixels outside first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def run_lengths(
    mask: NDArray[np.bool_], size: tuple[int, int] | None = None, corner: tuple[int, int] = (0, 0)
) -> list[int]:
    """Lengths of the runs of pixels outside and inside in turn, column by column; the first may be 0.

    Args:
        mask: (h, w), all of an image or what lies in a box of it.
        size: (H, W) of the image; None: the mask's own.
        corner: (x, y) of the box in it.
    """
    height, width = size or mask.shape
    x, y = corner
    # A row of false above each column, and below the last, so that no run goes on in the next one.
    columns = np.zeros((mask.shape[1], mask.shape[0] + 1), np.int8)
    columns[:, 1:] = mask.T
    flat = np.append(columns.ravel(), np.int8(0))
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    column, row = np.divmod(changes, mask.shape[0] + 1)
    # An end is found in the next column's extra row where a run reaches the mask's lower edge.
    is_end = np.arange(len(changes)) % 2 == 1
    wraps = is_end & (row == 0)
    column = column - wraps
    row = np.where(wraps, mask.shape[0], row - 1)
    bounds = (x + column) * height + y + row
    # Runs of whole columns go on in the next one: there, an end is the next start.
    joins = np.flatnonzero(bounds[1:-1:2] == bounds[2::2])
    bounds = np.delete(bounds, np.concatenate([2 * joins + 1, 2 * joins + 2]))
    edges = np.concatenate([[0], bounds, [height * width]])
    lengths = np.diff(edges)
    return [int(length) for length in (lengths[:-1] if lengths[-1] == 0 else lengths)]


def compress(lengths: list[int]) -> str:
    """Run lengths as COCO's text: from the fourth on each less the last but one, in groups of five bits.

    A group's sixth bit says that another follows, lowest groups first; the last one's highest bit is the sign. Letters
    are the codes from 48 on.
    """
    values = np.array(lengths, np.int64)
    values[3:] -= np.array(lengths[1:-2], np.int64)
    letters: list[NDArray[Any]] = []
    places: list[NDArray[Any]] = []
    waiting = np.arange(len(values))
    for group in range(13):
        digits = values & 31
        values = values >> 5
        # What is left must be all sign.
        goes_on = np.where(digits & 16, values != -1, values != 0)
        letters.append(digits + 32 * goes_on + 48)
        places.append(waiting * 13 + group)
        values, waiting = values[goes_on], waiting[goes_on]
        if not len(values):
            break
    order = np.argsort(np.concatenate(places))
    return np.concatenate(letters)[order].astype(np.uint8).tobytes().decode("ascii")


def encode_mask(
    mask: NDArray[np.bool_],
    size: tuple[int, int] | None = None,
    corner: tuple[int, int] = (0, 0),
    *,
    compressed: bool = True,
) -> dict[str, Any]:
    """COCO's form of a mask, {"size": [H, W], "counts": ...}: text if it is compressed, else run lengths.

    Args: as of `run_lengths`.
    """
    height, width = size or mask.shape
    lengths = run_lengths(mask, size, corner)
    return {"size": [height, width], "counts": compress(lengths) if compressed else lengths}
