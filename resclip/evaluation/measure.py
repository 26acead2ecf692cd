"""One segmenter on one data set: the confusion counts, which pictures are not in them, and what it took.

Knows the order of the work: groups of pictures are dealt out to processes, read ahead, segmented, counted and added
up. Reading is loader.py's, resuming journal.py's, the other processes world.py's; figures are made of counts elsewhere.

The unit of work is a group of neighbouring pictures, whose windows run through the encoder together whoever measures
them. Counts are whole numbers, so the sum over groups is the same bit for bit for any number of processes and workers,
and after any interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from resclip.evaluation.datasets.samples import IGNORED, Dataset, Problem, Sample
from resclip.evaluation.journal import Journal, Progress
from resclip.evaluation.loader import Group, Reader, read_ahead, sensible_workers
from resclip.evaluation.machine import forget_peak_memory, machine_name, peak_memory
from resclip.evaluation.metrics import confusion
from resclip.evaluation.record import Cost
from resclip.evaluation.world import ALONE, World
from resclip.segmenter import Segmenter
from resclip_kernels.checks import check_count


GROUP_SIZE = 8
"""Pictures a group: 50 to 100 windows of photographs, several full batches."""

WRITTEN_EVERY = 10.0
"""Seconds between two writings of the journal, which take 13 ms for 171 classes."""


class Watcher(Protocol):
    """Sees every picture that this process measures, in order."""

    def __call__(
        self,
        sample: Sample,
        picture: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        """See the (H, W, 3) picture, its (H, W) true classes and its (H, W) predicted ones."""


Tell: TypeAlias = Callable[[int, NDArray[np.int64]], object]
"""Hears how many pictures more are done, by all processes and broken ones too: they sum to the size of the set. And the
counts of earlier runs and of this process so far; at the last call, which may tell of no picture more, everybody's."""


@dataclass(frozen=True)
class Tally:
    """What was measured."""

    counts: NDArray[np.int64]
    """(C, C): `confusion`'s, over the whole set."""
    pictures: int
    """That the counts are of."""
    problems: tuple[Problem, ...]
    """Pictures that are not: the set's own first, then in the order of its samples."""
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
    """Segment every picture of a data set and count which class was taken for which.

    Args:
        segmenter: its classes are the set's, in the same order.
        dataset: what to segment.
        group_size: pictures that are segmented together.
        workers: processes that read pictures, for each process that segments; 0: itself; None: as many as keep its
            device busy.
        journal: keeps what has been done, and says what had been; it is left in place. None: for no resuming.
        world: the processes that share the groups. All of them call this, with equal arguments.
        tell: is told of progress, after what the journal had and after each group.
        watch: see each picture after it was segmented. What the journal had is not shown again.

    Returns:
        The same in every process.

    Raises:
        ValueError: the segmenter has another number of classes than the set, or a group size below 1.
        OSError: the journal cannot be written.
        WorldError: another process failed.
        Exception: whatever the segmenter and the watchers raise. Pictures that cannot be read raise nothing: they are
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
    return Tally(everything.counts, everything.pictures, (*dataset.problems, *problems), cost)


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
                pictures=len(group.loaded),
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
        if sample.picture is not None:
            for watcher in watch:
                watcher(reader.samples[sample.index], sample.picture.numpy(), truth, labels)
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
    """What decides which pictures are in which group."""
    return {"group_size": group_size, "pictures": len(dataset), "names": dataset.digest}


def check_alike(dataset: Dataset, terms: Mapping[str, Any], world: World) -> None:
    """ValueError, in every process, where one has other pictures on its disk than the first."""
    first, *others = world.gather(terms)
    for rank, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"expected the same pictures of {dataset.name} in every process, got {first['pictures']:,} in the "
                f"first and {other['pictures']:,}, or others, in that of rank {rank}: copy the set anew, or put it on "
                "a disk that the machines share"
            )
