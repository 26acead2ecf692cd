"""What a batch job does to every image: a value that any process can be given.

Knows which files are asked for and what decides their bytes. Knows no engine, no source and no pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from resclip.inference.preprocessing import Preparation
from resclip.io.images import MAX_PIXELS
from resclip.segmenter import Segmenter

Form: TypeAlias = Literal["png", "tif"]

BLOCK_PIXELS = 1 << 25
"""TIFFs of more pixels (33 million, 0.1 GB) are read and written by block."""

MAX_CLASSES = 1 << 16
"""Values that 16 bits hold."""

ELSEWHERE = ("device", "torch", "python", "implementation")
"""Settings of a segmenter that may differ from machine to machine: they change results by rounding alone."""


@dataclass(frozen=True)
class Task:
    """What is made of an image.

    Args:
        names: of the classes, one to 65,536.
        preparation: what is done to images before they are segmented.
        form: of label maps and scores: "png", or "tif" for GeoTIFFs that carry the input's place.
        overlay: whether the image is written with its classes' colours.
        scores: whether each pixel's probability is written, as 16-bit grey: 65,535 is 1.
        max_pixels: larger images are refused, but for those that are read by block unless it is given.
        block_pixels: TIFFs of more pixels are read and written by block.

    Raises:
        ValueError: a value that does not fit.
    """

    names: tuple[str, ...]
    preparation: Preparation
    form: Form = "png"
    overlay: bool = False
    scores: bool = False
    max_pixels: int | None = None
    block_pixels: int = BLOCK_PIXELS

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(
                f"expected 2 to {MAX_CLASSES:,} classes, got {len(self.names):,}; of a single class every pixel is "
                "one: name another, or add a background"
            )
        if self.form not in ("png", "tif"):
            raise ValueError(f"expected the form 'png' or 'tif', got {self.form!r}")

    @property
    def label_type(self) -> np.dtype[Any]:
        """Of a pixel in the label map: 8 bits up to 256 classes, else 16."""
        return np.dtype(np.uint8 if len(self.names) <= 256 else np.uint16)

    @property
    def largest_image(self) -> int:
        """Pixels of the largest image that is read into memory."""
        return self.max_pixels or MAX_PIXELS

    def settings(self, segmenter: Segmenter) -> Mapping[str, Any]:
        """Everything that decides the files, as JSON-able values."""
        chosen = {
            name: value for name, value in segmenter.settings.items() if name not in ELSEWHERE
        }
        return {
            **chosen,
            "batch_size": segmenter.pipeline.batch_size,
            "names": list(self.names),
            "form": self.form,
            "overlay": self.overlay,
            "scores": self.scores,
        }
