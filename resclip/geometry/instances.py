"""Instances: the connected components of a segmentation's classes, each with what it measures and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resclip.geometry.components import Components, find_components
from resclip.geometry.contours import DEFAULT_TOLERANCE, Polygon, check_tolerance, find_polygons
from resclip.geometry.run_lengths import encode_mask


class Box(NamedTuple):
    """The least box of whole pixels around something: its upper left corner and its size, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Instance:
    """A connected component of one class.

    Its mask is made when it is asked for: thousands of them take no more memory than one map of the image's size.

    Attributes:
        index: of its class.
        name: of its class.
        area: in pixels.
        box: around it.
        probability: the mean over its pixels of their class's probability, 0 to 1.
    """

    index: int
    name: str
    area: int
    box: Box
    probability: float
    components: Components = field(repr=False)
    number: int = field(repr=False)
    """In `components`."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W), of the image's size: true on its pixels."""
        mask = np.zeros(self.components.parts.shape, np.bool_)
        x, y, width, height = self.box
        mask[y : y + height, x : x + width] = self.crop
        return mask

    @property
    def crop(self) -> NDArray[np.bool_]:
        """(height, width), of its box's size: true on its pixels."""
        return self.components.crop(self.number)

    def rle(self, *, compressed: bool = True) -> dict[str, Any]:
        """Its mask as COCO's {"size": [H, W], "counts": ...}: text if it is compressed, else run lengths."""
        shape = self.components.parts.shape
        size = (shape[0], shape[1])
        return encode_mask(self.crop, size, self.box[:2], compressed=compressed)

    def polygons(self, tolerance: float = DEFAULT_TOLERANCE) -> list[Polygon]:
        """Its outline: one polygon for each part of it whose pixels share edges; see `find_polygons`."""
        return outlines([self], tolerance)[0]


def find_instances(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    names: Sequence[str],
    min_area: int = 1,
    connectivity: int = 8,
) -> list[Instance]:
    """The connected components of every class, the largest first, and as they come, row by row, among equals.

    Args:
        labels: (H, W), indices into `names`; negative ones are of no instance.
        probabilities: (H, W), 0 to 1.
        min_area: smaller ones, in pixels, are left out.
        connectivity: 8: pixels that touch at a corner are connected; 4: only those that share an edge.

    Raises:
        ValueError, TypeError: `min_area` is no whole number of at least 1, or `connectivity` neither 4 nor 8.
    """
    check_min_area(min_area)
    components = find_components(labels, connectivity)
    sums = components.sums(probabilities)
    order = np.argsort(-components.areas, kind="stable")
    order = order[components.areas[order] >= min_area]
    return [
        Instance(
            index=index,
            name=names[index],
            area=area,
            box=Box(*box),
            # The last bits of a probability may pass 1.
            probability=min(1.0, total / area),
            components=components,
            number=number,
        )
        for number, index, area, box, total in zip(
            order.tolist(),
            components.classes[order].tolist(),
            components.areas[order].tolist(),
            components.boxes[order].tolist(),
            sums[order].tolist(),
            strict=True,
        )
    ]


def check_min_area(min_area: int) -> None:
    """ValueError or TypeError unless it is a number of pixels of at least 1."""
    from resclip_kernels import check_count

    check_count("min_area", min_area, 1)


def outlines(instances: Sequence[Instance], tolerance: float) -> list[list[Polygon]]:
    """The polygons of each of some instances of one `find_instances`, traced together; see `find_polygons`."""
    check_tolerance(tolerance)
    if not instances:
        return []
    numbers = [instance.number for instance in instances]
    return list(find_polygons(instances[0].components, numbers, tolerance))
