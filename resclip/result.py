"""`Segmentation`: the labels of one image, with methods to measure, draw and save them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.io.files import write_atomically
from resclip.io.images import PixelArray, save_png
from resclip.io.picture import NO_PLACE, NOWHERE, Georeference
from resclip.visualization.colours import palette
from resclip.visualization.legend import LegendEntry, draw_legend
from resclip.visualization.overlay import draw_overlay, draw_sheet

UNLABELLED = -1
"""The label of a pixel that has no class: the image has nothing there."""

MAX_CLASSES = 65_535
"""A label map has at most 16 bits a pixel, and its highest value is for unlabelled pixels."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """One segmented image; every field is checked when it is made.

    Attributes:
        image: (H, W, 3) uint8, the image as it was read.
        labels: (H, W) int64, the index into `names` of each pixel's class; `UNLABELLED`, −1, where the image has no
            pixel.
        probabilities: (H, W) float32, 0 to 1, the largest class probability at each pixel; 0 where it is unlabelled.
        names: one distinct name per class.
        settings: model, method, options and versions that made it, as values for JSON.
        georeference: where the image lies.
        record: what was done to read the image, as values for JSON.

    Raises:
        ValueError, TypeError: a field has another shape, dtype or range than stated.
    """

    image: PixelArray
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    names: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    georeference: Georeference = NOWHERE
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_array("image", self.image, np.dtype(np.uint8))
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.size == 0:
            raise ValueError(f"expected image of shape (H, W, 3), got {self.image.shape}")
        _check_array("labels", self.labels, np.dtype(np.int64))
        _check_array("probabilities", self.probabilities, np.dtype(np.float32))
        shape = self.image.shape[:2]
        for name in ("labels", "probabilities"):
            came = getattr(self, name).shape
            if came != shape:
                raise ValueError(f"expected {name} of the image's shape {shape}, got {came}")
        if not isinstance(self.names, tuple) or not all(isinstance(n, str) for n in self.names):
            raise TypeError(f"expected names to be a tuple of str, got {self.names!r:.80}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("expected distinct names, got at least one of them twice")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < UNLABELLED or high >= len(self.names):
            raise ValueError(
                f"expected labels from 0 to {len(self.names) - 1}, one for each of the "
                f"{len(self.names)} names, or -1 for unlabelled pixels, got {low} to {high}"
            )
        # Softmax rounds: the last bits may pass 1. NaN fails the comparison.
        if not (self.probabilities.min() >= 0.0 and self.probabilities.max() <= 1.0 + 1e-5):
            raise ValueError("expected probabilities from 0 to 1, all of them finite numbers")

    def __repr__(self) -> str:
        height, width = self.labels.shape
        areas = ", ".join(f"{name} {part:.0%}" for name, part in list(self.areas().items())[:5])
        return f"Segmentation({width} x {height} pixels: {areas})"

    def areas(self) -> dict[str, float]:
        """Each present class's fraction of the labelled pixels, largest first."""
        return {name: fraction for _, name, fraction in self.present()}

    def scores(self) -> dict[str, float]:
        """Each present class's mean probability over its own pixels, in the order of `areas`."""
        labels = self.labels.ravel() + 1  # Unlabelled pixels are counted first.
        counts = np.bincount(labels, minlength=len(self.names) + 1)[1:]
        weights = self.probabilities.ravel()
        sums = np.bincount(labels, weights=weights, minlength=len(self.names) + 1)[1:]
        return {name: float(sums[i] / counts[i]) for i, name, _ in self.present()}

    @property
    def unlabelled(self) -> float:
        """The fraction of the image that has no class."""
        return float((self.labels == UNLABELLED).mean())

    def label_image(self) -> Image.Image:
        """The labels as an image whose pixel values are class indices.

        Paletted (mode P, in the colours of the overlay) up to 255 classes, 16-bit greyscale (mode I;16) up to 65,535.
        Unlabelled pixels hold 255, or 65,535 in 16 bits, and are transparent.

        Raises:
            ValueError: more classes than that.
        """
        dtype = label_type(len(self.names))
        # -1 becomes the highest value.
        return label_map(self.labels.astype(dtype), self.names)

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The image tinted with its classes' colours, at its own size, mode RGB.

        Args:
            opacity: of the colours, from 0 (only the image) to 1 (only the colours).

        Raises:
            ValueError: another opacity.
        """
        return draw_overlay(self.image, self.labels, palette(self.names), opacity)

    def legend(self, height: int = 440) -> Image.Image:
        """Present classes by area, with colour and share, in as many columns as `height` pixels need."""
        return draw_legend(self.present(), palette(self.names), height)

    def sheet(self, opacity: float = 0.55) -> Image.Image:
        """Image, overlay and legend side by side, small images enlarged; mode RGB."""
        parts = [str(self.settings[key]) for key in ("model", "method") if key in self.settings]
        colours = palette(self.names)
        missing = f"{self.unlabelled:.1%} unlabelled".replace("%", " %") if self.unlabelled else ""
        footer = ", ".join(filter(None, (" + ".join(parts), missing)))
        views = [("Classes", self.labels)]
        return draw_sheet(self.image, views, colours, self.present(), opacity, footer)

    def to_dict(self) -> dict[str, Any]:
        """Size, present classes, all names, settings and how the image was read, as values for JSON."""
        height, width = self.labels.shape
        scores = self.scores()
        place = {"georeference": NO_PLACE} if self.georeference.is_known else {}
        return {
            "width": width,
            "height": height,
            "classes": [
                {"index": index, "name": name, "area": fraction, "score": scores[name]}
                for index, name, fraction in self.present()
            ],
            "unlabelled": self.unlabelled,
            "names": list(self.names),
            "input": {**self.record, **place},
            "settings": dict(self.settings),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text in any script; one line where `indent` is None."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    def save(
        self, directory: str | os.PathLike[str], stem: str, *, overlay: bool = True
    ) -> list[Path]:
        """Write stem_labels.png, stem_overlay.png (unless `overlay` is false) and stem.json.

        A missing directory is created, existing files are replaced, and each file is written whole or not at all, the
        JSON last.

        Returns:
            The paths written, in that order.

        Raises:
            ValueError: `stem` is empty or contains a directory.
            OSError: the directory cannot be created or written to.
        """
        if not stem or Path(stem).name != stem:
            raise ValueError(f"expected a file name's stem without directories, got {stem!r}")
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        images = {"labels": self.label_image()}
        if overlay:
            images["overlay"] = self.overlay()
        paths = []
        for kind, image in images.items():
            paths.append(folder / f"{stem}_{kind}.png")
            save_png(image, paths[-1])
        paths.append(folder / f"{stem}.json")
        write_atomically(paths[-1], (self.to_json() + "\n").encode())
        return paths

    def present(self) -> list[LegendEntry]:
        """(class index, name, fraction of the labelled pixels) of the classes that there are, largest first."""
        counts = np.bincount(self.labels.ravel() + 1)[1:]
        order = np.argsort(-counts, kind="stable")
        total = int(counts.sum())
        return [(int(i), self.names[i], int(counts[i]) / total) for i in order if counts[i]]


def label_type(classes: int) -> np.dtype[Any]:
    """The type of a label map's pixels: 8 bits for up to 255 classes, else 16; its highest value means unlabelled.

    Raises:
        ValueError: more than 65,535 classes.
    """
    if classes > MAX_CLASSES:
        raise ValueError(
            f"expected at most {MAX_CLASSES:,} classes in a label map, got {classes:,}; use .labels itself"
        )
    return np.dtype(np.uint8 if classes < 256 else np.uint16)


def label_map(labels: NDArray[Any], names: Sequence[str]) -> Image.Image:
    """A map of type `label_type(len(names))` as an image: with a palette in 8 bits, unlabelled pixels transparent."""
    image = Image.fromarray(labels)
    highest = np.iinfo(labels.dtype).max
    has_unlabelled = bool((labels == highest).any())
    if labels.dtype == np.uint8:
        colours = palette(names)
        if has_unlabelled:
            colours = np.concatenate([colours, np.zeros((256 - len(names), 3), np.uint8)])
        image.putpalette(colours.tobytes())
    if has_unlabelled:
        image.info["transparency"] = int(highest)
    return image


def comparison_sheet(results: Mapping[str, Segmentation], opacity: float = 0.55) -> Image.Image:
    """One image's segmentations side by side: the image, an overlay each, and the shares of the last; many in rows.

    Args:
        results: by caption; all of one image and one list of names.
        opacity: of the colours, from 0 (only the image) to 1 (only the colours).

    Raises:
        ValueError: no result, or results of different images or names.
    """
    segmentations = list(results.values())
    if not segmentations:
        raise ValueError("expected at least one segmentation to draw, got none")
    last = segmentations[-1]
    for other in segmentations:
        if other.names != last.names or not np.array_equal(other.image, last.image):
            raise ValueError("expected segmentations of one image by one list of names")
    views = [(caption, result.labels) for caption, result in results.items()]
    # What only others see is in the legend too, with no share.
    entries = {i: (i, name, 0.0) for other in segmentations for i, name, _ in other.present()}
    own = {entry[0]: entry for entry in last.present()}
    colours, caption = palette(last.names), f"Share by {views[-1][0]}"
    legend = list({**own, **entries, **own}.values())
    return draw_sheet(last.image, views, colours, legend, opacity, legend_caption=caption)


def _check_array(name: str, value: object, dtype: np.dtype[Any]) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"expected {name} to be a numpy array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"expected {name} of dtype {dtype}, got {value.dtype}; convert it first")
