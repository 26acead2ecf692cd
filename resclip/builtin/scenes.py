"""Scenes as in a picture book, with a class mask, drawn from a seed: the same scene at every size.

A scene is a sky or a starry night above grass, sand, water, snow or road, with one to four things in it. Every class
is drawn at most once, so that "the red car" is one car. Training, validation and held-out scenes have their own seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.builtin.things import (
    CLASS_ID,
    COLOURS,
    DRAWN,
    GROUNDS,
    SKIES,
    THINGS,
    Array,
    Canvas,
    Colour,
    lighter,
    paint_thing,
)
from resclip.builtin.things import CLASS_NAMES as CLASS_NAMES  # noqa: PLC0414 - a scene's classes
from resclip.io.images import SCENE_MARK

# First number of the seeds of each set, so that no scene is in two sets.
TRAINING, VALIDATION, HELD_OUT = 11, 22, 33

SKY_COLOURS: tuple[tuple[Colour, Colour], ...] = (  # At the top and at the horizon.
    ((0.36, 0.62, 0.92), (0.76, 0.89, 0.98)),
    ((0.45, 0.74, 0.95), (0.88, 0.95, 0.98)),
    ((0.55, 0.66, 0.88), (0.99, 0.83, 0.72)),
)
NIGHT_COLOURS: tuple[tuple[Colour, Colour], ...] = (
    ((0.05, 0.06, 0.20), (0.16, 0.17, 0.38)),
    ((0.08, 0.05, 0.22), (0.26, 0.16, 0.40)),
)
GROUND_COLOURS: dict[str, tuple[Colour, Colour]] = {  # At the horizon and at the bottom.
    "grass": ((0.60, 0.80, 0.36), (0.40, 0.66, 0.24)),
    "sand": ((0.96, 0.87, 0.64), (0.90, 0.74, 0.46)),
    "water": ((0.26, 0.62, 0.74), (0.07, 0.38, 0.58)),
    "snow": ((0.90, 0.94, 0.99), (0.97, 0.98, 1.00)),
    "road": ((0.52, 0.51, 0.53), (0.38, 0.37, 0.40)),
}


@dataclass(frozen=True)
class Placement:
    """One thing in a scene; lengths in scene units (the image is 1 high), `base` is its lowest y."""

    name: str
    x: float
    base: float
    height: float
    colour: str = "white"
    variant: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class ScenePlan:
    """A scene without a size. `texture` is the seed of stars, tufts, waves and dashes."""

    sky: str
    ground: str
    horizon: float
    waves: tuple[float, float, float, float]  # Amplitude and phase of the two sines of the horizon.
    palette: int
    texture: int
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class Scene:
    """A drawn scene: `image` (H, W, 3) uint8 RGB, `mask` (H, W) uint8 indices into CLASS_NAMES."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    plan: ScenePlan

    def picture(self) -> Image.Image:
        """The image, marked as a drawn scene: readers, and PNG files that are written of it, know it by that."""
        picture = Image.fromarray(self.image)
        key, value = SCENE_MARK
        picture.info[key] = value
        return picture

    @property
    def colours(self) -> dict[str, str]:
        """The colour word of each thing that has one."""
        return {p.name: p.colour for p in self.plan.placements if DRAWN[p.name].coloured}


def plan_scene(generator: np.random.Generator) -> ScenePlan:
    """Draw a scene's plan at random."""
    sky = SKIES[int(generator.random() < 0.4)]
    ground = GROUNDS[int(generator.integers(len(GROUNDS)))]
    horizon = float(generator.uniform(0.42, 0.66))
    waves = (
        float(generator.uniform(0.0, 0.03)), float(generator.uniform(0, 6.3)),
        float(generator.uniform(0.0, 0.012)), float(generator.uniform(0, 6.3)),
    )  # fmt: skip
    weights = np.array([_fits(name, sky, ground) for name in THINGS])
    count = int(generator.integers(1, 5))
    chosen = generator.choice(len(THINGS), size=count, replace=False, p=weights / weights.sum())
    placements: list[Placement] = []
    for index in chosen:
        placed = _place(generator, THINGS[int(index)], horizon, placements)
        if placed is not None:
            placements.append(placed)
    placements.sort(key=lambda placement: placement.base)  # Nearer things cover farther ones.
    return ScenePlan(
        sky,
        ground,
        horizon,
        waves,
        int(generator.integers(6)),
        int(generator.integers(2**31)),
        tuple(placements),
    )


def _fits(name: str, sky: str, ground: str) -> float:
    """Relative frequency of a thing in a scene: no sun at night; boats and fish are mostly at sea."""
    if name == "sun" and sky == "night sky":
        return 0.0
    at_sea = name in ("boat", "fish")
    if ground == "water":
        return 3.0 if at_sea else 1.0 if DRAWN[name].in_sky else 0.25
    return 0.35 if at_sea else 1.0


def _place(
    generator: np.random.Generator, name: str, horizon: float, others: list[Placement]
) -> Placement | None:
    """A position for `name` that is clear of the others; None if ten draws find none."""
    thing = DRAWN[name]
    for _ in range(10):
        height = float(generator.uniform(*thing.heights))
        x = float(generator.uniform(0.12, 0.88))
        if thing.in_sky:
            base = float(generator.uniform(height + 0.02, max(horizon, height + 0.06)))
        else:
            base = float(generator.uniform(horizon + 0.08, 0.97))
        clear = all(
            abs(x - other.x)
            > 0.75 * (height * thing.half_width + other.height * DRAWN[other.name].half_width)
            or abs((base - height / 2) - (other.base - other.height / 2))
            > 0.5 * (height + other.height)
            for other in others
        )
        if clear:
            colour = tuple(COLOURS)[int(generator.integers(len(COLOURS)))]
            variant, mirrored = float(generator.random()), bool(generator.random() < 0.5)
            return Placement(name, x, base, height, colour, variant, mirrored)
    return None


def draw(plan: ScenePlan, height: int, width: int) -> Scene:
    """Draw a plan at a size. Scene units follow the height; a wider image shows more to the right."""
    if height < 8 or width < 8:
        raise ValueError(f"a scene needs at least 8 x 8 pixels, got {height} x {width}")
    canvas = Canvas.blank(height, width)
    generator = np.random.default_rng(plan.texture)
    _paint_sky(canvas, plan, generator)
    _paint_ground(canvas, plan, generator)
    for placement in plan.placements:
        paint_thing(
            canvas, placement.name, placement.x, placement.base, placement.height,
            placement.colour, placement.variant, placement.mirrored,
        )  # fmt: skip
    return Scene(canvas.pixels(), canvas.mask, plan)


def _blend(share: Array, start: Colour, end: Colour) -> Array:
    mixed = np.asarray(start, np.float32) + share[..., None] * (
        np.asarray(end, np.float32) - np.asarray(start)
    )
    return np.asarray(mixed, np.float32)


def _paint_sky(canvas: Canvas, plan: ScenePlan, generator: np.random.Generator) -> None:
    night = plan.sky == "night sky"
    palettes = NIGHT_COLOURS if night else SKY_COLOURS
    frame = canvas.frame()
    share = np.clip(-frame.v / plan.horizon, 0, 1)
    canvas.image[:] = _blend(share, *palettes[plan.palette % len(palettes)])
    canvas.mask[:] = CLASS_ID[plan.sky]
    if not night:
        return
    for x, y, size, glow in generator.random((46, 4)):
        at = (float(x) * 1.5, float(y) * (plan.horizon + 0.03))
        radius = 0.004 + 0.007 * float(size)
        star = canvas.frame(at, 1.0, (2 * radius, 2 * radius, 2 * radius, 2 * radius))
        star.paint(
            np.abs(star.u) + np.abs(star.v) - 1.5 * radius,
            (1.0, 0.97, 0.80),
            None,
            0.7 + 0.3 * float(glow),
        )


def _paint_ground(canvas: Canvas, plan: ScenePlan, generator: np.random.Generator) -> None:
    frame = canvas.frame((0.0, plan.horizon), 1.0, (0.0, canvas.aspect, 1.0, 0.06))
    amplitude, phase, ripple, offset = plan.waves
    calm = 0.15 if plan.ground == "water" else 1.0
    edge = calm * (
        amplitude * np.sin(5.0 * frame.u + phase) + ripple * np.sin(17.0 * frame.u + offset)
    )
    share = np.clip(-frame.v / (1.0 - plan.horizon), 0, 1)
    frame.paint(frame.v - edge, _blend(share, *GROUND_COLOURS[plan.ground]), CLASS_ID[plan.ground])
    near, far = GROUND_COLOURS[plan.ground][1], GROUND_COLOURS[plan.ground][0]
    for x, y, size, kind in generator.random((70, 4)):
        depth = float(y) ** 0.8  # 0 at the horizon, 1 at the lower edge
        at = (float(x) * 1.5, plan.horizon + 0.03 + depth * (0.98 - plan.horizon))
        scale = (0.028 + 0.016 * float(size)) * (0.55 + 0.65 * depth)
        if at[0] - 2 * scale < canvas.aspect:
            _paint_mark(canvas, plan.ground, at, scale, float(kind), near, far)


def _paint_mark(
    canvas: Canvas,
    ground: str,
    at: tuple[float, float],
    scale: float,
    kind: float,
    near: Colour,
    far: Colour,
) -> None:
    """One tuft, pebble, wave, sparkle or speck; never outside the ground, since marks have no label."""
    mark = canvas.frame(at, scale, (1.6, 1.6, 0.6, 1.0))
    bright = lighter(far, 0.3) if kind < 0.5 else lighter(near, -0.25)
    if ground == "grass":
        for tip in (-0.4, 0.0, 0.45):
            mark.stroke((tip * 0.3, 0.0), (tip, 0.8), 0.09, bright, None)
    elif ground == "sand":
        mark.paint(np.hypot(mark.u, mark.v * 1.3) - 0.24, bright, None, 0.8)
        mark.paint(
            np.hypot(mark.u - 0.8, mark.v * 1.3 - 0.25) - 0.15, lighter(near, -0.3), None, 0.8
        )
    elif ground == "water":
        curve = 0.28 * np.cos(2.6 * mark.u)
        crest = np.maximum(np.abs(mark.v - curve - 0.3) - 0.12, np.abs(mark.u) - 1.4)
        mark.paint(crest, lighter(far, 0.55 if kind < 0.6 else 0.2), None, 0.85)
    elif ground == "snow":
        shade: Colour = (0.70, 0.80, 0.93)
        curve = 0.4 - 0.2 * mark.u * mark.u
        mark.paint(
            np.maximum(np.abs(mark.v - curve) - 0.07, np.abs(mark.u) - 1.3), shade, None, 0.7
        )
    elif kind < 0.25:
        mark.paint(
            np.maximum(np.abs(mark.v - 0.2) - 0.16, np.abs(mark.u) - 1.4), (0.95, 0.86, 0.45), None
        )
    else:
        mark.paint(
            np.abs(mark.u) + np.abs(mark.v) - 0.28,
            lighter(near, 0.3 if kind < 0.6 else -0.35),
            None,
        )


def render_scene(seed: int | np.random.Generator, size: int = 112) -> Scene:
    """A square scene. The same integer seed at two sizes is the same scene drawn finer or coarser."""
    generator = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    return draw(plan_scene(generator), size, size)


def _numbered(family: int, index: int, size: int) -> Scene:
    return render_scene(np.random.default_rng([family, index]), size)


def training_scene(index: int, size: int = 160) -> Scene:
    """The index-th scene that the model may be trained on."""
    return _numbered(TRAINING, index, size)


def validation_scenes(count: int = 60, size: int = 112) -> Iterator[Scene]:
    """Scenes for choosing settings: neither trained on nor reported."""
    return (_numbered(VALIDATION, index, size) for index in range(count))


def held_out_scenes(count: int = 200, size: int = 112, first: int = 0) -> Iterator[Scene]:
    """Scenes for the reported figures, from number `first` on: neither trained on nor used to choose anything."""
    return (_numbered(HELD_OUT, index, size) for index in range(first, first + count))


def demo_scene(height: int = 336, width: int = 448) -> Scene:
    """A composed scene with many things in it, for a first look at a segmentation."""
    plan = ScenePlan(
        sky="sky", ground="grass", horizon=0.56, waves=(0.022, 0.8, 0.006, 2.0), palette=0, texture=7,
        placements=(
            Placement("sun", 0.20, 0.37, 0.30, variant=0.2),
            Placement("cloud", 0.66, 0.30, 0.20, variant=0.4),
            Placement("balloon", 1.10, 0.50, 0.42, "purple", 0.3),
            Placement("house", 0.42, 0.74, 0.46, "red", 0.2),
            Placement("tree", 0.83, 0.78, 0.50, variant=0.8),
            Placement("car", 0.40, 0.97, 0.19, "blue"),
            Placement("flower", 1.12, 0.95, 0.36, "pink", 0.1),
        ),
    )  # fmt: skip
    return draw(plan, height, width)
