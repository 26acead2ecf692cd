"""Sheets of heat maps over an image: what points of it attend to, one row per point, one column per map."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from resclip.io.images import PixelArray
from resclip.visualization.fonts import fit_line, set_line
from resclip.visualization.style import CAPTION, FAINT_INK, INK, LUMA, MARGIN, PAPER, resampling
from resclip_kernels import check_choice

# Black through purple and orange to a pale yellow, at equal distances in OKLab, lightness rising in equal steps.
_ANCHORS = np.array(
    [
        (5, 4, 16), (28, 8, 57), (63, 10, 92), (106, 15, 111), (151, 27, 110), (194, 42, 97),
        (224, 80, 83), (248, 120, 70), (255, 165, 87), (255, 209, 131), (255, 247, 196),
    ]
)  # fmt: skip

Scale = Literal["root", "percentile", "linear"]
"""How a map's values become colours."""
SCALE_NAMES = {"root": "root scale", "percentile": "percentiles", "linear": "linear scale"}

_OPACITIES = (0.6, 0.9)
"""Opacity of a map's smallest and largest value over the image, which is grey and dimmed."""
_DIMMING = 0.62
"""Factor of the grey image under a map."""
_DARK = (0, 0, 0)

LINE = 20
"""Height in pixels of a line of text."""
GAP = 8
"""Pixels between a panel and the text above or below it."""
BAR = 8
"""Height in pixels of the bar of colours under a map."""
PANEL = 400
"""Pixels of a panel's longer side."""
NARROWEST = 170
"""Least width in pixels of a column: room for its captions."""
RING = 7
"""Radius in pixels of the ring that marks a point."""


class HeatMap(NamedTuple):
    """One map of what a point attends to."""

    caption: str
    values: NDArray[np.floating]
    """(h, w), at least 0, finite."""
    cover: tuple[float, float] = (1.0, 1.0)
    """Fractions of the image's height and width that the map covers, from the top left."""


class PointMaps(NamedTuple):
    """A row of the sheet: a point and its maps."""

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


def scaled(values: NDArray[np.floating], scale: Scale) -> NDArray[np.floating]:
    """A map's values from 0 to 1, which is its largest one: what its colours show.

    Args:
        values: at least 0, finite.
        scale: "linear": the share of the largest value; "root": that share's square root, by which a hundredth of it is
            a tenth of the way; "percentile": the share of the entries that are smaller.
    """
    largest = float(values.max())
    if largest == 0.0:
        return np.zeros_like(values)
    if scale == "percentile":
        ordered = np.sort(values, axis=None)
        smaller = np.searchsorted(ordered, values, side="left")
        ranks: NDArray[np.floating] = smaller / max(1, smaller.max())
        return ranks
    shares: NDArray[np.floating] = values / largest
    return np.sqrt(shares) if scale == "root" else shares


def draw_heat_maps(
    image: PixelArray, rows: Sequence[PointMaps], footer: str = "", scale: Scale = "root"
) -> Image.Image:
    """The image with a point marked and that point's maps beside it, one row per point, on white.

    The colours of a map go up to its own largest value, which is written under it with the scale's name.

    Args:
        image: (H, W, 3) uint8.
        rows: one per point, all with the same maps.
        footer: a line of small print below.
        scale: of the colours, see `scaled`; by the root small structures are seen beside a large peak.

    Raises:
        ValueError: no row, rows with different maps, a map with negative or infinite entries, an unknown scale.
    """
    check_choice("scale", scale, get_args(Scale))
    check_rows(rows)
    height, width = panel_shape(image.shape[0], image.shape[1])
    panel = Image.fromarray(image).resize((width, height), resampling(image.shape[0], height))
    column = max(width, NARROWEST)
    captions = ["Image", *(heat_map.caption for heat_map in rows[0].maps)]
    row_height = height + GAP + 2 * LINE + MARGIN
    top = MARGIN + LINE + GAP
    sheet_width = MARGIN + len(captions) * (column + MARGIN)
    sheet_height = top + len(rows) * row_height + (LINE + MARGIN if footer else 0)
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    for number, caption in enumerate(captions):
        position = (MARGIN + number * (column + MARGIN), MARGIN + LINE // 2)
        fit_line(caption, CAPTION, column).draw(sheet, position, INK)
    zoom = width / image.shape[1], height / image.shape[0]
    for row in rows:
        point = row.point[0] * zoom[0], top + row.point[1] * zoom[1]
        left = MARGIN
        sheet.paste(panel, (left, top))
        mark(sheet, (left + point[0], point[1]), dotted=True)
        under = top + height + GAP
        for number, line in enumerate(row.caption):
            position = (left, under + number * LINE + LINE // 2)
            fit_line(line, CAPTION, column).draw(sheet, position, FAINT_INK)
        for heat_map in row.maps:
            left += column + MARGIN
            sheet.paste(draw_heat(panel, heat_map, scale), (left, top))
            mark(sheet, (left + point[0], point[1]), dotted=False)
            draw_scale(sheet, (left, under), column, heat_map.values, scale)
        top += row_height
    if footer:
        position = (MARGIN, top + LINE // 2)
        fit_line(footer, CAPTION, sheet_width - 2 * MARGIN).draw(sheet, position, FAINT_INK)
    return sheet


def check_rows(rows: Sequence[PointMaps]) -> None:
    """ValueError unless the rows can be drawn as one sheet."""
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
    scale = PANEL / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_heat(image: Image.Image, heat_map: HeatMap, scale: Scale = "linear") -> Image.Image:
    """The map's colours over `image`, grey and dimmed; only the grey image where the map does not cover it."""
    grey = _DIMMING * (np.asarray(image) @ LUMA)[..., None].repeat(3, axis=2)
    shares = scaled(heat_map.values, scale)
    rows = max(1, round(heat_map.cover[0] * image.height))
    columns = max(1, round(heat_map.cover[1] * image.width))
    plane = Image.fromarray(shares.astype(np.float32))
    smooth = np.asarray(plane.resize((columns, rows), Image.Resampling.BILINEAR))
    covered = grey[:rows, :columns]
    opacity = np.interp(smooth, (0.0, 1.0), _OPACITIES)[..., None]
    covered += opacity * (heat_colours(smooth) - covered)
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def mark(sheet: Image.Image, centre: tuple[float, float], *, dotted: bool) -> None:
    """Draw a ring around a point of the sheet, white with a dark rim; `dotted` adds a dot in it."""
    corner = round(centre[0]) - 2 * RING, round(centre[1]) - 2 * RING
    for colour, thickness in ((_DARK, 2.2), (PAPER, 1.0)):
        sheet.paste(colour, corner, ring_mask(thickness, dotted))


@functools.lru_cache(maxsize=4)
def ring_mask(thickness: float, dotted: bool) -> Image.Image:
    """A ring of mode L around the mask's centre, `thickness` pixels to both sides of its radius."""
    factor, side = 8, 4 * RING  # Drawn at eight times the size, since Pillow draws hard edges.
    large = Image.new("L", (factor * side, factor * side))
    pen = ImageDraw.Draw(large)
    discs = [(RING + thickness, 255), (RING - thickness, 0)]
    for radius, value in [*discs, (1.0 + thickness, 255)] if dotted else discs:
        corners = [factor * (side / 2 + reach) for reach in (-radius, radius)]
        pen.ellipse((corners[0], corners[0], corners[1], corners[1]), fill=value)
    return large.resize((side, side), Image.Resampling.BOX)


def draw_scale(
    sheet: Image.Image,
    corner: tuple[int, int],
    column: int,
    values: NDArray[np.floating],
    scale: Scale,
) -> None:
    """A bar of the colours at `corner`, (left, top), with the values of its two ends and the scale's name between."""
    left, top = corner
    width = min(column, NARROWEST)
    ramp = heat_colours(np.linspace(0.0, 1.0, width))[None].repeat(BAR, axis=0)
    sheet.paste(Image.fromarray(ramp), (left, top + (LINE - BAR) // 2))
    middle = top + LINE + LINE // 2
    least = "least" if scale == "percentile" else "0"
    start, name, end = (
        set_line(text, CAPTION)
        for text in (least, SCALE_NAMES[scale], f"{float(values.max()):.2g}")
    )
    start.draw(sheet, (left, middle), FAINT_INK)
    between = left + (width + start.width - end.width - name.width) / 2
    name.draw(sheet, (between, middle), FAINT_INK)
    end.draw(sheet, (left + width - end.width, middle), FAINT_INK)


def draw_probability(
    image: PixelArray, shares: NDArray[np.floating], opacity: float
) -> Image.Image:
    """The image under the colours of values from 0 to 1, of its own size; mode RGB.

    Args:
        image: (H, W, 3) uint8.
        shares: (H, W).
        opacity: of the colours, from 0 to 1.

    Raises:
        ValueError: another opacity.
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"expected an opacity from 0 to 1, got {opacity}")
    # The colours are looked up: interpolated for each pixel they would take as long as the model.
    levels = heat_colours(np.linspace(0.0, 1.0, 256))
    return Image.blend(
        Image.fromarray(image),
        Image.fromarray(levels[np.rint(shares * 255).astype(np.uint8)]),
        opacity,
    )
