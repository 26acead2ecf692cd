"""Contours of a label map's components: polygons with holes along pixels' edges, exact or simplified.

Neighbouring components share their contours: a line between two of them is simplified once, so that polygons neither
overlap nor leave gaps along it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resclip.geometry.components import Components

DEFAULT_TOLERANCE = 0.75
"""In pixels: straightens the stairs of a diagonal, whose steps stand out by 0.71 pixels."""

MAX_TOLERANCE = 100.0
"""In pixels; nothing is left of a contour that may move by more."""

SMALLEST_SIMPLIFIED = 10.0
"""Components of an area below the square of so many tolerances keep their exact contours."""

Points = NDArray[np.int64]
"""(N, 2): x to the right and y down, at pixels' corners: pixel (0, 0) covers (0, 0) to (1, 1). The last one is joined
to the first."""


@dataclass(frozen=True, eq=False)
class Polygon:
    """An area without its holes, both bounded by rings of points; see `Points`.

    Attributes:
        outer: clockwise on the screen, where y points down.
        holes: counter-clockwise.
    """

    outer: Points
    holes: tuple[Points, ...] = ()

    @property
    def area(self) -> float:
        """In pixels."""
        return sum(signed_area(ring) for ring in (self.outer, *self.holes))


def signed_area(ring: NDArray[Any]) -> float:
    """In pixels; positive for a ring that is clockwise on the screen, where y points down."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def check_tolerance(tolerance: float) -> None:
    """ValueError or TypeError unless it is a number of pixels from 0 to `MAX_TOLERANCE`."""
    from resclip_kernels import check_range

    check_range("tolerance", tolerance, 0.0, MAX_TOLERANCE)


def find_polygons(
    components: Components, numbers: Sequence[int] | NDArray[np.int64], tolerance: float
) -> Iterator[list[Polygon]]:
    """The polygons of some components, in the order of `numbers`: one for each of a component's parts.

    At tolerance 0 a polygon's corners are those of its pixels' outline, and by the even-odd rule it has exactly these
    pixels' centres inside. The rings are simple: they touch others, and never themselves, and at points alone.

    Above it, lines from one corner where three components meet to the next, or around, are simplified by Douglas and
    Peucker, "Algorithms for the reduction of the number of points required to represent a digitized line" (1973):
    points stay whose distance from what takes their place is greater than `tolerance`. Components of less than
    `SMALLEST_SIMPLIFIED` tolerances squared, and rings of which nothing would be left, stay as they are, so that none
    is lost. Where a component is thinner than the tolerance, simplified rings may cross.

    Raises:
        ValueError, TypeError: a tolerance out of range.
    """
    check_tolerance(tolerance)
    numbers = np.asarray(numbers, np.int64)
    is_kept = np.zeros(len(components) + 1, np.bool_)
    is_kept[numbers] = True
    is_kept[-1] = False
    outlines = _trace(components.parts, is_kept[components.part_of], with_nodes=tolerance > 0)
    rings = list(_simple_rings(outlines))
    is_outer = _signed_areas([ring.vertices for ring in rings], outlines.width) > 0
    if tolerance > 0:
        areas = components.areas[components.part_of]
        is_exact = areas < (SMALLEST_SIMPLIFIED * tolerance) ** 2
        shapes = _simplified(rings, is_outer, is_exact, outlines.width, tolerance)
    else:
        shapes = [ring.vertices for ring in rings]

    outer: dict[int, Points] = {}
    holes: dict[int, list[Points]] = {}
    points = _split_points(shapes, outlines.width)
    for ring, goes_around, shape in zip(rings, is_outer.tolist(), points, strict=True):
        # Neighbours by edges make a part, so that it has one outer ring; the others go round its holes.
        if goes_around:
            outer[ring.part] = shape
        else:
            holes.setdefault(ring.part, []).append(shape)
    parts: dict[int, list[int]] = {number: [] for number in numbers.tolist()}
    for part in sorted(outer):
        parts[int(components.part_of[part])].append(part)
    for number in numbers.tolist():
        yield [Polygon(outer[part], tuple(holes.get(part, ()))) for part in parts[number]]


class _Outlines(NamedTuple):
    """Closed outlines of parts, as vertices that follow one another."""

    vertices: list[int]
    """Row · width + column of the pixel below and to the right of each, in a map with a margin of one pixel."""
    parts: list[int]
    """Of each vertex."""
    nodes: list[bool]
    """Whether more than two parts meet at each, or the same two twice, or it is a corner of the map."""
    ends: list[int]
    """Where each outline ends in the lists above."""
    width: int
    """Of the map with its margin."""


class _Ring(NamedTuple):
    """A simple ring around a part or one of its holes."""

    part: int
    vertices: list[int]
    nodes: list[bool]


def _trace(parts: NDArray[np.int32], is_kept: NDArray[np.bool_], *, with_nodes: bool) -> _Outlines:
    """The outlines of the parts that are kept, each with its part on the right, by their straight sides.

    Args:
        parts: (H, W), see `Components`.
        is_kept: by part, and false for −1.
        with_nodes: sides end at nodes too, beside corners.
    """
    padded = np.pad(parts, 1, constant_values=-1)
    flat, width = padded.ravel(), padded.shape[1]
    # Lines between a pixel and the one below it, or to its right.
    below = padded[1:] != padded[:-1]
    beside = padded[:, 1:] != padded[:, :-1]
    is_node = _nodes(below, beside).ravel() if with_nodes else None
    line = np.flatnonzero(below)
    # Lines of a column follow one another.
    columns, rows = np.nonzero(beside.T)
    wall = rows * width + columns
    del below, beside

    # The four kinds of sides, as their part has them: the upper leads east, the right south, the lower west, the left
    # north. For each: its pixels, the step to the next pixel, the corner between a pixel and the one before, whether
    # it leads from the last to the first, and its start from there.
    sides = (
        (line + width, 1, 0, False, 0),
        (wall, width, 1, False, 1),
        (line, 1, width, True, width + 1),
        (wall + 1, width, 0, True, width),
    )
    firsts, lasts, starts = [], [], []
    for pixels, step, corner, is_backward, start in sides:
        kept = pixels[is_kept[flat[pixels]]]
        joins = (kept[1:] - kept[:-1] == step) & (flat[kept[1:]] == flat[kept[:-1]])
        if is_node is not None:
            joins &= ~is_node[kept[1:] + corner]
        breaks = np.flatnonzero(~joins)
        head = kept[np.concatenate([[0], breaks + 1])] if len(kept) else kept
        tail = kept[np.concatenate([breaks, [len(kept) - 1]])] if len(kept) else kept
        first, last = (tail, head) if is_backward else (head, tail)
        firsts.append(first)
        lasts.append(last)
        starts.append(first + start)

    kinds = np.repeat(np.arange(4), [len(first) for first in firsts])
    first, last = np.concatenate(firsts), np.concatenate(lasts)
    vertices = np.concatenate(starts)
    following = _following(flat, width, kinds, first, last)
    order, ends = _cycles(following)
    is_node_at = np.zeros(len(order), np.bool_) if is_node is None else is_node[vertices[order]]
    return _Outlines(
        vertices[order].tolist(), flat[first[order]].tolist(), is_node_at.tolist(), ends, width
    )


def _nodes(below: NDArray[np.bool_], beside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the map with its margin, where more than two lines meet above and to the left of a pixel; and its corners."""
    nodes = np.zeros((len(beside), below.shape[1]), np.bool_)
    degree = below[:, :-1].astype(np.uint8)
    degree += below[:, 1:]
    degree += beside[:-1]
    degree += beside[1:]
    nodes[1:, 1:] = degree > 2
    nodes[1, [1, -1]] = nodes[-1, [1, -1]] = True
    return nodes


def _following(
    flat: NDArray[np.int32],
    width: int,
    kinds: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The side that each side is followed by, which starts where it ends and stays with its part."""
    steps = np.array([1, width, -1, -width])
    part = flat[last]
    ahead = last + steps[kinds]
    outside = ahead + steps[kinds - 1]
    turns_right = flat[ahead] != part
    goes_on = ~turns_right & (flat[outside] != part)
    kind = np.where(turns_right, kinds + 1, np.where(goes_on, kinds, kinds - 1)) % 4
    pixel = np.where(turns_right, last, np.where(goes_on, ahead, outside))
    keys = kinds * len(flat) + first
    order = np.argsort(keys)
    return order[np.searchsorted(keys[order], kind * len(flat) + pixel)]


def _cycles(following: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """A permutation's cycles, one after another, and where each ends."""
    # Plain lists: one step takes less than NumPy's overhead.
    next_of = following.tolist()
    is_done = bytearray(len(next_of))
    order: list[int] = []
    ends = []
    for first in range(len(next_of)):
        if is_done[first]:
            continue
        now = first
        while not is_done[now]:
            is_done[now] = 1
            order.append(now)
            now = next_of[now]
        ends.append(len(order))
    return order, ends


def _simple_rings(outlines: _Outlines) -> Iterator[_Ring]:
    """The outlines, those that touch themselves cut into rings that do not."""
    start = 0
    for end in outlines.ends:
        part = outlines.parts[start]
        vertices = outlines.vertices[start:end]
        nodes = outlines.nodes[start:end]
        start = end
        if len(set(vertices)) == len(vertices):
            yield _Ring(part, vertices, nodes)
            continue
        path: list[int] = []
        marks: list[bool] = []
        place: dict[int, int] = {}
        for vertex, mark in zip(vertices, nodes, strict=True):
            if vertex in place:
                since = place[vertex]
                yield _Ring(part, path[since:], marks[since:])
                for left in path[since:]:
                    del place[left]
                del path[since:], marks[since:]
            place[vertex] = len(path)
            path.append(vertex)
            marks.append(mark)
        yield _Ring(part, path, marks)


def _points(vertices: Sequence[int] | NDArray[np.int64], width: int) -> Points:
    """Vertices of the map with its margin as points of the map itself."""
    y, x = np.divmod(np.asarray(vertices, np.int64), width)
    return np.stack([x - 1, y - 1], axis=1)


def _split_points(rings: Sequence[Sequence[int]], width: int) -> list[Points]:
    """The points of each ring."""
    if not rings:
        return []
    ends = np.cumsum([len(ring) for ring in rings])
    return np.split(_points(list(chain.from_iterable(rings)), width), ends[:-1])


def _signed_areas(rings: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    """Twice the signed area of each ring; 0 for one of less than three vertices."""
    if not rings:
        return np.empty(0, np.int64)
    # The area between each ring and its first vertex, so that rings may follow one another in one array.
    points = _points(list(chain.from_iterable((*ring, ring[0]) for ring in rings)), width)
    lengths = np.array([len(ring) + 1 for ring in rings])
    starts = np.cumsum(lengths) - lengths
    x, y = (points - np.repeat(points[starts], lengths, axis=0)).T
    crossed = np.zeros(len(points), np.int64)
    crossed[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    return np.asarray(np.add.reduceat(crossed, starts))


class _Way(NamedTuple):
    """An arc, a line from one node to the next, as a ring takes it."""

    key: tuple[int, int]
    """The arc's first two vertices."""
    is_forward: bool


def _simplified(
    rings: Sequence[_Ring],
    is_outer: NDArray[np.bool_],
    is_exact: NDArray[np.bool_],
    width: int,
    tolerance: float,
) -> list[list[int]]:
    """The rings' vertices, simplified arc by arc; both sides of an arc get the same.

    Args:
        is_outer: by ring: whether it goes around its part.
        is_exact: by part: whether its contours stay as they are.
    """
    arcs: dict[tuple[int, int], list[int]] = {}
    ways = [list(_ways(ring, arcs)) for ring in rings]
    kept_whole = {
        way.key
        for ring, taken in zip(rings, ways, strict=True)
        if is_exact[ring.part]
        for way in taken
    }
    simplified = [key for key, arc in arcs.items() if len(arc) > 2 and key not in kept_whole]
    shorter = dict(arcs)
    shorter.update(
        zip(
            simplified,
            _simplified_arcs([arcs[key] for key in simplified], width, tolerance),
            strict=True,
        )
    )
    areas = _signed_areas([_joined(taken, shorter) for taken in ways], width)
    # Less than a triangle, or turned inside out.
    lost = np.flatnonzero(np.where(is_outer, areas <= 0, areas >= 0))
    for number in lost.tolist():
        for way in ways[number]:
            shorter[way.key] = arcs[way.key]
    return [_joined(taken, shorter) for taken in ways]


def _ways(ring: _Ring, arcs: dict[tuple[int, int], list[int]]) -> Iterator[_Way]:
    """The arcs of a ring, in its order, entered into `arcs` in the direction that both sides agree on."""
    vertices = ring.vertices
    cuts = [place for place, is_node in enumerate(ring.nodes) if is_node]
    if not cuts:
        cuts = [vertices.index(min(vertices))]
    turned = vertices[cuts[0] :] + vertices[: cuts[0] + 1]
    places = [cut - cuts[0] for cut in cuts] + [len(vertices)]
    for first, last in pairwise(places):
        arc = turned[first : last + 1]
        ahead, back = (arc[0], arc[1]), (arc[-1], arc[-2])
        is_forward = ahead <= back
        key = ahead if is_forward else back
        if key not in arcs:
            arcs[key] = arc if is_forward else arc[::-1]
        yield _Way(key, is_forward)


def _joined(ways: Sequence[_Way], arcs: dict[tuple[int, int], list[int]]) -> list[int]:
    """The vertices of a ring, the first one once."""
    vertices: list[int] = []
    for way in ways:
        arc = arcs[way.key]
        vertices.extend(arc[:-1] if way.is_forward else arc[:0:-1])
    return vertices


def _simplified_arcs(
    arcs: Sequence[Sequence[int]], width: int, tolerance: float
) -> list[list[int]]:
    """The vertices of each arc that stay, both ends among them; all arcs at once, halving by halving."""
    if not arcs:
        return []
    lengths = np.array([len(arc) for arc in arcs])
    vertices = np.array(list(chain.from_iterable(arcs)), np.int64)
    points = _points(vertices, width).astype(np.float64)
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    stays = np.zeros(len(points), np.bool_)
    stays[first] = stays[last] = True
    while len(first):
        # What lies between first and last of each stretch, one after another.
        counts = last - first - 1
        begins = np.cumsum(counts) - counts
        stretch = np.repeat(np.arange(len(first)), counts)
        inner = np.arange(len(stretch)) - begins[stretch] + first[stretch] + 1
        distances = _distances(points[inner], points[first[stretch]], points[last[stretch]])
        greatest = np.maximum.reduceat(distances, begins)
        # The first of those that are farthest.
        candidates = np.where(distances == greatest[stretch], inner, len(points))
        middle = np.minimum.reduceat(candidates, begins)
        is_cut = greatest > tolerance
        middle = middle[is_cut]
        stays[middle] = True
        first = np.concatenate([first[is_cut], middle])
        last = np.concatenate([middle, last[is_cut]])
        is_open = last - first > 1
        first, last = first[is_open], last[is_open]
    numbers = np.repeat(np.arange(len(arcs)), lengths)[stays]
    ends = np.searchsorted(numbers, np.arange(len(arcs)), side="right")
    kept = vertices[stays].tolist()
    return [kept[start:end] for start, end in zip([0, *ends.tolist()], ends.tolist(), strict=False)]


def _distances(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,): of each point from the line between two others, which may be one point."""
    along = end - start
    offsets = points - start
    length = (along * along).sum(axis=1)
    share = (offsets * along).sum(axis=1) / np.where(length == 0, 1.0, length)
    offsets -= np.clip(share, 0.0, 1.0)[:, None] * along
    return np.asarray(np.hypot(offsets[:, 0], offsets[:, 1]))
