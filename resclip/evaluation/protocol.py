"""Data sets × methods → a report: which rows there are, what each is measured with, and what a file already holds.

Knows the order of the work. Measuring a row is measure.py's, reading data sets datasets', showing figures tables.py's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resclip.evaluation.datasets import Dataset
from resclip.evaluation.journal import Journal
from resclip.evaluation.measure import Watcher, measure
from resclip.evaluation.metrics import scores_of
from resclip.evaluation.record import Evaluation, Report, Row, resume
from resclip.evaluation.world import ALONE, World
from resclip.methods import BASES, METHODS, MODULES, combinations, find_method
from resclip.segmenter import Segmenter


SHARED = (
    "model", "pretrained", "templates", "precision", "implementation", "resclip", "torch", "python",
)  # fmt: skip
"""Settings of a segmenter that all rows of a set must agree in; the others are a row's knobs."""


@dataclass(frozen=True)
class Candidate:
    """What a row of the table measures."""

    name: str
    make: Callable[[Dataset], Segmenter]
    """Its segmenter for a set, whose vocabulary is the set's classes."""


@dataclass(frozen=True)
class Watch:
    """Who looks on, such as what saves predictions."""

    make: Callable[[str, Dataset], Sequence[Watcher]]
    """The watchers of a row on a set."""
    key: Mapping[str, Any]
    """What tells one kind of watching from another, as JSON-able values."""


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
    candidates: Sequence[Candidate],
    datasets: Sequence[Dataset],
    *,
    path: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    world: World = ALONE,
    watch: Watch | None = None,
    progress: bool = False,
) -> Report:
    """Measure every candidate on every set.

    Args:
        candidates: the rows.
        datasets: the columns.
        path: JSON file that gets the figures after each row. Rows that it has under the same conditions are not
            measured again, and a row that was interrupted goes on where it stopped; what else it has is kept.
        fresh: measure everything anew; the file keeps only sets that are not asked for.
        workers: processes that decode pictures; None: as many as are of use.
        world: the processes that share the pictures; all get the same report, the first alone writes.
        watch: sees every picture. Rows are measured then, whether the file has them or not.
        progress: draw a bar, and write a line a row, on stderr, by the first process.

    Returns:
        The rows and sets asked for; the file keeps the others that it had as well.

    Raises:
        ValueError: no candidate or set; a segmenter of other classes than the set's; a file with figures under other
            conditions.
        OSError: the file cannot be written.
    """
    if not candidates or not datasets:
        raise ValueError("expected at least one method and one data set to measure, got none")
    report = begin(datasets, path, fresh, world)
    shown = progress and world.is_first
    total = len(candidates) * sum(map(len, datasets))
    # disable=None: no bar where stderr is no terminal.
    with tqdm(total=total, unit="picture", disable=None if shown else True, leave=False) as bar:
        for dataset in datasets:
            for candidate in candidates:
                bar.set_description(f"{dataset.name}, {candidate.name}")
                end = bar.n + len(dataset)
                segmenter = candidate.make(dataset)
                wanted, knobs = conditions(dataset, segmenter)
                figures = resume(wanted, report.sets.get(dataset.name, wanted), path)
                report.sets[dataset.name] = figures
                row = figures.rows.get(candidate.name)
                took = "stored"
                if watch is not None or row is None or row.knobs != knobs:
                    journal = journal_of(path, figures, candidate.name, knobs, watch)
                    if fresh and journal is not None and world.is_first:
                        journal.clear()
                    tally = measure(
                        segmenter,
                        dataset,
                        workers=workers,
                        journal=journal,
                        world=world,
                        tell=partial(show, bar),
                        watch=() if watch is None else watch.make(candidate.name, dataset),
                    )
                    scores = scores_of(tally.counts)
                    row = Row(scores, tally.pictures, tally.problems, tally.cost, knobs)
                    figures.rows = in_order({**figures.rows, candidate.name: row})
                    took = f"{row.cost.seconds:.0f} s"
                    if path is not None and journal is not None and world.is_first:
                        report.save(path)
                        journal.clear()
                bar.update(end - bar.n)
                if shown:
                    miou = row.scores.miou
                    figure = "nothing to measure" if miou is None else f"{miou:.1f}"
                    bar.write(
                        f"{dataset.name}, {candidate.name}: {figure} ({took})", file=sys.stderr
                    )
    names = [candidate.name for candidate in candidates]
    return Report({one.name: selection(report.sets[one.name], names) for one in datasets})


def begin(datasets: Sequence[Dataset], path: Path | None, fresh: bool, world: World) -> Report:
    """What the file holds already, for all processes; without these sets where they are measured afresh."""
    if path is None:
        return Report()
    path.parent.mkdir(parents=True, exist_ok=True)
    report = world.broadcast(stored_in(path, fresh) if world.is_first else Report())
    if fresh:
        for dataset in datasets:
            report.sets.pop(dataset.name, None)
    return report


def stored_in(path: Path, fresh: bool) -> Report:
    """The report in a file; an empty one where there is no file, or where `fresh` replaces one of something else.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read.
    """
    if not path.exists():
        return Report()
    try:
        return Report.read(path)
    except ValueError:
        if not fresh:
            raise
        return Report()


def journal_of(
    path: Path | None, figures: Evaluation, row: str, knobs: Mapping[str, Any], watch: Watch | None
) -> Journal | None:
    """Where a row's progress is kept, beside the report; None where there is no file."""
    if path is None:
        return None
    key = {
        "dataset": figures.dataset,
        "settings": figures.settings,
        "row": row,
        "knobs": knobs,
        "watch": None if watch is None else watch.key,
    }
    return Journal(parts_of(path), key)


def parts_of(path: Path) -> Path:
    """The folder beside a report that keeps rows which are not complete yet."""
    return path.with_name(f"{path.name}.parts")


def conditions(dataset: Dataset, segmenter: Segmenter) -> tuple[Evaluation, dict[str, Any]]:
    """A set's evaluation without rows, with the conditions that its rows share; and the segmenter's own knobs.

    Raises:
        ValueError: the segmenter tells other classes apart than the set has.
    """
    if segmenter.vocabulary.names != dataset.classes:
        raise ValueError(
            f"{dataset.name} has the {len(dataset.classes)} classes {dataset.classes[0]!r} to {dataset.classes[-1]!r}; "
            f"the segmenter's are {len(segmenter.vocabulary)}, from {segmenter.vocabulary.names[0]!r} on: make it with "
            "the set's entries"
        )
    settings = segmenter.settings
    shared = {
        "split": dataset.split,
        "pictures": len(dataset),
        "names": dataset.digest[:16],
        "entries": dataset.entries,
        "device": segmenter.device.type,
        **{name: settings[name] for name in SHARED},
    }
    own = {name: value for name, value in settings.items() if name not in (*shared, "method")}
    evaluation = Evaluation(dataset.name, dataset.description, as_json(shared), dataset.classes)
    return evaluation, as_json(own)


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a JSON file gives them back: tuples are lists."""
    restored: dict[str, Any] = json.loads(json.dumps(values))
    return restored


def show(bar: tqdm[Any], pictures: int, counts: NDArray[np.int64]) -> None:
    """Some more pictures, and the mIoU so far."""
    miou = scores_of(counts).miou
    bar.set_postfix_str("" if miou is None else f"mIoU {miou:.1f}", refresh=False)
    bar.update(pictures)


def in_order(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Methods in the order of `METHODS`, then all others as they come."""
    known = [name for name in METHODS if name in rows]
    return {name: rows[name] for name in dict.fromkeys((*known, *rows))}


def selection(figures: Evaluation, names: Sequence[str]) -> Evaluation:
    """The figures of these rows, in the order of all."""
    return replace(figures, rows={name: row for name, row in figures.rows.items() if name in names})
