"""How well methods segment the drawn scenes with the built-in model.

Knows the sets of scenes, and what of a segmenter's settings sets one row apart from the others. Uses the library's
public names alone, as any caller would; does not know how the methods work, nor how figures are stored and shown.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from resclip import Segmenter, load
from resclip.evaluation.metrics import confusion, intersection_over_union, mean_iou
from resclip.evaluation.record import Evaluation, Row, resume
from resclip.methods import BASES, METHODS, MODULES, combinations, find_method
from resclip_kernels.checks import check_count

from .mosaics import normalised
from .scenes import CLASS_NAMES, Scene, held_out_scenes, validation_scenes

__all__ = ["SETS", "SceneSet", "evaluate", "measure", "row_names"]

SETS = {"held-out": held_out_scenes, "validation": validation_scenes}
KNOBS = (
    "base", "correlation", "proxy", "rcs", "rcs_layers", "sfr", "final_block", "neighbourhood_std",
    "pad_multiple",
)  # fmt: skip
"""Settings of a segmenter that are its method's; all others are shared by the rows."""


@dataclass(frozen=True)
class SceneSet:
    """Which scenes to draw, and how large."""

    name: str = "held-out"
    count: int = 200
    size: int = 168
    """Side in pixels."""

    def __post_init__(self) -> None:
        if self.name not in SETS:
            raise ValueError(f"unknown set {self.name!r}; use one of: {', '.join(SETS)}")
        check_count("scenes", self.count, 1)
        check_count("size", self.size, 8)

    def __str__(self) -> str:
        return f"{self.count} {self.name} scenes of {self.size} × {self.size}"

    def draw(self) -> list[Scene]:
        """The scenes: always the same."""
        return list(SETS[self.name](self.count, self.size))


def row_names(methods: Iterable[str] | None = None) -> list[str]:
    """The rows that methods stand for, each once: a base and its modules; "resclip" is "naclip+rcs+sfr".

    Args:
        methods: names as `find_method` takes them; None: every base with everything that can be put on it.

    Raises:
        ValueError: no such method, or none at all.
    """
    if methods is None:
        return [method.name for base in BASES.values() for method in combinations(base)]
    names = []
    for method in map(find_method, methods):
        modules = [name for name in MODULES if getattr(method, name) is not None]
        names.append("+".join((method.base, *modules)))
    if not names:
        raise ValueError("expected at least one method, got none")
    return list(dict.fromkeys(names))


def evaluate(
    methods: Iterable[str] | None = None,
    scenes: SceneSet = SceneSet(),
    *,
    window: int | None = None,
    stride: int | None = None,
    device: str | None = None,
    path: Path | None = None,
    fresh: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Mean intersection over union of methods with the built-in model, its preset and one kind of window for all.

    Args:
        methods: see `row_names`.
        scenes: what to segment.
        window, stride: see `Segmenter`; None: the preset's, for every base, ProxyCLIP's too.
        device: None: a GPU where there is one.
        path: JSON file that gets the figures after each row. Rows that it has under the same conditions are not
            measured again.
        fresh: measure all rows and replace the file, whatever it holds.
        progress: draw a bar, and write a line a row, on stderr.

    Returns:
        The rows asked for, in the order of `METHODS`; the file keeps the others that it had as well.

    Raises:
        ValueError: no such method; windows that do not fit; a file with figures under other conditions.
        OSError: the file cannot be written.
    """
    names = row_names(methods)
    make = partial(
        load, "builtin", classes=CLASS_NAMES, window=window, stride=stride, device=device
    )
    shared, _ = split_settings(make(method=names[0]).settings)
    where = {"set": scenes.name, "scenes": scenes.count, "size": scenes.size}
    figures = Evaluation(str(scenes), as_json({**where, **shared}), CLASS_NAMES)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = figures if fresh else resume(figures, path)
    drawn = scenes.draw()
    # disable=None: no bar where stderr is no terminal.
    disable = None if progress else True
    with tqdm(total=len(names) * len(drawn), unit="scene", disable=disable, leave=False) as bar:
        for name in names:
            bar.set_description(name)
            segmenter = make(method=name)
            knobs = as_json(split_settings(segmenter.settings)[1])
            row = figures.rows.get(name)
            if row is not None and row.knobs == knobs:
                bar.update(len(drawn))
                took = "stored"
            else:
                row = measure_row(segmenter, drawn, knobs, bar.update)
                took = f"{row.seconds:.0f} s"
                figures.rows[name] = row
                if path is not None:
                    in_order(figures, METHODS).save(path)
            if progress:
                bar.write(f"{name}: {row.miou:.1f} ({took})", file=sys.stderr)
    return in_order(figures, (name for name in METHODS if name in names))


def measure_row(
    segmenter: Segmenter,
    scenes: Sequence[Scene],
    knobs: Mapping[str, Any],
    tell: Callable[[int], object],
) -> Row:
    """One method's figures over scenes of one size."""
    start = time.perf_counter()
    counts = measure(segmenter, scenes, tell=tell)
    seconds = time.perf_counter() - start
    iou = intersection_over_union(counts)
    values = tuple(None if np.isnan(value) else float(value) for value in iou)
    return Row(mean_iou(iou), values, seconds, torch.get_num_threads(), knobs)


def measure(
    segmenter: Segmenter,
    scenes: Iterable[Scene],
    batch_size: int = 10,
    tell: Callable[[int], object] = lambda done: None,
) -> NDArray[np.int64]:
    """The confusion counts of a segmenter over scenes of one size; `tell` gets the scenes of each batch."""
    counts = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), np.int64)
    iterator = iter(scenes)
    while batch := list(islice(iterator, batch_size)):
        labels = segmenter.predict(normalised(np.stack([scene.image for scene in batch])))
        truth = np.stack([scene.mask for scene in batch])
        counts += confusion(truth, labels.cpu().numpy(), len(CLASS_NAMES))
        tell(len(batch))
    return counts


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A segmenter's settings: what the rows of a table share, and what is the method's own."""
    shared = {name: value for name, value in settings.items() if name not in ("method", *KNOBS)}
    return shared, {name: settings[name] for name in KNOBS}


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a JSON file gives them back: tuples are lists."""
    restored: dict[str, Any] = json.loads(json.dumps(values))
    return restored


def in_order(figures: Evaluation, names: Iterable[str]) -> Evaluation:
    """The figures with the rows of `names` that are there, in that order."""
    return replace(
        figures, rows={name: figures.rows[name] for name in names if name in figures.rows}
    )
