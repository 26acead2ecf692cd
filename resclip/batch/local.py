"""The batch engine of one machine: threads read and write while this one segments.

Knows the order of the steps. Knows nothing of what they do.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import partial

from resclip.batch.job import Task
from resclip.batch.manifest import Row
from resclip.batch.sources import Item
from resclip.batch.steps import read, segment, write
from resclip.batch.storage import Store
from resclip.inference.prefetch import prefetch
from resclip.segmenter import Segmenter


def run(
    task: Task, segmenter: Segmenter, items: Iterable[Item], store: Store, *, workers: int
) -> Generator[Row, None, None]:
    """Do a job's images on the segmenter's device.

    Args:
        task: what is done to each.
        segmenter: labels them.
        items: the images, taken as they are needed.
        store: where files go.
        workers: threads that read, and as many that write.

    Yields:
        A row an image once its files are written, in the order of `items`.

    Raises:
        OSError: a file cannot be written.
        MemoryError: there is not enough for a single window.
    """
    readings = prefetch(partial(read, task), items, workers=workers, ahead=workers)
    outcomes = segment(task, segmenter, store, readings)
    return prefetch(partial(write, task, store), outcomes, workers=workers, ahead=workers)
