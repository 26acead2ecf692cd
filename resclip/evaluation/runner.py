"""Datasets × methods → a report: which rows there are, what each is measured with, and what a file already holds.

Knows the order of the work. Measuring a row is measure.py's, reading datasets datasets', showing figures tables.py's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from resclip.evaluation.checkpoint import Journal, Progress
from resclip.evaluation.datasets.base import IGNORED, Dataset, Problem, Sample
from resclip.evaluation.distributed import (
    ALONE,
    World,
    forget_peak_memory,
    machine_name,
    peak_memory,
)
from resclip.evaluation.loader import Group, Reader, read_ahead, sensible_workers
from resclip.evaluation.metrics import confusion, scores_of
from resclip.evaluation.report import Cost, Evaluation, Report, Row, resume
from resclip.methods.catalogue import BASES, METHODS, MODULES, combinations, find_method
from resclip.segmenter import Segmenter
from resclip_kernels import check_count

GROUP_SIZE = 8
"""Images a group: 50 to 100 windows of photographs, several full batches."""

WRITTEN_EVERY = 10.0
"""Seconds between two writings of the journal, which take 13 ms for 171 classes."""


class Watcher(Protocol):
    """Sees every image that this process measures, in order."""

    def __call__(
        self,
        sample: Sample,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        """See the (H, W, 3) image, its (H, W) true classes and its (H, W) predicted ones."""


Tell: TypeAlias = Callable[[int, NDArray[np.int64]], object]
"""Hears how many images more are done, by all processes and broken ones too: they sum to the size of the set. And the
counts of earlier runs and of this process so far; at the last call, which may tell of no image more, everybody's."""


@dataclass(frozen=True)
class Tally:
    """What was measured."""

    counts: NDArray[np.int64]
    """(C, C): `confusion`'s, over the whole set."""
    images: int
    """That the counts are of."""
    problems: tuple[Problem, ...]
    """Images that are not: the set's own first, then in the order of its samples."""
    cost: Cost


def measure(
    segmenter: Segmenter,
    dataset: Dataset,
    *,
    group_size: int = GROUP_SIZE,
    workers: int | None = None,
    journal: Journal | None = None,
    world: World = ALONE,
    tell: Tell | None = None,
    watch: Sequence[Watcher] = (),
) -> Tally:
    """Segment every image of a dataset and count which class was taken for which.

    Args:
        segmenter: its classes are the set's, in the same order.
        dataset: what to segment.
        group_size: images that are segmented together.
        workers: processes that read images, for each process that segments; 0: itself; None: as many as keep its
            device busy.
        journal: keeps what has been done, and says what had been; it is left in place. None: for no resuming.
        world: the processes that share the groups. All of them call this, with equal arguments.
        tell: is told of progress, after what the journal had and after each group.
        watch: see each image after it was segmented. What the journal had is not shown again.

    Returns:
        The same in every process.

    Raises:
        ValueError: the segmenter has another number of classes than the set, or a group size below 1.
        OSError: the journal cannot be written.
        WorldError: another process failed.
        Exception: whatever the segmenter and the watchers raise. Images that cannot be read raise nothing: they are
            in `Tally.problems`.
    """
    check_count("group_size", group_size, 1)
    classes = len(dataset.entries)
    if len(segmenter.vocabulary.names) != classes:
        raise ValueError(
            f"expected a segmenter with the {classes} classes of {dataset.name}, got one with "
            f"{len(segmenter.vocabulary.names)}: make it with the set's entries"
        )
    terms = terms_of(dataset, group_size)
    check_alike(dataset, terms, world)
    found = journal.resume(terms) if journal is not None and world.is_first else None
    earlier = world.broadcast(found) or Progress.none(classes)
    if tell is not None and earlier.groups:
        tell(earlier.dealt_with, earlier.counts)
    groups = -(-len(dataset) // group_size)
    left = [number for number in range(groups) if number not in earlier.groups]
    reader = Reader(dataset.samples, group_size, classes, segmenter.preparation, bool(watch))
    own = Progress.none(classes)
    diary = Diary(journal, f"rank-{world.rank}", terms)
    try:
        # What is left is dealt out anew, so that any number of processes can go on with it.
        mine = left[world.rank :: world.size]
        with closing(measured(segmenter, reader, mine, workers, watch)) as parts:
            for part in parts:
                own = own.and_then(part)
                diary.keep(own)
                done = world.advance(part.dealt_with)
                if tell is not None:
                    tell(done, earlier.counts + own.counts)
    finally:
        diary.keep(own, at_once=True)
    everything = earlier.and_then(reduce(Progress.beside, world.gather(own)))
    done = world.advance(0)
    if tell is not None:
        tell(done, everything.counts)
    order = {sample.name: index for index, sample in enumerate(dataset.samples)}
    problems = sorted(everything.problems, key=lambda problem: order[problem.name])
    cost = Cost(
        seconds=everything.seconds,
        processes=world.size,
        threads=torch.get_num_threads(),
        machine=world.broadcast(machine_name(segmenter.device)),
        peak_memory=everything.peak_memory,
    )
    return Tally(everything.counts, everything.images, (*dataset.problems, *problems), cost)


def measured(
    segmenter: Segmenter,
    reader: Reader,
    groups: Sequence[int],
    workers: int | None,
    watch: Sequence[Watcher],
) -> Generator[Progress, None, None]:
    """What each group of these numbers adds, in their order."""
    device = segmenter.device
    forget_peak_memory(device)
    workers = sensible_workers(device) if workers is None else workers
    before = time.perf_counter()
    with closing(read_ahead(reader, groups, workers, pin=device.type == "cuda")) as loaded:
        for group in loaded:
            counts = counts_of(segmenter, reader, group, watch)
            now = time.perf_counter()
            yield Progress(
                groups=frozenset({group.number}),
                counts=counts,
                images=len(group.loaded),
                problems=group.problems,
                seconds=now - before,
                peak_memory=peak_memory(device),
            )
            before = now


def counts_of(
    segmenter: Segmenter, reader: Reader, group: Group, watch: Sequence[Watcher]
) -> NDArray[np.int64]:
    """A group's confusion counts."""
    pixels = [
        reader.preparation.normalise(sample.pixels.to(segmenter.device, non_blocking=True))
        for sample in group.loaded
    ]
    sizes = [(sample.truth.shape[0], sample.truth.shape[1]) for sample in group.loaded]
    counts = np.zeros((reader.classes, reader.classes), np.int64)
    results = segmenter.classify(pixels, sizes)
    for sample, (found, _) in zip(group.loaded, results, strict=True):
        truth, labels = sample.truth.numpy(), found.cpu().numpy()
        counts += confusion(truth, labels, reader.classes, ignored=IGNORED)
        if sample.image is not None:
            for watcher in watch:
                watcher(reader.samples[sample.index], sample.image.numpy(), truth, labels)
    return counts


class Diary:
    """Writes this process's progress into the journal, if there is one, now and then.

    Args:
        journal: to write into.
        part: this process's file.
        terms: see `Journal`.
    """

    def __init__(self, journal: Journal | None, part: str, terms: Mapping[str, Any]) -> None:
        self.journal = journal
        self.part = part
        self.terms = terms
        self.written = time.monotonic()

    def keep(self, own: Progress, *, at_once: bool = False) -> None:
        """Write what has been done so far, if it is time, or at once; nothing where nothing has been done."""
        due = at_once or time.monotonic() - self.written >= WRITTEN_EVERY
        if self.journal is not None and own.groups and due:
            self.journal.write(self.part, own, self.terms)
            self.written = time.monotonic()


def terms_of(dataset: Dataset, group_size: int) -> dict[str, Any]:
    """What decides which images are in which group."""
    return {"group_size": group_size, "images": len(dataset), "names": dataset.digest}


def check_alike(dataset: Dataset, terms: Mapping[str, Any], world: World) -> None:
    """ValueError, in every process, where one has other images on its disk than the first."""
    first, *others = world.gather(terms)
    for rank, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"expected the same images of {dataset.name} in every process, got {first['images']:,} in the "
                f"first and {other['images']:,}, or others, in that of rank {rank}: copy the set anew, or put it on "
                "a disk that the machines share"
            )


SHARED = (
    "model", "pretrained", "templates", "precision", "implementation", "resclip", "torch", "python",
)  # fmt: skip
"""Settings of a segmenter that all rows of a set must agree in; the others are a row's options."""


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
        workers: processes that decode images; None: as many as are of use.
        world: the processes that share the images; all get the same report, the first alone writes.
        watch: sees every image. Rows are measured then, whether the file has them or not.
        progress: draw a bar, and write a line a row, on stderr, by the first process.

    Returns:
        The rows and sets asked for; the file keeps the others that it had as well.

    Raises:
        ValueError: no candidate or set; a segmenter of other classes than the set's; a file with figures under other
            conditions.
        OSError: the file cannot be written.
    """
    if not candidates or not datasets:
        raise ValueError("expected at least one method and one dataset to measure, got none")
    report = begin(datasets, path, fresh, world)
    shown = progress and world.is_first
    total = len(candidates) * sum(map(len, datasets))
    # disable=None: no bar where stderr is no terminal.
    with tqdm(total=total, unit="image", disable=None if shown else True, leave=False) as bar:
        for dataset in datasets:
            for candidate in candidates:
                bar.set_description(f"{dataset.name}, {candidate.name}")
                end = bar.n + len(dataset)
                segmenter = candidate.make(dataset)
                wanted, options = conditions(dataset, segmenter)
                figures = resume(wanted, report.sets.get(dataset.name, wanted), path)
                report.sets[dataset.name] = figures
                row = figures.rows.get(candidate.name)
                took = "stored"
                if watch is not None or row is None or row.options != options:
                    journal = journal_of(path, figures, candidate.name, options, watch)
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
                    row = Row(scores, tally.images, tally.problems, tally.cost, options)
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
    path: Path | None,
    figures: Evaluation,
    row: str,
    options: Mapping[str, Any],
    watch: Watch | None,
) -> Journal | None:
    """Where a row's progress is kept, beside the report; None where there is no file."""
    if path is None:
        return None
    key = {
        "dataset": figures.dataset,
        "settings": figures.settings,
        "row": row,
        "options": options,
        "watch": None if watch is None else watch.key,
    }
    return Journal(parts_of(path), key)


def parts_of(path: Path) -> Path:
    """The folder beside a report that keeps rows which are not complete yet."""
    return path.with_name(f"{path.name}.parts")


def conditions(dataset: Dataset, segmenter: Segmenter) -> tuple[Evaluation, dict[str, Any]]:
    """A set's evaluation without rows, with the conditions that its rows share; and the segmenter's own options.

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
        "images": len(dataset),
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


def show(bar: tqdm[Any], images: int, counts: NDArray[np.int64]) -> None:
    """Some more images, and the mIoU so far."""
    miou = scores_of(counts).miou
    bar.set_postfix_str("" if miou is None else f"mIoU {miou:.1f}", refresh=False)
    bar.update(images)


def in_order(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Methods in the order of `METHODS`, then all others as they come."""
    known = [name for name in METHODS if name in rows]
    return {name: rows[name] for name in dict.fromkeys((*known, *rows))}


def selection(figures: Evaluation, names: Sequence[str]) -> Evaluation:
    """The figures of these rows, in the order of all."""
    return replace(figures, rows={name: row for name, row in figures.rows.items() if name in names})
