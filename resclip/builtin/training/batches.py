"""Training batches: whole images, and mosaics of captioned images whose layout is known.

A batch has pixels, captions and, for each patch, which captioned image it shows; it has no mask, so where a thing is
inside its own image is nowhere in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from resclip.builtin.scenes import training_scene
from resclip.builtin.training.captions import Phrase, caption
from resclip.builtin.training.model import MEAN, STD

SMALLEST_CELL = 3
"""Patches that a cell of a mosaic has at least; a smaller one is left out of the losses."""
OWN_SHARE = 0.7
"""Share of a patch's pixels that must be of one cell, or the patch belongs to none."""


@dataclass(frozen=True)
class Pool:
    """Drawn scenes to crop images from: images (N, S, S, 3) and masks (N, S, S), uint8."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    colours: list[dict[str, str]]
    centres: list[list[tuple[float, float, float]]]  # Of each thing: x, y, height in scene units.

    @classmethod
    def draw(cls, count: int, size: int = 160, *, progress: bool = False) -> Pool:
        """Draw the first `count` training scenes; `progress` draws a progress bar."""
        images = np.empty((count, size, size, 3), np.uint8)
        masks = np.empty((count, size, size), np.uint8)
        colours, centres = [], []
        for index in tqdm(range(count), "scenes", disable=not progress):
            scene = training_scene(index, size)
            images[index], masks[index] = scene.image, scene.mask
            colours.append(scene.colours)
            centres.append([(p.x, p.base - p.height / 2, p.height) for p in scene.plan.placements])
        return cls(images, masks, colours, centres)


@dataclass(frozen=True)
class Batch:
    """The input of one training step."""

    pixels: torch.Tensor
    """(B, 3, H, W) float32, normalised: the canvases."""
    cell_of_patch: torch.Tensor
    """(B, n) int64: the number of the image that a patch of a canvas shows, or -1."""
    captions: list[str]
    """The caption of each image."""
    phrases: list[tuple[Phrase, ...]]
    """The phrases of each image's caption."""
    whole: list[int]
    """The images that fill the first canvases, one each."""


def normalised(images: NDArray[np.uint8] | NDArray[np.float32]) -> torch.Tensor:
    """(B, H, W, 3) in 0..255 → (B, 3, H, W), normalised by CLIP's mean and standard deviation."""
    mean, deviation = np.array(MEAN, np.float32), np.array(STD, np.float32)
    scaled = (np.asarray(images, np.float32) / 255.0 - mean) / deviation
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def photograph(
    pool: Pool,
    generator: np.random.Generator,
    height: int,
    width: int,
    zoom: tuple[float, float],
    close_ups: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.uint8], dict[str, str]]:
    """A random crop of a random scene: pixels, labels, colours.

    `zoom` bounds the magnification of the pool's pixels. Four times out of ten the crop is of a thing, as photographs
    mostly are; else of anywhere. `close_ups` is the share of crops so near that they show little but the thing.
    """
    index = int(generator.integers(len(pool.images)))
    size = pool.masks.shape[1]
    magnification = float(np.exp(generator.uniform(*np.log(zoom))))
    close = close_ups > 0 and bool(pool.centres[index]) and generator.random() < close_ups
    if close:
        subject = pool.centres[index][int(generator.integers(len(pool.centres[index])))]
        magnification = max(height, width) / (
            float(generator.uniform(0.35, 0.9)) * subject[2] * size
        )
    magnification = max(magnification, max(height, width) / size)
    rows, columns = height / magnification, width / magnification
    top, left = generator.uniform(0, 1, 2) * (size - rows, size - columns)
    if close or (pool.centres[index] and generator.random() < 0.4):
        if not close:
            subject = pool.centres[index][int(generator.integers(len(pool.centres[index])))]
        x, y, tall = subject
        offset = generator.normal(0, (0.12 if close else 0.25) * tall, 2)
        top = float(np.clip((y + offset[0]) * size - rows / 2, 0, size - rows))
        left = float(np.clip((x + offset[1]) * size - columns / 2, 0, size - columns))
    frame = (float(left), float(top), float(left + columns), float(top + rows))
    shape = (width, height)
    image = Image.fromarray(pool.images[index]).resize(shape, Image.Resampling.BILINEAR, box=frame)
    mask = Image.fromarray(pool.masks[index]).resize(shape, Image.Resampling.NEAREST, box=frame)
    pixels, labels = np.asarray(image, np.float32), np.asarray(mask)
    if generator.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    contrast, brightness = generator.uniform(0.88, 1.12), generator.uniform(-14, 14)
    pixels = np.clip((pixels - 128) * np.float32(contrast) + 128 + np.float32(brightness), 0, 255)
    return pixels, labels, pool.colours[index]


def straight_cuts(size: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(size, size) cell numbers: the largest rectangle is cut in two until there are `count`."""
    cells = [(0, 0, size, size)]
    while len(cells) < count:
        cells.sort(key=lambda cell: cell[2] * cell[3])
        y, x, height, width = cells.pop()
        share = generator.uniform(0.35, 0.65)
        if height * generator.uniform(0.8, 1.25) > width:
            cut = int(height * share)
            cells += [(y, x, cut, width), (y + cut, x, height - cut, width)]
        else:
            cut = int(width * share)
            cells += [(y, x, height, cut), (y, x + cut, height, width - cut)]
    owner = np.zeros((size, size), np.int64)
    for number, (y, x, height, width) in enumerate(cells):
        owner[y : y + height, x : x + width] = number
    return owner


def wavy_cells(size: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(size, size) cell numbers: each pixel belongs to its nearest of `count` points, on a rippled plane.

    Borders look like the borders of things, so that a model cannot tell a change of image from a change of thing.
    """
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    amplitude, frequency, phase = (
        generator.uniform(low, high, 2) for low, high in ((0, 0.09), (4, 14), (0, 6.3))
    )
    rippled_y = y + amplitude[0] * np.sin(frequency[0] * x + phase[0])
    rippled_x = x + amplitude[1] * np.sin(frequency[1] * y + phase[1])
    points = generator.uniform(0.02, 0.98, (count, 2))
    stretch = float(np.exp(generator.uniform(-0.5, 0.5)))
    distance = (rippled_y[None] - points[:, 0, None, None]) ** 2 * stretch
    distance += (rippled_x[None] - points[:, 1, None, None]) ** 2 / stretch
    return np.asarray(distance.argmin(0), np.int64)


def cells_of_patches(owner: NDArray[np.int64], patch: int) -> NDArray[np.int64]:
    """(h·w,): the cell that has OWN_SHARE of a patch's pixels, or -1.

    A cell with fewer than SMALLEST_CELL patches loses them.
    """
    grid = owner.shape[0] // patch
    blocks = owner[: grid * patch, : grid * patch].reshape(grid, patch, grid, patch)
    pixels = blocks.transpose(0, 2, 1, 3).reshape(grid * grid, patch * patch)
    shares = np.stack([(pixels == number).mean(1) for number in range(int(owner.max()) + 1)], 1)
    cells = np.where(shares.max(1) >= OWN_SHARE, shares.argmax(1), -1)
    for number in range(shares.shape[1]):
        if (cells == number).sum() < SMALLEST_CELL:
            cells[cells == number] = -1
    return cells


def draw_batch(
    pool: Pool,
    generator: np.random.Generator,
    whole: int,
    mosaics: int,
    size: int = 112,
    patch: int = 8,
    cells: tuple[int, int] = (3, 10),
    close_ups: float = 0.0,
) -> Batch:
    """`whole` images that fill a canvas each, then `mosaics` canvases of `cells` (from, to) images."""
    canvases = np.zeros((whole + mosaics, size, size, 3), np.float32)
    membership = np.full((whole + mosaics, (size // patch) ** 2), -1, np.int64)
    captions: list[str] = []
    phrases: list[tuple[Phrase, ...]] = []
    for index in range(whole):
        pixels, labels, colours = photograph(pool, generator, size, size, (0.7, 1.6))
        canvases[index] = pixels
        membership[index] = index
        text, said = caption(labels, colours, generator)
        captions.append(text)
        phrases.append(said)
    for index in range(whole, whole + mosaics):
        layout = wavy_cells if generator.random() < 0.6 else straight_cuts
        owner = layout(size, int(generator.integers(cells[0], cells[1] + 1)), generator)
        local = cells_of_patches(owner, patch)
        for number in np.unique(owner):
            inside = owner == number
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            inside = inside[box]
            tall, wide = inside.shape
            pixels, labels, colours = photograph(pool, generator, tall, wide, (0.5, 1.6), close_ups)
            canvases[index][box][inside] = pixels[inside]
            if (local == number).any():
                membership[index, local == number] = len(captions)
                text, said = caption(labels[inside], colours, generator)
                captions.append(text)
                phrases.append(said)
    return Batch(
        normalised(canvases), torch.from_numpy(membership), captions, phrases, list(range(whole))
    )
