"""What changed between two runs of the GPU benchmark on one device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reporting import Document, table

WORSE = 1.05
"""From this ratio on a figure got worse."""
LEAST_NOISE = 0.02
"""Part of a time by which two runs of one program differ although the quartiles of each lie closer together."""


class Incomparable(Exception):
    """Two documents that say nothing about each other; the message says why."""


def read(path: Path, schema: int) -> Document:
    """A stored run; Incomparable where the file is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Incomparable(f"{path}: expected results of `make bench-gpu`: {error}") from error
    keys = {"schema", "device", "cases", "figures", "dry_run"}
    if not isinstance(document, dict) or not keys <= set(document):
        raise Incomparable(
            f"{path}: expected results of `make bench-gpu`, got another file; "
            "they lie in benchmarks/results/gpu_*.json"
        )
    if document["schema"] != schema:
        raise Incomparable(
            f"{path}: expected results of schema {schema}, got {document['schema']}; measure that version again"
        )
    return document


def check_device(old: Document, device: str, path: Path) -> None:
    """Incomparable where a run is of another device."""
    if old["device"]["name"] != device:
        raise Incomparable(
            f"{path}: measured on {old['device']['name']}, and this is {device}: times of two devices are not compared"
        )


@dataclass(frozen=True)
class Change:
    """The time of a variant, or a figure, before and now."""

    what: str
    old: float
    new: float
    noise: float
    """Part by which they may differ for no reason."""
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """Above 1: worse."""
        pair = (self.old, self.new) if self.more_is_better else (self.new, self.old)
        return pair[0] / pair[1] if pair[1] else float("inf")

    @property
    def is_worse(self) -> bool:
        """By more than noise."""
        return self.ratio > 1 + self.noise


def times(old: Document, new: Document) -> list[Change]:
    """Every variant that both runs measured."""
    before = dict(measured(old))
    return [
        Change(name, before[name]["median_ms"], now["median_ms"], spread(before[name], now))
        for name, now in measured(new)
        if name in before
    ]


def measured(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each outcome with a time, by its case and variant."""
    for case in document["cases"]:
        for name, outcome in case["variants"].items():
            if "median_ms" in outcome:
                yield f"{case['op']}, {case['name']}, {name}", outcome


def spread(*outcomes: dict[str, Any]) -> float:
    """Both quartile ranges together, as a part of the median."""
    ranges = ((each["q3_ms"] - each["q1_ms"]) / each["median_ms"] for each in outcomes)
    return max(LEAST_NOISE, float(sum(ranges)))


def figures(old: Document, new: Document) -> list[Change]:
    """Every figure that the old run had; one that has no value any more is infinitely worse."""
    now = {key(figure): figure["value"] for figure in new["figures"]}
    changes = []
    for figure in old["figures"]:
        if figure["value"] is None:
            continue
        more_is_better = figure["wanted"].startswith("≥")
        value = now.get(key(figure))
        if value is None:
            value = 0.0 if more_is_better else float("inf")
        what = f"{figure['what']} ({figure['wanted']})"
        changes.append(Change(what, figure["value"], value, WORSE - 1, more_is_better))
    return changes


def key(figure: Document) -> tuple[int, str, str]:
    """What tells figures apart."""
    return figure["number"], figure["what"], figure["wanted"]


def report(old: Document, new: Document) -> str:
    """Two Markdown tables: figures and times, what got worse marked."""

    def rows(changes: list[Change], digits: int) -> list[list[str]]:
        return [
            [
                each.what,
                f"{each.old:.{digits}f}",
                f"{each.new:.{digits}f}",
                f"{each.ratio:.2f}",
                "SLOWER" if each.is_worse and digits == 3 else "WORSE" if each.is_worse else "",
            ]
            for each in changes
        ]

    head = ["old", "new", "ratio, above 1: worse", ""]
    return "\n\n".join(
        [
            f"Old: {old['date']}, commit {old['commit']}. New: {new['date']}, commit {new['commit']}.",
            table(["figure", *head], rows(figures(old, new), 2)),
            table(["ms", *head], rows(times(old, new), 3)),
        ]
    )


def got_worse(old: Document, new: Document) -> list[str]:
    """Figures that are worse by more than 5 %."""
    return [change.what for change in figures(old, new) if change.is_worse]
