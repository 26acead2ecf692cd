"""What each method makes of the packaged scene, a PNG each: `python -m benchmarks method-pictures`.

Side by side: the labels, and the heat map of one class, from the logits before what is done to the whole picture.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.reporting import ROOT
from resclip.builtin.scenes import CLASS_NAMES, Scene, demo_scene
from resclip.errors import UnknownChannelsWarning
from resclip.io.images import save_png
from resclip.methods.catalogue import BASES, PAMR, SUFFIXES
from resclip.visualization.colours import palette
from resclip.visualization.overlay import draw_overlay
from resclip.visualization.sheets import HeatMap, draw_heat

FOLDER = ROOT / "docs/methods"
STEP_BASE = "clearclip"
"""The base whose picture shows a step."""
METHODS = {
    **{base: base for base in BASES},
    **{suffix: f"{STEP_BASE}+{suffix}" for suffix in (*SUFFIXES, PAMR)},
}
"""The method of each picture, by the name of its file."""
HEAT = "tree"
"""The class of the heat map."""
CELL = (224, 168)
"""(width, height) in pixels of one of the two."""
GAP = 6
MOST_BYTES = 60_000


def picture(scene: Scene, method: str) -> Image.Image:
    """The labels and the heat map of one method, side by side."""
    from resclip.loading import load

    names = [CLASS_NAMES[label] for label in np.unique(scene.mask)]
    steps = BASES[method].steps if method in BASES else None
    # A cluster vote sees the picture whole.
    whole = {"window": 0} if steps is not None and steps.clusters is not None else {}
    with warnings.catch_warnings():
        # The built-in model is none of OpenAI's, as docs/methods.md says.
        warnings.simplefilter("ignore", UnknownChannelsWarning)
        segmenter = load("builtin", classes=names, method=method, **whole)
    labels = segmenter.segment(scene.picture()).labels
    logits = segmenter.logits(segmenter.prepare(scene.image)[None], upsample=True)
    heat = logits[0, names.index(HEAT)].double().numpy()
    heat = (heat - heat.min()) / max(np.ptp(heat), 1e-12)
    image = Image.fromarray(scene.image)
    cells = [
        draw_overlay(scene.image, labels, palette(names), opacity=0.9),
        draw_heat(image, HeatMap(HEAT, heat)),
    ]
    sheet = Image.new("RGB", (2 * CELL[0] + GAP, CELL[1]), (255, 255, 255))
    for number, cell in enumerate(cells):
        sheet.paste(cell.resize(CELL, Image.Resampling.BOX), (number * (CELL[0] + GAP), 0))
    # 128 colours are as good to the eye, and a third of the bytes.
    return sheet.quantize(128, dither=Image.Dither.NONE).convert("RGB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the pictures; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks method-pictures", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="FOLDER", help="folder to write (%(default)s)"
    )
    parser.add_argument(
        "--method", choices=METHODS, metavar="NAME", help="one alone: " + ", ".join(METHODS)
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    scene = demo_scene()
    for name, method in METHODS.items():
        if options.method in (None, name):
            save_png(picture(scene, method), options.out / f"{name}.png")
    print(f"open {options.out}")
    return 0
