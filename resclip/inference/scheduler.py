"""Windows of many images in shared batches: results come out in order, and memory does not grow with their number.

Memory is that of `LOOK_AHEAD` batches and of one strip of rows, whatever the number of images or their height.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resclip.errors import is_out_of_memory
from resclip.inference.memory import release
from resclip.inference.pipeline import GridScores, ImageTask, Strip, WindowPixels
from resclip.result import UNLABELLED
from resclip_kernels import check_labels

LOOK_AHEAD = 4
"""How many batches of windows may be read from images behind the first unfinished one, to fill its batches."""

PIXELS_AHEAD = 1 << 26
"""How many pixels of results may wait behind the first unfinished image; 67 million take 0.8 GB."""


class Failure(NamedTuple):
    """An image that cannot be segmented, in the place of its remaining strips."""

    tag: Any
    """What the caller gave with the image."""
    error: ValueError | OSError


class WholeResult(NamedTuple):
    """All strips of an image, put together on the CPU."""

    tag: Any
    labels: NDArray[np.int64]
    """(H, W)."""
    probabilities: NDArray[np.float32]
    """(H, W)."""
    scores: GridScores | None
    """Of all classes, where they are kept."""


def run(tasks: Iterable[ImageTask | Failure]) -> Iterator[Strip | Failure]:
    """Segment images as they come; those of one pipeline share batches.

    Args:
        tasks: images of any sizes, taken as batches need them; failures go through.

    Yields:
        The strips of each image on the model's device, image by image in the order of `tasks`; a `Failure` where the
        pixels of an image cannot be read or its logits hold NaN, which of strips on a GPU only `readable` tells.

    Raises:
        MemoryError: there is not enough for a single window.
    """
    return _Scheduler().run(tasks)


def readable(events: Iterable[Strip | Failure]) -> Iterator[Strip | Failure]:
    """The events of `run` for a host that reads each strip as it comes: a `Failure` where the logits held NaN.

    What comes of such an image after that, by its tag, is left out. Pixels that are too uncertain for a class have the
    label −1 from here on.
    """
    failed: Failure | None = None
    for event in events:
        if failed is not None and event.tag is failed.tag:
            continue
        failed = None
        if isinstance(event, Strip):
            try:
                check_labels(event.labels[None])
            except ValueError as error:
                failed = Failure(event.tag, error)
            else:
                if event.rejects:
                    event = event._replace(labels=event.labels.clamp(min=UNLABELLED))  # noqa: PLW2901
        yield failed or event


def whole_results(events: Iterable[Strip | Failure]) -> Iterator[WholeResult | Failure]:
    """Put each image's strips together on the CPU; failures go through."""
    labels = probabilities = None
    for event in readable(events):
        if isinstance(event, Failure):
            labels = probabilities = None
            yield event
            continue
        if labels is None or probabilities is None:
            labels = np.empty(event.size, np.int64)
            probabilities = np.empty(event.size, np.float32)
        labels[event.first : event.last] = event.labels.cpu().numpy()
        probabilities[event.first : event.last] = event.probabilities.float().cpu().numpy()
        if event.last == event.size[0]:
            yield WholeResult(event.tag, labels, probabilities, event.scores)
            labels = probabilities = None


class _Scheduler:
    """The images that are not finished, in order, and their windows that wait for a batch, by `WindowPixels.key`."""

    def __init__(self) -> None:
        self.tasks: deque[ImageTask | Failure] = deque()
        self.waiting: dict[tuple[Any, ...], list[WindowPixels]] = {}
        self.limits: dict[tuple[Any, ...], int] = {}  # Windows a batch.

    def run(self, tasks: Iterable[ImageTask | Failure]) -> Iterator[Strip | Failure]:
        for task in tasks:
            self.tasks.append(task)
            if isinstance(task, ImageTask):
                try:
                    for window in task.read_windows():
                        if self.enqueue(window):
                            yield from self.strips()
                except (ValueError, OSError) as error:
                    self.fail(task, error)
                while self.is_too_far_ahead():
                    self.finish_first()
                    yield from self.strips()
            yield from self.strips()
        while self.tasks:
            self.finish_first()
            yield from self.strips()

    def enqueue(self, window: WindowPixels) -> bool:
        """Whether the window has filled a batch, which has then run."""
        key = window.key
        if key not in self.limits:
            self.limits[key] = window.task.pipeline.batch_limit(window.window)
        self.waiting.setdefault(key, []).append(window)
        if len(self.waiting[key]) < self.limits[key]:
            return False
        self.encode(key)
        return True

    def is_too_far_ahead(self) -> bool:
        """Whether images behind the first unfinished one hold more windows or pixels than they may."""
        behind = [task for task in islice(self.tasks, 1, None) if isinstance(task, ImageTask)]
        windows = sum(task.windows_read for task in behind)
        pixels = sum(task.size[0] * task.size[1] for task in behind)
        return windows > LOOK_AHEAD * max(self.limits.values(), default=1) or pixels > PIXELS_AHEAD

    def finish_first(self) -> None:
        """Run the batches, full or not, that the first image waits for."""
        first = self.tasks[0]
        for key in list(self.waiting):
            if any(window.task is first for window in self.waiting[key]):
                self.encode(key)

    def encode(self, key: tuple[Any, ...]) -> None:
        """Run the windows that wait under a key; in smaller batches from now on where memory runs out."""
        windows = deque(self.waiting.pop(key))
        # After an error in a batch, its windows run one by one, so that only the image at fault fails.
        alone = 0
        while windows:
            count = 1 if alone else self.limits[key]
            batch = [windows.popleft() for _ in range(min(count, len(windows)))]
            alone = max(0, alone - 1)
            try:
                results = batch[0].task.encode(batch, self.limits[key])
            except ValueError as error:
                if len(batch) == 1:
                    self.fail(batch[0].task, error)
                else:
                    windows.extendleft(reversed(batch))
                    alone = len(batch)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    height, width = key[:2]
                    raise MemoryError(
                        f"there is not enough memory for one window of {height} × {width} pixels: take a smaller "
                        'window= or short_side=, fewer classes, or precision="fp16" on a GPU'
                    ) from error
                windows.extendleft(reversed(batch))
                self.limits[key] = len(batch) // 2
            else:
                for window, result in zip(batch, results, strict=True):
                    window.task.put(window.window, result)
                continue
            # Outside the handler: its traceback would keep the failed batch's tensors.
            release()

    def strips(self) -> Iterator[Strip | Failure]:
        """What can come out now: strips of the first image, and of the next ones once it is finished."""
        while self.tasks:
            task = self.tasks[0]
            if isinstance(task, ImageTask):
                while not task.is_finished:
                    try:
                        strip = task.next_strip()
                    except ValueError as error:
                        self.fail(task, error)
                        break
                    if strip is None:
                        return
                    yield strip
                if task.error is not None:
                    task = Failure(task.tag, task.error)
            self.tasks.popleft()
            if isinstance(task, Failure):
                yield task

    def fail(self, task: ImageTask, error: ValueError | OSError) -> None:
        """Do nothing more for this image."""
        task.error = error
        for key in list(self.waiting):
            self.waiting[key] = [one for one in self.waiting[key] if one.task is not task]
