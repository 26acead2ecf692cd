"""Embedded colour profiles: the numbers of Adobe RGB, Display P3 or a printer become sRGB, which models were taught."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from resclip.io.errors import ImageError, decoding

NO_PROFILE_OF_BANDS = "not applied, since bands were chosen"
"""What is said of a profile where the pixels are not the colours that it is about."""

SAME_COLOUR = 4
"""Levels, of 255, by which the several profiles that are called sRGB differ from each other at most."""

# What an ICC profile calls the space of its numbers, by Pillow's mode.
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}


class Profile:
    """An embedded ICC profile.

    Args:
        data: the profile as it is stored.
        mode: Pillow's mode of the pixels that it is about: RGB, L, CMYK or LAB.

    Attributes:
        remark: what becomes of it, in words; "" for one that is sRGB itself.
    """

    def __init__(self, data: bytes, mode: str) -> None:
        self._transform: Any = None
        try:
            with decoding("profile"):
                self.remark = self._read(data, mode)
        except ImageError:
            self.remark = "unreadable: the colours were taken as sRGB"

    def _read(self, data: bytes, mode: str) -> str:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        title = " ".join((profile.profile.profile_description or "unnamed").split())[:80]
        if space != _SPACES.get(mode):
            return f"{title}: not applied, since it is for {space} and the image is {mode}"
        # Not by its name: of those with "sRGB" in it some are linear.
        if mode == "RGB" and _is_srgb(data):
            return ""
        self._transform = _to_srgb(profile, mode)
        return f"{title}: converted to sRGB"

    @property
    def is_applied(self) -> bool:
        """Whether `to_srgb` changes anything."""
        return self._transform is not None

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """`image`, of the mode that was named, in sRGB: of mode RGB if the profile is applied, else unchanged."""
        return image if self._transform is None else self._transform.apply(image)


def _to_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> Any:
    return ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


@lru_cache(maxsize=8)
def _is_srgb(data: bytes) -> bool:
    """Whether a profile for RGB changes no colour of a coarse grid by more than `SAME_COLOUR` levels."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    transform = _to_srgb(ImageCms.ImageCmsProfile(io.BytesIO(data)), "RGB")
    changed = np.asarray(transform.apply(Image.fromarray(grid)))
    return bool(np.abs(changed.astype(int) - grid).max() <= SAME_COLOUR)


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """CIE L*a*b*, which some TIFFs hold, in sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform: Any = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    converted: Image.Image = transform.apply(image)
    return converted
