"""Polygons with holes, or in several parts, as one ring: for formats that know no other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resclip.geometry.contours import Points, Polygon


def keyhole(polygons: Sequence[Polygon]) -> Points:
    """All rings as one, joined by lines that lead to and fro: filled by any rule, they have no area of their own.

    Args:
        polygons: at least one.
    """
    rings = [ring for polygon in polygons for ring in (polygon.outer, *polygon.holes)]
    path = rings[0]
    for ring in rings[1:]:
        # A short line; which one is of no account.
        middle = ring.mean(axis=0)
        here = _nearest(ring, path[_nearest(path, middle)])
        there = _nearest(path, ring[here])
        around = np.concatenate([ring[here:], ring[: here + 1]])
        path = np.concatenate([path[: there + 1], around, path[there:]])
    return path


def _nearest(points: Points, to: np.ndarray) -> int:
    return int(((points - to) ** 2).sum(axis=1).argmin())
