"""The ten things of the drawn scenes, and how flat shapes are painted on an image and its class mask.

Shapes are signed distances in a frame's own coordinates, negative inside; a thing is a function that paints some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
    """An image being painted: `image` (H, W, 3) float32 in 0..1, `mask` (H, W) uint8 class ids."""

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
        covered = np.s_[top : max(top, bottom), left : max(left, right)]
        u, v = np.broadcast_arrays(u, v)
        return Frame(self.image[covered], self.mask[covered], u, v, scale * self.unit)

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
        """Cover where `distance` is negative; `label` None changes the image and not the mask."""
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


CLASS_NAMES = (
    "sky", "night sky", "grass", "sand", "water", "snow", "road",
    "house", "tree", "sun", "car", "boat", "fish", "flower", "mushroom", "balloon", "cloud",
)  # fmt: skip
CLASS_ID = {name: index for index, name in enumerate(CLASS_NAMES)}
SKIES = CLASS_NAMES[:2]
GROUNDS = CLASS_NAMES[2:7]
THINGS = CLASS_NAMES[7:]

COLOURS: dict[str, Colour] = {
    "red": (0.85, 0.18, 0.16),
    "blue": (0.16, 0.33, 0.80),
    "yellow": (0.97, 0.80, 0.16),
    "green": (0.16, 0.62, 0.30),
    "purple": (0.56, 0.25, 0.68),
    "orange": (0.95, 0.50, 0.12),
    "pink": (0.96, 0.52, 0.68),
    "white": (0.95, 0.94, 0.92),
}
DARK: Colour = (0.15, 0.14, 0.18)
WOOD: Colour = (0.45, 0.29, 0.17)
CREAM: Colour = (0.97, 0.92, 0.80)


def house(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    roof = lighter(colour, -0.45) if variant < 0.5 else (0.55, 0.24, 0.18)
    frame.box((0.27, 0.78), (0.06, 0.16), lighter(roof, -0.25), label)
    frame.box((0.0, 0.28), (0.42, 0.28), colour, label)
    frame.polygon([(-0.54, 0.52), (0.54, 0.52), (0.0, 1.0)], roof, label)
    frame.box((0.0, 0.14), (0.09, 0.15), WOOD, label, 0.02)
    for side in (-0.26, 0.26):
        frame.box((side, 0.31), (0.1, 0.1), CREAM, label)
        frame.box((side, 0.31), (0.08, 0.08), (0.55, 0.78, 0.92), label)
        frame.stroke((side, 0.23), (side, 0.39), 0.008, CREAM, label)
        frame.stroke((side - 0.08, 0.31), (side + 0.08, 0.31), 0.008, CREAM, label)


def tree(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    leaves: Colour = (0.10, 0.36 + 0.1 * variant, 0.20)
    frame.polygon([(-0.07, 0.0), (0.07, 0.0), (0.045, 0.5), (-0.045, 0.5)], WOOD, label)
    if variant < 0.4:
        for base, half, top in ((0.2, 0.32, 0.58), (0.42, 0.26, 0.8), (0.64, 0.19, 1.0)):
            corners = [(-half, base), (half, base), (0.0, top)]
            frame.polygon(corners, lighter(leaves, 0.25 * (base - 0.2)), label)
        return
    for centre, radius in (
        ((-0.2, 0.5), 0.19),
        ((0.2, 0.5), 0.19),
        ((-0.11, 0.72), 0.2),
        ((0.12, 0.76), 0.2),
    ):
        frame.ellipse(centre, (radius, radius), leaves, label)
    for centre, radius in (((-0.05, 0.62), 0.16), ((0.14, 0.8), 0.1), ((-0.22, 0.54), 0.08)):
        frame.ellipse(centre, (radius, radius), lighter(leaves, 0.13), label)


def sun(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    angle = np.arctan2(frame.v - 0.5, frame.u) + variant
    radius = np.hypot(frame.u, frame.v - 0.5)
    teeth = np.abs(((angle * 12 / (2 * np.pi)) % 1.0) - 0.5) * 2  # 12 rays: 1 at a tip, 0 between
    frame.paint(cast(Array, (radius - 0.33 - 0.17 * teeth) * 0.6), (0.99, 0.66, 0.13), label)
    frame.ellipse((0.0, 0.5), (0.31, 0.31), (1.0, 0.86, 0.25), label)
    for side in (-0.11, 0.11):
        frame.ellipse((side, 0.55), (0.025, 0.035), (0.62, 0.36, 0.06), label)
    for left, right in (
        ((-0.12, 0.42), (-0.05, 0.38)),
        ((-0.05, 0.38), (0.05, 0.38)),
        ((0.05, 0.38), (0.12, 0.42)),
    ):
        frame.stroke(left, right, 0.014, (0.62, 0.36, 0.06), label)


def car(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    frame.polygon([(-0.55, 0.5), (0.45, 0.5), (0.22, 0.98), (-0.38, 0.98)], colour, label)
    glass: Colour = (0.68, 0.86, 0.94)
    frame.polygon([(-0.44, 0.55), (-0.1, 0.55), (-0.1, 0.9), (-0.33, 0.9)], glass, label)
    frame.polygon([(-0.02, 0.55), (0.34, 0.55), (0.17, 0.9), (-0.02, 0.9)], glass, label)
    frame.box((0.0, 0.37), (0.98, 0.2), colour, label, 0.12)
    frame.box((0.0, 0.25), (0.98, 0.06), lighter(colour, -0.3), label, 0.05)
    frame.ellipse((0.9, 0.42), (0.06, 0.07), (1.0, 0.95, 0.6), label)
    for side in (-0.55, 0.55):
        frame.ellipse((side, 0.2), (0.21, 0.21), DARK, label)
        frame.ellipse((side, 0.2), (0.09, 0.09), (0.75, 0.76, 0.78), label)


def boat(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    frame.stroke((0.0, 0.2), (0.0, 0.97), 0.02, WOOD, label)
    frame.polygon([(0.04, 0.32), (0.46, 0.32), (0.04, 0.95)], CREAM, label)
    frame.polygon([(-0.36, 0.34), (-0.04, 0.34), (-0.04, 0.85)], lighter(CREAM, -0.1), label)
    frame.polygon([(-0.36, 0.0), (0.36, 0.0), (0.56, 0.26), (-0.56, 0.26)], colour, label)
    frame.polygon(
        [(-0.52, 0.2), (0.52, 0.2), (0.56, 0.26), (-0.56, 0.26)], lighter(colour, 0.45), label
    )


def fish(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    frame.polygon([(-0.95, 0.1), (-0.5, 0.5), (-0.95, 0.9)], lighter(colour, -0.2), label)
    frame.polygon([(-0.2, 0.75), (0.2, 0.75), (-0.12, 1.0)], lighter(colour, -0.2), label)
    frame.ellipse((0.1, 0.5), (0.72, 0.36), colour, label)
    belly = np.maximum(
        ellipse(frame.u, frame.v, (0.1, 0.5), (0.72, 0.36)),
        ellipse(frame.u, frame.v, (0.15, 0.2), (0.75, 0.3)),
    )
    frame.paint(belly, lighter(colour, 0.4), label)
    for centre in ((-0.25, 0.55), (0.0, 0.62), (0.05, 0.42)):
        frame.ellipse(centre, (0.07, 0.05), lighter(colour, -0.2), label)
    frame.ellipse((0.5, 0.58), (0.1, 0.1), (1.0, 1.0, 1.0), label)
    frame.ellipse((0.53, 0.58), (0.055, 0.055), DARK, label)


def flower(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    leaf: Colour = (0.20, 0.52, 0.16)
    frame.stroke((0.0, 0.0), (0.0, 0.6), 0.03, leaf, label)
    frame.ellipse((-0.13, 0.2), (0.14, 0.055), leaf, label)
    frame.ellipse((0.13, 0.28), (0.14, 0.055), leaf, label)
    for index in range(6):
        angle = index * np.pi / 3 + variant
        centre = (0.19 * float(np.cos(angle)), 0.68 + 0.19 * float(np.sin(angle)))
        frame.ellipse(centre, (0.125, 0.125), lighter(colour, 0.12 * (index % 2)), label)
    middle: Colour = (0.98, 0.80, 0.20) if colour != COLOURS["yellow"] else (0.55, 0.30, 0.10)
    frame.ellipse((0.0, 0.68), (0.11, 0.11), middle, label)


def mushroom(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    cap: Colour = (0.80, 0.16, 0.14) if variant < 0.6 else (0.62, 0.38, 0.20)
    frame.polygon([(-0.17, 0.0), (0.17, 0.0), (0.12, 0.55), (-0.12, 0.55)], CREAM, label)
    dome = np.maximum(ellipse(frame.u, frame.v, (0.0, 0.46), (0.5, 0.52)), 0.46 - frame.v)
    frame.paint(dome, cap, label)
    frame.box((0.0, 0.45), (0.47, 0.035), lighter(CREAM, -0.12), label, 0.03)
    for centre, radius in (
        ((-0.25, 0.62), 0.07),
        ((0.02, 0.78), 0.085),
        ((0.27, 0.6), 0.065),
        ((0.0, 0.58), 0.05),
    ):
        frame.ellipse(centre, (radius, radius * 0.85), (1.0, 0.98, 0.94), label)


def balloon(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    for side in (-1.0, 1.0):
        frame.stroke((side * 0.2, 0.38), (side * 0.08, 0.16), 0.012, DARK, label)
    frame.box((0.0, 0.09), (0.11, 0.09), WOOD, label, 0.02)
    frame.box((0.0, 0.16), (0.12, 0.025), lighter(WOOD, 0.3), label, 0.02)
    envelope = np.minimum(
        ellipse(frame.u, frame.v, (0.0, 0.66), (0.34, 0.34)),
        np.maximum(np.abs(frame.u) - 0.14 - (frame.v - 0.32) * 0.6, np.abs(frame.v - 0.47) - 0.15),
    )
    frame.paint(envelope, colour, label)
    # Stripes bulge with the envelope: their u is measured in half-widths at that height.
    around = frame.u / np.sqrt(np.maximum(0.36**2 - (frame.v - 0.66) ** 2, 0.01))
    stripe = np.abs(np.abs(around) - 0.48) - 0.16
    pale = lighter(colour, 0.6) if colour != COLOURS["white"] else lighter(colour, -0.25)
    frame.paint(np.maximum(envelope, stripe * 0.35), pale, label)


def cloud(frame: Frame, colour: Colour, label: int, variant: float) -> None:
    white: Colour = (0.97, 0.97, 0.98)
    for shade, drop in ((lighter(white, -0.12), 0.06), (white, 0.0)):
        for centre, radius in (
            ((-0.62, 0.32), 0.26), ((-0.25, 0.5), 0.36), ((0.2, 0.56), 0.4), ((0.6, 0.34), 0.3),
        ):  # fmt: skip
            wide = (radius * (1.0 + 0.15 * variant), radius * (0.95 if drop else 0.85))
            frame.ellipse((centre[0], centre[1] - drop), wide, shade, label)


@dataclass(frozen=True)
class Thing:
    """How a thing is drawn and placed: its height range in scene units, its half width per height."""

    draw: Callable[[Frame, Colour, int, float], None]
    heights: tuple[float, float]
    half_width: float
    coloured: bool
    in_sky: bool


DRAWN: dict[str, Thing] = {
    "house": Thing(house, (0.36, 0.52), 0.58, coloured=True, in_sky=False),
    "tree": Thing(tree, (0.38, 0.58), 0.42, coloured=False, in_sky=False),
    "sun": Thing(sun, (0.22, 0.34), 0.55, coloured=False, in_sky=True),
    "car": Thing(car, (0.18, 0.25), 1.02, coloured=True, in_sky=False),
    "boat": Thing(boat, (0.32, 0.46), 0.6, coloured=True, in_sky=False),
    "fish": Thing(fish, (0.17, 0.25), 1.0, coloured=True, in_sky=False),
    "flower": Thing(flower, (0.30, 0.44), 0.36, coloured=True, in_sky=False),
    "mushroom": Thing(mushroom, (0.24, 0.36), 0.55, coloured=False, in_sky=False),
    "balloon": Thing(balloon, (0.34, 0.48), 0.4, coloured=True, in_sky=True),
    "cloud": Thing(cloud, (0.16, 0.25), 1.05, coloured=False, in_sky=True),
}


def paint_thing(
    canvas: Canvas,
    name: str,
    x: float,
    base: float,
    height: float,
    colour: str,
    variant: float,
    mirrored: bool,
) -> None:
    """Draw `name` standing at (x, base), `height` scene units tall. An unknown name is a KeyError."""
    thing = DRAWN[name]
    reach = (thing.half_width + 0.08, thing.half_width + 0.08, 0.08, 1.1)
    frame = canvas.frame((x, base), height, reach, mirrored)
    thing.draw(frame, COLOURS[colour], CLASS_ID[name], variant)
