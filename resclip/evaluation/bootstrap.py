"""How sure a mean IoU is: counts of single images, drawn again with replacement, alike for all that are compared.

The bootstrap of Efron & Tibshirani (1993): a dataset of N images is one draw of N from all that there are, and drawing
N of the N again, many times, shows how much a figure depends on the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.evaluation.checkpoint import DAMAGED, whole_numbers
from resclip_kernels import check_count

RESAMPLES = 2_000
"""How many times images are drawn: the ends of a 95 % interval are then the 50th values from either end."""
INTERVAL = 0.95
"""The share of the resamples that an interval holds."""


@dataclass(frozen=True)
class ImageCounts:
    """The confusion of each image of a dataset by itself, without the cells that are 0: some hundred bytes an image."""

    classes: int
    cells: dict[int, tuple[NDArray[np.int32], NDArray[np.int64]]]
    """By the image's index in its dataset: the flat cells of (C, C + 1) that are not 0, and their pixels."""

    @classmethod
    def empty(cls, classes: int) -> ImageCounts:
        """Of no image yet."""
        return cls(classes, {})

    def add(self, index: int, confusion: NDArray[np.int64]) -> None:
        """Keep an image's (C, C + 1) confusion."""
        flat = confusion.ravel()
        (cells,) = np.nonzero(flat)
        self.cells[index] = cells.astype(np.int32), flat[cells]

    def confusion(self, images: Sequence[int]) -> NDArray[np.int64]:
        """(C, C + 1): the sum over these images."""
        total = np.zeros(self.classes * (self.classes + 1), np.int64)
        for image in images:
            cells, pixels = self.cells[image]
            total[cells] += pixels
        return total.reshape(self.classes, self.classes + 1)

    def areas(self, images: Sequence[int]) -> NDArray[np.float64]:
        """(images, 3, C): of each class the pixels rightly named, those that have it, and those that got it."""
        found = np.zeros((len(images), 3, self.classes))
        for row, image in zip(found, images, strict=True):
            cells, pixels = self.cells[image]
            truth, predicted = np.divmod(cells, self.classes + 1)
            right, named = truth == predicted, predicted < self.classes
            np.add.at(row[0], truth[right], pixels[right])
            np.add.at(row[1], truth, pixels)
            np.add.at(row[2], predicted[named], pixels[named])
        return found

    def as_json(self) -> list[list[Any]]:
        """[index, cells, pixels] of each image."""
        return [
            [index, cells.tolist(), pixels.tolist()]
            for index, (cells, pixels) in sorted(self.cells.items())
        ]

    @classmethod
    def from_json(cls, classes: int, values: Any, images: int) -> ImageCounts:
        """What `as_json` gave, of a dataset of so many images; ValueError for anything else."""
        counts = cls.empty(classes)
        try:
            for index, cells, pixels in values:
                numbers, sums = whole_numbers(cells), whole_numbers(pixels)
                (number,) = whole_numbers([index])
                if (
                    number >= images
                    or len(numbers) != len(sums)
                    or len(set(numbers)) < len(numbers)
                ):
                    raise ValueError("no image of the dataset, or cells that do not fit")
                if numbers and max(numbers) >= classes * (classes + 1):
                    raise ValueError("no cell of the confusion")
                counts.cells[number] = np.array(numbers, np.int32), np.array(sums, np.int64)
        except DAMAGED as error:
            raise ValueError(f"expected counts of images: {error}") from error
        return counts


def halves(count: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """The numbers from 0 to count − 1, dealt at random into two halves, each in order; the first gets an odd one."""
    check_count("count", count, 2)
    order = np.random.default_rng([seed, 0]).permutation(count)
    middle = (count + 1) // 2
    return sorted(order[:middle].tolist()), sorted(order[middle:].tolist())


def draws(images: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """(resamples, images): how often each image is drawn, `images` in all, with replacement."""
    check_count("images", images, 1)
    check_count("resamples", resamples, 1)
    generator = np.random.default_rng([seed, 1])
    return generator.multinomial(images, np.full(images, 1 / images), resamples).astype(np.float64)


def mious(areas: NDArray[np.float64], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mIoU in per cent of each draw, as `metrics.scores_of` has it: areas are summed over images, then divided.

    Args:
        areas: (images, 3, C), as `ImageCounts.areas` gives them.
        drawn: (resamples, images), as `draws` gives them.

    Returns:
        (resamples,); NaN where no class is there or predicted.
    """
    images, _, classes = areas.shape
    hits, truth, predicted = np.moveaxis(
        (drawn @ areas.reshape(images, 3 * classes)).reshape(len(drawn), 3, classes), 1, 0
    )
    union = truth + predicted - hits
    there = union > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=there)
    means = np.full(len(drawn), np.nan)
    np.divide(100 * iou.sum(1), there.sum(1), out=means, where=there.any(1))
    return means


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the percentile interval that holds `INTERVAL` of the values."""
    tail = (1 - INTERVAL) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)


def share_ahead(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """In what share of the resamples the first are above the second, drawn alike; equal ones count half."""
    return float(np.mean((values > others) + 0.5 * (values == others)))
