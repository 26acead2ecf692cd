"""How well each method segments the drawn scenes with the built-in model: `python -m resclip.builtin.evaluate`.

Knows the methods to compare and how intersection over union is counted. Uses the library's public names alone, as
any caller would; does not know how the methods work or how the model was trained.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resclip import RCS, SFR, DenseEncoder, Segmenter, Vocabulary
from resclip.files import write_atomically

from . import PRESET, TEMPLATES, load_builtin
from .mosaics import normalised
from .scenes import CLASS_NAMES, Scene, held_out_scenes, validation_scenes

SETS = {"held-out": held_out_scenes, "validation": validation_scenes}


@dataclass(frozen=True)
class Recipe:
    """A row of the table: a base and the modules on top of it."""

    base: str
    rcs: RCS | None = None
    sfr: SFR | None = None


def recipes() -> dict[str, Recipe]:
    """The rows by name: the bases, ResCLIP's modules with their defaults, and with the preset if it sets any."""
    rows = {
        "clip": Recipe("clip"),
        "sclip": Recipe("sclip"),
        "maskclip": Recipe("maskclip"),
        "clearclip": Recipe("clearclip"),
        "naclip": Recipe("naclip"),
        "naclip+rcs": Recipe("naclip", RCS()),
        "naclip+sfr": Recipe("naclip", None, SFR()),
        "resclip": Recipe("naclip", RCS(), SFR()),
    }
    if PRESET["rcs"] or PRESET["sfr"]:
        rcs, sfr = RCS(**PRESET["rcs"]), SFR(**PRESET["sfr"])
        rows |= {
            "naclip+rcs (preset)": Recipe("naclip", rcs),
            "naclip+sfr (preset)": Recipe("naclip", None, sfr),
            "resclip (preset)": Recipe("naclip", rcs, sfr),
        }
    return rows


def confusion(
    truth: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """(classes, classes): pixels by true class (row) and predicted class (column)."""
    pairs = truth.ravel().astype(np.int64) * classes + labels.ravel()
    return (
        np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)
    )


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per class, in per cent, areas summed over the set first; NaN for a class neither drawn nor predicted."""
    hits = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hits
    shares = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return np.asarray(100 * shares)


def batches(scenes: Iterable[Scene], size: int) -> Iterator[list[Scene]]:
    iterator = iter(scenes)
    while batch := list(islice(iterator, size)):
        yield batch


def measure(
    segmenter: Segmenter, scenes: Iterable[Scene], batch_size: int = 10
) -> NDArray[np.int64]:
    """The confusion counts of a segmenter over scenes of one size."""
    counts = np.zeros((len(CLASS_NAMES), len(CLASS_NAMES)), np.int64)
    for batch in batches(scenes, batch_size):
        labels = segmenter.predict(normalised(np.stack([scene.image for scene in batch])))
        truth = np.stack([scene.mask for scene in batch])
        counts += confusion(truth, labels.cpu().numpy(), len(CLASS_NAMES))
    return counts


def table(rows: Mapping[str, NDArray[np.float64]]) -> str:
    """The figures as text: a row a method, mIoU first."""
    heads = ["mIoU", *CLASS_NAMES]
    wide = max(map(len, rows)) if rows else 0
    lines = [" " * wide + "".join(f"{head:>{max(6, len(head) + 1)}}" for head in heads)]
    for name, values in rows.items():
        cells = [float(np.nanmean(values)), *values.tolist()]
        row = "".join(
            f"{cell:>{max(6, len(head) + 1)}.1f}" for cell, head in zip(cells, heads, strict=True)
        )
        lines.append(f"{name:<{wide}}{row}")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m resclip.builtin.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--set", choices=SETS, default="held-out", help="which scenes (%(default)s)"
    )
    parser.add_argument("--scenes", type=int, default=200, help="how many (%(default)s)")
    parser.add_argument(
        "--size", type=int, default=168, help="side of a scene in pixels (%(default)s)"
    )
    parser.add_argument(
        "--window", type=int, default=112, help="0: the whole scene at once (%(default)s)"
    )
    parser.add_argument("--stride", type=int, default=56, help="step between windows (%(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="rows to measure (all)")
    parser.add_argument("--model", type=Path, help="folder of another export (the packaged one)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    options = parser.parse_args(argv)
    known = recipes()
    chosen = options.methods or list(known)
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"unknown method {unknown[0]!r}; use some of: {', '.join(known)}")
    if options.scenes < 1:
        parser.error(f"--scenes must be at least 1, got {options.scenes}")
    try:
        model, tokenizer, _, _ = load_builtin(options.device, folder=options.model)
    except FileNotFoundError as error:
        parser.error(str(error))
    vocabulary = Vocabulary.from_names(CLASS_NAMES, model, tokenizer, templates=TEMPLATES)
    rows: dict[str, NDArray[np.float64]] = {}
    for name in chosen:
        start = time.monotonic()
        recipe = known[name]
        encoder = DenseEncoder(model.visual, base=recipe.base, rcs=recipe.rcs, sfr=recipe.sfr)
        try:
            segmenter = Segmenter(encoder, vocabulary, window=options.window, stride=options.stride)
        except ValueError as error:
            parser.error(str(error))
        rows[name] = intersection_over_union(
            measure(segmenter, SETS[options.set](options.scenes, options.size))
        )
        print(
            f"{name}: {np.nanmean(rows[name]):.1f} ({time.monotonic() - start:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    print(table(rows))
    if options.json:
        stored = {
            "set": options.set, "scenes": options.scenes, "size": options.size, "window": options.window,
            "stride": options.stride, "device": options.device, "torch": torch.__version__,
            "classes": list(CLASS_NAMES), "templates": list(TEMPLATES),
            "preset": {part: dict(values) for part, values in PRESET.items()},
            "methods": {
                name: {
                    "miou": float(np.nanmean(values)),
                    "iou": [None if np.isnan(value) else float(value) for value in values],
                }
                for name, values in rows.items()
            },
        }  # fmt: skip
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, (json.dumps(stored, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
