"""Windows of many images as one stream: they fill batches, and every image's finished strips come out in order.

Knows batches, how far to run ahead, and what to do when memory runs out. Knows no model and no class: what a window, a
batch and a strip are made of is its `Stages`' business.

Memory is that of `LOOK_AHEAD` batches and of one strip, whatever the number of images or their height.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resclip.errors import is_out_of_memory
from resclip.inference.memory import release
from resclip.inference.windows import Mosaic, Window, padding

LOOK_AHEAD = 4
"""Batches of windows that are cut from images behind the first unfinished one, to fill its batches."""

PIXELS_AHEAD = 1 << 26
"""Pixels of results behind the first unfinished image: 67 million, 0.8 GB of labels and probabilities."""


class Frame(NamedTuple):
    """An image that is to be segmented."""

    pixels: Any
    """As they go through the tower: for `Stages` to read."""
    shape: tuple[int, int]
    """(height, width) of these pixels."""
    size: tuple[int, int]
    """(height, width) of the result."""
    tag: Any = None
    """The caller's own."""


class Strip(NamedTuple):
    """Rows of a result, in order from row 0; the last one ends at the result's height."""

    frame: Frame
    first: int
    labels: Tensor
    """(n, W) int64."""
    probabilities: Tensor
    """(n, W) float32."""


class Failure(NamedTuple):
    """An image that cannot be done, in place of its remaining strips."""

    tag: Any
    """The caller's own."""
    error: ValueError | OSError


class WholeResult(NamedTuple):
    """An image's strips put together, on the CPU."""

    tag: Any
    labels: NDArray[np.int64]
    """(H, W)."""
    probabilities: NDArray[np.float32]
    """(H, W)."""


class Job:
    """One image on its way: its windows, which of them are done, and which of its rows have come out."""

    def __init__(self, frame: Frame, windows: Sequence[Window], pad_multiple: int) -> None:
        self.frame = frame
        self.windows = windows
        self.mosaic = Mosaic(*frame.shape, pad_multiple)
        self.cut = 0
        self.finished: set[Window] = set()
        self.oldest = 0  # Windows before this one are all finished.
        self.rows_out = 0
        self.coarse: Any = None
        self.error: ValueError | OSError | None = None

    @classmethod
    def failed(cls, failure: Failure) -> Job:
        """One of which nothing will come but its error."""
        job = cls(Frame(None, (0, 0), (0, 0), failure.tag), (), 0)
        job.error = failure.error
        return job

    def put(self, window: Window, grid: Tensor) -> None:
        """A window's logits have come."""
        if self.error is not None:
            return
        self.mosaic.put(window, grid)
        self.finished.add(window)
        while self.oldest < len(self.windows) and self.windows[self.oldest] in self.finished:
            self.finished.discard(self.windows[self.oldest])
            self.oldest += 1

    @property
    def is_single(self) -> bool:
        """Whether one window, without padding, is the whole image."""
        return len(self.windows) == 1 and not any(
            padding(self.windows[0], self.mosaic.pad_multiple)
        )

    @property
    def final_rows(self) -> int:
        """Rows of the image, from the top, that no window will change any more."""
        if self.oldest < len(self.windows):
            return self.windows[self.oldest].top
        return self.frame.shape[0]

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.error is not None or self.rows_out == self.frame.size[0]


class Crop(NamedTuple):
    """A window's pixels, waiting for a batch."""

    job: Job
    window: Window
    pixels: Any

    @property
    def key(self) -> tuple[Any, ...]:
        """Crops of one key can share a batch."""
        coarse = None if self.job.coarse is None else self.job.coarse.key
        return self.window.height, self.window.width, coarse


class Stages(Protocol):
    """What is done to an image; see `Segmenter`."""

    def begin(self, frame: Frame) -> Job:
        """An image's windows, from top left to bottom right."""

    def cut(self, job: Job) -> Iterator[Crop]:
        """The pixels of each window, in the windows' order; ValueError or OSError where they cannot be read."""

    def limit(self, crop: Crop) -> int:
        """How many such windows may run together; ValueError where there is not even memory for one."""

    def run(self, crops: Sequence[Crop], limit: int) -> Iterable[Tensor]:
        """(Q, h, w) logits of each crop of a batch, which may hold `limit` of them."""

    def next_strip(self, job: Job) -> tuple[Tensor, Tensor] | None:
        """Labels and probabilities of the rows after `rows_out`; None while their windows are not done."""


def stream(stages: Stages, frames: Iterable[Frame | Failure]) -> Iterator[Strip | Failure]:
    """Segment images as they come.

    Args:
        stages: what is done to them.
        frames: images of any sizes, taken as batches need them; failures go through.

    Yields:
        Every image's strips, image by image in the order of `frames`; a `Failure` where an image's pixels cannot
        be read or its logits are no numbers.

    Raises:
        MemoryError: there is not enough for a single window.
    """
    return _Stream(stages).run(frames)


def whole_results(events: Iterable[Strip | Failure]) -> Iterator[WholeResult | Failure]:
    """Put each image's strips together; failures go through."""
    labels = probabilities = None
    for event in events:
        if isinstance(event, Failure):
            labels = probabilities = None
            yield event
            continue
        rows = slice(event.first, event.first + len(event.labels))
        if labels is None or probabilities is None:
            labels = np.empty(event.frame.size, np.int64)
            probabilities = np.empty(event.frame.size, np.float32)
        labels[rows] = event.labels.cpu().numpy()
        probabilities[rows] = event.probabilities.float().cpu().numpy()
        if rows.stop == event.frame.size[0]:
            yield WholeResult(event.frame.tag, labels, probabilities)
            labels = probabilities = None


class _Stream:
    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.jobs: deque[Job] = deque()
        self.waiting: dict[tuple[Any, ...], list[Crop]] = {}
        self.limits: dict[tuple[Any, ...], int] = {}

    def run(self, frames: Iterable[Frame | Failure]) -> Iterator[Strip | Failure]:
        for frame in frames:
            if isinstance(frame, Failure):
                self.jobs.append(Job.failed(frame))
                yield from self.strips()
                continue
            job = self.stages.begin(frame)
            self.jobs.append(job)
            try:
                for crop in self.stages.cut(job):
                    job.cut += 1
                    if self.enqueue(crop):
                        yield from self.strips()
            except (ValueError, OSError) as error:
                self.fail(job, error)
            while self.is_too_far_ahead():
                self.finish_first()
                yield from self.strips()
            yield from self.strips()
        while self.jobs:
            self.finish_first()
            yield from self.strips()

    def enqueue(self, crop: Crop) -> bool:
        """Whether the crop has filled a batch, which has then run."""
        key = crop.key
        if key not in self.limits:
            self.limits[key] = self.stages.limit(crop)
        self.waiting.setdefault(key, []).append(crop)
        if len(self.waiting[key]) < self.limits[key]:
            return False
        self.compute(key)
        return True

    def is_too_far_ahead(self) -> bool:
        """Whether images behind the first unfinished one hold more than they may."""
        behind = list(islice(self.jobs, 1, None))
        windows = sum(job.cut for job in behind)
        pixels = sum(job.frame.size[0] * job.frame.size[1] for job in behind)
        return windows > LOOK_AHEAD * max(self.limits.values(), default=1) or pixels > PIXELS_AHEAD

    def finish_first(self) -> None:
        """Run the batches, full or not, that the first image waits for."""
        first = self.jobs[0]
        for key in list(self.waiting):
            if any(crop.job is first for crop in self.waiting[key]):
                self.compute(key)

    def compute(self, key: tuple[Any, ...]) -> None:
        """Run the crops that wait under a key; in smaller batches from now on where memory runs out."""
        crops = deque(self.waiting.pop(key))
        alone = 0  # Crops that run by themselves, since one of them spoils its batch.
        while crops:
            count = 1 if alone else self.limits[key]
            batch = [crops.popleft() for _ in range(min(count, len(crops)))]
            alone = max(0, alone - 1)
            try:
                grids = list(self.stages.run(batch, self.limits[key]))
            except ValueError as error:
                if len(batch) == 1:
                    self.fail(batch[0].job, error)
                else:
                    crops.extendleft(reversed(batch))
                    alone = len(batch)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    height, width = key[:2]
                    raise MemoryError(
                        f"there is not enough memory for one window of {height} × {width} pixels: take a smaller "
                        "--window or --short-side, fewer classes, or --precision fp16 on a GPU"
                    ) from error
                crops.extendleft(reversed(batch))
                self.limits[key] = len(batch) // 2
            else:
                for crop, grid in zip(batch, grids, strict=True):
                    crop.job.put(crop.window, grid)
                continue
            # Outside the handler: its traceback would keep the failed batch's tensors.
            release()

    def strips(self) -> Iterator[Strip | Failure]:
        """What can come out now: strips of the first image, and of the next ones where it has ended."""
        while self.jobs:
            job = self.jobs[0]
            while not job.ended:
                first = job.rows_out
                try:
                    made = self.stages.next_strip(job)
                except ValueError as error:
                    self.fail(job, error)
                    break
                if made is None:
                    return
                job.rows_out += len(made[0])
                yield Strip(job.frame, first, *made)
            self.jobs.popleft()
            if job.error is not None:
                yield Failure(job.frame.tag, job.error)

    def fail(self, job: Job, error: ValueError | OSError) -> None:
        """Nothing more is done for this image."""
        job.error = error
        for key in list(self.waiting):
            self.waiting[key] = [crop for crop in self.waiting[key] if crop.job is not job]
