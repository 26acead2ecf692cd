"""The drawn scenes of the built-in model as a dataset: nothing to download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resclip.builtin.scenes import CLASS_NAMES, held_out_scenes, validation_scenes
from resclip.evaluation.datasets.base import Dataset, DatasetError, ImagePixels, Sample, cut
from resclip.io.images import PixelArray
from resclip.visualization.overlay import palette

SPLITS = {"held-out": held_out_scenes, "validation": validation_scenes}

# The colour of `overlay.palette`, by number, that comes nearest to what one would paint each class with.
_COLOUR_NUMBERS = {
    "sky": 0, "night sky": 13, "grass": 1, "sand": 15, "water": 6, "snow": 19, "road": 10,
    "house": 5, "tree": 14, "sun": 4, "car": 3, "boat": 8, "fish": 2, "flower": 7,
    "mushroom": 18, "balloon": 16, "cloud": 11,
}  # fmt: skip


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
        palette=class_colours(),
        settings={"short_side": 0},
    )


def class_colours() -> PixelArray:
    """(classes, 3) uint8: each class in a colour that one would paint it with."""
    colours = palette(1 + max(_COLOUR_NUMBERS.values()))
    return colours[[_COLOUR_NUMBERS[name] for name in CLASS_NAMES]]
