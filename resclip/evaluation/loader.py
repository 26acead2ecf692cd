"""Groups of images, read and resized ahead of their use, in worker processes where that helps.

Knows samples, and that an image becomes pixels of another size. Knows no model, no class names and no counts.

What cannot be read is named and left out; its group goes on. What leaves a worker is bytes: a quarter of what
normalised pixels would be.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resclip.evaluation.datasets.base import IGNORED, Problem, Sample
from resclip.inference.prefetch import available_cores
from resclip.inference.preprocessing import Preparation
from resclip.io.images import ImageError

AHEAD = 2
"""Groups that each worker reads ahead."""

MAX_WORKERS = 8
"""Reading and resizing takes 13 ms for a photograph of 500 × 375, 145 ms for one of 2048 × 1024: eight workers give 600
or 55 images a second."""


@dataclass(frozen=True)
class Loaded:
    """A sample that could be read."""

    index: int
    """Of the sample in its set."""
    pixels: Tensor
    """(H', W', 3) uint8: the image, resized."""
    truth: Tensor
    """(H, W) uint8: class indices and `IGNORED`."""
    image: Tensor | None
    """(H, W, 3) uint8: as it was read; None where nobody asked for it."""

    def pin_memory(self) -> Loaded:
        """With the pixels where a GPU can fetch them by itself."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class Group:
    """Neighbouring samples that are measured together."""

    number: int
    loaded: tuple[Loaded, ...]
    problems: tuple[Problem, ...]
    """Of samples that could not be read."""

    def pin_memory(self) -> Group:
        """See `Loaded`."""
        return replace(self, loaded=tuple(sample.pin_memory() for sample in self.loaded))


@dataclass(frozen=True)
class Reader(Dataset[Group]):
    """Reads groups by number; all that a worker is given.

    Args:
        samples: of the whole set.
        group_size: samples a group; the last has what remains.
        classes: how many there are.
        preparation: what is done to an image.
        keep_images: whether `Loaded.image` is wanted.
    """

    samples: Sequence[Sample]
    group_size: int
    classes: int
    preparation: Preparation
    keep_images: bool

    def __getitem__(self, number: int) -> Group:
        """The group of samples number · group_size and following."""
        first = number * self.group_size
        loaded, problems = [], []
        for index, sample in enumerate(self.samples[first : first + self.group_size], first):
            try:
                loaded.append(self.load(index, sample))
            except (ImageError, OSError) as error:
                problems.append(Problem(sample.name, str(error)))
        return Group(number, tuple(loaded), tuple(problems))

    def load(self, index: int, sample: Sample) -> Loaded:
        """One sample.

        Raises:
            ImageError, OSError: it cannot be read, or its truth does not fit.
        """
        image, truth = sample.image.read(), sample.truth.read()
        self.check(image, truth)
        return Loaded(
            index,
            torch.tensor(self.preparation.resize(image)),
            torch.tensor(truth),
            torch.tensor(image) if self.keep_images else None,
        )

    def check(self, image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """ImageError where the truth is not one of this image, or not of these classes."""
        if truth.shape != image.shape[:2]:
            height, width = image.shape[:2]
            raise ImageError(
                f"expected a mask of the image's size, {height} × {width} pixels, got one of "
                f"{' × '.join(map(str, truth.shape))}; check that they belong together"
            )
        strange = truth[(truth >= self.classes) & (truth != IGNORED)]
        if strange.size:
            raise ImageError(
                f"expected a mask with classes 0 to {self.classes - 1} and {IGNORED} where nothing counts, got "
                f"{strange.max()} in {strange.size:,} pixels; check that it belongs to this dataset"
            )


def read_ahead(
    reader: Reader, numbers: Sequence[int], workers: int, *, pin: bool = False
) -> Generator[Group, None, None]:
    """The groups of these numbers, in this order.

    Args:
        reader: reads them.
        numbers: which groups.
        workers: processes that read; 0: this one, when the next group is asked for.
        pin: whether the pixels go to a GPU.

    Raises:
        RuntimeError: a worker was ended from outside.
    """
    if not numbers:
        return
    workers = min(workers, len(numbers))
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=pin,
        generator=torch.Generator(),  # Else it draws a seed for the workers from everybody's.
    )
    try:
        yield from loader
    except Exception as error:
        # Its traceback keeps the workers, in a circle: the garbage collector would then wait 5 s for each.
        traceback.clear_frames(error.__traceback__)
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RuntimeError(
            f"a process that reads images was ended from outside ({str(error).splitlines()[0]}), for want of "
            "memory or of shared memory (/dev/shm) most likely: use fewer workers, or 0"
        ) from error


def sensible_workers(device: torch.device) -> int:
    """How many workers keep a device busy: for a GPU one a core but one; 0 on one core.

    None for a CPU that computes itself: it takes a second or more for what a worker would read in 13 ms. The processes
    that torchrun started on a machine share its cores.
    """
    if device.type == "cpu":
        return 0
    share = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(0, min(share - 1, MAX_WORKERS))
