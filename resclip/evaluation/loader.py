"""Groups of images, read and resized before they are needed, in worker processes where that helps.

A worker sends bytes: a quarter of what normalised pixels would be. What cannot be read is named and left out.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resclip.errors import describe
from resclip.evaluation.datasets.base import IGNORED, Problem, Sample
from resclip.inference.prefetch import available_cores
from resclip.inference.preprocessing import Preparation
from resclip.io.images import ImageError

PREFETCHED_GROUPS = 2
"""How many groups each worker reads before they are needed."""

MAX_WORKERS = 8
"""The most workers that are started by default. Reading and resizing takes 13 ms for a photograph of 500 × 375 pixels
and 145 ms for one of 2048 × 1024: eight workers give 600 or 55 images per second."""


@dataclass(frozen=True)
class LoadedImage:
    """A sample that could be read."""

    index: int
    """The sample's index in its dataset."""
    pixels: Tensor
    """(H', W', 3) uint8: the image, resized."""
    truth: Tensor
    """(H, W) uint8: class indices and `IGNORED`."""
    original: Tensor | None
    """(H, W, 3) uint8: the image as it was read; None if it is not needed."""
    absent: Tensor | None
    """(H, W) bool: where the image has no data; None: nowhere."""

    def pin_memory(self) -> LoadedImage:
        """The same with pixels that a GPU can fetch by itself; the data loader calls this."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class Group:
    """Neighbouring samples that are segmented together."""

    number: int
    images: tuple[LoadedImage, ...]
    problems: tuple[Problem, ...]
    """The samples that could not be read."""

    def pin_memory(self) -> Group:
        """See `LoadedImage.pin_memory`."""
        return replace(self, images=tuple(image.pin_memory() for image in self.images))


@dataclass(frozen=True)
class Reader(Dataset[Group]):
    """Reads groups by number; everything that a worker process needs.

    Args:
        samples: all samples of the dataset.
        group_size: samples in a group; the last group has the rest.
        classes: the number of classes.
        preparation: resizes images.
        keep_originals: whether `LoadedImage.original` is needed.
    """

    samples: Sequence[Sample]
    group_size: int
    classes: int
    preparation: Preparation
    keep_originals: bool

    def __getitem__(self, number: int) -> Group:
        """The samples from number · group_size on."""
        first = number * self.group_size
        images, problems = [], []
        for index, sample in enumerate(self.samples[first : first + self.group_size], first):
            try:
                images.append(self.load(index, sample))
            except (ImageError, OSError) as error:
                problems.append(Problem(sample.name, describe(error)))
            except MemoryError:
                why = "expected an image and a mask that fit into memory, got too little of it; scale them down"
                problems.append(Problem(sample.name, why))
        return Group(number, tuple(images), tuple(problems))

    def load(self, index: int, sample: Sample) -> LoadedImage:
        """One sample.

        Raises:
            ImageError, OSError: it cannot be read, or its mask does not fit the image or the classes.
        """
        picture, truth = sample.image.read(), sample.truth.read()
        image, absent = picture.pixels, picture.absent
        if truth.shape != image.shape[:2]:
            height, width = image.shape[:2]
            raise ImageError(
                f"expected a mask of the image's size, {height} × {width} pixels, got one of "
                f"{' × '.join(map(str, truth.shape))}; check that they belong together"
            )
        invalid = truth[(truth >= self.classes) & (truth != IGNORED)]
        if invalid.size:
            raise ImageError(
                f"expected a mask with classes 0 to {self.classes - 1} and {IGNORED} where nothing counts, got "
                f"{invalid.max()} in {invalid.size:,} pixels; check that it belongs to this dataset"
            )
        return LoadedImage(
            index,
            torch.tensor(self.preparation.resize(image)),
            torch.tensor(truth),
            torch.tensor(image) if self.keep_originals else None,
            torch.tensor(absent) if absent is not None and absent.any() else None,
        )


def prefetch_groups(
    reader: Reader, numbers: Sequence[int], workers: int, *, pin: bool = False
) -> Generator[Group, None, None]:
    """The groups of these numbers, in this order.

    Args:
        reader: reads them.
        numbers: the numbers of the groups.
        workers: processes that read; 0: this one reads a group when it is requested.
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
        prefetch_factor=PREFETCHED_GROUPS if workers else None,
        pin_memory=pin,
        generator=torch.Generator(),  # Otherwise it draws the workers' seed from torch's global generator.
    )
    try:
        yield from loader
    except Exception as error:
        # The traceback refers to the workers in a cycle: the garbage collector would then wait 5 s for each.
        traceback.clear_frames(error.__traceback__)
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RuntimeError(
            f"a process that reads images was ended from outside ({str(error).splitlines()[0]}), for want of "
            "memory or of shared memory (/dev/shm) most likely: use fewer workers, or 0"
        ) from error


def default_workers(device: torch.device) -> int:
    """How many workers keep a device busy: one per core for a GPU, one core left free.

    0 on the CPU, which takes a second or more for what a worker reads in 13 ms. The processes that torchrun started on
    a machine share its cores.
    """
    if device.type == "cpu":
        return 0
    share = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(0, min(share - 1, MAX_WORKERS))
