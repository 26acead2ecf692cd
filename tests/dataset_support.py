"""Tiny replicas of datasets on disk: images, masks, and what reading them gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from resclip.evaluation.datasets.base import Dataset


def save_image(path: Path, height: int, width: int) -> np.ndarray:
    """Noise, as PNG or JPEG by the name; returns the pixels that a PNG holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(height * 1000 + width)
    pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save_mask(path: Path, values: np.ndarray) -> None:
    """8-bit greyscale, as the archives of Cityscapes, ADE20K and COCO-Stuff hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def laid_out(values: list[int], height: int, width: int) -> np.ndarray:
    """Each of `values` at least once, again and again, in a mask that is large enough."""
    assert len(values) <= height * width
    return np.resize(np.array(values), (height, width))


def labels_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """The true classes of each image, by name."""
    labels = {sample.name: sample.truth.read() for sample in dataset.samples}
    for sample in dataset.samples:
        assert labels[sample.name].dtype == np.uint8
        assert sample.image.read().pixels.shape == (*labels[sample.name].shape, 3)
    return labels


def check(dataset: Dataset, wanted: Mapping[str, np.ndarray], description: str) -> None:
    """That a dataset is whole, and has these labels."""
    labels = labels_of(dataset)
    assert list(labels) == sorted(wanted)
    for name, found in labels.items():
        np.testing.assert_array_equal(found, wanted[name])
    assert dataset.problems == ()
    assert dataset.description == description


def truncate(path: Path) -> None:
    """Keep the first half of a file, as an interrupted download does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
