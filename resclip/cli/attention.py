"""`resclip attention`: heat maps of what points of an image attend to, drawn beside it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from resclip.builtin import warn_of_drawn_scenes
from resclip.cli.options import load_from, png_path
from resclip.io.images import PixelArray, read_picture, save_png
from resclip.methods.catalogue import find_method
from resclip.text.class_names import parse_classes
from resclip.visualization.sheets import HeatMap, PointMaps, draw_heat_maps, strongest_share

if TYPE_CHECKING:
    from torch import Tensor

    from resclip.encoder.dense_encoder import DenseEncoder
    from resclip.segmenter import Segmenter


CAPTIONS = {"cross-layer": "Cross-layer (RCS)", "feedback": "Feedback (SFR)", "final": "Final"}
STRONGEST = 0.1
"""Fraction of the patches whose share of a map's mass is printed."""
# A segmenter needs two classes, though attention without SFR reads none. The built-in model knows these words.
NO_CLASSES = ["picture", "car"]


class Grid(NamedTuple):
    """The grid of patches over an image; at its right and lower edges a rest may be left uncovered."""

    rows: int
    columns: int
    cover: tuple[float, float]
    """Fractions of the image's height and width that the patches cover."""

    def patch_at(self, point: tuple[int, int], height: int, width: int) -> tuple[int, int]:
        """(row, column) of the patch that covers the centre of pixel (x, y), or of the nearest one.

        Args:
            height, width: size in pixels of the image that the point belongs to.
        """
        row = (point[1] + 0.5) / height / self.cover[0] * self.rows
        column = (point[0] + 0.5) / width / self.cover[1] * self.columns
        return min(int(row), self.rows - 1), min(int(column), self.columns - 1)


def show_attention(arguments: argparse.Namespace) -> int:
    """Draw the maps of the points `arguments.at` into `arguments.out`; prints each point's patch.

    The image is resized as for a segmentation and run whole: without windows, and without the zeros that ProxyCLIP
    puts around them.

    Raises:
        ValueError: the options or the image cannot be used.
        OSError: the file cannot be written.
        WeightsUnavailable: the model cannot be fetched.
    """
    path = png_path(arguments.out)
    # A layer's own attention is of the blocks before there is a segmentation to feed back.
    has_feedback = arguments.layer is None and (
        arguments.sfr is not None or find_method(arguments.method).sfr is not None
    )
    if has_feedback and arguments.classes is None:
        raise ValueError(
            "expected --classes NAMES: SFR feeds back a segmentation by these classes; name them, or leave SFR out, "
            "as --method naclip+rcs does"
        )
    classes = NO_CLASSES if arguments.classes is None else parse_classes(arguments.classes)
    picture = read_picture(arguments.image)
    image = picture.pixels
    height, width = image.shape[:2]
    points = [parse_point(text, height, width) for text in arguments.at]
    segmenter = load_from(arguments, classes, window=0)
    if segmenter.notes_on(picture):
        warn_of_drawn_scenes()
    pixels = segmenter.prepare(image).unsqueeze(0).to(segmenter.device)
    tower, result = grids(segmenter.encoder, pixels)
    if arguments.layer is not None:
        result = tower
    patches = [result.patch_at(point, height, width) for point in points]
    if arguments.layer is None:
        rows = [
            maps_of(segmenter, pixels, point, patch, (tower, result), arguments.head)
            for point, patch in zip(points, patches, strict=True)
        ]
    else:
        rows = [
            layer_of(segmenter, pixels, point, patch, tower, (arguments.layer, arguments.head))
            for point, patch in zip(points, patches, strict=True)
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    small_print = footer(segmenter, image, pixels, result) + unseen(image, rows)
    save_png(draw_heat_maps(image, rows, small_print, arguments.scale), path)
    print(f"{path}: {'; '.join(map(summary, points, patches, rows))}")
    return 0


def parse_point(text: str, height: int, width: int) -> tuple[int, int]:
    """(x, y) from "x,y": a pixel of an image of this size.

    Raises:
        ValueError: other text, or a pixel outside the image.
    """
    numbers = re.fullmatch(r"\s*([+-]?\d+)\s*,\s*([+-]?\d+)\s*", text)
    if numbers is None:
        raise ValueError(f'expected --at X,Y in whole pixels, such as "120,80", got {text!r}')
    x, y = int(numbers[1]), int(numbers[2])
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"expected --at X,Y inside the image of {width} x {height} pixels: x from 0 to {width - 1}, "
            f"y from 0 to {height - 1}; got {x},{y}"
        )
    return x, y


def grids(encoder: DenseEncoder, pixels: Tensor) -> tuple[Grid, Grid]:
    """The grid of the tower's patches and that of the result, which a proxy decides."""
    height, width = pixels.shape[2:]
    rows, columns = encoder.tower.grid(height, width)
    patch_height, patch_width = encoder.tower.patch_size
    tower = Grid(rows, columns, (rows * patch_height / height, columns * patch_width / width))
    if encoder.proxy is None:
        return tower, tower
    rows, columns = encoder.proxy(pixels).shape[2:]
    return tower, Grid(rows, columns, (1.0, 1.0))


def maps_of(
    segmenter: Segmenter,
    pixels: Tensor,
    point: tuple[int, int],
    patch: tuple[int, int],
    grids: tuple[Grid, Grid],
    head: int | None = None,
) -> PointMaps:
    """One row of the sheet: the maps of the patch that covers the point, of one head or of all."""
    tower, result = grids
    encoder = segmenter.encoder
    text = None if encoder.sfr is None else segmenter.vocabulary.embeddings
    captions = {**CAPTIONS, "base": f"Base ({encoder.base.name})"}
    if head is not None:
        captions = {name: f"{caption}, head {head}" for name, caption in captions.items()}
    # The base's map and the feedback are on the result's grid; the maps that weigh the tower's values on the tower's.
    covers = {"base": result.cover, "feedback": result.cover}
    maps = [
        HeatMap(captions[name], plane[0, 0].float().cpu().numpy(), covers.get(name, tower.cover))
        for name, plane in encoder.attention(pixels, patch, text, head=head).planes().items()
    ]
    return row_of(point, patch, maps)


def layer_of(
    segmenter: Segmenter,
    pixels: Tensor,
    point: tuple[int, int],
    patch: tuple[int, int],
    tower: Grid,
    chosen: tuple[int, int | None],
) -> PointMaps:
    """One row of the sheet: what the patch attends to in a layer, by one head or by all: `chosen`."""
    layer, head = chosen
    planes = segmenter.encoder.attention(pixels, patch, layer=layer, head=head).planes()
    maps = [
        HeatMap(name.capitalize(), plane[0, 0].float().cpu().numpy(), tower.cover)
        for name, plane in planes.items()
    ]
    return row_of(point, patch, maps)


def row_of(point: tuple[int, int], patch: tuple[int, int], maps: Sequence[HeatMap]) -> PointMaps:
    """A row of the sheet, with the point and its patch in words."""
    x, y = point
    lines = (f"x {x}, y {y}", f"patch row {patch[0]}, column {patch[1]}")
    return PointMaps((x + 0.5, y + 0.5), lines, maps)


def unseen(image: PixelArray, rows: Sequence[PointMaps]) -> str:
    """What the small print says of the rim that no patch holds, in pixels of the image; empty where there is none."""
    height, width = image.shape[:2]
    covers = [heat_map.cover for heat_map in rows[0].maps]
    below = height - height * min(cover[0] for cover in covers)
    right = width - width * min(cover[1] for cover in covers)
    rims = [
        f"{max(1, round(rim))} pixels {place}"
        for rim, place in ((right, "at the right"), (below, "below"))
        if rim > 1e-6
    ]
    return f"; grey and in no patch: {' and '.join(rims)}" if rims else ""


def footer(segmenter: Segmenter, image: PixelArray, pixels: Tensor, grid: Grid) -> str:
    """The sheet's last line: the model, the method and the sizes."""
    names = [segmenter.source.get(key) for key in ("model", "pretrained", "method")]
    height, width = pixels.shape[2:]
    return (
        f"{' + '.join(name for name in names if name)}: image of {image.shape[1]} x {image.shape[0]} pixels, "
        f"seen as {width} x {height}, {grid.columns} x {grid.rows} patches"
    )


def summary(point: tuple[int, int], patch: tuple[int, int], row: PointMaps) -> str:
    """The point's patch, and how concentrated its final map is, in words."""
    last = row.maps[-1]
    share = strongest_share(last.values, STRONGEST)
    return (
        f"{point[0]},{point[1]} is in patch row {patch[0]}, column {patch[1]}, with {share:.0%} of its "
        f"{last.caption.lower()} map on the strongest {STRONGEST:.0%} of the patches"
    )
