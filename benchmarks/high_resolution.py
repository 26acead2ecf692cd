"""Large images: shrunk, by windows, whole, or by windows with an overview; which is good for what.

    python -m benchmarks high-resolution            measures all of them: results/high_resolution.json
    python -m benchmarks high-resolution --image    draws one scene by each of them: docs/high-resolution.png

The scenes are the built-in model's, drawn four times as large as the images that it was trained on. The overview's
weight is chosen on validation scenes, and everything is reported on held-out ones. Times are CPU seconds of one thread,
on which the machine's other work has little influence; the modes take turns scene by scene.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import resclip
from benchmarks.gallery import GalleryRow, draw_gallery
from benchmarks.reporting import RESULTS, ROOT, in_order, store, table, versions_text
from resclip import load
from resclip.builtin.scenes import (
    CLASS_NAMES,
    HELD_OUT,
    VALIDATION,
    Placement,
    Scene,
    ScenePlan,
    draw,
    plan_scene,
)
from resclip.builtin.things import COLOURS, DRAWN, THINGS
from resclip.evaluation.distributed import machine_name
from resclip.evaluation.metrics import confusion, scores_of
from resclip.io.images import save_png
from resclip.methods.catalogue import Overview
from resclip.segmenter import Segmenter
from resclip.visualization.colours import palette
from resclip.visualization.overlay import draw_overlay

IMAGE = ROOT / "docs/high-resolution.png"

SIDE = 448
"""Height and width of a scene in pixels: four times the model's 112."""
METHODS = ("naclip", "resclip")
MODES: Mapping[str, Mapping[str, Any]] = {
    "shrunk": {"short_side": 224},
    "windows": {"short_side": 0},
    "whole": {"short_side": 0, "window": 0},
    "mixed": {"short_side": 0, "overview": Overview()},
}
MODE_NAMES = {"whole": "whole image"}
"""Names in the tables, where they differ from those of `MODES`."""
WEIGHTS = (0.1, 0.2, 0.4, 0.6)
SCENES = {VALIDATION: 8, HELD_OUT: 24}
SMALL_THINGS = 12
RESAMPLES = 500
"""Times that scenes are drawn anew for the standard error of a difference, which is then itself known to 3 %."""

Counts: TypeAlias = NDArray[np.int64]
"""(scenes, classes, classes): how often each class was taken for each."""


def large_things(generator: np.random.Generator) -> ScenePlan:
    """One to four things, as the model was trained on; a window sees a sixteenth of the image."""
    return plan_scene(generator)


def small_things(generator: np.random.Generator) -> ScenePlan:
    """Many things, each a quarter to a half of its usual height: a window sees them whole."""
    return with_small_things(replace(plan_scene(generator), placements=()), generator)


def both(generator: np.random.Generator) -> ScenePlan:
    """Small things around large ones."""
    return with_small_things(plan_scene(generator), generator)


KINDS: Mapping[str, Callable[[np.random.Generator], ScenePlan]] = {
    "large things": large_things,
    "small things": small_things,
    "both": both,
}


def with_small_things(plan: ScenePlan, generator: np.random.Generator) -> ScenePlan:
    """The plan with up to `SMALL_THINGS` more, wherever there is room for them."""
    placements = list(plan.placements)
    names = [name for name in THINGS if name != "sun" or plan.sky != "night sky"]
    most = len(placements) + SMALL_THINGS
    for _ in range(5 * SMALL_THINGS):
        name = names[int(generator.integers(len(names)))]
        thing = DRAWN[name]
        height = float(generator.uniform(*thing.heights) * generator.uniform(0.25, 0.5))
        lowest = max(plan.horizon, height + 0.06) if thing.in_sky else 0.97
        highest = height + 0.02 if thing.in_sky else plan.horizon + 0.05
        new = Placement(
            name,
            float(generator.uniform(0.05, 0.95)),
            float(generator.uniform(highest, lowest)),
            height,
            tuple(COLOURS)[int(generator.integers(len(COLOURS)))],
            float(generator.random()),
            bool(generator.random() < 0.5),
        )
        if len(placements) < most and all(are_apart(new, other) for other in placements):
            placements.append(new)
    # Farther things first: nearer ones cover them.
    return replace(plan, placements=tuple(sorted(placements, key=lambda one: one.base)))


def are_apart(first: Placement, second: Placement) -> bool:
    """Whether the two hardly overlap."""
    widths = [one.height * DRAWN[one.name].half_width for one in (first, second)]
    middles = [one.base - one.height / 2 for one in (first, second)]
    return (
        abs(first.x - second.x) > 0.9 * sum(widths)
        or abs(middles[0] - middles[1]) > 0.6 * (first.height + second.height)
    )  # fmt: skip


def scenes(kind: str, split: int) -> Iterator[Scene]:
    """A split's scenes of one kind, always the same."""
    for number in range(SCENES[split]):
        yield draw(KINDS[kind](np.random.default_rng([split, number])), SIDE, SIDE)


def compare(
    drawn: Iterable[Scene], segmenters: Mapping[str, Segmenter]
) -> tuple[dict[str, Counts], dict[str, float]]:
    """Of each segmenter its confusion of every scene, and its CPU seconds a scene."""
    counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in segmenters}
    seconds = dict.fromkeys(segmenters, 0.0)
    for scene in drawn:
        for name, segmenter in segmenters.items():
            start = time.process_time()
            labels = segmenter.segment(scene.image).labels
            seconds[name] += time.process_time() - start
            counts[name].append(confusion(scene.mask, labels, len(CLASS_NAMES)))
    stacked = {name: np.stack(part) for name, part in counts.items()}
    return stacked, {name: total / len(stacked[name]) for name, total in seconds.items()}


def miou(counts: Counts) -> float:
    """Of the scenes together, in per cent."""
    mean = scores_of(counts.sum(axis=0)).miou
    if mean is None:
        raise ValueError("expected scenes with at least one class; got none")
    return mean


def error_of_difference(first: Counts, second: Counts) -> float:
    """The standard error of their mIoUs' difference: the deviation over scenes drawn anew, the same for both."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(first), size=(RESAMPLES, len(first)))
    return float(np.std([miou(first[pick]) - miou(second[pick]) for pick in picks]))


def sweep() -> list[dict[str, Any]]:
    """mIoU by the overview's weight on validation scenes; a weight of 0 is windows alone."""
    rows = []
    for method in METHODS:
        candidates = {0.0: MODES["windows"]}
        for weight in WEIGHTS:
            candidates[weight] = {"short_side": 0, "overview": Overview(weight)}
        segmenters = {
            str(weight): load("builtin", classes=CLASS_NAMES, method=method, **options)
            for weight, options in candidates.items()
        }
        for kind in KINDS:
            counts, _ = compare(scenes(kind, VALIDATION), segmenters)
            for weight in candidates:
                row = {"kind": kind, "method": method, "weight": weight}
                rows.append({**row, "miou": miou(counts[str(weight)])})
                print(rows[-1], flush=True)
    return rows


def measure() -> list[dict[str, Any]]:
    """Every mode on the held-out scenes."""
    rows = []
    for method in METHODS:
        segmenters = {
            mode: load("builtin", classes=CLASS_NAMES, method=method, **options)
            for mode, options in MODES.items()
        }
        for kind in KINDS:
            counts, seconds = compare(scenes(kind, HELD_OUT), segmenters)
            for mode in MODES:
                row = {
                    "kind": kind,
                    "method": method,
                    "mode": mode,
                    "miou": miou(counts[mode]),
                    "change": miou(counts[mode]) - miou(counts["windows"]),
                    "error": error_of_difference(counts[mode], counts["windows"]),
                    "seconds": seconds[mode],
                }
                rows.append(row)
                print(row, flush=True)
    return rows


def image() -> Image.Image:
    """The first held-out scene of each kind: its ground truth, and how each mode of ResCLIP sees it."""
    drawn = [next(scenes(kind, HELD_OUT)) for kind in KINDS]
    colours = palette(CLASS_NAMES)
    truth = [scene.mask.astype(np.int64) for scene in drawn]
    labels = {"ground truth": truth}
    for mode, options in MODES.items():
        segmenter = load("builtin", classes=CLASS_NAMES, method="resclip", **options)
        labels[mode] = [segmenter.segment(scene.image).labels for scene in drawn]

    def cell(panel: Image.Image) -> Image.Image:
        return panel.resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)

    rows = [GalleryRow("image", "", [cell(Image.fromarray(scene.image)) for scene in drawn])]
    for name, predicted in labels.items():
        share = float(np.mean(np.stack(predicted) == np.stack(truth)))
        note = "" if name == "ground truth" else f"{share:.0%} correct"
        overlays = [
            cell(draw_overlay(scene.image, part, colours, opacity=1.0))
            for scene, part in zip(drawn, predicted, strict=True)
        ]
        rows.append(GalleryRow(name, note, overlays))
    shown = np.unique(np.stack([part for predicted in labels.values() for part in predicted]))
    return draw_gallery(rows, [(int(label), CLASS_NAMES[label]) for label in shown], colours)


def tables(run: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/high-resolution.md by the marker that each stands between."""
    return {"modes": mode_table(run), "weights": weight_table(run)}


def mode_table(run: dict[str, Any]) -> str:
    """One row for each method and mode: mIoU by kind of scene, its distance from windows alone, and the time."""
    rows = run["rows"]
    kinds = in_order(row["kind"] for row in rows)
    lines = []
    for method in in_order(row["method"] for row in rows):
        for mode in in_order(row["mode"] for row in rows):
            by_kind = {
                row["kind"]: row for row in rows if (row["method"], row["mode"]) == (method, mode)
            }
            seconds = sum(row["seconds"] for row in by_kind.values()) / len(by_kind)
            cells = [miou_cell(by_kind[kind], mode) for kind in kinds]
            lines.append([method, MODE_NAMES.get(mode, mode), *cells, f"{seconds:.1f}"])
    note = (
        f"mIoU in per cent, {run['scenes']['held-out']} held-out scenes of {run['side']} × {run['side']} a kind; in "
        f"brackets the change from windows and its standard error over scenes. Built-in model, windows of "
        f"{run['window']} every {run['stride']} pixels, shrunk to {run['shrunk_side']}, overview with weight "
        f"{run['weight']}; {run['machine']}, one thread, float32, "
        f"{versions_text(run['versions'])}."
    )
    return f"{table(['method', 'mode', *kinds, 'CPU seconds an image'], lines)}\n\n{note}"


def miou_cell(row: dict[str, Any], mode: str) -> str:
    """The mIoU of a row, and how far it is from windows."""
    if mode == "windows":
        return f"{row['miou']:.1f}"
    change = f"{row['change']:+.1f}".replace("-", "−")
    return f"{row['miou']:.1f} ({change} ± {row['error']:.1f})"


def weight_table(run: dict[str, Any]) -> str:
    """One row for each weight: mIoU by method and kind, and the mean by which the default was chosen."""
    rows = run["sweep"]
    columns = in_order((row["method"], row["kind"]) for row in rows)
    head = ["weight", *(f"{method}, {kind}" for method, kind in columns), "mean"]
    lines = []
    for weight in in_order(row["weight"] for row in rows):
        by_column = {
            (row["method"], row["kind"]): row["miou"] for row in rows if row["weight"] == weight
        }
        values = [by_column[column] for column in columns]
        cells = [f"{value:.1f}" for value in (*values, sum(values) / len(values))]
        lines.append([f"{weight:g}", *cells])
    note = f"mIoU in per cent, {run['scenes']['validation']} validation scenes a kind; 0 is windows alone."
    return f"{table(head, lines)}\n\n{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks high-resolution", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--image", action="store_true", help=f"draw {IMAGE.name}, no more")
    torch.set_num_threads(1)
    if parser.parse_args(arguments).image:
        save_png(image(), IMAGE)
        return 0
    windows = load("builtin", classes=CLASS_NAMES, **MODES["windows"])
    result = {
        "side": SIDE,
        "shrunk_side": MODES["shrunk"]["short_side"],
        "window": windows.window,
        "stride": windows.stride,
        "weight": Overview().weight,
        "scenes": {"validation": SCENES[VALIDATION], "held-out": SCENES[HELD_OUT]},
        "machine": machine_name(torch.device("cpu")),
        "versions": {
            "resclip": resclip.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "sweep": sweep(),
        "rows": measure(),
    }
    store(RESULTS / "high_resolution.json", result)
    return 0
