"""Colours of classes, by their names: the same in every picture, whatever the other classes are.

Common names have a colour that one would paint them with; every other name has one by its hash. Two classes of one list
never look alike: the later one, by a fixed order, moves to another shade.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resclip.io.images import PixelArray

# Colours with the names that have them. The ten or so that most scenes are made of come first; their lightness differs
# where their hues look alike to colour-blind people. Of two names that want one colour the earlier one gets it.
_COMMON = """
8bbef8 sky, heaven
1b6e1f tree, forest, wood, woodland, jungle
a9c92b grass, lawn, meadow, turf, grassland
696d79 road, street, asphalt, highway, roadway, lane
cf7a2c building, skyscraper, office, tower, city, town, urban, built up area, settlement
ff2fae person, people, human, man, woman, pedestrian, child, boy, girl, crowd
8c72ff car, automobile, vehicle, taxi
2d45a0 water, lake, pond, pool, swimming pool, reservoir
5b3a08 soil, earth, ground, dirt, mud, bare soil, bare land, land
f6dc84 sand, beach, desert, dune
dfe8f2 snow, ice, glacier
262a33 background, other, void, nothing, unknown, unlabelled, unlabeled, rest
cd0a3c house, home, cottage, hut, villa, barn
4f9a3a vegetation, bush, shrub, hedge, foliage, leaf
15a37a plant, flora, potted plant, crop, farmland, field, agriculture, cropland
0a74a6 sea, ocean
3f93d6 river, stream, canal, waterfall, waterway
1d2358 night sky, night
b4d4d8 cloud, fog, mist, smoke
bfaec6 sidewalk, pavement, path, footpath, walkway, pedestrian area
6f7f55 mountain, hill, cliff
a8a29a rock, stone, gravel, boulder
c9b79a wall
6b4f48 floor, flooring
d9d2b4 ceiling
7f2a22 roof
a0522d fence, railing, guard rail
a27a5c bridge
ffcd00 sun, lemon, banana
fff9c9 moon, star, light
ff8ad0 flower, blossom, rose
ff9a00 bus, orange, pumpkin, carrot
b04ce0 truck, lorry, van
5d2a9e train, tram, railway, rail, track
00b5b0 boat, ship, sailboat, vessel
ff7a50 fish
a2566f mushroom
d95bff balloon, hot air balloon, kite
959fe6 airplane, aeroplane, plane, aircraft, helicopter
00d0d8 bicycle, bike
a3005f motorcycle, motorbike, motorcyclist
ff4a4a rider, bicyclist, cyclist
b3955a dog, puppy
f0ab80 cat, kitten
8c4a24 horse, pony
5b4b8a cow, cattle
eac4dc sheep, goat, lamb
2fb8e6 bird, duck, gull
7d8ea3 elephant
4b2440 bear
"""

APART = 0.07
"""Distance in OKLab from which two colours of one list are called different. The least that is seen is about 0.02."""
_TRIES = 96
"""Shades of a name that are looked at before the one farthest from the others is taken."""
_COMPARED = 512
"""Classes of a list whose colours are compared with each other; of a longer list they only differ."""
# Lightness and hue in degrees by which a common colour moves, step by step.
_SHADES = (
    (-0.10, 0), (0.10, 0), (0, 25), (0, -25), (-0.10, 25), (0.10, -25), (-0.10, -25), (0.10, 25), (-0.2, 0), (0.2, 0),
)  # fmt: skip


class _Common(NamedTuple):
    """A name with a colour of its own."""

    colour: tuple[int, int, int]
    order: tuple[int, int]
    """The line of the table, and the place in it."""


def _read_table() -> dict[str, _Common]:
    table = {}
    for line, row in enumerate(_COMMON.split("\n")[1:-1]):
        code, _, names = row.partition(" ")
        red, green, blue = bytes.fromhex(code)
        for place, name in enumerate(names.split(", ")):
            table[name] = _Common((red, green, blue), (line, place))
    return table


_TABLE = _read_table()


def palette(names: Sequence[str]) -> PixelArray:
    """A colour for each class by its name, (len(names), 3) uint8; read-only.

    Names are read in lower case and in the singular; "pine tree" has a tree's colour, or beside "tree" a shade of it.
    Of "cat, kitten" the first part that is known counts. A class's colour does not depend on the order of the list, and
    on the other classes only where two would look alike: then the more common name keeps its colour, else the one that
    comes first in the alphabet. Up to about 60 classes are `APART`; of more than 512 it is only seen to that no two are
    the same. Black and white are left to borders and text.

    Args:
        names: of the classes, distinct; names that are the same get the same colour.
    """
    return _palette(tuple(names))


@functools.lru_cache(maxsize=32)
def _palette(names: tuple[str, ...]) -> PixelArray:
    order = sorted(set(names), key=_importance)
    compared, others = order[:_COMPARED], order[_COMPARED:]
    colours = np.empty((len(order), 3), np.uint8)
    places = np.empty((len(compared), 3))
    for number, name in enumerate(compared):
        colours[number] = _free_colour(name, places[:number])
        places[number] = oklab(colours[number])
    used = set(map(bytes, colours[: len(compared)]))
    for number, shades in enumerate(_hashed(others, _TRIES // 8), start=len(compared)):
        free = (shade for shade in map(bytes, shades) if shade not in used)
        colour = next(free, None)
        while colour is None or colour in used:  # Not among 65,535 names, but it must end.
            colour = hashlib.sha256(colour or bytes(shades)).digest()[:3]
        used.add(colour)
        colours[number] = list(colour)
    rows = {name: number for number, name in enumerate(order)}
    table = colours[[rows[name] for name in names]]
    table.flags.writeable = False
    return table


def _free_colour(name: str, places: NDArray[np.float64]) -> PixelArray:
    """(3,): the first shade of a name that is apart from the colours at these places, (n, 3), else the farthest one."""
    for tries in (_TRIES // 16, _TRIES):  # The first few are nearly always enough.
        shades = np.concatenate([_common_shades(name), _hashed([name], tries)[0]])
        gaps = np.linalg.norm(oklab(shades)[:, None] - places, axis=2).min(axis=1, initial=np.inf)
        if gaps.max() >= APART:
            break
    chosen: PixelArray = shades[(gaps >= APART).argmax() if gaps.max() >= APART else gaps.argmax()]
    return chosen


def _importance(name: str) -> tuple[bool, bool, float, float, str]:
    """Names in the order in which they get their colours: known ones by the table, then all others."""
    common, exact = _find(name)
    line, place = (math.inf, math.inf) if common is None else common.order
    # "pine tree" comes behind "tree" and its synonyms.
    return common is None, not exact, place, line, name


@functools.lru_cache(maxsize=4096)
def _find(name: str) -> tuple[_Common | None, bool]:
    """The entry of the table that a name belongs to, and whether as a whole rather than by a word of it."""
    parts = name.split(",")
    for part in parts:
        for form in _singulars(_plain(part)):
            if form in _TABLE:
                return _TABLE[form], True
    for part in parts:
        words = _plain(part).split(" ")
        # The last word says what it is, but in names such as COCO-Stuff's "floor-wood" and "sky-other" the first one.
        is_hyphened = "-" in part and " " not in part.strip()
        for word in (words[0], words[-1]) if is_hyphened else words[-1:]:
            for form in _singulars(word):
                if form in _TABLE:
                    return _TABLE[form], False
    return None, False


def _plain(name: str) -> str:
    """In lower case, its words with one space between them."""
    return " ".join(re.split(r"[\s_\-]+", name.strip().casefold()))


def _singulars(word: str) -> Iterator[str]:
    """A word and what it may be the plural of."""
    yield word
    for ending, instead in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
        if word.endswith(ending):
            yield word.removesuffix(ending) + instead


def _common_shades(name: str) -> PixelArray:
    """(n, 3): the colour of a common name, then shades of it; n is 0 for another name."""
    common, _ = _find(name)
    if common is None:
        return np.empty((0, 3), np.uint8)
    own = np.array([common.colour], np.uint8)
    lightness, a, b = oklab(own)[0].tolist()
    moves = np.array(_SHADES)
    lighter = (lightness + moves[:, 0]).clip(0.25, 0.93)
    turned = math.atan2(b, a) + np.radians(moves[:, 1])
    return np.concatenate(
        [own, oklch_to_rgb(lighter, np.full_like(lighter, math.hypot(a, b)), turned)]
    )


def _hashed(names: Sequence[str], tries: int) -> PixelArray:
    """(names, tries, 3): colours that names get by their hash, the one that each would like best first."""
    digests = b"".join(
        hashlib.shake_256(_plain(name).encode("utf-8", "surrogatepass")).digest(12 * tries)
        for name in names
    )
    parts = np.frombuffer(digests, ">u4").reshape(len(names), tries, 3) / 2.0**32
    # Neither so dark nor so light that it would pass for black or white.
    lightness, chroma = 0.42 + 0.46 * parts[..., 0], 0.06 + 0.15 * parts[..., 1]
    return oklch_to_rgb(lightness, chroma, 2 * math.pi * parts[..., 2])


def oklab(colours: NDArray[np.integer]) -> NDArray[np.float64]:
    """sRGB bytes to Björn Ottosson's OKLab, in which distances are about as large as they look: (…, 3) → (…, 3)."""
    encoded = np.asarray(colours) / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _RGB_TO_CONES.T)
    lab: NDArray[np.float64] = cones @ _CONES_TO_LAB.T
    return lab


_RGB_TO_CONES = np.array(
    [
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ]
)
_CONES_TO_LAB = np.array(
    [
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    ]
)


def oklch_to_rgb(
    lightness: NDArray[np.float64], chroma: NDArray[np.float64], hue: NDArray[np.float64]
) -> PixelArray:
    """OKLCh to sRGB bytes, clipped to what a screen shows: (…) each → (…, 3) uint8. `hue` in radians."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear = ((lab @ np.linalg.inv(_CONES_TO_LAB).T) ** 3 @ np.linalg.inv(_RGB_TO_CONES).T).clip(
        0, 1
    )
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: PixelArray = np.rint(255 * encoded).astype(np.uint8)
    return colours
