"""Heat maps over an image: what points of it attend to, a row a point, a column a map.

Knows arrays, colours and Pillow. Knows no model, no tensor, no patch size and no file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resclip.io.images import PixelArray
from resclip.visualization.fonts import built_in_font, shorten

# Black through purple and orange to a pale yellow, at equal distances in OKLab, lightness rising in equal steps.
_ANCHORS = np.array(
    [
        (5, 4, 16), (28, 8, 57), (63, 10, 92), (106, 15, 111), (151, 27, 110), (194, 42, 97),
        (224, 80, 83), (248, 120, 70), (255, 165, 87), (255, 209, 131), (255, 247, 196),
    ]
)  # fmt: skip

_OPACITIES = (0.6, 0.9)  # of the smallest and the largest value, over the image, grey and dimmed
_DIMMING = 0.62
# Rec. 601 luma.
_LUMINANCE = np.array([0.299, 0.587, 0.114])

_INK = (24, 24, 27)
_FAINT_INK = (113, 113, 122)
_PAPER = (255, 255, 255)
_DARK = (0, 0, 0)

_MARGIN = 28  # pixels, round the sheet and between its panels
_CAPTION = 15  # pixels, the height of letters
_LINE = 20  # pixels, a line of them
_GAP = 8  # pixels, between a panel and the words above or below it
_BAR = 8  # pixels, the height of a scale
_PANEL = 400  # pixels, the longer side of a panel
_NARROWEST = 170  # pixels, of a column: room for its captions
_RING = 7  # pixels, the radius of the mark


class HeatMap(NamedTuple):
    """What a point attends to, by one map."""

    caption: str
    values: NDArray[np.floating]
    """(h, w), at least 0, finite."""
    cover: tuple[float, float] = (1.0, 1.0)
    """The parts of the image's height and width that the map lies over, from the top left."""


class PointMaps(NamedTuple):
    """A row of the sheet."""

    point: tuple[float, float]
    """(x, y) in pixels of the image, from its top left."""
    caption: tuple[str, str]
    """Two lines under the image."""
    maps: Sequence[HeatMap]


def heat_colours(shares: NDArray[np.floating]) -> PixelArray:
    """Colours of values from 0 to 1, clipped to that: (…) → (…, 3) uint8. Equal steps look equally large."""
    steps = np.linspace(0.0, 1.0, len(_ANCHORS))
    channels = [np.interp(shares, steps, channel) for channel in _ANCHORS.T]
    colours: PixelArray = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return colours


def strongest_share(values: NDArray[np.floating], part: float = 0.1) -> float:
    """The share of a map's sum that lies on the strongest `part` of its entries, at least one; 0 for a map of zeros."""
    total = float(values.sum())
    if total == 0.0:
        return 0.0
    count = max(1, round(part * values.size))
    return float(np.sort(values, axis=None)[-count:].sum()) / total


def draw_heat_maps(image: PixelArray, rows: Sequence[PointMaps], footer: str = "") -> Image.Image:
    """The image with a point marked, and that point's maps beside it, on white.

    A map's colours run from 0 to its own largest value, which is written under it.

    Args:
        image: (H, W, 3) uint8.
        rows: one a point, all with the same maps.
        footer: a line of small print below.

    Raises:
        ValueError: no row, rows with other maps, a map with negative or infinite entries.
    """
    check_rows(rows)
    height, width = panel_shape(image.shape[0], image.shape[1])
    enlarged = height > 4 * image.shape[0]
    resampling = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    panel = Image.fromarray(image).resize((width, height), resampling)
    column = max(width, _NARROWEST)
    captions = ["Image", *(heat_map.caption for heat_map in rows[0].maps)]
    row_height = height + _GAP + 2 * _LINE + _MARGIN
    top = _MARGIN + _LINE + _GAP
    sheet_width = _MARGIN + len(captions) * (column + _MARGIN)
    sheet_height = top + len(rows) * row_height + (_LINE + _MARGIN if footer else 0)
    sheet = Image.new("RGB", (sheet_width, sheet_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = built_in_font(_CAPTION)
    for number, caption in enumerate(captions):
        place = (_MARGIN + number * (column + _MARGIN), _MARGIN + _LINE // 2)
        draw.text(place, shorten(caption, font, column), fill=_INK, font=font, anchor="lm")
    scale = width / image.shape[1], height / image.shape[0]
    for row in rows:
        point = row.point[0] * scale[0], top + row.point[1] * scale[1]
        left = _MARGIN
        sheet.paste(panel, (left, top))
        mark(sheet, (left + point[0], point[1]), dotted=True)
        under = top + height + _GAP
        for number, line in enumerate(row.caption):
            place = (left, under + number * _LINE + _LINE // 2)
            draw.text(place, shorten(line, font, column), fill=_FAINT_INK, font=font, anchor="lm")
        for heat_map in row.maps:
            left += column + _MARGIN
            sheet.paste(draw_heat(panel, heat_map), (left, top))
            mark(sheet, (left + point[0], point[1]), dotted=False)
            draw_scale(sheet, (left, under), column, float(heat_map.values.max()))
        top += row_height
    if footer:
        place = (_MARGIN, top + _LINE // 2)
        text = shorten(footer, font, sheet_width - 2 * _MARGIN)
        draw.text(place, text, fill=_FAINT_INK, font=font, anchor="lm")
    return sheet


def check_rows(rows: Sequence[PointMaps]) -> None:
    """ValueError unless the rows can be drawn below one another."""
    if not rows:
        raise ValueError("expected at least one point to draw maps of, got none")
    captions = [heat_map.caption for heat_map in rows[0].maps]
    for row in rows:
        if [heat_map.caption for heat_map in row.maps] != captions:
            raise ValueError(f"expected the same maps for every point, first {captions}")
        for heat_map in row.maps:
            values = heat_map.values
            if values.ndim != 2 or not values.size:
                raise ValueError(
                    f"expected map {heat_map.caption!r} of shape (h, w), got {values.shape}"
                )
            if not (np.isfinite(values).all() and values.min() >= 0):
                raise ValueError(f"expected map {heat_map.caption!r} to be finite and at least 0")


def panel_shape(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a panel, in pixels."""
    scale = _PANEL / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_heat(image: Image.Image, heat_map: HeatMap) -> Image.Image:
    """The map's colours over `image`, grey and dimmed, and nothing but that where the map does not reach."""
    grey = _DIMMING * (np.asarray(image) @ _LUMINANCE)[..., None].repeat(3, axis=2)
    largest = float(heat_map.values.max())
    shares = heat_map.values / largest if largest else heat_map.values
    rows = max(1, round(heat_map.cover[0] * image.height))
    columns = max(1, round(heat_map.cover[1] * image.width))
    plane = Image.fromarray(shares.astype(np.float32))
    smooth = np.asarray(plane.resize((columns, rows), Image.Resampling.BILINEAR))
    covered = grey[:rows, :columns]
    opacity = np.interp(smooth, (0.0, 1.0), _OPACITIES)[..., None]
    covered += opacity * (heat_colours(smooth) - covered)
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def mark(sheet: Image.Image, centre: tuple[float, float], *, dotted: bool) -> None:
    """A ring round a point of the sheet, white with a dark rim; `dotted`: and a dot in it."""
    place = round(centre[0]) - 2 * _RING, round(centre[1]) - 2 * _RING
    for colour, thickness in ((_DARK, 2.2), (_PAPER, 1.0)):
        sheet.paste(colour, place, ring_mask(thickness, dotted))


@functools.lru_cache(maxsize=4)
def ring_mask(thickness: float, dotted: bool) -> Image.Image:
    """Mode L: a ring that reaches `thickness` pixels to both sides of its radius, round the mask's centre."""
    factor, side = 8, 4 * _RING  # Drawn at eight times the size: Pillow itself draws hard edges.
    large = Image.new("L", (factor * side, factor * side))
    pen = ImageDraw.Draw(large)
    discs = [(_RING + thickness, 255), (_RING - thickness, 0)]
    for radius, value in [*discs, (1.0 + thickness, 255)] if dotted else discs:
        corners = [factor * (side / 2 + reach) for reach in (-radius, radius)]
        pen.ellipse((corners[0], corners[0], corners[1], corners[1]), fill=value)
    return large.resize((side, side), Image.Resampling.BOX)


def draw_scale(sheet: Image.Image, place: tuple[int, int], column: int, largest: float) -> None:
    """A bar of the colours at `place`, (left, top), with what its two ends stand for."""
    left, top = place
    width = min(column, _NARROWEST)
    ramp = heat_colours(np.linspace(0.0, 1.0, width))[None].repeat(_BAR, axis=0)
    sheet.paste(Image.fromarray(ramp), (left, top + (_LINE - _BAR) // 2))
    draw, font = ImageDraw.Draw(sheet), built_in_font(_CAPTION)
    middle = top + _LINE + _LINE // 2
    draw.text((left, middle), "0", fill=_FAINT_INK, font=font, anchor="lm")
    text = f"{largest:.2g}"
    draw.text((left + width, middle), text, fill=_FAINT_INK, font=font, anchor="rm")
