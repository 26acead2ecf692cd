"""What a batch job makes of every image: the files, and every setting that decides their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from resclip.formats.files import NO_EXPORT, Export
from resclip.inference.preprocessing import Preparation
from resclip.io.picture import DEFAULT_OPTIONS, ReadOptions
from resclip.result import MAX_CLASSES, label_type
from resclip.segmenter import Segmenter

Form: TypeAlias = Literal["png", "tif"]

BLOCK_PIXELS = 1 << 25
"""A TIFF of more than 33.5 million pixels (0.1 GB) is read and written by block."""

# Settings of a segmenter that may differ from machine to machine: they change results by rounding alone.
MACHINE_SETTINGS = ("device", "torch", "python", "implementation")


@dataclass(frozen=True)
class BatchJob:
    """What is made of each image; small, and can be pickled.

    Args:
        names: of the classes, 2 to 65,535.
        preparation: what is done to images before they are segmented.
        form: of label maps and scores: "png", or "tif" for GeoTIFFs with the input's georeference.
        overlay: whether the image is written with its classes' colours.
        scores: whether each pixel's probability is written, as 16-bit grey: 65,535 is 1.
        reading: bands and value range of the images, and the limits of each.
        block_pixels: TIFFs and JPEG 2000s of more pixels are read and written by block.
        export: other formats, but for the sheet; they need an image's label map whole.

    Raises:
        ValueError: a value that does not fit.
    """

    names: tuple[str, ...]
    preparation: Preparation
    form: Form = "png"
    overlay: bool = False
    scores: bool = False
    reading: ReadOptions = DEFAULT_OPTIONS
    block_pixels: int = BLOCK_PIXELS
    export: Export = NO_EXPORT

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(
                f"expected 2 to {MAX_CLASSES:,} classes, got {len(self.names):,}; of a single class every pixel is "
                "one: name another, or add a background"
            )
        if self.form not in ("png", "tif"):
            raise ValueError(f"expected the form 'png' or 'tif', got {self.form!r}")

    @property
    def keeps_scores(self) -> bool:
        """Whether probabilities are needed, as a file or for the mean of each instance."""
        return self.scores or self.export.needs_instances

    @property
    def label_type(self) -> np.dtype[Any]:
        """The type of a pixel in the label map: 8 bits up to 255 classes, else 16."""
        return label_type(len(self.names))

    @property
    def unlabelled(self) -> int:
        """The value of pixels without a class in the label map: the highest of its type."""
        return int(np.iinfo(self.label_type).max)

    def settings(self, segmenter: Segmenter) -> Mapping[str, Any]:
        """Everything that decides the files, as JSON-able values."""
        chosen = {
            name: value
            for name, value in segmenter.settings.items()
            if name not in MACHINE_SETTINGS
        }
        formats = asdict(self.export) if self.export.formats else {}
        return {
            **chosen,
            **formats,
            "batch_size": segmenter.pipeline.batch_size,
            **self.reading.described,
            "names": list(self.names),
            "form": self.form,
            "overlay": self.overlay,
            "scores": self.scores,
        }
