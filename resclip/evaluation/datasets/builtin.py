"""The drawn scenes of the built-in model as a dataset: nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resclip.builtin.scenes import CLASS_NAMES, held_out_scenes, validation_scenes
from resclip.evaluation.datasets.base import Dataset, DatasetError, ImagePixels, Sample, cut
from resclip.io.images import PixelArray
from resclip.visualization.colours import palette

SPLITS = {"held-out": held_out_scenes, "validation": validation_scenes}


@dataclass(frozen=True, eq=False)
class InMemory:
    """The classes of an image's pixels, (H, W) uint8."""

    values: PixelArray

    def read(self) -> PixelArray:
        """The array."""
        return self.values


@dataclass(frozen=True, eq=False)
class ImageInMemory:
    """An image, (H, W, 3) uint8."""

    values: PixelArray

    def read(self) -> ImagePixels:
        """The image, which has data everywhere."""
        return ImagePixels(self.values)


def builtin(
    root: Path | None, split: str | None = None, *, count: int = 200, size: int = 168
) -> Dataset:
    """The first scenes of a split, always the same, drawn at `size` × `size` pixels and segmented at that.

    Args:
        root: is not used.
        split: "held-out", which the published figures are of (None), or "validation", on which the model's options
            were chosen.
        count: the number of scenes, at least 1.
        size: of each scene in pixels, at least 8.

    Raises:
        DatasetError: no such split, or numbers below those.
    """
    chosen = split or "held-out"
    if chosen not in SPLITS:
        raise DatasetError(
            f"unknown split {cut(chosen)!r} of the scenes; use one of: {', '.join(SPLITS)}"
        )
    for name, value, least in (("number", count, 1), ("size", size, 8)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DatasetError(f"expected a {name} of scenes of at least {least}, got {cut(value)}")
    samples = [
        Sample(f"{chosen}-{number:04}", ImageInMemory(scene.image), InMemory(scene.mask))
        for number, scene in enumerate(SPLITS[chosen](count, size))
    ]
    return Dataset(
        name="builtin",
        description=f"{count:,} {chosen} scene{'' if count == 1 else 's'} of {size} × {size}",
        entries=CLASS_NAMES,
        samples=tuple(samples),
        split=split,
        palette=palette(CLASS_NAMES),
        settings={"short_side": 0},
    )
