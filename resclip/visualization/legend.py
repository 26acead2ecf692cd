"""Legends: what each colour means, beside an overlay, below it, or alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resclip.io.images import PixelArray
from resclip.visualization.fonts import Line, fit_line, fit_lines, set_line
from resclip.visualization.style import FAINT_INK, INK, MARGIN, PAPER

LegendEntry: TypeAlias = "tuple[int, str, float]"  # class index, name, fraction of the image

MOST_ENTRIES = 400
"""Classes that a legend names; of more it says how many there are."""

_TRACK = (228, 228, 231)
"""Colour of the empty part of a legend's bars."""
_TEXT = 17
"""Height in pixels of the names in the legend."""
_ROWS = (30, 38)
"""Least and greatest height in pixels of a row of the legend."""
_FEWEST_ROWS = 4
"""Rows of a legend before it takes a second column."""
_MOST_COLUMNS = 4
"""Columns beside one another before the legend becomes higher than what it stands beside."""
_CHIP = 18
"""Side in pixels of the coloured square before a name."""
_STRIPES = (2, 8)
"""Width in pixels of a dark stripe, and distance in pixels from one to the next."""
_NAME_WIDTHS = (90, 260)
"""Least and greatest width in pixels of the column of names."""
_ENLARGED_FROM = 1600
"""Pixels of an image's longer side for which the legend beside it is twice as large; for twice as many three times."""

LEAST_HEIGHT = _FEWEST_ROWS * _ROWS[1]
"""Pixels in height that a legend beside something flat takes."""


class _Rows(NamedTuple):
    """The texts of a legend's rows, and how wide they are."""

    names: Sequence[Line]
    shares: Sequence[Line]
    name_width: int
    share_width: int
    unit: int

    @property
    def column_width(self) -> int:
        return (_CHIP + 12 + 20) * self.unit + self.name_width + self.share_width


def draw_legend(
    entries: Sequence[LegendEntry],
    colours: PixelArray,
    height: int,
    hatched: int | None = None,
) -> Image.Image:
    """Colour, name and share of the image: one row per class, in as many columns as the height needs.

    Where four columns are not enough, the legend becomes higher. `MOST_ENTRIES` classes are named, and a last line
    counts the others.

    Args:
        entries: (class index, name, fraction) of the classes to show, most important first.
        colours: (classes, 3) uint8.
        height: in pixels that the legend may take before it grows.
        hatched: class whose colour gets dark stripes; None: none.
    """
    if not entries:
        return Image.new("RGB", (_NAME_WIDTHS[0], _ROWS[0]), PAPER)
    texts = _texts(entries, 1)
    count = len(texts.names)
    rows = max(_FEWEST_ROWS, height // _ROWS[0])
    columns = min(_MOST_COLUMNS, math.ceil(count / rows))
    row_height = _ROWS[0]
    if columns == 1:
        row_height = min(_ROWS[1], max(_ROWS[0], height // count))
    return _draw(entries, texts, colours, columns, row_height, hatched)


def with_legend(
    image: Image.Image,
    entries: Sequence[LegendEntry],
    colours: PixelArray,
    hatched: int | None = None,
) -> Image.Image:
    """An overlay with its legend on white: to the right of it, or below where the image is much wider than high.

    The overlay keeps its pixels; its upper left corner is the picture's. Letters grow with the image.

    Args:
        image: mode RGB, any size.
        entries, colours, hatched: as `draw_legend` takes them; all entries are shown, up to `MOST_ENTRIES`.
    """
    if not entries:
        return image.copy()
    unit = 1 + max(image.size) // _ENLARGED_FROM
    texts = _texts(entries, unit)
    count, margin = len(texts.names), MARGIN * unit
    if image.width >= 2 * image.height:
        fitting = (image.width - margin) // (texts.column_width + margin)
        columns = max(1, min(fitting, count))
        corner = (margin, image.height + margin // 2)
    else:
        rows = max(_FEWEST_ROWS, (image.height - margin) // (_ROWS[0] * unit))
        columns = min(_MOST_COLUMNS, math.ceil(count / rows))
        corner = (image.width + margin, margin // 2)
    legend = _draw(entries, texts, colours, columns, _ROWS[0] * unit, hatched)
    width = max(image.width, corner[0] + legend.width + margin)
    height = max(image.height, corner[1] + legend.height + margin // 2)
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(image, (0, 0))
    sheet.paste(legend, corner)
    return sheet


def draw_key(entries: Sequence[tuple[int, str]], colours: PixelArray, width: int) -> Image.Image:
    """Colour and name of each class, in as many lines as the width needs.

    Args:
        entries: (class index, name) of the classes to show.
        colours: (classes, 3) uint8.
        width: in pixels.
    """
    step, row_height = _CHIP + 10, _ROWS[0]
    corners: list[tuple[int, int]] = []
    lines = []
    left, row = 0, 0
    for index, name in entries:
        line = fit_line(name, _TEXT, width - step, f"class {index}")
        needed = step + math.ceil(line.width)
        if left > 0 and left + needed > width:
            left, row = 0, row + 1
        corners.append((left, row * row_height))
        lines.append(line)
        left += needed + MARGIN
    canvas = Image.new("RGB", (width, (row + 1) * row_height), PAPER)
    for (index, _), (x, y), line in zip(entries, corners, lines, strict=True):
        middle = y + row_height // 2
        red, green, blue = colours[index].tolist()
        canvas.paste((red, green, blue), (x, middle - _CHIP // 2), _chip(1))
        line.draw(canvas, (x + step, middle), INK)
    return canvas


def stripes(height: int, width: int) -> NDArray[np.bool_]:
    """(height, width), true on diagonal lines."""
    lines: NDArray[np.bool_] = (np.arange(height)[:, None] + np.arange(width)) % _STRIPES[
        1
    ] < _STRIPES[0]
    return lines


def _texts(entries: Sequence[LegendEntry], unit: int) -> _Rows:
    """The names and shares of as many entries as a legend names, in letters `unit` times as large as the usual ones."""
    shown = entries if len(entries) <= MOST_ENTRIES else entries[: MOST_ENTRIES - 1]
    numbers = [f"class {index}" for index, _, _ in shown]
    names = fit_lines([name for _, name, _ in shown], _TEXT * unit, _NAME_WIDTHS[1] * unit, numbers)
    if len(shown) < len(entries):
        names.append(set_line(f"and {len(entries) - len(shown):,} more", _TEXT * unit))
    shares = [set_line(_share(fraction), _TEXT * unit) for _, _, fraction in shown]
    name_width = max(math.ceil(line.width) for line in names)
    share_width = math.ceil(set_line("100.0 %", _TEXT * unit).width)
    return _Rows(names, shares, max(_NAME_WIDTHS[0] * unit, name_width), share_width, unit)


def _share(fraction: float) -> str:
    return "< 0.1 %" if 0 < fraction < 0.0005 else f"{fraction:.1%}".replace("%", " %")


def _draw(
    entries: Sequence[LegendEntry],
    texts: _Rows,
    colours: PixelArray,
    columns: int,
    row_height: int,
    hatched: int | None,
) -> Image.Image:
    """The legend in this many columns, filled one after the other."""
    unit, count = texts.unit, len(texts.names)
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)
    step, chip = texts.column_width + MARGIN * unit, _CHIP * unit
    canvas = Image.new("RGB", (columns * step - MARGIN * unit, rows * row_height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, name in enumerate(texts.names):
        column, row = divmod(number, rows)
        left, top = column * step, row * row_height
        middle = top + row_height // 2 - 3 * unit
        text_left, right = left + chip + 12 * unit, left + texts.column_width
        if number == len(texts.shares):
            name.draw(canvas, (text_left, middle), FAINT_INK)
            break
        index, _, fraction = entries[number]
        red, green, blue = colours[index].tolist()
        square = np.full((chip, chip, 3), (red, green, blue), np.uint8)
        if index == hatched:
            square[stripes(chip, chip)] = INK
        canvas.paste(Image.fromarray(square), (left, middle - chip // 2), _chip(unit))
        name.draw(canvas, (text_left, middle), INK)
        share = texts.shares[number]
        share.draw(canvas, (right - share.width, middle), FAINT_INK)
        bar_top, thickness = top + row_height - 8 * unit, 2 * unit
        bar = (text_left, bar_top, right, bar_top + thickness)
        draw.rounded_rectangle(bar, radius=unit, fill=_TRACK)
        length = round((right - text_left) * fraction)
        if length > 0:
            bar = (text_left, bar_top, text_left + length, bar_top + thickness)
            draw.rounded_rectangle(bar, radius=unit, fill=(red, green, blue))
    return canvas


@functools.lru_cache(maxsize=8)
def _chip(unit: int) -> Image.Image:
    """The mask of a rounded square, mode L, smooth: Pillow itself draws hard edges."""
    side = _CHIP * unit
    large = Image.new("L", (8 * side, 8 * side))
    corner = 8 * side - 1
    ImageDraw.Draw(large).rounded_rectangle((0, 0, corner, corner), radius=40 * unit, fill=255)
    return large.resize((side, side), Image.Resampling.BOX)
