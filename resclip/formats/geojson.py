"""GeoJSON: a feature for each instance, on the earth where the image says where it lies, else in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resclip.errors import reason
from resclip.geometry.contours import signed_area
from resclip.geometry.instances import Instance, outlines
from resclip.io.picture import Georeference

PIXELS = "pixels: x to the right and y down, from the image's upper left corner"
"""What is said of coordinates where the image says nothing of its place."""

DEGREES = "degrees: longitude and latitude, WGS 84"
"""What is said of coordinates on the earth, RFC 7946's only ones."""

_DIGITS = 9
"""After the point of a degree: 0.1 mm."""


def feature_collection(
    instances: Sequence[Instance], georeference: Georeference, tolerance: float
) -> dict[str, Any]:
    """A FeatureCollection by RFC 7946: a Polygon, or a MultiPolygon of parts that touch at corners, an instance.

    Outer rings go counter-clockwise and holes clockwise, as they lie on the map: where y points down, too, by the
    formula. The member "coordinates" says what they are: degrees by `DEGREES`, where the image has a transform, or
    ground control points, with a coordinate reference system; `PIXELS`, where it says nothing of its place or has no
    such system. Rings that cross the 180th meridian are not cut.

    Raises:
        ImportError: the image lies on the earth, and rasterio is missing.
        ValueError: its coordinates cannot be turned into longitude and latitude.
    """
    shapes = outlines(instances, tolerance)
    rings = [
        ring for polygons in shapes for polygon in polygons
        for ring in (polygon.outer, *polygon.holes)
    ]  # fmt: skip
    is_placed = _is_placed(georeference)
    points = np.concatenate([np.empty((0, 2), np.int64), *rings])
    placed: NDArray[Any] = _to_degrees(points, georeference) if is_placed else points
    left = iter(np.split(placed, np.cumsum([len(ring) for ring in rings])[:-1]))
    features = []
    for instance, polygons in zip(instances, shapes, strict=True):
        coordinates = [
            [_closed(next(left), is_outer=number == 0) for number in range(1 + len(polygon.holes))]
            for polygon in polygons
        ]
        is_single = len(coordinates) == 1
        features.append(
            {
                "type": "Feature",
                "properties": {
                    "class": instance.name,
                    "index": instance.index,
                    "area_pixels": instance.area,
                    "mean_probability": round(instance.probability, 6),
                    "coordinates": "degrees" if is_placed else "pixels",
                },
                "geometry": {
                    "type": "Polygon" if is_single else "MultiPolygon",
                    "coordinates": coordinates[0] if is_single else coordinates,
                },
            }
        )
    return {
        "type": "FeatureCollection",
        "coordinates": DEGREES if is_placed else PIXELS,
        "features": features,
    }


def _is_placed(place: Georeference) -> bool:
    """Whether pixels have a place on the earth without a model of its heights."""
    by_transform = place.transform is not None and place.crs is not None
    return by_transform or (bool(place.gcps) and place.gcps_crs is not None)


def _closed(ring: NDArray[Any], *, is_outer: bool) -> list[list[float]]:
    """A ring in the direction that RFC 7946 wants, its first point again at its end."""
    if (signed_area(ring - ring[0]) > 0) != is_outer:
        ring = ring[::-1]
    points: list[list[float]] = ring.tolist()
    return [*points, points[0]]


def _to_degrees(points: NDArray[np.int64], place: Georeference) -> NDArray[np.float64]:
    """(N, 2): longitude and latitude of pixels' corners."""
    try:
        from resclip.io.raster import gdal
    except ImportError as error:
        raise ImportError(
            'expected rasterio, which turns coordinates into degrees, found none; pip install "resclip[geo]"'
        ) from error
    columns, rows = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    with gdal():
        from rasterio import transform, warp

        by_transform = place.transform is not None and place.crs is not None
        crs = place.crs if by_transform else place.gcps_crs
        transformer = (
            transform.AffineTransformer(place.transform)
            if by_transform
            else transform.GCPTransformer(place.gcps)
        )
        # "ul": a row and column is the upper left corner of its pixel.
        x, y = transformer.xy(rows, columns, offset="ul") if len(points) else (columns, rows)
        try:
            degrees = np.stack(warp.transform(crs, "EPSG:4326", x, y), axis=1)
        except Exception as error:  # GDAL's errors share no class.
            raise ValueError(_out_of_place(crs, f" ({reason(error)})")) from error
    if not np.isfinite(degrees).all():
        raise ValueError(_out_of_place(crs, ""))
    return np.round(degrees, _DIGITS)


def _out_of_place(crs: Any, why: str) -> str:
    return (
        f"expected coordinates that have a longitude and latitude, got some that have none by {crs!s:.80}{why}; check "
        "the image's coordinate reference system"
    )
