"""Images of a run: time and memory by length, and every figure's ratio.

Knows the document. matplotlib is optional: without it there are no images, and a line says so.
"""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

from benchmarks.gpu.case import VARIANTS
from benchmarks.gpu.tables import HEADINGS
from resclip.io.files import write_atomically

Document = dict[str, Any]
COLOURS = ("#1f6f8b", "#8d99ae", "#c1440e", "#e09f3e", "#2b2d42", "#6a994e", "#7b2d8b")


def draw(document: Document, folder: Path, stem: str) -> list[Path]:
    """Write the plots beside the tables; the files written, none without matplotlib."""
    try:
        matplotlib = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        print(f"no plots: matplotlib cannot be imported ({error}); pip install matplotlib")
        return []
    paths = []
    for op, axis in (("residual_attention", "tokens"), ("semantic_feedback", "patches")):
        cases = [case for case in document["cases"] if case["op"] == op]
        if cases:
            path = folder / f"{stem}_{op}.png"
            write_atomically(path, by_length(pyplot, cases, axis, document))
            paths.append(path)
    path = folder / f"{stem}_ops.png"
    write_atomically(path, speedups(pyplot, document))
    return [*paths, path]


def length(case: Document) -> int:
    """Tokens or patches of a case, batch included: what its work per image grows with."""
    height, width = case["shape"]["grid"]
    return int(height * width)


def by_length(pyplot: Any, cases: list[Document], axis: str, document: Document) -> bytes:
    """Two panels over the number of patches: milliseconds and peak gigabytes an image, a line a variant."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2))
    cases = sorted(cases, key=length)
    for name, colour in zip(VARIANTS, COLOURS, strict=True):
        shown = [case for case in cases if "median_ms" in case["variants"].get(name, {})]
        if not shown:
            continue
        lengths = [length(case) for case in shown]
        for panel, key, unit in zip(panels, ("median_ms", "peak_bytes"), (1.0, 1e9), strict=True):
            values = [case["variants"][name][key] / unit / case["shape"]["batch"] for case in shown]
            panel.plot(lengths, values, marker="o", color=colour, label=HEADINGS[name])
    for panel, label in zip(panels, ("ms an image", "peak GB an image"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel="patches of an image", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{cases[0]['op']} by {axis}, {document['device']['name']}")
    return png(pyplot, figure)


def speedups(pyplot: Any, document: Document) -> bytes:
    """A bar a case: how many times faster the fused op is than the reference, or than portable torch without one."""
    names, ratios, colours = [], [], []
    for case in document["cases"]:
        variants = case["variants"]
        for other, colour in (("reference", COLOURS[2]), ("torch", COLOURS[1])):
            if all("median_ms" in variants.get(name, {}) for name in ("triton", other)):
                names.append(f"{case['op']}: {case['name']}")
                ratios.append(variants[other]["median_ms"] / variants["triton"]["median_ms"])
                colours.append(colour)
                break
    figure, panel = pyplot.subplots(figsize=(10, 1.2 + 0.3 * len(names)))
    panel.barh(names, ratios, color=colours)
    panel.invert_yaxis()
    panel.set(xlabel="times faster than the reference (grey: than portable torch)")
    if ratios:
        panel.set_xscale("log")
    panel.axvline(1.0, color="black", linewidth=0.8)
    figure.suptitle(f"Fused ops, {document['device']['name']}")
    return png(pyplot, figure)


def png(pyplot: Any, figure: Any) -> bytes:
    """The figure's bytes."""
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    pyplot.close(figure)
    return stream.getvalue()
