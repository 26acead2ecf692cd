"""Training batches: whole images, and mosaics of captioned images whose layout is known.

Knows the pool of scenes, crops of them, layouts (straight cuts, or cells with wavy borders) and which patch of the
grid belongs to which captioned image. A batch carries pixels, captions and this layout, and no mask: where a
thing is inside its own image is nowhere in it.

Does not know tokens, models or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resclip.builtin.model import MEAN, STD
from resclip.builtin.scenes import training_scene
from resclip.builtin.training.captions import Phrase, caption

SMALLEST_CELL = 3  # patches; a cell with fewer is left out of the losses
OWN_SHARE = 0.7  # of a patch's pixels must be of one cell, or the patch belongs to none


@dataclass(frozen=True)
class Pool:
    """Drawn scenes to take images of: images (N, S, S, 3) and masks (N, S, S), uint8."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    colours: list[dict[str, str]]
    centres: list[list[tuple[float, float, float]]]  # of each thing: x, y, height in scene units

    @classmethod
    def draw(
        cls, count: int, size: int = 160, tell: Callable[[int], None] = lambda done: None
    ) -> Pool:
        """Draw the first `count` training scenes; `tell(done)` is called after each."""
        images = np.empty((count, size, size, 3), np.uint8)
        masks = np.empty((count, size, size), np.uint8)
        colours, centres = [], []
        for index in range(count):
            scene = training_scene(index, size)
            images[index], masks[index] = scene.image, scene.mask
            colours.append(scene.colours)
            centres.append([(p.x, p.base - p.height / 2, p.height) for p in scene.plan.placements])
            tell(index + 1)
        return cls(images, masks, colours, centres)


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    pixels (B, 3, H, W) float32 normalised; cell_of_patch (B, n) int64, the image that a patch shows a part of, or
    -1; captions and phrases, one an image; whole, the images that fill canvas i, for i = 0..len(whole) - 1.
    """

    pixels: torch.Tensor
    cell_of_patch: torch.Tensor
    captions: list[str]
    phrases: list[tuple[Phrase, ...]]
    whole: list[int]


def normalised(images: NDArray[np.uint8] | NDArray[np.float32]) -> torch.Tensor:
    """(B, H, W, 3) in 0..255 -> (B, 3, H, W), CLIP's mean and deviation."""
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
    """An image of a random part of a random scene: pixels, labels, colours.

    `zoom` bounds the image's magnification of the pool's pixels. Four times out of ten the camera points at a
    thing, as cameras do; else anywhere. `close_ups` is the share of images taken from so near that little but the
    thing fits in.
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
    """(h·w,) the cell that holds OWN_SHARE of a patch's pixels, or -1.

    A cell that would have fewer than SMALLEST_CELL patches has none.
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
            here = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            inside = inside[here]
            tall, wide = inside.shape
            pixels, labels, colours = photograph(pool, generator, tall, wide, (0.5, 1.6), close_ups)
            canvases[index][here][inside] = pixels[inside]
            if (local == number).any():
                membership[index, local == number] = len(captions)
                text, said = caption(labels[inside], colours, generator)
                captions.append(text)
                phrases.append(said)
    return Batch(
        normalised(canvases), torch.from_numpy(membership), captions, phrases, list(range(whole))
    )
