"""`Segmentation`: the labels of one image, with methods to measure, draw and save them."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from resclip.formats import coco, geojson, page, tables, yolo
from resclip.formats.classes import hexadecimal
from resclip.geometry.contours import DEFAULT_TOLERANCE, Polygon
from resclip.geometry.instances import Box, Instance, find_instances, outlines
from resclip.geometry.run_lengths import encode_mask
from resclip.io.files import write_atomically
from resclip.io.images import PixelArray, encode_png, save_png
from resclip.io.picture import NO_PLACE, NOWHERE, Georeference
from resclip.scores import ClassScores
from resclip.visualization.colours import palette
from resclip.visualization.legend import LegendEntry, draw_legend, with_legend
from resclip.visualization.overlay import draw_overlay, draw_sheet
from resclip.visualization.sheets import draw_probability

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

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
        kept: the probabilities of all classes, where they were kept: see `scores`.

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
    kept: ClassScores | None = None

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
        if self.kept is not None and (self.kept.names, self.kept.size) != (self.names, shape):
            raise ValueError("expected kept scores of the same classes and of the image's size")

    def __repr__(self) -> str:
        height, width = self.labels.shape
        areas = ", ".join(f"{name} {part:.0%}" for name, part in list(self.areas().items())[:5])
        return f"Segmentation({width} x {height} pixels: {areas})"

    def areas(self) -> dict[str, float]:
        """Each present class's fraction of the labelled pixels, largest first."""
        return {name: fraction for _, name, fraction in self.present()}

    def mean_probabilities(self) -> dict[str, float]:
        """Each present class's mean probability over its own pixels, in the order of `areas`."""
        labels = self.labels.ravel() + 1  # Unlabelled pixels are counted first.
        counts = np.bincount(labels, minlength=len(self.names) + 1)[1:]
        weights = self.probabilities.ravel()
        sums = np.bincount(labels, weights=weights, minlength=len(self.names) + 1)[1:]
        return {name: float(sums[i] / counts[i]) for i, name, _ in self.present()}

    @property
    def scores(self) -> ClassScores:
        """By class name its (H, W) probabilities, enlarged from those of the model's patches when they are asked for.

        Raises:
            ValueError: they were not kept.
        """
        if self.kept is None:
            raise ValueError(
                'the probabilities of all classes were not kept: ask for them with segment(..., keep="scores")'
            )
        return self.kept

    def heatmap(self, name: str, opacity: float = 0.7) -> Image.Image:
        """Where a class is probable, as colours over the image: dark for 0, bright for 1; mode RGB.

        Args:
            name: of the class.
            opacity: of the colours, from 0 to 1.

        Raises:
            ValueError: scores that were not kept, no such class, another opacity.
        """
        self._index_of(name)
        return draw_probability(self.image, self.scores[name], opacity)

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

    def overlay(self, opacity: float = 0.55, *, legend: bool = False) -> Image.Image:
        """The image tinted with its classes' colours, at its own size, mode RGB.

        Args:
            opacity: of the colours, from 0 (only the image) to 1 (only the colours).
            legend: add the legend at its right.

        Raises:
            ValueError: another opacity.
        """
        colours = palette(self.names)
        drawn = draw_overlay(self.image, self.labels, colours, opacity)
        return with_legend(drawn, self.present(), colours) if legend else drawn

    def legend(self, height: int = 440) -> Image.Image:
        """Present classes by area, with colour and share, in as many columns as `height` pixels need."""
        return draw_legend(self.present(), palette(self.names), height)

    def sheet(self, opacity: float = 0.55) -> Image.Image:
        """Image, overlay and legend side by side, small images enlarged; mode RGB."""
        parts = [str(self.settings[key]) for key in ("model", "method") if key in self.settings]
        colours = palette(self.names)
        missing = f"{self.unlabelled:.1%} unlabelled".replace("%", " %") if self.unlabelled else ""
        notes = self.settings.get("notes", ())
        footer = ", ".join(filter(None, (" + ".join(parts), missing, *notes)))
        views = [("Classes", self.labels)]
        return draw_sheet(self.image, views, colours, self.present(), opacity, footer)

    def to_dict(self) -> dict[str, Any]:
        """Size, present classes, all names, settings and how the image was read, as values for JSON."""
        height, width = self.labels.shape
        means = self.mean_probabilities()
        place = {"georeference": NO_PLACE} if self.georeference.is_known else {}
        return {
            "width": width,
            "height": height,
            "classes": [
                {"index": index, "name": name, "area": fraction, "score": means[name]}
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

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The labels, (H, W): what `np.asarray` makes of a segmentation."""
        if dtype is None or np.dtype(dtype) == self.labels.dtype:
            return self.labels.copy() if copy else self.labels
        if copy is False:
            raise ValueError(
                f"expected dtype int64 without a copy, got {np.dtype(dtype)}; leave out copy=False"
            )
        return self.labels.astype(dtype)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(H, W), true where the class is; nowhere, if the image does not show it.

        Raises:
            ValueError: no class has that name.
        """
        return np.asarray(self.labels == self._index_of(name))

    def masks(self, min_area: int = 1, connectivity: int = 8) -> list[Instance]:
        """The instances: connected components of each class, the largest first; see `find_instances`."""
        return find_instances(self.labels, self.probabilities, self.names, min_area, connectivity)

    def boxes(self, min_area: int = 1, connectivity: int = 8) -> list[tuple[str, Box]]:
        """Name and box (x, y, width, height), in pixels, of each instance, in the order of `masks`."""
        return [(found.name, found.box) for found in self.masks(min_area, connectivity)]

    def polygons(
        self, tolerance: float = DEFAULT_TOLERANCE, min_area: int = 1, connectivity: int = 8
    ) -> dict[str, list[Polygon]]:
        """The outlines of every class, with holes, by its name; none of a class that the image does not show.

        Args:
            tolerance: how far, in pixels, an outline may be off to be simpler; 0: exact. See `find_polygons`.
            min_area: smaller instances, in pixels, are left out.
            connectivity: as of `masks`.
        """
        found = self.masks(min_area, connectivity)
        by_name: dict[str, list[Polygon]] = {name: [] for name in self.names}
        for instance, polygons in zip(found, outlines(found, tolerance), strict=True):
            by_name[instance.name] += polygons
        return by_name

    def rle(self, name: str, *, compressed: bool = True) -> dict[str, Any]:
        """A class's mask as COCO's {"size": [H, W], "counts": ...}: text if it is compressed, else run lengths.

        Raises:
            ValueError: no class has that name.
        """
        return encode_mask(self.mask(name), compressed=compressed)

    def to_coco(
        self,
        file_name: str = "",
        image_id: int = 1,
        first_annotation_id: int = 1,
        *,
        tolerance: float = DEFAULT_TOLERANCE,
        min_area: int = 1,
        segmentation: str = "auto",
    ) -> dict[str, Any]:
        """COCO's images, annotations and categories, an annotation for each instance; see `coco.annotate`.

        Args:
            file_name: of the image.
            image_id: of the image.
            first_annotation_id: of the first annotation; the others follow.
            tolerance: of polygons, in pixels; 0: exact.
            min_area: smaller instances, in pixels, are left out.
            segmentation: "auto": polygons, and run lengths of instances with holes; "polygons" or "rle".
        """
        found = coco.annotate(
            self.masks(min_area), image_id, first_annotation_id, tolerance, segmentation
        )
        height, width = self.labels.shape
        return {
            "images": [coco.image_entry(image_id, file_name, (height, width))],
            "annotations": list(found),
            "categories": coco.categories(self.names),
        }

    def to_yolo(self, *, tolerance: float = DEFAULT_TOLERANCE, min_area: int = 1) -> yolo.YoloFiles:
        """The texts of Ultralytics YOLO's labels/NAME.txt, a line for each instance, and of data.yaml."""
        lines = yolo.yolo_lines(self.masks(min_area), tolerance)
        return yolo.YoloFiles("".join(f"{line}\n" for line in lines), yolo.yolo_data(self.names))

    def to_geojson(
        self, *, tolerance: float = DEFAULT_TOLERANCE, min_area: int = 1
    ) -> dict[str, Any]:
        """A FeatureCollection with a feature for each instance, in degrees or pixels; see `feature_collection`."""
        return geojson.feature_collection(self.masks(min_area), self.georeference, tolerance)

    def to_supervision(self, *, min_area: int = 1) -> sv.Detections:
        """The instances as supervision's Detections; see `tables.detections`."""
        height, width = self.labels.shape
        return tables.detections(self.masks(min_area), (height, width))

    def to_pandas(self) -> pd.DataFrame:
        """A row for each class, present or not: index, name, pixels, area, mean_probability (NaN if not), instances.

        Raises:
            ImportError: pandas is missing.
        """
        counts = np.bincount(self.labels.ravel() + 1, minlength=len(self.names) + 1)[1:].tolist()
        areas, means = self.areas(), self.mean_probabilities()
        rows = [
            (index, name, counts[index], areas.get(name, 0.0), means.get(name, float("nan")))
            for index, name in enumerate(self.names)
        ]
        return tables.class_table(rows, self.masks())

    def _repr_png_(self) -> bytes:
        """The sheet, as notebooks show it."""
        return encode_png(self.sheet())

    def _repr_html_(self) -> str:
        """The sheet and a table of the classes, as notebooks show them."""
        means, colours = self.mean_probabilities(), palette(self.names)
        rows = [
            (hexadecimal(colours[index].tolist()), name, area, means[name])
            for index, name, area in self.present()
        ]
        return page.html_of(self._repr_png_(), repr(self), rows)

    def _index_of(self, name: str) -> int:
        """The index of a class, by its name."""
        if name in self.names:
            return self.names.index(name)
        near = difflib.get_close_matches(str(name), self.names, 3)
        known = near or self.names[:10]
        more = "" if near or len(self.names) <= 10 else f" and {len(self.names) - 10:,} more"
        raise ValueError(
            f"expected the name of a class, got {name!r:.80}; {'did you mean' if near else 'there are'} "
            f"{', '.join(map(repr, known))}{more}{'?' if near else ''}"
        )


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


def highest_label(classes: int) -> int:
    """The value of unlabelled pixels in a label map of so many classes; raises as `label_type`."""
    return int(np.iinfo(label_type(classes)).max)


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
    footer = ", ".join(last.settings.get("notes", ()))
    return draw_sheet(last.image, views, colours, legend, opacity, footer, legend_caption=caption)


def _check_array(name: str, value: object, dtype: np.dtype[Any]) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"expected {name} to be a numpy array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"expected {name} of dtype {dtype}, got {value.dtype}; convert it first")
