"""What each method makes of a few scenes, as one image: `python -m benchmarks gallery`.

It shows what kind of mistakes a method makes; how well each does over many scenes, `resclip evaluate` says.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.builtin.scenes import CLASS_NAMES, Scene, draw, held_out_scenes
from resclip.builtin.training.captions import visible_names
from resclip.io.images import PixelArray, save_png
from resclip.methods.catalogue import BASES
from resclip.visualization.colours import palette
from resclip.visualization.fonts import fit_line, set_line
from resclip.visualization.legend import draw_key
from resclip.visualization.overlay import draw_overlay

METHODS = (*BASES, "naclip+rcs", "naclip+sfr", "resclip")

_CANDIDATES = 200  # held-out scenes to choose from: those that `evaluate` measures
_SIDE = 224  # pixels, of a scene as it is segmented: the model's preset resizes to that
_CELL = 148  # pixels, of a scene as it is shown
_GAP = 8  # pixels, between cells
_MARGIN = 28
_SPACE = 20  # pixels, between captions and cells, and above the key
_WIDEST_CAPTION = 230
_NAME, _NOTE = 17, 14  # pixels, the height of letters
_INK = (24, 24, 27)
_FAINT_INK = (113, 113, 122)
_PAPER = (255, 255, 255)


class GalleryRow(NamedTuple):
    """A row of images with its caption at the left."""

    name: str
    note: str
    """A line of small print under the name; "" for none."""
    cells: Sequence[Image.Image]


def varied_scenes(count: int) -> list[Scene]:
    """The first held-out scenes that together show most classes, whatever a method makes of them.

    Each adds as many classes not yet seen as any candidate does; once all have been seen, the count starts again.
    """
    candidates = list(held_out_scenes(max(count, _CANDIDATES), _SIDE // 4))
    names = [frozenset(visible_names(scene.mask)) for scene in candidates]
    chosen: list[int] = []
    seen: set[str] = set()
    while len(chosen) < count:
        left = [number for number in range(len(candidates)) if number not in chosen]
        best = max(left, key=lambda number: len(names[number] - seen))
        if seen and not names[best] - seen:
            seen = set()
            continue
        chosen.append(best)
        seen |= names[best]
    return [draw(candidates[number].plan, _SIDE, _SIDE) for number in chosen]


def segment_scenes(scenes: Sequence[Scene], method: str) -> list[NDArray[np.int64]]:
    """Each scene's labels by one method with the built-in model and all its classes: (H, W) each."""
    from resclip.loading import load

    results = load("builtin", classes=CLASS_NAMES, method=method).segment(
        [scene.picture() for scene in scenes]
    )
    return [result.labels for result in results]


def draw_gallery(
    rows: Sequence[GalleryRow], key: Sequence[tuple[int, str]], colours: PixelArray
) -> Image.Image:
    """The rows below one another on white, the key of the colours under them.

    Args:
        rows: all with as many cells of one size.
        key: (class index, name) of the classes to explain.
        colours: (classes, 3) uint8.
    """
    widths = [max(set_line(row.name, _NAME).width, set_line(row.note, _NOTE).width) for row in rows]
    caption = min(_WIDEST_CAPTION, math.ceil(max(widths)))
    cell_width, cell_height = rows[0].cells[0].size
    width = caption + _SPACE + len(rows[0].cells) * (cell_width + _GAP) - _GAP
    legend = draw_key(key, colours, width)
    height = len(rows) * (cell_height + _GAP) - _GAP + _SPACE + legend.height
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), _PAPER)
    top = _MARGIN
    for row in rows:
        middle = top + cell_height // 2
        half_line = 12 if row.note else 0
        name, note = fit_line(row.name, _NAME, caption), fit_line(row.note, _NOTE, caption)
        name.draw(sheet, (_MARGIN, middle - half_line), _INK)
        note.draw(sheet, (_MARGIN, middle + half_line), _FAINT_INK)
        for number, cell in enumerate(row.cells):
            left = _MARGIN + caption + _SPACE + number * (cell_width + _GAP)
            sheet.paste(cell, (left, top))
        top += cell_height + _GAP
    sheet.paste(legend, (_MARGIN, top - _GAP + _SPACE))
    return sheet


def gallery(count: int) -> Image.Image:
    """The scenes, what was drawn, and every method's segmentation of them."""
    scenes = varied_scenes(count)
    colours = palette(CLASS_NAMES)
    truth = [scene.mask.astype(np.int64) for scene in scenes]
    predicted = {method: segment_scenes(scenes, method) for method in METHODS}

    def show(labels: Sequence[NDArray[np.int64]]) -> list[Image.Image]:
        return [
            shrink(draw_overlay(scene.image, part, colours, opacity=1.0))
            for scene, part in zip(scenes, labels, strict=True)
        ]

    rows = [
        GalleryRow("image", "", [shrink(Image.fromarray(scene.image)) for scene in scenes]),
        GalleryRow("ground truth", "", show(truth)),
    ]
    rows += [
        GalleryRow(method, f"{agreement(labels, truth):.0%} correct", show(labels))
        for method, labels in predicted.items()
    ]
    shown = np.unique([truth, *predicted.values()])
    return draw_gallery(rows, [(int(label), CLASS_NAMES[label]) for label in shown], colours)


def shrink(image: Image.Image) -> Image.Image:
    """The image as large as a cell. The mean of the pixels adds fewest colours: 0.2 MB in place of 0.5."""
    return image.resize((_CELL, _CELL), Image.Resampling.BOX)


def agreement(labels: Sequence[NDArray[np.int64]], truth: Sequence[NDArray[np.int64]]) -> float:
    """The share of pixels, of all scenes, that have the class that was drawn."""
    return float(np.mean(np.stack(labels) == np.stack(truth)))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the gallery; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gallery", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gallery.png"), help="PNG file to write (%(default)s)"
    )
    parser.add_argument("--scenes", type=int, default=5, metavar="N", help="columns (%(default)s)")
    options = parser.parse_args(argv)
    if options.scenes < 1:
        parser.error(f"--scenes must be at least 1, got {options.scenes}")
    if options.out.suffix.lower() != ".png":
        parser.error(f"--out must name a .png file, got {options.out}")
    image = gallery(options.scenes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_png(image, options.out)
    print(f"{len(METHODS)} methods on {options.scenes} scenes: open {options.out}")
    return 0
