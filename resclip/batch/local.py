"""The batch engine of one machine: threads read and write while this one segments."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import partial

from resclip.batch.items import Item
from resclip.batch.job import BatchJob
from resclip.batch.manifest import Row
from resclip.batch.steps import finish, read_item, segment_images
from resclip.batch.storage import Store
from resclip.inference.prefetch import prefetch
from resclip.segmenter import Segmenter


def run(
    job: BatchJob, segmenter: Segmenter, items: Iterable[Item], store: Store, *, workers: int
) -> Generator[Row, None, None]:
    """Do a job's images on the segmenter's device.

    Args:
        job: what is made of each image.
        segmenter: labels them.
        items: the images, taken as they are needed.
        store: the output folder.
        workers: threads that read, and as many that write.

    Yields:
        A row for each image once its files are written, in the order of `items`.

    Raises:
        OSError: a file cannot be written.
        MemoryError: there is not enough for a single window.
    """
    images = prefetch(partial(read_item, job), items, workers=workers)
    outcomes = segment_images(job, segmenter, store, images)
    return prefetch(partial(finish, job, store), outcomes, workers=workers)
