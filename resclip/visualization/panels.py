"""A sheet of one point's heat maps over one image, in rows of as many as fit: for more maps than one row holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from resclip.io.images import PixelArray
from resclip.visualization.fonts import fit_line
from resclip.visualization.sheets import (
    GAP,
    LINE,
    NARROWEST,
    HeatMap,
    PointMaps,
    Scale,
    check_rows,
    draw_heat,
    draw_scale,
    mark,
)
from resclip.visualization.style import CAPTION, FAINT_INK, INK, MARGIN, PAPER, resampling

PANEL = 220
"""Pixels of a panel's longer side."""
COLUMNS = 5
"""Most panels side by side."""


def draw_panels(
    image: PixelArray,
    point: tuple[float, float],
    maps: Sequence[HeatMap],
    footer: str = "",
    scale: Scale = "root",
) -> Image.Image:
    """The image with a point marked, then its maps, row by row, each with its caption above and its scale below.

    The colours of a map go up to its own largest value, which is written under it with the scale's name.

    Args:
        image: (H, W, 3) uint8.
        point: (x, y) in pixels of the image, from its top left.
        maps: at least one.
        footer: a line of small print below.
        scale: of the colours, see `resclip.visualization.sheets.scaled`.

    Raises:
        ValueError: no map, or one with negative or infinite entries.
    """
    if not maps:
        raise ValueError("expected at least one map to draw, got none")
    check_rows([PointMaps(point, ("", ""), maps)])
    zoom = PANEL / max(image.shape[:2])
    height, width = (max(1, round(side * zoom)) for side in image.shape[:2])
    panel = Image.fromarray(image).resize((width, height), resampling(image.shape[0], height))
    centre = point[0] * width / image.shape[1], point[1] * height / image.shape[0]
    column = max(width, NARROWEST)
    row_height = LINE + GAP + height + GAP + 2 * LINE + MARGIN
    columns = min(COLUMNS, len(maps) + 1)
    rows = math.ceil((len(maps) + 1) / columns)
    sheet_width = MARGIN + columns * (column + MARGIN)
    sheet_height = MARGIN + rows * row_height + (LINE + MARGIN if footer else 0)
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    for number, heat_map in enumerate([None, *maps]):
        left = MARGIN + number % columns * (column + MARGIN)
        top = MARGIN + number // columns * row_height
        caption = "Image" if heat_map is None else heat_map.caption
        fit_line(caption, CAPTION, column).draw(sheet, (left, top + LINE // 2), INK)
        top += LINE + GAP
        sheet.paste(panel if heat_map is None else draw_heat(panel, heat_map, scale), (left, top))
        mark(sheet, (left + centre[0], top + centre[1]), dotted=heat_map is None)
        if heat_map is not None:
            draw_scale(sheet, (left, top + height + GAP), column, heat_map.values, scale)
    if footer:
        position = (MARGIN, MARGIN + rows * row_height + LINE // 2)
        fit_line(footer, CAPTION, sheet_width - 2 * MARGIN).draw(sheet, position, FAINT_INK)
    return sheet
