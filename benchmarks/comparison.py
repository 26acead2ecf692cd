"""The README's first picture: one drawn scene without and with RCS and SFR: `python -m benchmarks comparison`.

With `--measure` both methods are measured on every held-out scene, and results/comparison.json keeps the figures. The
picture shows the scene that gains most among those with five classes or more: an example that was chosen to show the
difference. What RCS and SFR are worth on average, the printed caption says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.reporting import RESULTS, ROOT, stored
from resclip.builtin.scenes import CLASS_NAMES, Scene, held_out_scenes
from resclip.evaluation.metrics import confusion, scores_of
from resclip.evaluation.report import Report
from resclip.io.images import PixelArray, save_png
from resclip.visualization.colours import palette
from resclip.visualization.fonts import fit_line
from resclip.visualization.legend import draw_key
from resclip.visualization.overlay import draw_overlay
from resclip.visualization.style import FAINT_INK, INK, PAPER

BASE, REPAIRED = "clearclip", "clearclip+rcs+sfr"
TITLES = {BASE: "ClearCLIP", REPAIRED: "ClearCLIP + RCS + SFR"}
FEWEST_CLASSES = 5
"""Classes of a scene that is shown: of fewer, one thing that is found makes all the difference."""

_SCENES, _SIDE = 200, 168  # as `resclip evaluate` measures them
_CELL = 240  # pixels, of a scene as it is shown
_ZOOM = 2  # at which overlays are drawn before they are reduced to that
_GAP, _MARGIN, _LINE = 16, 20, 24
_TEXT, _NOTE = 18, 16


class Comparison(NamedTuple):
    """What both methods reach on each held-out scene, in its order."""

    miou: dict[str, list[float]]
    """In per cent, by method: of the classes that are in the scene or predicted."""
    classes: list[int]
    """How many classes are in each scene."""

    @classmethod
    def read(cls) -> Comparison:
        """From the stored results."""
        return cls(**stored("comparison"))

    def scene(self) -> int:
        """The number of the scene that gains most among those with enough classes."""
        gains = np.subtract(self.miou[REPAIRED], self.miou[BASE])
        gains[np.array(self.classes) < FEWEST_CLASSES] = -np.inf
        return int(gains.argmax())


def segmented(images: Sequence[PixelArray], method: str) -> list[NDArray[np.int64]]:
    """The labels of scenes by one method, as `resclip evaluate` has them: the built-in model, all its classes."""
    from resclip.loading import load

    segmenter = load("builtin", classes=CLASS_NAMES, method=method, short_side=0)
    return [result.labels for result in segmenter.segment_many(images)]


def scene_miou(truth: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Of one scene, in per cent."""
    miou = scores_of(confusion(truth, labels, len(CLASS_NAMES))).miou
    if miou is None:
        raise ValueError("expected a scene with a class, got none")
    return miou


def measure() -> Comparison:
    """Both methods on every scene that `resclip evaluate` measures."""
    scenes = list(held_out_scenes(_SCENES, _SIDE))
    images = [scene.image for scene in scenes]
    miou = {
        method: [
            round(scene_miou(scene.mask, labels), 2)
            for scene, labels in zip(scenes, segmented(images, method), strict=True)
        ]
        for method in (BASE, REPAIRED)
    }
    return Comparison(miou, [len(np.unique(scene.mask)) for scene in scenes])


def shown_scene(number: int) -> Scene:
    """The held-out scene of this number, as it was measured."""
    (scene,) = held_out_scenes(1, _SIDE, first=number)
    return scene


def picture(scene: Scene) -> Image.Image:
    """The scene, what was drawn, and both methods' labels with what they reach in it, above a key of the colours."""
    image, truth = scene.image, scene.mask
    colours = palette(CLASS_NAMES)
    large = np.asarray(Image.fromarray(image).resize((_ZOOM * _SIDE, _ZOOM * _SIDE)))

    def drawn(labels: NDArray[Any]) -> Image.Image:
        enlarged = labels.astype(np.int64).repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
        return draw_overlay(large, enlarged, colours, opacity=0.8)

    panels = [("Image", "", Image.fromarray(large)), ("Ground truth", "as drawn", drawn(truth))]
    shown = [truth.astype(np.int64)]
    for method, title in TITLES.items():
        (labels,) = segmented([image], method)
        panels.append((title, f"mIoU {scene_miou(truth, labels):.1f} in this scene", drawn(labels)))
        shown.append(labels)
    width = len(panels) * (_CELL + _GAP) - _GAP
    key = [(int(label), CLASS_NAMES[label]) for label in np.unique(shown)]
    legend = draw_key(key, colours, width)
    top = _MARGIN + 2 * _LINE
    height = top + _CELL + _GAP + legend.height + _MARGIN // 2
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height), PAPER)
    for column, (title, note, panel) in enumerate(panels):
        left = _MARGIN + column * (_CELL + _GAP)
        fit_line(title, _TEXT, _CELL).draw(sheet, (left, _MARGIN + _LINE // 2 - 4), INK)
        fit_line(note, _NOTE, _CELL).draw(sheet, (left, _MARGIN + 3 * _LINE // 2 - 4), FAINT_INK)
        sheet.paste(panel.resize((_CELL, _CELL), Image.Resampling.LANCZOS), (left, top))
    sheet.paste(legend, (_MARGIN, top + _CELL + _GAP))
    # 192 colours are as good to the eye, and a third of the bytes.
    return sheet.quantize(192, dither=Image.Dither.NONE).convert("RGB")


def caption(comparison: Comparison) -> str:
    """What has to stand beside the picture: that it was chosen, and what the difference is on average."""
    rows = Report.read(RESULTS / "builtin.json").datasets["builtin"].rows
    means = [rows[method].scores.miou for method in (BASE, REPAIRED, f"{BASE}+rcs")]
    before, after, by_rcs = (float("nan") if mean is None else mean for mean in means)
    gains = np.subtract(comparison.miou[REPAIRED], comparison.miou[BASE])
    return (
        f"One of {len(gains)} drawn scenes that the built-in model has not seen, chosen to show the difference: in it "
        f"ClearCLIP gains {gains[comparison.scene()]:.1f} points of mIoU by RCS and SFR. Over all of them it gains "
        f"{after - before:.1f}, from {before:.1f} to {after:.1f} (by RCS alone to {by_rcs:.1f}), and "
        f"{int((gains > 0).sum())} scenes are better by it."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks comparison", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "docs/comparison.png",
        metavar="FILE",
        help="PNG file to write (%(default)s)",
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure all held-out scenes first: some minutes"
    )
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() != ".png":
        parser.error(f"--out must name a .png file, got {options.out}")
    if options.measure:
        comparison = measure()
        (RESULTS / "comparison.json").write_text(json.dumps(comparison._asdict()) + "\n")
    comparison = Comparison.read()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_png(picture(shown_scene(comparison.scene())), options.out)
    print(caption(comparison))
    return 0
