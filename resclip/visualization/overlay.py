"""Drawing a segmentation: the overlay, and image, overlays and legend side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.io.images import PixelArray
from resclip.visualization.fonts import fit_line, set_line
from resclip.visualization.legend import LEAST_HEIGHT, LegendEntry, draw_legend, stripes
from resclip.visualization.style import CAPTION, FAINT_INK, INK, LUMA, MARGIN, PAPER, resampling

# Of the image's own colour, this much is lost per unit of opacity: at 0.55, three quarters are gone.
_FADING = 1.4
# LUMA as a matrix that maps an RGB row to three times its luma.
_TO_GREY = LUMA[:, None].astype(np.float32).repeat(3, axis=1)

_STRIP = 1 << 20
"""Pixels that are mixed at a time."""
PANELS_A_ROW = 4
"""Most pictures side by side on a sheet, the image among them."""
_SMALLEST_PANEL = 440
"""Pixels that the longer side of a panel has at least; smaller images are enlarged by a whole factor."""
_LARGEST_PANEL = 900
"""Pixels that the longer side of a panel has at most."""


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
        pixels[(labels == hatched) & stripes(*labels.shape)] = INK
    width = max(1, round(min(labels.shape) / 360))
    pixels[_borders(labels, width)] = 255
    unlabelled = labels < 0
    if unlabelled.any():
        pixels[unlabelled] = image[unlabelled]
    return Image.fromarray(pixels)


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

    More than `PANELS_A_ROW` pictures stand in several rows. Small images are enlarged by a whole factor, large ones are
    reduced; the overlays' borders are drawn at the new size. Shapes and dtypes as in `draw_overlay` and `draw_legend`.

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
    panels = [("Image", Image.fromarray(pixels))]
    for caption, labels in segmentations:
        panel_labels = labels[nearest_row[:, None], nearest_column]
        panels.append((caption, draw_overlay(pixels, panel_labels, colours, opacity, hatched)))
    rows = math.ceil(len(panels) / PANELS_A_ROW)
    columns = math.ceil(len(panels) / rows)
    head = CAPTION + 12
    step = width + MARGIN, head + height + MARGIN
    body_height = max(rows * step[1] - head - MARGIN, LEAST_HEIGHT)
    legend = draw_legend(entries, colours, body_height, hatched)
    body_height = max(body_height, legend.height)
    legend_left = MARGIN + columns * step[0]
    legend_title = set_line(legend_caption, CAPTION)
    sheet_width = legend_left + max(legend.width, math.ceil(legend_title.width)) + MARGIN
    footer_height = CAPTION + 14 if footer else 0
    sheet_height = MARGIN + head + body_height + footer_height + MARGIN
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    places = [
        (MARGIN + number % columns * step[0], MARGIN + number // columns * step[1])
        for number in range(len(panels))
    ]
    texts = [fit_line(caption, CAPTION, width) for caption, _ in panels]
    drawn = [panel for _, panel in panels]
    for (left, top), line, picture in zip(
        [*places, (legend_left, MARGIN)],
        [*texts, legend_title],
        [*drawn, legend],
        strict=True,
    ):
        line.draw(sheet, (left, top + CAPTION // 2), FAINT_INK)
        sheet.paste(picture, (left, top + head))
    if footer:
        line = fit_line(footer, CAPTION, sheet_width - 2 * MARGIN)
        line.draw(sheet, (MARGIN, MARGIN + head + body_height + 14 + CAPTION // 2), FAINT_INK)
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


def _panel_shape(height: int, width: int) -> tuple[int, int]:
    longer = max(height, width)
    if longer > _LARGEST_PANEL:
        scale = _LARGEST_PANEL / longer
        return max(1, round(height * scale)), max(1, round(width * scale))
    factor = max(1, math.ceil(_SMALLEST_PANEL / longer)) if longer < _SMALLEST_PANEL else 1
    return height * factor, width * factor
