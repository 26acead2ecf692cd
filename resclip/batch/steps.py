"""An image's way through a batch job: read it, segment it, write its files and say what became of it.

Both engines chain these functions, `run` here and Ray Data in `ray_engine.py`; what one hands to the next can be sent
to another process. If something is wrong with one image, a `Problem` goes through the remaining steps in its place;
only a fault of the output, such as a full disk, ends the job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from resclip.batch.items import Item
from resclip.batch.job import BatchJob
from resclip.batch.manifest import Row
from resclip.batch.outputs import BlockSink, MemorySink, Result, as_scores, encode
from resclip.batch.storage import Store, concerns_one_file
from resclip.errors import describe
from resclip.inference import scheduler
from resclip.inference.batch_size import SHARE, window_bytes
from resclip.inference.memory import free_memory
from resclip.inference.pipeline import ImageTask
from resclip.inference.prefetch import prefetch
from resclip.inference.preprocessing import ArrayImage
from resclip.inference.scheduler import Failure, readable
from resclip.io.images import ImageError, ImageSource, PixelArray, open_picture
from resclip.io.limits import Limits
from resclip.io.picture import NO_PLACE, NOWHERE, Georeference, Mask, Picture
from resclip.io.video import FrameReader
from resclip.segmenter import Segmenter

if TYPE_CHECKING:
    from resclip.io.raster import Raster

CHUNK = 4
"""Images that a thread segments before it takes others."""
CHUNK_PIXELS = 1 << 22
"""A chunk of more pixels is a single image."""
MOST_SEGMENTING = 8


@dataclass(frozen=True)
class Problem:
    """An image that cannot be segmented, and why."""

    item: Item
    started: float
    """Seconds since the epoch."""
    error: str
    """One line."""


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image that was read, or only opened where it will be read by block."""

    item: Item
    started: float
    """Seconds since the epoch."""
    size: tuple[int, int]
    """(H, W) of the image."""
    pixels: PixelArray | None
    """(H', W', 3) uint8: resized for the model; None for one that is read by block."""
    original: PixelArray | None = None
    """(H, W, 3) uint8: as it was, where an overlay is wanted."""
    absent: Mask | None = None
    """(H, W): where it has no pixels."""
    raster: Raster | None = None
    """An image that is read by block."""
    georeference: Georeference = NOWHERE
    record: dict[str, Any] = field(default_factory=dict)
    """What was done to read it."""


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """An image whose labels are known."""

    item: Item
    started: float
    """Seconds since the epoch."""
    result: Result


Outcome: TypeAlias = SegmentedImage | Problem


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video, which is read in turn, before what has threads."""

    item: Item
    pixels: PixelArray | ImageError
    """(H, W, 3) uint8, or why there are none."""


def with_frames(items: Iterable[Item], limits: Limits) -> Iterator[Item | Frame]:
    """Items, those of a video with their pixels; one frame is held at a time."""
    with FrameReader(limits) as frames:
        for item in items:
            if item.frame is None:
                yield item
                continue
            seen = item.looked_at(limits)
            try:
                yield Frame(seen, seen.pixels(frames))
            except ImageError as error:
                yield Frame(seen, error)


def read_item(job: BatchJob, image: Item | Frame) -> LoadedImage | Problem:
    """Item → image: its pixels, resized; a large TIFF or JPEG 2000 is only opened, since it is read by block."""
    started = time.time()
    item = image.item if isinstance(image, Frame) else image.looked_at(job.reading.limits)
    try:
        source: ImageSource
        if not isinstance(image, Frame):
            # A local file is not held in memory while it is decoded.
            source = item.source(job.reading.limits)
        elif isinstance(image.pixels, ImageError):
            raise image.pixels
        else:
            source = image.pixels
        opened = open_picture(source, job.reading, name=item.name, block_pixels=job.block_pixels)
    except (ValueError, OSError, MemoryError) as error:
        return Problem(item, started, describe(error))
    size = opened.height, opened.width
    if job.form == "png" and opened.georeference.is_known:
        opened.record["georeference"] = NO_PLACE
    if not isinstance(opened, Picture):
        if job.export.formats:
            opened.close()
            text = (
                f"{item.name}: expected at most {job.block_pixels:,} pixels for {' and '.join(job.export.formats)}, "
                f"which need the whole label map in memory, got {size[0] * size[1]:,}; segment it in a run of its own, "
                "without other formats"
            )
            return Problem(item, started, text)
        return LoadedImage(item, started, size, None, raster=opened)
    return LoadedImage(
        item,
        started,
        size,
        job.preparation.resize(opened.pixels),
        original=opened.pixels if job.overlay else None,
        absent=opened.absent,
        georeference=opened.georeference,
        record=opened.record,
    )


def segment_images(
    job: BatchJob, segmenter: Segmenter, store: Store, images: Iterable[LoadedImage | Problem]
) -> Iterator[Outcome]:
    """Images → results, in their order; windows of several images share batches.

    Raises:
        OSError: what is written by block cannot be written.
        MemoryError: there is not enough for a single window.
    """
    unfinished: set[BlockSink] = set()
    narrow = torch.uint8 if job.label_type == np.uint8 else torch.int32

    def task_of(image: LoadedImage) -> ImageTask:
        if image.raster is None:
            assert image.pixels is not None
            sink = MemorySink(
                job, image.size, image.original, image.absent, image.georeference, image.record
            )
            pixels = ArrayImage(image.pixels)
            return ImageTask(segmenter.pipeline, pixels, image.size, (image, sink))
        block_sink = BlockSink(job, image.item.stem, image.raster, store)
        unfinished.add(block_sink)
        return segmenter.pipeline.task(image.raster, (image, block_sink))

    tasks = (
        Failure(image, ValueError(image.error)) if isinstance(image, Problem) else task_of(image)
        for image in images
    )
    try:
        for event in readable(scheduler.run(tasks)):
            if isinstance(event, Failure):
                if isinstance(event.tag, Problem):
                    yield event.tag
                else:
                    image, sink = event.tag
                    sink.abort()
                    yield Problem(image.item, image.started, describe(event.error))
                continue
            image, sink = event.tag
            # Narrowed on the GPU, so that no more than the files' bytes is copied from it.
            labels = event.labels.to(narrow).cpu().numpy()
            scores = as_scores(event.probabilities).cpu().numpy() if job.keeps_scores else None
            sink.add(event.first, labels, scores)
            if event.first + len(event.labels) == image.size[0]:
                try:
                    result = sink.finish()
                except (OSError, MemoryError) as error:
                    if not concerns_one_file(error):
                        raise
                    sink.abort()
                    unfinished.discard(sink)
                    yield Problem(image.item, image.started, describe(error))
                    continue
                unfinished.discard(sink)
                yield SegmentedImage(image.item, image.started, result)
    finally:
        for sink in unfinished:
            sink.abort()


def finish(job: BatchJob, store: Store, outcome: Outcome) -> Row:
    """Result → files, each whole or not at all, and then the row, which must not exist before them.

    Raises:
        OSError: they cannot be written, and no others could.
    """
    if isinstance(outcome, SegmentedImage):
        try:
            return _written(job, store, outcome)
        except (OSError, MemoryError) as error:
            if not concerns_one_file(error):
                raise
            text = f"{outcome.item.name}: {describe(error)}"
            outcome = Problem(outcome.item, outcome.started, text)
    item = outcome.item
    seconds = time.time() - outcome.started
    return Row(
        item.index, item.name, "failed", outcome.error, seconds, None, None, (), (), item.seen
    )


def _written(job: BatchJob, store: Store, image: SegmentedImage) -> Row:
    """The row of an image, once its files are written."""
    item, result = image.item, image.result
    written = list(result.written)
    for name, data in encode(job, item.stem, result, item.name):
        store.write(name, data)
        written.append(name)
    return Row(
        index=item.index,
        name=item.name,
        status="done",
        error=None,
        seconds=time.time() - image.started,
        width=result.width,
        height=result.height,
        classes=result.areas(job.names),
        outputs=tuple(sorted(written)),
        identity=item.seen,
        input=json.dumps(result.record, ensure_ascii=False) if result.record else None,
    )


def segmenting_threads(segmenter: Segmenter, images: int) -> int:
    """How many threads segment at once: one a core on a CPU, as far as there are images and memory; else one.

    A product of the small matrices of one window keeps one core busy and not many: on two cores the built-in model
    segments 1.1 to 1.2 times as many images in two threads of one core each as in one thread of two. Python itself
    keeps more than `MOST_SEGMENTING` threads waiting. A limit on memory, and windows of any size (`window=0`), are for
    one thread.
    """
    pipeline = segmenter.pipeline
    if pipeline.device.type != "cpu" or pipeline.max_memory is not None or not pipeline.window:
        return 1
    window = (pipeline.window, pipeline.window)
    queries = len(pipeline.vocabulary.embeddings)
    batch = window_bytes(pipeline.encoder, window, queries, pipeline.batch_size)
    fitting = int(SHARE * free_memory(pipeline.device)) // batch
    return max(1, min(torch.get_num_threads(), MOST_SEGMENTING, images // CHUNK, fitting))


def segment_in_threads(
    job: BatchJob,
    segmenter: Segmenter,
    store: Store,
    images: Iterable[LoadedImage | Problem],
    threads: int,
) -> Iterator[Outcome]:
    """`segment_images` in several threads, a few images at a time in each, which has its share of torch's threads."""
    cores = torch.get_num_threads()
    stopped = Event()

    def segment(chunk: list[LoadedImage | Problem]) -> list[Outcome]:
        by_block = any(isinstance(image, LoadedImage) and image.pixels is None for image in chunk)
        torch.set_num_threads(cores if by_block else max(1, cores // threads))
        outcomes = []
        for outcome in segment_images(job, segmenter, store, chunk):
            outcomes.append(outcome)
            if stopped.is_set():
                break
        return outcomes

    try:
        for outcomes in prefetch(segment, chunks(images), workers=threads, stop=stopped.set):
            yield from outcomes
    finally:
        torch.set_num_threads(cores)


def chunks(images: Iterable[LoadedImage | Problem]) -> Iterator[list[LoadedImage | Problem]]:
    """`CHUNK` images each, in their order; fewer where they are large, and one that is read by block alone."""
    chunk: list[LoadedImage | Problem] = []
    pixels = 0
    for image in images:
        size = 0
        if isinstance(image, LoadedImage):
            size = CHUNK_PIXELS if image.pixels is None else image.size[0] * image.size[1]
        if chunk and (len(chunk) == CHUNK or pixels + size > CHUNK_PIXELS):
            yield chunk
            chunk, pixels = [], 0
        chunk.append(image)
        pixels += size
    if chunk:
        yield chunk


def run(
    job: BatchJob,
    segmenter: Segmenter,
    items: Iterable[Item],
    store: Store,
    *,
    workers: int,
    segmenting: int = 1,
) -> Generator[Row, None, None]:
    """The engine of one machine: threads read and write while others segment.

    Args:
        job: what is made of each image.
        segmenter: labels them, on its device.
        items: the images, taken as they are needed.
        store: the output folder.
        workers: threads that read, and as many that write.
        segmenting: threads that segment; see `segmenting_threads`.

    Yields:
        A row for each image once its files are written, in the order of `items`.

    Raises:
        OSError: a file cannot be written.
        MemoryError: there is not enough for a single window.
    """
    read = partial(read_item, job)
    images = prefetch(read, with_frames(items, job.reading.limits), workers=workers)
    outcomes = (
        segment_images(job, segmenter, store, images)
        if segmenting == 1
        else segment_in_threads(job, segmenter, store, images, segmenting)
    )
    return prefetch(partial(finish, job, store), outcomes, workers=workers)
