"""The table of facts of docs/methods.md: what each method costs and needs, and its published average."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.method_cost import BESIDE, conditions_of, stored_rows
from benchmarks.method_pictures import METHODS, STEP_BASE
from benchmarks.reporting import RESULTS, ROOT, table
from resclip.methods.catalogue import BASES

NEEDS: Mapping[str, str] = {
    "clip": "nothing",
    "maskclip": "nothing; no SFR",
    "sclip": "nothing",
    "clearclip": "nothing",
    "naclip": "nothing",
    "naclip-neighbourhood": "nothing",
    "proxyclip": "a second vision model",
    "sc-clip": "[CLS], or its weight is 0",
    "sfp": "[CLS]",
    "dih-clip": "[CLS], or its weight is 0",
    "pearl": "the picture's pixels, all its logits at its size",
    "rf-clip": "[CLS]; channels of OpenAI's weights; the whole picture once more",
    "gem": "nothing",
    "clipsurgery": "[CLS]; all texts at once",
    "cliptrase": "whole pictures, no windows",
    "gla": "a base that compares queries, or a proxy; all windows at once",
    "cass": "[CLS]; the whole picture once more",
    "freecp": "[CLS]; one query a class",
    "lposs": "all windows at once",
    "tlp": "the picture's pixels, all its logits at its size",
    "pamr": "the picture's pixels",
}
PUBLISHED: Mapping[str, tuple[str, str | None]] = {
    "clip": ("CLIP", None),
    "maskclip": ("MaskCLIP", None),
    "sclip": ("SCLIP", None),
    "clearclip": ("ClearCLIP", None),
    "naclip": ("NACLIP", None),
    "proxyclip": ("ProxyCLIP (DINO B/8)", None),
    "sc-clip": ("SC-CLIP", None),
    "sfp": ("SFP", None),
    "dih-clip": ("DIH-CLIP", None),
    "pearl": ("PEARL", None),
    "rf-clip": ("RF-CLIP", None),
    "cass": ("CASS (DINO B/8)", None),
    "freecp": ("ClearCLIP + FreeCP", "ClearCLIP"),
    "lposs": ("LPOSS (DINO B/16)", None),
    "pamr": ("NACLIP + PAMR", "NACLIP"),
}
"""Row of resclip/data/published_miou.csv for ViT-B/16, and the row that it is a gain over."""


def published_averages() -> dict[str, tuple[float, str]]:
    """Mean over the eight datasets and its source, of the rows for ViT-B/16 that have all eight."""
    found = {}
    with (ROOT / "resclip/data/published_miou.csv").open(encoding="utf-8", newline="") as stream:
        for method, backbone, *figures, source in csv.reader(stream):
            if backbone == "ViT-B/16" and all(figures):
                found[method] = (sum(map(float, figures)) / len(figures), source)
    return found


def published_text(name: str, averages: Mapping[str, tuple[float, str]]) -> str:
    """The published average of a method, a gain in brackets, and who states it."""
    if name not in PUBLISHED:
        return "–"
    row, beside = PUBLISHED[name]
    average, source = averages[row]
    gain = "" if beside is None else f" ({average - averages[beside][0]:+.1f} over {beside})"
    return f"{row} {average:.1f}{gain}: {source.partition(' (')[0].partition(';')[0]}"


def cost_of(name: str, rows: Mapping[str, Any]) -> str:
    """Times ClearCLIP's time; with steps behind a comma."""
    row = rows.get(METHODS[name])
    if row is None:
        return "–"
    if name not in BASES:
        return f"{row.with_steps:.2f}"
    steps = "" if row.with_steps is None else f", with its steps {row.with_steps:.2f}"
    return f"{row.ratio:.2f}{steps}"


def facts_table(folder: Path = RESULTS) -> str:
    """A row for each base and step, and under it what the times hold for."""
    path = folder / "method-cost.json"
    run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    costs = {} if run is None else {row.method: row for row in stored_rows(run)}
    averages = published_averages()
    rows = [
        [
            name if name in BASES else f"+{name}",
            cost_of(name, costs),
            NEEDS[name],
            published_text(name, averages),
        ]
        for name in METHODS
    ]
    timed = (
        "The times have not been measured yet: `python -m benchmarks method-cost --write` does."
        if run is None
        else f"Times: {conditions_of(run)} Steps are on {STEP_BASE}; FreeCP without its crops."
    )
    heads = ["method", f"time × {BESIDE}", "needs", "published mIoU, mean of eight datasets"]
    return f"{table(heads, rows)}\n\n{timed}"
