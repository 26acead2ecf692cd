"""The tables of docs/high-resolution.md, from results/high_resolution.json.

Knows the stored figures and Markdown. Knows no model; `high_resolution.py` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MODES = {
    "shrunk": "shrunk",
    "windows": "windows",
    "whole": "whole image",
    "mixed": "mixed",
}


def tables(run: dict[str, Any]) -> dict[str, str]:
    """Markdown by the marker that it stands between."""
    return {"modes": mode_table(run), "weights": weight_table(run)}


def mode_table(run: dict[str, Any]) -> str:
    """A row a method and mode: mIoU of each kind of scene, how far from windows alone, and the time."""
    rows = run["rows"]
    kinds = in_order(row["kind"] for row in rows)
    lines = table_head(["method", "mode", *kinds, "CPU seconds an image"])
    for method in in_order(row["method"] for row in rows):
        for mode in in_order(row["mode"] for row in rows):
            own = {
                row["kind"]: row for row in rows if (row["method"], row["mode"]) == (method, mode)
            }
            seconds = sum(row["seconds"] for row in own.values()) / len(own)
            cells = [shown(own[kind], mode) for kind in kinds]
            lines.append(table_line([method, MODES[mode], *cells, f"{seconds:.1f}"]))
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    note = (
        f"mIoU in per cent, {run['scenes']['held-out']} held-out scenes of {run['side']} × {run['side']} a kind; in "
        f"brackets the change from windows and its standard error over scenes. Model in the box, windows of "
        f"{run['window']} every {run['stride']} pixels, shrunk to {run['shrunk_side']}, overview with weight "
        f"{run['weight']}; {run['machine']}, one thread, float32, {versions}."
    )
    return "\n".join([*lines, "", note])


def shown(row: dict[str, Any], mode: str) -> str:
    """A figure, and its distance from windows."""
    if mode == "windows":
        return f"{row['miou']:.1f}"
    change = f"{row['change']:+.1f}".replace("-", "−")
    return f"{row['miou']:.1f} ({change} ± {row['error']:.1f})"


def weight_table(run: dict[str, Any]) -> str:
    """A row a weight: mIoU of each method and kind, and the mean that the default was chosen by."""
    rows = run["sweep"]
    columns = in_order((row["method"], row["kind"]) for row in rows)
    lines = table_head(["weight", *(f"{method}, {kind}" for method, kind in columns), "mean"])
    for weight in in_order(row["weight"] for row in rows):
        found = {
            (row["method"], row["kind"]): row["miou"] for row in rows if row["weight"] == weight
        }
        values = [found[column] for column in columns]
        cells = [f"{value:.1f}" for value in (*values, sum(values) / len(values))]
        lines.append(table_line([f"{weight:g}", *cells]))
    note = f"mIoU in per cent, {run['scenes']['validation']} validation scenes a kind; 0 is windows alone."
    return "\n".join([*lines, "", note])


def in_order(values: Any) -> list[Any]:
    """Each value once, as they came."""
    return list(dict.fromkeys(values))


def table_head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [table_line(names), "|" + "---|" * len(names)]


def table_line(cells: Sequence[str]) -> str:
    """One line of it."""
    return f"| {' | '.join(cells)} |"
