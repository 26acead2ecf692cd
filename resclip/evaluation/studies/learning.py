"""SCLIP's learned projection: a matrix by which patches of a class attend to each other, from a few labelled images.

SCLIP: arXiv 2312.01597, section 4.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from resclip.evaluation.datasets.base import Dataset, DatasetError
from resclip.evaluation.studies.patches import UNLABELLED, LabelledImage, LabelledImages, spread
from resclip.io.files import make_folder, write_atomically
from resclip.methods.correlation import PROJECTION
from resclip.models.tower import split_heads
from resclip.segmenter import Segmenter

TRAINING_SPLITS = {
    "builtin": "validation",
    "voc21": "train",
    "voc20": "train",
    "context60": "train",
    "context59": "train",
    "coco-object": "train2017",
    "coco-stuff": "train2017",
    "cityscapes": "train",
    "ade20k": "training",
}
"""The part of each dataset that nothing is measured on."""
MOST_HELD_OUT = 4
"""Of a dataset without such a part at most one image in so many is learned from, and left out of the measurement."""


@dataclass(frozen=True)
class LearningOptions:
    """How a projection is learned."""

    images: int = 64
    """From at most so many images, evenly spread over their part; SCLIP's own number."""
    patches: int = 256
    """Of an image at most so many labelled patches, evenly spread, are compared with each other."""
    steps: int = 200
    """Steps of Adam."""
    batch: int = 8
    """Images per step, drawn anew for each."""
    rate: float = 1e-3
    """Adam's step size."""
    seed: int = 0


class Patches(NamedTuple):
    """The labelled patches of one image."""

    normed: Tensor
    """(m, D) float32: the final block's LN1."""
    labels: Tensor
    """(m,) int64."""


class NamedPatches(NamedTuple):
    """The patches of one image of a dataset."""

    name: str
    patches: Patches


@dataclass(frozen=True)
class Learned:
    """A projection and what it came to on the images that it was learned from."""

    matrix: Tensor
    """(D, D) float32, by which x is multiplied."""
    share_before: float
    """Of a patch's attention to other patches, the share on those of its own class, with the identity: 0 to 1."""
    share_after: float
    """The same with `matrix`."""


def learning_part(
    dataset: Dataset, most: int, open_split: Callable[[str], Dataset]
) -> tuple[Dataset, Dataset]:
    """What to measure on, and what to learn from: no image is in both.

    The dataset's training part where it has one that can be opened. Else images of the dataset itself, evenly spread,
    at most one in `MOST_HELD_OUT`; these are left out of the measurement.

    Args:
        dataset: that is to be measured on.
        most: images to learn from.
        open_split: opens another split of the same dataset.

    Raises:
        DatasetError: too few images to hold any out.
    """
    split = TRAINING_SPLITS.get(dataset.name)
    if split is not None and split != dataset.split:
        try:
            part = open_split(split)
        except (DatasetError, OSError):
            part = None
        if part is not None:
            names = {sample.name for sample in dataset.samples}
            samples = tuple(sample for sample in part.samples if sample.name not in names)
            if samples:
                return dataset, replace(part, samples=samples)
    count = len(dataset)
    held = set(spread(count, min(most, count // MOST_HELD_OUT)))
    if not held:
        raise DatasetError(
            f"{dataset.name}: expected at least {MOST_HELD_OUT} images to hold one out that a projection is learned "
            f"from, got {count}: name a larger split, or leave the learned projection out by --learn-images 0"
        )
    parts = [
        tuple(sample for index, sample in enumerate(dataset.samples) if (index in held) is is_held)
        for is_held in (False, True)
    ]
    words = f"{dataset.description}, without {len(held)} that a projection is learned from"
    measured = replace(dataset, samples=parts[0], description=words)
    return measured, replace(dataset, samples=parts[1], problems=())


def collect(segmenter: Segmenter, dataset: Dataset, options: LearningOptions) -> list[NamedPatches]:
    """The patches that a projection is learned from: of the middle window of each image, as the segmenter cuts it."""
    found = []
    encoder = segmenter.encoder
    tower = encoder.tower
    for image in LabelledImages(dataset, segmenter, options.images):
        pixels, labels = middle_window(image, segmenter.pipeline.window, tower.patch_size)
        with torch.no_grad():
            inputs = encoder.run_blocks(pixels)
            normed = tower.norm(tower.block_list[-1], inputs.tokens)[0, int(tower.has_cls) :]
        flat = labels.ravel()
        counted = np.flatnonzero(flat != UNLABELLED)
        chosen = counted[spread(len(counted), options.patches)] if len(counted) else counted
        # A patch has to have others of its class, and others of another class, to learn anything from.
        classes, sizes = np.unique(flat[chosen], return_counts=True)
        if len(classes) > 1 and sizes.max() > 1:
            index = torch.from_numpy(chosen).to(normed.device)
            chosen_patches = Patches(
                normed[index].float(), torch.from_numpy(flat[chosen]).to(normed.device)
            )
            found.append(NamedPatches(image.name, chosen_patches))
    return found


def middle_window(
    image: LabelledImage, window: int, patch_size: tuple[int, int]
) -> tuple[Tensor, NDArray[np.int64]]:
    """The pixels and the patches' labels of a window in the middle of an image; of all of it where `window` is 0."""
    pixels, labels = image.pixels, image.labels()
    for axis, (patches, side) in enumerate(zip(image.grid, patch_size, strict=True)):
        kept = min(patches, max(1, window // side)) if window else patches
        first = (patches - kept) // 2
        pixels = pixels.narrow(2 + axis, first * side, kept * side)
        labels = labels.take(range(first, first + kept), axis=axis)
    return pixels, labels


def class_attention(patches: Patches, matrix: Tensor, heads: int) -> Tensor:
    """log of the share of each patch's attention that lies on other patches of its class, per head.

    The attention is SCLIP's, softmax(x W (x W)ᵀ / √d), over all other patches: with the patch itself W could attend
    to nothing else.

    Returns:
        (A, m'), for the m' patches that have others of their class.
    """
    projected = split_heads((patches.normed @ matrix).unsqueeze(0), heads)[0]
    score = projected @ projected.mT / math.sqrt(projected.shape[-1])
    own = torch.eye(score.shape[-1], dtype=torch.bool, device=score.device)
    same = (patches.labels[:, None] == patches.labels[None, :]) & ~own
    score = score.masked_fill(own, -torch.inf)
    inside = score.masked_fill(~same, -torch.inf).logsumexp(dim=-1)
    return (inside - score.logsumexp(dim=-1))[:, same.any(dim=-1)]


def learn(images: Sequence[Patches], heads: int, options: LearningOptions) -> Learned:
    """The matrix W that maximises the attention of patches to others of their class, from the identity on.

        loss = −mean log Σ_{j of i's class, j ≠ i} softmax_{j ≠ i}(x_i W (x_j W)ᵀ / √d)

    over patches i, heads and images. It is one matrix of D × D, cut into heads as q is. The result depends on the
    images and the options alone.

    Raises:
        ValueError: no image has two classes, one of them in two patches.
    """
    if not images:
        raise ValueError(
            "expected images with patches of several classes to learn a projection from, got none: learn from other "
            "images, or leave the learned projection out"
        )
    width, device = images[0].normed.shape[1], images[0].normed.device
    matrix = torch.eye(width, device=device).requires_grad_()

    def share(weights: Tensor) -> float:
        with torch.no_grad():
            means = [class_attention(image, weights, heads).exp().mean() for image in images]
        return float(torch.stack(means).mean())

    before = share(matrix)
    generator = torch.Generator().manual_seed(options.seed)
    optimiser = torch.optim.Adam([matrix], lr=options.rate)
    for _ in range(options.steps):
        drawn = torch.randperm(len(images), generator=generator)[: options.batch].tolist()
        losses = [-class_attention(images[number], matrix, heads).mean() for number in drawn]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    learned = matrix.detach().cpu()
    return Learned(learned, before, share(matrix.detach()))


def projection_path(
    folder: Path, segmenter: Segmenter, dataset: Dataset, options: LearningOptions
) -> Path:
    """The file of a projection: its name says by a digest what it was learned from, and how."""
    kept = ("model", "pretrained", "short_side", "window", "precision")
    settings = {name: segmenter.settings.get(name) for name in kept}
    names = [sample.name for sample in dataset.samples]
    conditions = json.dumps([settings, dataset.name, dataset.split, names, asdict(options)])
    digest = hashlib.sha256(conditions.encode(errors="surrogatepass")).hexdigest()[:8]
    return folder / f"projection_{dataset.name}_{digest}.safetensors"


def learned_file(
    folder: Path, segmenter: Segmenter, dataset: Dataset, options: LearningOptions
) -> tuple[Path, str]:
    """A projection's file, which is made unless it is there, and a sentence on what it was learned from.

    The file's metadata holds that sentence, the options and the names of the images.

    Raises:
        ValueError: as `learn`.
        OSError: the file cannot be written.
    """
    path = projection_path(folder, segmenter, dataset, options)
    if not path.exists():
        images = collect(segmenter, dataset, options)
        learned = learn([image.patches for image in images], segmenter.encoder.tower.heads, options)
        sentence = (
            f"{dataset.name}: W_r is learned from {len(images)} of {dataset.description}, in {options.steps} steps "
            f"from the identity: of a patch's attention to the other patches of its image, "
            f"{learned.share_before:.1%} lay on its own class before, {learned.share_after:.1%} after."
        )
        metadata = {
            "learned": sentence,
            "options": json.dumps(asdict(options)),
            "images": json.dumps([image.name for image in images]),
        }
        content = safetensors.torch.save({PROJECTION: learned.matrix.contiguous()}, metadata)
        make_folder(folder)
        write_atomically(path, content)
    with safetensors.safe_open(path, framework="pt") as file:
        found = file.metadata() or {}
    return path, found.get("learned", f"{dataset.name}: W_r comes from {path}.")
