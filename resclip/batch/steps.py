"""One image of a batch job, step by step: read, segment, write.

Each step is a function of what the step before gave, so that an engine only has to chain them; what is handed on can be
sent to another process. Whatever is wrong with one image becomes a `Problem`, which goes through the other steps;
only what is wrong with the output, such as a full disk, ends the job.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from resclip.batch.job import Task
from resclip.batch.manifest import Row
from resclip.batch.outputs import BlockSink, MapSink, Result, as_scores, encode
from resclip.batch.sources import Item
from resclip.batch.storage import Store
from resclip.errors import describe
from resclip.inference import scheduler
from resclip.inference.pipeline import ImageTask
from resclip.inference.preprocessing import ArrayImage
from resclip.inference.scheduler import Failure
from resclip.io.images import ImageError, PixelArray, read_image
from resclip.segmenter import Segmenter

TIFF_SUFFIXES = (".tif", ".tiff")
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Problem:
    """An image that cannot be done."""

    item: Item
    started: float
    error: str


@dataclass(frozen=True, eq=False)
class Reading:
    """An image that could be read, or can be read by block."""

    item: Item
    started: float
    """Seconds since the epoch."""
    size: tuple[int, int]
    """(H, W) of the image."""
    pixels: PixelArray
    """(H', W', 3) uint8: resized for the model; without rows for one that is read by block."""
    image: PixelArray | None = None
    """(H, W, 3) uint8: as it is, where an overlay is wanted."""
    path: Path | None = None
    """Of an image that is read by block."""
    place: tuple[Any, Any] = (None, None)
    """Coordinate reference system and transform."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """An image whose labels are known."""

    item: Item
    started: float
    result: Result


Outcome: TypeAlias = Segmented | Problem


def read(task: Task, item: Item) -> Reading | Problem:
    """Read and resize an image; or only its header, where it will be read by block."""
    started = time.time()
    try:
        raster = read_raster(task, item, started)
        if raster is not None:
            return raster
        image = read_image(item.read(), name=item.name, max_pixels=task.largest_image)
    except (ValueError, OSError, MemoryError) as error:
        return Problem(item, started, describe(error))
    return in_memory(task, item, started, image)


def in_memory(
    task: Task,
    item: Item,
    started: float,
    image: PixelArray,
    place: tuple[Any, Any] = (None, None),
) -> Reading:
    """An image that is held whole."""
    return Reading(
        item,
        started,
        (image.shape[0], image.shape[1]),
        task.preparation.resize(image),
        image if task.overlay else None,
        place=place,
    )


def read_raster(task: Task, item: Item, started: float) -> Reading | None:
    """A TIFF that is too large for memory, or whose place on the earth is wanted; None for everything else."""
    path = item.local_path
    if path is None or path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    try:
        from resclip.io.geotiff import open_raster
    except ImportError:
        return None
    try:
        raster = open_raster(path, max_pixels=task.max_pixels)
    except ImageError:
        return None  # Pillow reads some that GDAL's rows cannot give, and says what is wrong with the others.
    with raster:
        size = (raster.height, raster.width)
        place = (raster.crs, raster.transform)
        if size[0] * size[1] > task.block_pixels:
            return Reading(item, started, size, NO_PIXELS, path=path, place=place)
        if task.form == "tif":
            return in_memory(task, item, started, raster.rows(0, size[0]), place)
    return None


def segment(
    task: Task, segmenter: Segmenter, store: Store, readings: Iterable[Reading | Problem]
) -> Iterator[Outcome]:
    """Label images, in their order, their windows in shared batches.

    Raises:
        OSError: what is written by block cannot be written.
        MemoryError: there is not enough for a single window.
    """
    unfinished: set[BlockSink] = set()
    narrow = torch.uint8 if task.label_type == np.uint8 else torch.int32

    def task_of(reading: Reading) -> ImageTask | Failure:
        if reading.path is None:
            tag = reading, MapSink(task, reading.size, reading.image, reading.place)
            pixels = ArrayImage(reading.pixels)
            return ImageTask(segmenter.pipeline, pixels, reading.size, tag)
        from resclip.io.geotiff import open_raster

        try:
            raster = open_raster(reading.path)
        except (ValueError, OSError) as error:
            return Failure(Problem(reading.item, reading.started, describe(error)), error)
        sink = BlockSink(task, reading.item.stem, raster, reading.place, store)
        unfinished.add(sink)
        return segmenter.pipeline.task(raster, (reading, sink))

    tasks = (
        Failure(reading, ValueError(reading.error))
        if isinstance(reading, Problem)
        else task_of(reading)
        for reading in readings
    )
    try:
        for event in scheduler.run(segmenter.pipeline, tasks):
            if isinstance(event, Failure):
                yield problem_of(event)
                continue
            reading, sink = event.tag
            # As small as they will be in the files, before they leave a GPU.
            labels = event.labels.to(narrow).cpu().numpy()
            scores = as_scores(event.probabilities).cpu().numpy() if task.scores else None
            sink.add(event.first, labels, scores)
            if event.first + len(event.labels) == reading.size[0]:
                result = sink.finish()
                unfinished.discard(sink)
                yield Segmented(reading.item, reading.started, result)
    finally:
        for sink in unfinished:
            sink.abort()


def problem_of(failure: Failure) -> Problem:
    """What became of an image that failed on its way."""
    if isinstance(failure.tag, Problem):
        return failure.tag
    reading, sink = failure.tag
    sink.abort()
    return Problem(reading.item, reading.started, describe(failure.error))


def write(task: Task, store: Store, outcome: Outcome) -> Row:
    """Write an image's files, each whole or not at all; what the manifest says of it.

    Raises:
        OSError: they cannot be written.
    """
    item = outcome.item
    if isinstance(outcome, Problem):
        seconds = time.time() - outcome.started
        return Row(item.index, item.name, "failed", outcome.error, seconds, None, None, (), ())
    result = outcome.result
    written = list(result.written)
    for name, data in encode(task, item.stem, result):
        store.write(name, data)
        written.append(name)
    return Row(
        index=item.index,
        name=item.name,
        status="done",
        error=None,
        seconds=time.time() - outcome.started,
        width=result.width,
        height=result.height,
        classes=result.areas(task.names),
        outputs=tuple(sorted(written)),
    )
