"""Datasets × methods → a report: the order of the work, from images to figures.

`evaluate` goes through the table's cells; `evaluate_dataset` measures one of them. Reading images is in `loader.py`,
counting pixels in `metrics.py`, what is kept of an interrupted run in `checkpoint.py`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from resclip.evaluation.checkpoint import Checkpoint, DatasetResult
from resclip.evaluation.coverage import coverage_of
from resclip.evaluation.datasets.base import IGNORED, Dataset, Sample, cut
from resclip.evaluation.distributed import (
    gather,
    machine_name,
    peak_memory,
    process_count,
    rank,
    reset_peak_memory,
)
from resclip.evaluation.loader import Reader, default_workers, prefetch_groups
from resclip.evaluation.locking import locked
from resclip.evaluation.metrics import confusion, scores_of
from resclip.evaluation.published import paper_rows
from resclip.evaluation.report import VERSION, DatasetReport, MethodResult, Report
from resclip.io.files import make_folder
from resclip.methods.catalogue import BASES, METHODS, MODULES, PAMR, combinations, find_method
from resclip.methods.steps import SUFFIXES
from resclip.predictors import PredictorSegmenter
from resclip.predictors.registry import find_maker, is_predictor
from resclip.segmenter import Segmenter
from resclip_kernels import check_count, check_flag, check_type

GROUP_SIZE = 8
"""How many images are segmented together: 50 to 100 windows of photographs, several full batches."""

SHARED_SETTINGS = (
    "model", "pretrained", "templates", "precision", "implementation", "resclip", "torch", "python",
)  # fmt: skip
"""The settings of a segmenter that all rows of a dataset must agree in; the others are a row's options.

A predictor has its own model, prompts and device, which are options of its row: it agrees with the others in the rest.
"""

PAPER_TABLE = "paper-table"
"""Stands for the rows of the papers' tables; see `resclip.evaluation.published.paper_rows`."""


@dataclass(frozen=True)
class Progress:
    """How far an evaluation has come."""

    dataset: str
    method: str
    images: int
    """How many images are done, over all rows and datasets so far, those that cannot be read included. With several
    processes it is reckoned from the share of this one until all have finished a row."""
    total: int
    """How many images there are, over all rows and datasets."""
    miou: float | None
    """In per cent, so far, over the images of this process and of earlier runs; None if no pixel has been counted."""
    row: MethodResult | None = None
    """The figures of the whole row once it is complete."""
    stored: bool = False
    """Whether the complete row was in the report's file already."""
    replaced: str = ""
    """Of a complete row that took the place of one in the file: which of its options differ, in words."""


Measured: TypeAlias = Segmenter | PredictorSegmenter
"""What labels the images of a row."""

MakeSegmenter: TypeAlias = Callable[[Dataset], Measured]
"""Makes the segmenter of a row for a dataset; its vocabulary is the dataset's classes."""

OnProgress: TypeAlias = Callable[[Progress], object]
"""Is called after each group of images, and when a row is complete."""

OnImage: TypeAlias = Callable[
    [str, Dataset, Sample, NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]], object
]
"""Is called with each image that this process has segmented, in order: method, dataset, sample, (H, W, 3) image,
(H, W) true classes and (H, W) predicted classes, −1 where the image has no data."""


def row_names(methods: Iterable[str] | None = None) -> list[str]:
    """The rows that methods stand for, each once: a base and its modules; "resclip" is "naclip+rcs+sfr".

    Args:
        methods: names as `find_method` takes them, of predictors as `resclip.predictors.registry` does, or
            "paper-table" for the rows of the papers' tables; None: every base with every module that fits it.

    Raises:
        ValueError: no such method or predictor, modules on a predictor, or none at all.
    """
    if methods is None:
        return [method.name for base in BASES.values() for method in combinations(base)]
    names: list[str] = []
    for name in methods:
        if name == PAPER_TABLE:
            names += paper_rows()
        elif isinstance(name, str) and is_predictor(name):
            find_maker(name)  # What is misspelt is told before other rows are measured.
            names.append(name)
        else:
            method = find_method(name)
            modules = [module for module in MODULES if getattr(method, module) is not None]
            behind = [part for part in method.name.split("+") if part in SUFFIXES or part == PAMR]
            names.append("+".join((method.base, *modules, *behind)))
    if not names:
        raise ValueError("expected at least one method, got none")
    return list(dict.fromkeys(names))


def evaluate(
    entries: Mapping[str, MakeSegmenter],
    datasets: Sequence[Dataset],
    *,
    checkpoint: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    on_image: OnImage | None = None,
) -> Report:
    """Measure every method on every dataset.

    Under torch.distributed, the processes share the images and all get the same report; the first one alone writes it.

    Args:
        entries: the rows, by the method's name.
        datasets: the columns.
        checkpoint: JSON file of the report, written after each row. Rows that it holds under the same conditions are
            not measured again, and an interrupted row goes on where it stopped; whatever else it holds is kept. None:
            nothing is stored.
        fresh: measure everything anew; the file keeps only datasets that are not measured here.
        workers: processes that decode images, for each process that segments; 0: none; None: as many as keep the device
            busy.
        on_progress: see `OnProgress`.
        on_image: see `OnImage`. All rows are measured then, even if the file holds them. An interrupted
            row goes on where it stopped if `repr(on_image)` is the same in both runs, as that of a dataclass is.

    Returns:
        The requested rows and datasets; the file keeps all others that it held.

    Raises:
        ValueError: no row or dataset; a segmenter with other classes than the dataset; a file with figures under other
            conditions.
        OSError: the file cannot be written, or another run is at work on it.
    """
    with report_lock(checkpoint):
        return measure(
            entries,
            datasets,
            checkpoint=checkpoint,
            fresh=fresh,
            workers=workers,
            on_progress=on_progress,
            on_image=on_image,
        )


def measure(
    entries: Mapping[str, MakeSegmenter],
    datasets: Sequence[Dataset],
    *,
    checkpoint: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    on_image: OnImage | None = None,
) -> Report:
    """`evaluate` for a caller that holds `report_lock` already."""
    check_type("entries", entries, Mapping, "a mapping of names to functions of a dataset")
    check_type("datasets", datasets, (tuple, list), "a list of datasets")
    for dataset in datasets:
        check_type("each of datasets", dataset, Dataset, "a Dataset")
    check_flag("fresh", fresh)
    if not entries or not datasets:
        raise ValueError("expected at least one method and one dataset to measure, got none")
    report = stored_report(checkpoint, fresh)
    if fresh:
        for dataset in datasets:
            report.datasets.pop(dataset.name, None)
    total = len(entries) * sum(map(len, datasets))
    done = 0

    def show(progress: Progress) -> None:
        if on_progress is not None:
            on_progress(replace(progress, images=done + progress.images, total=total))

    for dataset in datasets:
        for method, make_segmenter in entries.items():
            segmenter = make_segmenter(dataset)
            own, options = conditions_of(dataset, segmenter)
            column = own
            if dataset.name in report.datasets:
                stored_column = report.datasets[dataset.name]
                check_same_conditions(own, stored_column, checkpoint)
                settings = {**stored_column.settings, **own.settings}
                column = replace(own, settings=settings, rows=stored_column.rows)
            report.datasets[dataset.name] = column
            row = column.rows.get(method)
            stored = on_image is None and row is not None and row.options == options
            replaced = "" if row is None else differences(row.options, options)
            if row is None or not stored:
                unfinished = None
                if checkpoint is not None:
                    unfinished = row_checkpoint(checkpoint, own, method, options, on_image)
                    if fresh and rank() == 0:
                        unfinished.clear()
                result = evaluate_dataset(
                    method,
                    segmenter,
                    dataset,
                    workers=workers,
                    checkpoint=unfinished,
                    on_progress=show,
                    on_image=on_image,
                )
                row = MethodResult(
                    scores_of(result.confusion),
                    result.images,
                    result.problems,
                    options,
                    result.seconds,
                    process_count(),
                    torch.get_num_threads(),
                    gather(machine_name(segmenter.device))[0],
                    result.peak_bytes,
                    coverage_of(dataset, result),
                )
                column.rows = in_order({**column.rows, method: row})
                if checkpoint is not None and unfinished is not None and rank() == 0:
                    report.save(checkpoint)
                    unfinished.clear()
            size = len(dataset)
            miou = row.scores.miou
            show(Progress(dataset.name, method, size, size, miou, row, stored, replaced))
            done += size
    return Report({part.name: report.datasets[part.name].selection(entries) for part in datasets})


def evaluate_dataset(
    method: str,
    segmenter: Measured,
    dataset: Dataset,
    *,
    group_size: int = GROUP_SIZE,
    workers: int | None = None,
    checkpoint: Checkpoint | None = None,
    on_progress: OnProgress | None = None,
    on_image: OnImage | None = None,
) -> DatasetResult:
    """Segment every image of a dataset and count which class was taken for which.

    Args:
        method: the row's name, for `on_progress` and `on_image`.
        segmenter: its classes are the dataset's, in the same order.
        dataset: what to segment.
        group_size: how many images are segmented together.
        workers, on_progress, on_image: as `evaluate` takes them.
        checkpoint: keeps what has been done, and says what was done before; its conditions include the dataset's
            images and `group_size`. It is left in place. None: nothing is kept.

    Returns:
        The result for the whole dataset, the same in every process. Images that cannot be read are in its problems,
        the dataset's own first, then in the order of its samples.

    Raises:
        ValueError: the segmenter has another number of classes than the dataset, the processes see different images,
            or a group size below 1.
        OSError: the checkpoint cannot be written.
        RuntimeError: another process has ended.
        Exception: whatever the segmenter and `on_image` raise.
    """
    check_count("group_size", group_size, 1)
    if workers is not None:
        check_count("workers", workers, 0)
    classes = len(dataset.entries)
    if len(segmenter.vocabulary.names) != classes:
        raise ValueError(
            f"expected a segmenter with the {classes} classes of {dataset.name}, got one with "
            f"{len(segmenter.vocabulary.names)}: make it with the dataset's entries"
        )
    check_same_images(dataset)
    done: set[int] = set()
    earlier: dict[int, DatasetResult] = {}
    if checkpoint is not None:
        # The first process reads for all: another may not see a file yet that was written on another machine.
        done, earlier = gather(checkpoint.read(classes) if rank() == 0 else (done, earlier))[0]
    numbers = range(-(-len(dataset) // group_size))
    left = [number for number in numbers if number not in done]
    # What is left is dealt out anew, so that any number of processes can go on.
    mine = left[rank() :: process_count()]
    reader = Reader(
        dataset.samples, group_size, classes, segmenter.preparation, on_image is not None
    )
    result = DatasetResult.empty(classes)
    so_far = sum(earlier.values(), DatasetResult.empty(classes))
    groups = measure_groups(method, segmenter, dataset, reader, mine, workers, on_image)
    with closing(groups):
        for position, (number, part) in enumerate(groups, 1):
            result += part
            so_far += part
            if checkpoint is not None:
                checkpoint.append(rank(), number, part)
            if on_progress is not None:
                # The others are taken to be as fast as this one: they have done what was dealt beside its groups.
                size, rest = len(dataset), left[position * process_count() :]
                undone = len(rest) * group_size
                if rest and rest[-1] == numbers[-1]:  # The last group may be smaller.
                    undone -= len(numbers) * group_size - size
                miou = scores_of(so_far.confusion).miou
                on_progress(Progress(dataset.name, method, size - undone, size, miou))
    return whole_result(dataset, earlier, gather(result))


def measure_groups(
    method: str,
    segmenter: Measured,
    dataset: Dataset,
    reader: Reader,
    numbers: Sequence[int],
    workers: int | None,
    on_image: OnImage | None,
) -> Generator[tuple[int, DatasetResult], None, None]:
    """The number and the result of each of these groups of images, in their order."""
    device = segmenter.device
    reset_peak_memory(device)
    workers = default_workers(device) if workers is None else workers
    start = time.perf_counter()
    with closing(prefetch_groups(reader, numbers, workers, pin=device.type == "cuda")) as groups:
        for group in groups:
            pixels = [
                reader.preparation.normalise(image.pixels.to(device, non_blocking=True))
                for image in group.images
            ]
            sizes = [(image.truth.shape[0], image.truth.shape[1]) for image in group.images]
            counts, ignored = np.zeros((reader.classes, reader.classes + 1), np.int64), 0
            predictions = segmenter.predict_many(pixels, sizes)
            for image, (prediction, _) in zip(group.images, predictions, strict=True):
                truth, labels = image.truth.numpy(), prediction.cpu().numpy()
                if image.absent is not None:
                    labels = np.where(image.absent.numpy(), -1, labels)
                counts += confusion(truth, labels, reader.classes, ignored=IGNORED)
                ignored += int((truth == IGNORED).sum())
                if on_image is not None and image.original is not None:
                    sample = dataset.samples[image.index]
                    on_image(method, dataset, sample, image.original.numpy(), truth, labels)
            end = time.perf_counter()
            yield (
                group.number,
                DatasetResult(
                    counts,
                    len(group.images),
                    group.problems,
                    end - start,
                    peak_memory(device),
                    ignored,
                ),
            )
            start = end


def whole_result(
    dataset: Dataset, earlier: Mapping[int, DatasetResult], results: Sequence[DatasetResult]
) -> DatasetResult:
    """The result for a dataset from what each process did in earlier runs, by rank, and in this one.

    Processes work at the same time, so the seconds are those of the one that took longest.
    """
    empty = DatasetResult.empty(len(dataset.entries))
    ranks = {*earlier, *range(len(results))}
    by_rank = [
        earlier.get(number, empty) + (results[number] if number < len(results) else empty)
        for number in sorted(ranks)
    ]
    whole = sum(by_rank, empty)
    order = {sample.name: index for index, sample in enumerate(dataset.samples)}
    problems = sorted(whole.problems, key=lambda problem: order.get(problem.name, len(order)))
    seconds = max(part.seconds for part in by_rank)
    return replace(whole, problems=(*dataset.problems, *problems), seconds=seconds)


def check_same_images(dataset: Dataset) -> None:
    """ValueError, in every process, where one has other images on its disk than the first."""
    (count, digest), *others = gather((len(dataset), dataset.digest))
    for other, (other_count, other_digest) in enumerate(others, 1):
        if other_digest != digest:
            raise ValueError(
                f"expected the same images of {dataset.name} in every process, got {count:,} in the first and "
                f"{other_count:,}, or others, in that of rank {other}: copy the dataset anew, or put it on a disk that "
                "the machines share"
            )


@contextlib.contextmanager
def report_lock(path: Path | None) -> Iterator[None]:
    """Keep other runs from the file of a report, whose folder is made; nothing without a file.

    Raises:
        OSError: another run has it, or the folder or the lock file cannot be made.
    """
    if path is not None:
        check_type("checkpoint", path, Path, "the Path of a JSON file, or None")
    if path is None or rank() != 0:
        yield
        return
    make_folder(path.parent)
    with locked(path.with_name(f"{path.name}.lock"), "a report's file"):
        yield


def stored_report(path: Path | None, fresh: bool) -> Report:
    """The report that a file holds, for all processes; an empty one without a file, or where `fresh` replaces it.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read, or its folder cannot be made.
    """
    report = Report()
    if path is not None and rank() == 0:
        try:
            report = Report.read(path)
        except FileNotFoundError:
            pass
        except ValueError:
            if not fresh:
                raise
    return gather(report)[0]


def row_checkpoint(
    path: Path,
    column: DatasetReport,
    method: str,
    options: Mapping[str, Any],
    on_image: OnImage | None,
) -> Checkpoint:
    """What is kept of an unfinished row, in a folder beside the report."""
    conditions = {
        "version": VERSION,
        "dataset": column.dataset,
        "settings": column.settings,
        "group_size": GROUP_SIZE,
        "method": method,
        "options": options,
        "on_image": on_image and repr(on_image),
    }
    return Checkpoint(path.with_name(f"{path.name}.parts"), conditions)


def conditions_of(dataset: Dataset, segmenter: Measured) -> tuple[DatasetReport, dict[str, Any]]:
    """A dataset's report without rows, with the conditions that its rows share; and the segmenter's own options.

    Raises:
        ValueError: the segmenter has other classes than the dataset.
    """
    if segmenter.vocabulary.names != dataset.classes:
        raise ValueError(
            f"{dataset.name} has the {len(dataset.classes)} classes {dataset.classes[0]!r} to {dataset.classes[-1]!r}; "
            f"the segmenter's are {len(segmenter.vocabulary.names)}, from {segmenter.vocabulary.names[0]!r} on: "
            "make it with the dataset's entries"
        )
    settings = segmenter.settings
    shared = {
        "split": dataset.split,
        "images": len(dataset),
        "names": dataset.digest[:16],
        "entries": dataset.entries,
        **dataset.mask_options,
        # A predictor may compute elsewhere than the methods.
        **({} if "predictor" in settings else {"device": segmenter.device.type}),
        **{name: settings[name] for name in SHARED_SETTINGS if name in settings},
    }
    options = {name: value for name, value in settings.items() if name not in (*shared, "method")}
    # As the JSON file gives them back: tuples become lists.
    shared, options = json.loads(json.dumps([shared, options]))
    return DatasetReport(dataset.name, dataset.description, shared, dataset.classes), options


def check_same_conditions(wanted: DatasetReport, stored: DatasetReport, path: Path | None) -> None:
    """ValueError if the figures in the file at `path` were taken under other conditions. The description is none.

    What a predictor has no part in, the methods' model and device, does not count where one of the two is its own.
    """
    before = {**stored.settings, "classes": stored.classes}
    now = {**wanted.settings, "classes": wanted.classes}
    is_partial = not ("model" in before and "model" in now)
    for name in {**now, **before}:
        of_methods = name in (*SHARED_SETTINGS, "device") and not (name in before and name in now)
        if is_partial and of_methods:
            continue
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{path} holds figures of {wanted.dataset} under other conditions ({name}: {cut(before.get(name))} "
                f"there, {cut(now.get(name))} here): name another file, or pass fresh=True to replace it"
            )


_SHOWN = 3  # How many options that differ are named.


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which options differ, in words: "window was 112, now 64"; nothing where none does."""
    found = []
    for name in {**now, **before}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = differences(old, new)
            found += [f"{name} {inner}"] if inner else []
        elif old != new:
            found.append(f"{name} was {cut(old, 40)}, now {cut(new, 40)}")
    more = len(found) - _SHOWN
    return "; ".join(found[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def in_order(rows: Mapping[str, MethodResult]) -> dict[str, MethodResult]:
    """Methods in the order of `METHODS`, then all others as they come."""
    known = [name for name in METHODS if name in rows]
    return {name: rows[name] for name in dict.fromkeys((*known, *rows))}
