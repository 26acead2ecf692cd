"""Painting flat shapes on a picture and on its class mask at once, with smooth edges, at any size.

Knows signed distances (negative inside), anti-aliasing and class ids as numbers. Does not know what a house is
(things.py), how a scene is composed (scenes.py), or anything about CLIP.

Lengths are in scene units: the picture is 1 high and width / height wide, x to the right, y downwards. A drawing
on a part of the canvas happens in a `Frame`: its own origin and unit, with v pointing *up*, so that things are
described as they stand on the ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]


def ellipse(u: Array, v: Array, centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    """Distance to an ellipse, exact for a circle and first-order right near the edge otherwise."""
    across, up = (u - centre[0]) / radii[0], (v - centre[1]) / radii[1]
    length = np.sqrt(across * across + up * up)
    slope = np.sqrt((across / radii[0]) ** 2 + (up / radii[1]) ** 2)
    return np.asarray((length - 1.0) * length / np.maximum(slope, 1e-4))


def box(
    u: Array,
    v: Array,
    centre: tuple[float, float],
    half: tuple[float, float],
    rounding: float = 0.0,
) -> Array:
    """Distance to an upright rectangle of half sizes `half`, its corners rounded by `rounding`."""
    across = np.abs(u - centre[0]) - (half[0] - rounding)
    up = np.abs(v - centre[1]) - (half[1] - rounding)
    outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(up, 0) ** 2)
    return np.asarray(outside + np.minimum(np.maximum(across, up), 0) - rounding)


def stroke(
    u: Array, v: Array, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Array:
    """Distance to a straight stroke with round ends."""
    delta = (end[0] - start[0], end[1] - start[1])
    squared = max(delta[0] ** 2 + delta[1] ** 2, 1e-12)
    along = np.clip(((u - start[0]) * delta[0] + (v - start[1]) * delta[1]) / squared, 0, 1)
    return np.hypot(u - start[0] - along * delta[0], v - start[1] - along * delta[1]) - radius


def polygon(u: Array, v: Array, corners: Sequence[tuple[float, float]]) -> Array:
    """Distance to a convex polygon given counter-clockwise (v up): the largest of its edges' distances."""
    distance: Array | None = None
    for (u0, v0), (u1, v1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = float(np.hypot(u1 - u0, v1 - v0))
        edge = ((u - u0) * (v1 - v0) - (v - v0) * (u1 - u0)) / length
        distance = edge if distance is None else np.maximum(distance, edge)
    if distance is None:
        raise ValueError("a polygon needs corners, got none")
    return distance


def lighter(colour: Colour, amount: float) -> Colour:
    """`colour` moved towards white (amount > 0) or black (amount < 0)."""
    target = 1.0 if amount > 0 else 0.0
    share = abs(amount)
    red, green, blue = (channel * (1 - share) + target * share for channel in colour)
    return red, green, blue


@dataclass
class Canvas:
    """A picture being painted: `image` (H, W, 3) float32 in 0..1, `mask` (H, W) uint8 class ids."""

    image: Array
    mask: NDArray[np.uint8]

    @classmethod
    def blank(cls, height: int, width: int) -> Canvas:
        return cls(np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.uint8))

    @property
    def unit(self) -> int:
        """Pixels in one scene unit."""
        return int(self.mask.shape[0])

    @property
    def aspect(self) -> float:
        return float(self.mask.shape[1] / self.mask.shape[0])

    def frame(
        self,
        origin: tuple[float, float] = (0.0, 0.0),
        scale: float = 1.0,
        reach: tuple[float, float, float, float] | None = None,
        mirrored: bool = False,
    ) -> Frame:
        """The part of the canvas that `reach` (left, right, down, up; in units of `scale`) can touch.

        None reaches everywhere.
        """
        height, width = self.mask.shape
        top, bottom, left, right = 0, height, 0, width
        if reach is not None:
            sides = (reach[1], reach[0]) if mirrored else reach[:2]
            left = max(0, int((origin[0] - sides[0] * scale) * self.unit) - 1)
            right = min(width, int((origin[0] + sides[1] * scale) * self.unit) + 2)
            top = max(0, int((origin[1] - reach[3] * scale) * self.unit) - 1)
            bottom = min(height, int((origin[1] + reach[2] * scale) * self.unit) + 2)
        columns = (np.arange(left, max(left, right), dtype=np.float32) + 0.5) / self.unit
        rows = (np.arange(top, max(top, bottom), dtype=np.float32) + 0.5) / self.unit
        u = (columns[None, :] - np.float32(origin[0])) / np.float32(-scale if mirrored else scale)
        v = (np.float32(origin[1]) - rows[:, None]) / np.float32(scale)
        here = np.s_[top : max(top, bottom), left : max(left, right)]
        u, v = np.broadcast_arrays(u, v)
        return Frame(self.image[here], self.mask[here], u, v, scale * self.unit)

    def pixels(self) -> NDArray[np.uint8]:
        return np.asarray(np.clip(self.image * 255.0 + 0.5, 0, 255), np.uint8)


@dataclass
class Frame:
    """A window of the canvas with its own coordinates; `unit` is pixels in one of its units."""

    image: Array
    mask: NDArray[np.uint8]
    u: Array
    v: Array
    unit: float

    def paint(
        self,
        distance: Array,
        colour: Colour | Array,
        label: int | None,
        opacity: float = 1.0,
    ) -> None:
        """Cover where `distance` is negative; `label` None changes the picture and not the mask."""
        cover = np.clip(0.5 - distance * self.unit, 0, 1)
        share = (cover * opacity)[..., None]
        self.image += share * (np.asarray(colour, np.float32) - self.image)
        if label is not None:
            self.mask[cover > 0.5] = label

    def ellipse(
        self, centre: tuple[float, float], radii: tuple[float, float], colour: Colour, label: int
    ) -> None:
        self.paint(ellipse(self.u, self.v, centre, radii), colour, label)

    def box(
        self,
        centre: tuple[float, float],
        half: tuple[float, float],
        colour: Colour,
        label: int,
        rounding: float = 0.0,
    ) -> None:
        self.paint(box(self.u, self.v, centre, half, rounding), colour, label)

    def stroke(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        radius: float,
        colour: Colour,
        label: int | None,
    ) -> None:
        self.paint(stroke(self.u, self.v, start, end, radius), colour, label)

    def polygon(self, corners: Sequence[tuple[float, float]], colour: Colour, label: int) -> None:
        self.paint(polygon(self.u, self.v, corners), colour, label)
