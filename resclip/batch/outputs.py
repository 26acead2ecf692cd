"""The files of one segmented image: gathered strip by strip, in memory or by block on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resclip.batch.job import BatchJob
from resclip.batch.manifest import ClassArea
from resclip.batch.storage import Store
from resclip.geometry.instances import find_instances
from resclip.io.images import PixelArray, encode_png
from resclip.io.picture import NOWHERE, Georeference, Mask
from resclip.result import UNLABELLED, label_map
from resclip.visualization.colours import palette
from resclip.visualization.overlay import draw_overlay

if TYPE_CHECKING:
    from resclip.io.geotiff import Layout
    from resclip.io.raster import Raster


MAX_SCORE = 65535
"""A pixel of a score map with this value has a probability of 1."""

PREVIEW_SIDE = 2048
"""The overlay of an image that is written by block has at most so many pixels along its longer side."""

OPACITY = 0.55
"""Opacity, from 0 to 1, of the classes' colours over the image in an overlay."""


@dataclass(frozen=True, eq=False)
class Result:
    """A segmented image whose files are not written yet, or by block already."""

    height: int
    width: int
    counts: NDArray[np.int64] | None
    """(N,): pixels of each class; None where they are still to be counted. Unlabelled ones are not among them."""
    labels: NDArray[Any] | None
    """(H, W) uint8 or uint16; None where they are written."""
    scores: NDArray[np.uint16] | None
    """(H, W), if the job needs scores and has not written them yet."""
    image: PixelArray | None
    """(H, W, 3), for the overlay; of a large image, and its labels, every so many pixels."""
    georeference: Georeference = NOWHERE
    record: Mapping[str, Any] = field(default_factory=dict)
    """What was done to read the image."""
    written: tuple[str, ...] = ()
    """Names of files that are in the store already."""

    def areas(self, names: tuple[str, ...]) -> tuple[ClassArea, ...]:
        """The classes that the image shows, largest first."""
        counts = self.counts
        if counts is None:
            counts = class_pixels(np.asarray(self.labels), len(names))
        total = int(counts.sum())
        order = np.argsort(-counts, kind="stable")
        return tuple(
            ClassArea(int(index), names[index], int(pixels), int(pixels) / total)
            for index in order
            if (pixels := counts[index])
        )


class MemorySink:
    """Gathers a result in memory."""

    def __init__(
        self,
        job: BatchJob,
        size: tuple[int, int],
        image: PixelArray | None,
        absent: Mask | None = None,
        georeference: Georeference = NOWHERE,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.size = size
        self.image = image if job.overlay else None
        self.absent = absent
        self.unlabelled = job.unlabelled
        self.georeference = georeference
        self.record = record or {}
        self.labels = np.empty(size, job.label_type)
        self.scores = np.empty(size, np.uint16) if job.keeps_scores else None

    def add(self, first: int, labels: NDArray[Any], scores: NDArray[Any] | None) -> None:
        """The rows from `first` on."""
        rows = slice(first, first + len(labels))
        self.labels[rows] = labels
        if self.scores is not None and scores is not None:
            self.scores[rows] = scores

    def finish(self) -> Result:
        """The result, once its last rows have come; who writes it counts, since this thread has a GPU to feed."""
        if self.absent is not None:
            self.labels[self.absent] = self.unlabelled
            if self.scores is not None:
                self.scores[self.absent] = 0
        return Result(
            *self.size, None, self.labels, self.scores, self.image, self.georeference, self.record
        )

    def abort(self) -> None:
        """Nothing is on disk yet."""


class BlockSink:
    """Writes a result by block while it comes, so that it is never whole in memory.

    Args:
        job: what is written.
        stem: of the files.
        image: the input, which is closed in the end; its rows are read again for a reduced overlay.
        store: where the files go, once they are whole.

    Raises:
        OSError: temporary files cannot be made.
    """

    def __init__(self, job: BatchJob, stem: str, image: Raster, store: Store) -> None:
        from resclip.io.geotiff import RasterWriter

        self.job = job
        self.stem = stem
        self.image = image
        self.store = store
        self.folder = store.scratch()
        self.counts = np.zeros(len(job.names), np.int64)
        self.missing = 0
        size = (image.height, image.width)
        self.step = -(-max(size) // PREVIEW_SIDE)
        self.preview: list[tuple[PixelArray, NDArray[Any]]] = []
        self.writers = {
            kind: RasterWriter(self.folder / f"{kind}.tif", layout)
            for kind, layout in layouts(job, size, image.georeference).items()
        }

    def add(self, first: int, labels: NDArray[Any], scores: NDArray[Any] | None) -> None:
        """The rows from `first` on.

        Raises:
            OSError: they cannot be written.
        """
        absent = self.image.absent_rows(first, first + len(labels))
        if absent is not None and absent.any():
            labels = np.where(absent, self.job.unlabelled, labels)
            scores = None if scores is None else np.where(absent, 0, scores)
            self.missing += int(absent.sum())
        self.writers["labels"].write(first, labels)
        self.counts += class_pixels(labels, len(self.counts))
        if scores is not None:
            self.writers["scores"].write(first, scores)
        if self.job.overlay:
            for row in range(-first % self.step, len(labels), self.step):
                pixels = self.image.rows(first + row, first + row + 1)
                self.preview.append((pixels[:, :: self.step], labels[row : row + 1, :: self.step]))

    def finish(self) -> Result:
        """The result, once its last rows have come; its files but the overlay are in the store then.

        Raises:
            OSError: they cannot be written.
        """
        from resclip.io.geotiff import raster_to_png

        written = []
        for kind, writer in self.writers.items():
            writer.commit()
            path = self.folder / f"{kind}.tif"
            if self.job.form == "png":
                raster_to_png(path, path.with_suffix(".png"))
                path = path.with_suffix(".png")
            name = f"{self.stem}_{kind}.{self.job.form}"
            self.store.put_file(path, name)
            written.append(name)
        self.close()
        image = labels = None
        if self.preview:
            image, labels = (np.concatenate(rows) for rows in zip(*self.preview, strict=True))
        size = (self.image.height, self.image.width)
        record = dict(self.image.record)
        if self.missing:
            record["absent"] = round(self.missing / (size[0] * size[1]), 6)
        return Result(
            *size, self.counts, labels, None, image, record=record, written=tuple(written)
        )

    def abort(self) -> None:
        """Leave nothing behind."""
        for writer in self.writers.values():
            writer.abort()
        self.close()

    def close(self) -> None:
        """Remove the temporary files."""
        self.image.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def encode(job: BatchJob, stem: str, result: Result, name: str = "") -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that are still to be written; the label map, on which the others hang, last.

    Args:
        name: of the image, for COCO's file.
    """
    if job.overlay and result.image is not None and result.labels is not None:
        yield f"{stem}_overlay.png", encode_png(overlay_of(job, result.image, result.labels))
    if result.written or result.labels is None:
        return
    if job.export.formats:
        yield from exported(job, stem, result, name)
    planes = {"scores": result.scores if job.scores else None, "labels": result.labels}
    for kind, plane in planes.items():
        if plane is not None:
            data = encode_plane(job, kind, plane, result.georeference)
            yield f"{stem}_{kind}.{job.form}", data


def overlay_of(job: BatchJob, image: PixelArray, labels: NDArray[Any]) -> Image.Image:
    """An (H, W, 3) image with its classes' colours, by an (H, W) label map of the job."""
    classes = labels.astype(np.int64)
    classes[classes == job.unlabelled] = UNLABELLED
    return draw_overlay(image, classes, palette(job.names), OPACITY)


def exported(job: BatchJob, stem: str, result: Result, name: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in other formats; a COCO file of the image is for the one of the run."""
    assert result.labels is not None
    assert result.scores is not None
    labels = result.labels.astype(np.int64)
    labels[labels == job.unlabelled] = UNLABELLED
    probabilities = result.scores.astype(np.float32)
    probabilities /= MAX_SCORE
    instances = find_instances(labels, probabilities, job.names, job.export.min_area)
    if "coco" in job.export.formats:
        size = (result.height, result.width)
        yield f"{stem}_coco.json", job.export.coco(name, size, instances, job.names)
    yield from job.export.files(stem, instances, job.names, result.georeference)


def class_pixels(labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """(N,): pixels of each class in a label map; those without a class are left out."""
    return np.bincount(labels.ravel(), minlength=classes)[:classes].astype(np.int64)


def encode_plane(job: BatchJob, kind: str, plane: Any, georeference: Georeference) -> bytes:
    """A label map, or scores, as a file."""
    if job.form == "tif":
        from resclip.io.geotiff import encode_geotiff

        return encode_geotiff(plane, layouts(job, plane.shape, georeference)[kind])
    if kind == "labels":
        return encode_png(label_map(plane, job.names))
    return encode_png(Image.fromarray(plane))


def layouts(job: BatchJob, size: tuple[int, int], georeference: Georeference) -> dict[str, Layout]:
    """The layouts of scores, where a job writes them, and labels, in this order."""
    from resclip.io.geotiff import Layout

    colours = palette(job.names) if job.label_type == np.uint8 else None
    labels = Layout(
        *size, len(job.names), job.label_type.name, colours, job.unlabelled, georeference, job.names
    )
    if not job.scores:
        return {"labels": labels}
    return {
        "scores": Layout(
            *size, MAX_SCORE + 1, "uint16", georeference=georeference, resampling="average"
        ),
        "labels": labels,
    }


def as_scores(probabilities: Tensor) -> Tensor:
    """Probabilities as whole numbers, on their device: 65,535 is 1."""
    return (probabilities.float().clamp(0, 1) * MAX_SCORE).round().int()
