"""Drawing a segmentation: colours, the overlay, the legend, and all of it side by side."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resclip.io.images import PixelArray
from resclip.visualization.fonts import (
    Font,
    built_in_font,
    find_font,
    shorten,
    text_width,
    without_marks,
)
from resclip.visualization.style import CAPTION, FAINT_INK, INK, LUMA, MARGIN, PAPER, resampling

LegendEntry: TypeAlias = "tuple[int, str, float]"  # class index, name, fraction of the image

# Neighbours in this list differ much in hue or lightness, so that few classes look best.
_FIRST_COLOURS = (
    "3b82f6 22c55e f97316 a855f7 facc15 ef4444 14b8a6 ec4899 92400e a3e635 475569 22d3ee "
    "f9a8d4 1e3a8a 166534 fdba74 6b21a8 99f6e4 9f1239 d6d3d1 65a30d c4b5fd b45309 0e7490"
)
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))

# Of the image's own colour, this much is lost per unit of opacity: at 0.55, three quarters are gone.
_FADING = 1.4
# LUMA as a matrix that maps an RGB row to three times its luma.
_TO_GREY = LUMA[:, None].astype(np.float32).repeat(3, axis=1)

_TRACK = (228, 228, 231)
"""Colour of the empty part of a legend's bars."""
_TEXT = 17
"""Height in pixels of the names in the legend."""
_ROWS = (30, 38)
"""Least and greatest height in pixels of a row of the legend."""
_CHIP = 18
"""Side in pixels of the coloured square before a name."""
_STRIPES = (2, 8)
"""Width in pixels of a dark stripe, and distance in pixels from one to the next."""
_NAME_WIDTHS = (90, 230)
"""Least and greatest width in pixels of the column of names."""
_STRIP = 1 << 20
"""Pixels that are mixed at a time."""
_SMALLEST_PANEL = 440
"""Pixels that the longer side of a panel has at least; smaller images are enlarged by a whole factor."""
_LARGEST_PANEL = 900
"""Pixels that the longer side of a panel has at most."""


@functools.lru_cache(maxsize=16)
def palette(count: int) -> PixelArray:
    """`count` distinct colours, (count, 3) uint8, always the same; read-only.

    A longer palette begins with the shorter one. Black and white are left to borders and text.
    """
    colours = dict.fromkeys(tuple(bytes.fromhex(text)) for text in _FIRST_COLOURS.split())
    step = 0
    while len(colours) < count:
        # Hue turns by the golden angle; lightness and chroma walk at other, incommensurate rates.
        lightness = 0.42 + 0.46 * (step * 0.618034 % 1.0)
        chroma = 0.07 + 0.13 * (step * 0.754878 % 1.0)
        colours.setdefault(_oklch_to_rgb(lightness, chroma, step * _GOLDEN_ANGLE))
        step += 1
    table = np.array(list(colours)[:count], dtype=np.uint8).reshape(count, 3)
    table.flags.writeable = False
    return table


def draw_overlay(
    image: PixelArray,
    labels: NDArray[np.int64],
    colours: PixelArray,
    opacity: float,
    hatched: int | None = None,
) -> Image.Image:
    """`image` tinted with each pixel's class colour, with thin white lines between regions.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W), class indices into `colours`; pixels of a negative one stay as they are.
        colours: (classes, 3) uint8.
        opacity: of the colours, 0 to 1.
        hatched: class whose pixels get dark stripes, to tell its colour from the others; None: none.
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"expected an opacity from 0 to 1, got {opacity}")
    pixels = np.empty_like(image)
    tints = colours.astype(np.float32) * opacity
    # The image turns grey as the colours come in: mixed with a vivid image they would differ from
    # those of the legend. A strip at a time, for fractions take four times the memory.
    strip = max(1, _STRIP // labels.shape[1])
    for first in range(0, len(labels), strip):
        rows = slice(first, first + strip)
        faded = np.float32(1.0 - opacity) * image[rows]
        faded += np.float32(min(1.0, _FADING * opacity)) * (faded @ _TO_GREY - faded)
        pixels[rows] = faded + tints[labels[rows]] + 0.5
    if hatched is not None:
        pixels[(labels == hatched) & _stripes(*labels.shape)] = INK
    width = max(1, round(min(labels.shape) / 360))
    pixels[_borders(labels, width)] = 255
    unlabelled = labels < 0
    if unlabelled.any():
        pixels[unlabelled] = image[unlabelled]
    return Image.fromarray(pixels)


def draw_legend(
    entries: Sequence[LegendEntry], colours: PixelArray, height: int, hatched: int | None = None
) -> Image.Image:
    """Colour, name and share of the image: one row per class, in one or two columns.

    Args:
        entries: (class index, name, fraction) of the classes to show, most important first.
        colours: (classes, 3) uint8.
        height: of the legend in pixels; a last line counts the classes that do not fit.
        hatched: class whose colour gets dark stripes; None: none.
    """
    if not entries:
        return Image.new("RGB", (_NAME_WIDTHS[0], _ROWS[0]), PAPER)
    columns, rows, row_height = _legend_grid(len(entries), height)
    shown = entries if len(entries) <= rows * columns else entries[: rows * columns - 1]
    rendered = [_legible(index, name, _TEXT) for index, name, _ in shown]
    name_width = max(math.ceil(text_width(text, font)) for text, font in rendered)
    name_width = max(_NAME_WIDTHS[0], min(_NAME_WIDTHS[1], name_width))
    share_width = math.ceil(text_width("100.0 %", built_in_font(_TEXT)))
    column_width = _CHIP + 12 + name_width + 20 + share_width
    size = (columns * (column_width + MARGIN) - MARGIN, rows * row_height)
    canvas = Image.new("RGB", size, PAPER)
    for number, ((index, _, fraction), (text, font)) in enumerate(
        zip(shown, rendered, strict=True)
    ):
        column, row = divmod(number, rows)
        box = (column * (column_width + MARGIN), row * row_height, column_width, row_height)
        name = shorten(text, font, _NAME_WIDTHS[1])
        _draw_row(canvas, box, name, font, fraction, colours[index], index == hatched)
    if len(shown) < len(entries):
        position = (column_width + MARGIN, (rows - 1) * row_height + row_height // 2 - 3)
        text = f"and {len(entries) - len(shown):,} more"
        draw = ImageDraw.Draw(canvas)
        draw.text(position, text, fill=FAINT_INK, font=built_in_font(_TEXT), anchor="lm")
    return canvas


def draw_key(entries: Sequence[tuple[int, str]], colours: PixelArray, width: int) -> Image.Image:
    """Colour and name of each class, in as many lines as the width needs.

    Args:
        entries: (class index, name) of the classes to show.
        colours: (classes, 3) uint8.
        width: in pixels.
    """
    step, row_height = _CHIP + 10, _ROWS[0]
    corners: list[tuple[int, int]] = []
    texts = []
    left, row = 0, 0
    for index, name in entries:
        text, font = _legible(index, name, _TEXT)
        text = shorten(text, font, width - step)
        needed = step + math.ceil(text_width(text, font))
        if left > 0 and left + needed > width:
            left, row = 0, row + 1
        corners.append((left, row * row_height))
        texts.append((text, font))
        left += needed + MARGIN
    canvas = Image.new("RGB", (width, (row + 1) * row_height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for (index, _), (x, y), (text, font) in zip(entries, corners, texts, strict=True):
        middle = y + row_height // 2
        red, green, blue = colours[index].tolist()
        canvas.paste((red, green, blue), (x, middle - _CHIP // 2), _chip())
        draw.text((x + step, middle), text, fill=INK, font=font, anchor="lm")
    return canvas


def draw_sheet(
    image: PixelArray,
    segmentations: Sequence[tuple[str, NDArray[np.int64]]],
    colours: PixelArray,
    entries: Sequence[LegendEntry],
    opacity: float,
    footer: str = "",
    legend_caption: str = "Share",
    hatched: int | None = None,
) -> Image.Image:
    """Image, overlays and legend side by side on white, with a line of small print below.

    Small images are enlarged by a whole factor, large ones are reduced; the overlays' borders
    are drawn at the new size. Shapes and dtypes as in `draw_overlay` and `draw_legend`.

    Args:
        segmentations: (caption, labels) of each overlay.
        footer: the small print; empty: none.
        legend_caption: above the legend; says what the fractions of `entries` are.
        hatched: class that is striped in overlays and legend; None: none.
    """
    shape = image.shape[0], image.shape[1]
    height, width = _panel_shape(*shape)
    pixels = np.asarray(
        Image.fromarray(image).resize((width, height), resampling(shape[0], height))
    )
    nearest_row = (np.arange(height) * shape[0]) // height
    nearest_column = (np.arange(width) * shape[1]) // width
    columns = [("Image", Image.fromarray(pixels))]
    for caption, labels in segmentations:
        panel_labels = labels[nearest_row[:, None], nearest_column]
        columns.append((caption, draw_overlay(pixels, panel_labels, colours, opacity, hatched)))
    body_height = max(height, 4 * _ROWS[1])
    legend = draw_legend(entries, colours, body_height, hatched)
    body_height = max(body_height, legend.height)
    top = MARGIN + CAPTION + 12
    columns.append((legend_caption, legend))
    sheet_width = sum(panel.width + MARGIN for _, panel in columns) + MARGIN
    footer_height = CAPTION + 14 if footer else 0
    sheet = Image.new("RGB", (sheet_width, top + body_height + footer_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    left = MARGIN
    for caption, panel in columns:
        position = (left, MARGIN + CAPTION // 2)
        draw.text(position, caption, fill=FAINT_INK, font=built_in_font(CAPTION), anchor="lm")
        sheet.paste(panel, (left, top))
        left += panel.width + MARGIN
    if footer:
        font = built_in_font(CAPTION)
        text = shorten(footer, font, sheet_width - 2 * MARGIN)
        position = (MARGIN, top + body_height + 14 + CAPTION // 2)
        draw.text(position, text, fill=FAINT_INK, font=font, anchor="lm")
    return sheet


def _borders(labels: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """(H, W), true within `width` pixels above or left of a change of label."""
    edge = np.zeros(labels.shape, dtype=np.bool_)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    thick = edge.copy()
    for shift in range(1, width):
        thick[:-shift] |= edge[shift:]
        thick[:, :-shift] |= edge[:, shift:]
    return thick


def _stripes(height: int, width: int) -> NDArray[np.bool_]:
    """(height, width), true on diagonal lines."""
    stripes: NDArray[np.bool_] = (np.arange(height)[:, None] + np.arange(width)) % _STRIPES[
        1
    ] < _STRIPES[0]
    return stripes


def _panel_shape(height: int, width: int) -> tuple[int, int]:
    longer = max(height, width)
    if longer > _LARGEST_PANEL:
        scale = _LARGEST_PANEL / longer
        return max(1, round(height * scale)), max(1, round(width * scale))
    factor = max(1, math.ceil(_SMALLEST_PANEL / longer)) if longer < _SMALLEST_PANEL else 1
    return height * factor, width * factor


def _legible(index: int, name: str, size: int) -> tuple[str, Font]:
    """`name` in one line and a font that has its letters; if none has, without accents, else the class's number."""
    line = " ".join(name.split())
    for text in (line, without_marks(line)):
        font = find_font(text, size)
        if font is not None:
            return text, font
    return f"class {index}", built_in_font(size)


def _legend_grid(count: int, height: int) -> tuple[int, int, int]:
    """(columns, rows, row height in pixels) for `count` classes in about `height` pixels."""
    if count <= max(4, height // _ROWS[0]):
        return 1, count, min(_ROWS[1], max(_ROWS[0], height // count))
    rows = max(4, height // _ROWS[1])
    return 2, min(rows, (count + 1) // 2), _ROWS[1]


def _draw_row(
    canvas: Image.Image,
    box: tuple[int, int, int, int],
    name: str,
    font: Font,
    fraction: float,
    colour: PixelArray,
    hatched: bool,
) -> None:
    """One class in `box`: (left, top, width, height) in pixels."""
    left, top, width, height = box
    middle = top + height // 2 - 3
    fill = (int(colour[0]), int(colour[1]), int(colour[2]))
    chip = np.full((_CHIP, _CHIP, 3), fill, np.uint8)
    if hatched:
        chip[_stripes(_CHIP, _CHIP)] = INK
    canvas.paste(Image.fromarray(chip), (left, middle - _CHIP // 2), _chip())
    draw = ImageDraw.Draw(canvas)
    text_left, right = left + _CHIP + 12, left + width
    draw.text((text_left, middle), name, fill=INK, font=font, anchor="lm")
    share = "< 0.1 %" if 0 < fraction < 0.0005 else f"{fraction:.1%}".replace("%", " %")
    draw.text((right, middle), share, fill=FAINT_INK, font=built_in_font(_TEXT), anchor="rm")
    bar_top = top + height - 8
    draw.rounded_rectangle((text_left, bar_top, right, bar_top + 2), radius=1, fill=_TRACK)
    length = round((right - text_left) * fraction)
    if length > 0:
        bar = (text_left, bar_top, text_left + length, bar_top + 2)
        draw.rounded_rectangle(bar, radius=1, fill=fill)


@functools.lru_cache(maxsize=1)
def _chip() -> Image.Image:
    """The mask of a rounded square, mode L, smooth: Pillow itself draws hard edges."""
    large = Image.new("L", (8 * _CHIP, 8 * _CHIP))
    corner = 8 * _CHIP - 1
    ImageDraw.Draw(large).rounded_rectangle((0, 0, corner, corner), radius=40, fill=255)
    return large.resize((_CHIP, _CHIP), Image.Resampling.BOX)


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """Björn Ottosson's OKLCh to sRGB bytes, clipped to what a screen shows. `hue` in radians."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _encode_srgb(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _encode_srgb(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _encode_srgb(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _encode_srgb(linear: float) -> int:
    linear = min(1.0, max(0.0, linear))
    encoded = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * encoded)
