"""Labelled patches: the images of a dataset one by one, and the class of each patch, for studies of patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.encoder.final_block import FinalInputs
from resclip.evaluation.datasets.base import IGNORED, Dataset, Problem
from resclip.evaluation.loader import Reader
from resclip.io.images import PixelArray
from resclip.methods.catalogue import RCS
from resclip.segmenter import Segmenter

UNLABELLED = -1
"""The label of a patch none of whose pixels count."""


@dataclass(frozen=True)
class LabelledImage:
    """An image as the model sees it, with its true classes."""

    name: str
    image: PixelArray
    """(H, W, 3) uint8, as it was read."""
    pixels: Tensor
    """(1, 3, h·P, w·P), resized, normalised and cut to whole patches, on the model's device."""
    grid: tuple[int, int]
    """(h, w) in patches of the tower."""
    cover: tuple[float, float]
    """Fractions of the image's height and width that the patches cover, from the top left."""
    truth: PixelArray
    """(H, W) uint8 at the image's own size: class indices and `IGNORED`."""

    def labels(self, grid: tuple[int, int] | None = None) -> NDArray[np.int64]:
        """The class of each patch of a grid over the same part of the image; None: of the tower's."""
        return patch_classes(self.truth, grid or self.grid, self.cover)


@dataclass
class LabelledImages:
    """Some images of a dataset, read one by one.

    Args:
        dataset: whose images.
        segmenter: whose model sees them; they are resized as it does, and seen whole.
        most: at most this many images, evenly spread over the dataset.
    """

    dataset: Dataset
    segmenter: Segmenter
    most: int
    problems: list[Problem] = field(default_factory=list)
    """Those that could not be read, so far."""

    def __iter__(self) -> Iterator[LabelledImage]:
        samples = self.dataset.samples
        chosen = [samples[index] for index in spread(len(samples), self.most)]
        classes = len(self.dataset.entries)
        reader = Reader(chosen, 1, classes, self.segmenter.preparation, keep_originals=True)
        self.problems.clear()
        for number, sample in enumerate(chosen):
            group = reader[number]
            self.problems += group.problems
            for one in group.images:
                original = one.original
                if original is not None:
                    pixels = self.segmenter.preparation.normalise(
                        one.pixels.to(self.segmenter.device)
                    )
                    yield whole_patches(
                        self.segmenter, sample.name, original.numpy(), pixels, one.truth.numpy()
                    )


def whole_patches(
    segmenter: Segmenter, name: str, image: PixelArray, pixels: Tensor, truth: PixelArray
) -> LabelledImage:
    """An image cut to whole patches.

    Args:
        image: (H, W, 3) uint8.
        pixels: (3, H', W') of it, resized and normalised.
        truth: (H, W) uint8.
    """
    tower = segmenter.encoder.tower
    height, width = pixels.shape[1:]
    grid = tower.grid(height, width)
    rows, columns = grid[0] * tower.patch_size[0], grid[1] * tower.patch_size[1]
    cut = pixels[None, :, :rows, :columns]
    return LabelledImage(name, image, cut, grid, (rows / height, columns / width), truth)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to `count` − 1, evenly spread, the first among them."""
    wanted = min(count, most)
    return [number * count // wanted for number in range(wanted)]


def patch_classes(
    truth: PixelArray, grid: tuple[int, int], cover: tuple[float, float] = (1.0, 1.0)
) -> NDArray[np.int64]:
    """The most frequent class of each patch's pixels that count, the smallest on a tie; `UNLABELLED` where none counts.

    Args:
        truth: (H, W) uint8: classes and `IGNORED`.
        grid: (h, w) of the patches.
        cover: fractions of the height and width that they cover; pixels beyond belong to no patch.

    Returns:
        (h, w) int64.
    """
    numbers = []
    for length, patches, share in zip(truth.shape, grid, cover, strict=True):
        centres = (np.arange(length) + 0.5) / (length * share)
        numbers.append(np.floor(centres * patches).astype(np.int64))
    rows, columns = numbers
    patch = rows[:, None] * grid[1] + columns[None, :]
    counted = (truth != IGNORED) & (rows < grid[0])[:, None] & (columns < grid[1])[None, :]
    classes = int(truth[counted].max()) + 1 if counted.any() else 1
    votes = np.bincount(
        patch[counted] * classes + truth[counted], minlength=grid[0] * grid[1] * classes
    ).reshape(grid[0] * grid[1], classes)
    labels = np.where(votes.any(axis=1), votes.argmax(axis=1), UNLABELLED)
    return labels.reshape(grid)


def recording_encoder(segmenter: Segmenter) -> DenseEncoder:
    """An encoder of the same tower that keeps q and k of every block, for `queries_and_keys`."""
    encoder = segmenter.encoder
    depth = encoder.tower.depth
    rcs = RCS(layers=tuple(range(1, depth))) if depth > 1 else None
    return DenseEncoder(encoder.tower, "clip", rcs, implementation=encoder.implementation)


def queries_and_keys(inputs: FinalInputs) -> list[tuple[Tensor, Tensor]]:
    """(q, k) of every block of a `recording_encoder`, (1, A, L, d) each."""
    return [*inputs.cross_layers, (inputs.query, inputs.key)]
