"""Components, contours and run lengths of label maps, against scipy, rasterio, shapely and pycocotools."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from rasterio.features import rasterize
from scipy import ndimage
from shapely.geometry import MultiPolygon

from resclip.geometry.components import Components, find_components
from resclip.geometry.contours import Polygon, find_polygons, signed_area
from resclip.geometry.run_lengths import encode_mask, run_lengths


def random_maps(count: int, scale: int = 1, seed: int = 0) -> list[NDArray[np.int64]]:
    """Small maps of every shape: specks, holes, diagonal touches, unlabelled pixels, and maps of nothing else."""
    generator = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        size = generator.integers(1, 24, 2)
        labels = generator.integers(-1, generator.integers(1, 4), size)
        maps.append(np.kron(labels, np.ones((scale, scale), np.int64)))
    return maps


def smooth_map(height: int, width: int, classes: int, seed: int = 0) -> NDArray[np.int64]:
    """Blobs with curved borders, one in a hundred pixels of another class."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((classes, height // 10, width // 10))
    fields = ndimage.zoom(ndimage.gaussian_filter(noise, (0, 2, 2)), (1, 10, 10), order=1)
    labels = fields.argmax(axis=0)
    specks = generator.random(labels.shape) < 0.001
    labels[specks] = generator.integers(0, classes, int(specks.sum()))
    return labels.astype(np.int64)


def polygons_of(components: Components, tolerance: float) -> list[list[Polygon]]:
    return list(find_polygons(components, range(len(components)), tolerance))


def filled(labels: NDArray[np.int64], tolerance: float, connectivity: int = 8) -> NDArray[np.int64]:
    """The label map as GDAL fills the polygons: pixels whose centres lie inside."""
    components = find_components(labels, connectivity)
    shapes = [
        (
            {
                "type": "Polygon",
                "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in rings],
            },
            int(label),
        )
        for label, polygons in zip(
            components.classes, polygons_of(components, tolerance), strict=True
        )
        for polygon in polygons
        for rings in [(polygon.outer, *polygon.holes)]
    ]
    empty = np.full(labels.shape, -1, np.int32)
    return np.asarray(rasterize(shapes, out=empty) if shapes else empty).astype(np.int64)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_components_are_scipy_s(connectivity: int) -> None:
    structure = np.ones((3, 3)) if connectivity == 8 else None
    for labels in random_maps(60):
        components = find_components(labels, connectivity)
        numbers = components.part_of[components.parts]
        assert ((numbers < 0) == (labels < 0)).all()
        expected = 0
        for label in np.unique(labels[labels >= 0]):
            found, count = ndimage.label(labels == label, structure)
            for one in range(1, count + 1):
                mask = found == one
                (number,) = np.unique(numbers[mask])
                rows, columns = ndimage.find_objects(mask.astype(int))[0]
                assert components.classes[number] == label
                assert components.areas[number] == mask.sum() == (numbers == number).sum()
                assert components.boxes[number].tolist() == [
                    columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start,
                ]  # fmt: skip
                np.testing.assert_array_equal(components.crop(number), mask[rows, columns])
            expected += count
        assert len(components) == expected
        weights = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
        sums = [weights[numbers == number].sum(dtype=float) for number in range(expected)]
        np.testing.assert_allclose(components.sums(weights), sums)


def test_a_long_winding_component_is_one() -> None:
    """A spiral's runs are joined one after another: many rounds for what joins neighbours alone."""
    size = 101
    labels = np.zeros((size, size), np.int64)
    row, column, step = 0, 0, (0, 1)
    visited = np.zeros((size + 4, size + 4), bool)
    visited[:2] = visited[-2:] = visited[:, :2] = visited[:, -2:] = True
    for _ in range(size * size):
        labels[row, column] = 1
        visited[row + 2, column + 2] = True
        ahead = (row + 2 + 2 * step[0], column + 2 + 2 * step[1])
        beyond = (row + 2 + step[0], column + 2 + step[1])
        is_edge = not (2 <= beyond[0] < size + 2 and 2 <= beyond[1] < size + 2)
        inner = 2 <= ahead[0] < size + 2 and 2 <= ahead[1] < size + 2
        if is_edge or (inner and visited[ahead]):
            step = (step[1], -step[0])
            if visited[row + 2 + 2 * step[0], column + 2 + 2 * step[1]]:
                break
        row, column = row + step[0], column + step[1]
    for connectivity, transposed in itertools.product((4, 8), (False, True)):
        components = find_components(labels.T if transposed else labels, connectivity)
        assert len(components) == 2
        assert (components.areas > size).all()


@pytest.mark.parametrize("connectivity", [3, 5, "8", True])
def test_other_connectivities_are_refused(connectivity: int) -> None:
    with pytest.raises(ValueError, match="connectivity must be 4, .* or 8"):
        find_components(np.zeros((2, 2), np.int64), connectivity)


@pytest.mark.parametrize(("connectivity", "scale"), [(4, 1), (4, 3), (8, 1), (8, 3)])
def test_exact_polygons_have_exactly_their_pixels(connectivity: int, scale: int) -> None:
    for labels in random_maps(40, scale, seed=scale):
        np.testing.assert_array_equal(filled(labels, 0, connectivity), labels)
        components = find_components(labels, connectivity)
        for area, polygons in zip(components.areas, polygons_of(components, 0), strict=True):
            assert sum(polygon.area for polygon in polygons) == area
            assert MultiPolygon([(one.outer, one.holes) for one in polygons]).is_valid
            assert connectivity == 8 or len(polygons) == 1
            for polygon in polygons:
                assert signed_area(polygon.outer) > 0
                assert all(signed_area(hole) < 0 for hole in polygon.holes)


def test_exact_polygons_have_no_points_on_straight_lines() -> None:
    for labels in random_maps(40, 2):
        for polygon in itertools.chain(*polygons_of(find_components(labels), 0)):
            for ring in (polygon.outer, *polygon.holes):
                steps = np.sign(np.roll(ring, -1, axis=0) - ring)
                assert (np.abs(steps).sum(axis=1) == 1).all()
                assert (steps != np.roll(steps, 1, axis=0)).any(axis=1).all()


def test_a_hole_with_an_island_and_a_diagonal_touch() -> None:
    labels = np.zeros((5, 5), np.int64)
    labels[1:4, 1:4] = 1
    labels[2, 2] = 0
    frame, ring, island = polygons_of(find_components(labels), 0)
    assert [len(one.holes) for one in (*frame, *ring, *island)] == [1, 1, 0]
    assert frame[0].outer.tolist() == [[0, 0], [5, 0], [5, 5], [0, 5]]
    assert island[0].outer.tolist() == [[2, 2], [3, 2], [3, 3], [2, 3]]
    touching = np.where(np.eye(2, dtype=bool), 0, -1)
    (one,) = polygons_of(find_components(touching, 8), 0)
    assert [polygon.area for polygon in one] == [1, 1]


def test_simplified_polygons_match_their_pixels_and_none_is_lost() -> None:
    labels = smooth_map(300, 400, 6)
    components = find_components(labels)
    exact = list(itertools.chain(*polygons_of(components, 0)))
    for tolerance, least, most_points in ((0.5, 1.0, 0.9), (0.75, 0.995, 0.6), (2.0, 0.985, 0.5)):
        assert (filled(labels, tolerance) == labels).mean() >= least
        simplified = polygons_of(components, tolerance)
        assert all(len(polygon.outer) >= 3 for polygon in itertools.chain(*simplified))
        assert all(sum(one.area for one in polygons) > 0 for polygons in simplified)
        points = sum(len(polygon.outer) for polygon in itertools.chain(*simplified))
        assert points <= most_points * sum(len(polygon.outer) for polygon in exact)


def test_simplified_neighbours_share_their_lines() -> None:
    """No pixel is in two polygons or in none, and the areas add up to the map's."""
    for seed in range(4):
        labels = smooth_map(200, 200, 4, seed)
        components = find_components(labels)
        for tolerance in (1.0, 4.0):
            simplified = list(itertools.chain(*polygons_of(components, tolerance)))
            assert sum(polygon.area for polygon in simplified) == labels.size
            lines: dict[frozenset[tuple[int, int]], int] = {}
            for polygon in simplified:
                for ring in (polygon.outer, *polygon.holes):
                    points = [tuple(point) for point in ring.tolist()]
                    for pair in itertools.pairwise([*points, points[0]]):
                        lines[frozenset(pair)] = lines.get(frozenset(pair), 0) + 1
            alone = [line for line, count in lines.items() if count == 1]
            # What only one polygon has lies on the rim of the map.
            for line in alone:
                (x1, y1), (x2, y2) = line
                assert (x1 == x2 and x1 in (0, 200)) or (y1 == y2 and y1 in (0, 200))


def test_points_stay_within_the_tolerance() -> None:
    labels = smooth_map(200, 200, 3, seed=5)
    components = find_components(labels)
    exact = polygons_of(components, 0)
    for tolerance in (1.0, 3.0):
        for before, after in zip(exact, polygons_of(components, tolerance), strict=True):
            one = MultiPolygon([(polygon.outer, polygon.holes) for polygon in before]).boundary
            other = MultiPolygon([(polygon.outer, polygon.holes) for polygon in after]).boundary
            assert one.hausdorff_distance(other) <= tolerance + 1e-9


@pytest.mark.parametrize(
    ("tolerance", "error"), [(-1, ValueError), (101, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)  # fmt: skip
def test_other_tolerances_are_refused(tolerance: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="tolerance must be a"):
        polygons_of(find_components(np.zeros((2, 2), np.int64)), tolerance)


def test_run_lengths_are_pycocotools_s() -> None:
    generator = np.random.default_rng(0)
    for _ in range(400):
        size = generator.integers(1, 12, 2)
        whole = size + generator.integers(0, 4, 2)
        top, left = (int(generator.integers(0, extra + 1)) for extra in whole - size)
        mask = generator.random(size) < generator.choice([0, 0.1, 0.5, 0.9, 1])
        image = np.zeros(whole, np.uint8)
        image[top : top + size[0], left : left + size[1]] = mask
        shape = (int(whole[0]), int(whole[1]))
        came = encode_mask(mask, shape, (left, top))
        assert came["counts"] == coco_mask.encode(np.asfortranarray(image))["counts"].decode()
        plain = encode_mask(mask, shape, (left, top), compressed=False)
        stored = coco_mask.frPyObjects(plain, *shape)
        np.testing.assert_array_equal(coco_mask.decode(stored), image)


def test_long_runs_and_differences_of_either_sign() -> None:
    mask = np.zeros((700, 900), bool)
    mask[:, 30:500] = True
    mask[5, 40] = mask[699, 499] = False
    mask[::7, 600] = True
    came = encode_mask(mask)
    assert (
        came["counts"]
        == coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()
    )
    assert sum(run_lengths(mask)) == mask.size
