"""Bounding boxes of what a mask holds, as contours bound it: of its parts and of their holes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def components(masks: Tensor, *, diagonal: bool) -> Tensor:
    """Connected components of each mask: (N, h, w) bool → (N, h, w) int64, 0 outside the mask.

    Two positions have equal numbers, which are at least 1, where a path within the mask leads from one to the other.

    Args:
        masks: (N, h, w) bool.
        diagonal: whether steps go to all 8 neighbours, or to the 4 beside, above and below.
    """
    height, width = masks.shape[1:]
    inside = masks.flatten(1)
    numbers = torch.arange(1, height * width + 1, device=masks.device)
    labels = torch.where(inside, numbers, 0)
    while True:
        # Exact up to 16 million positions.
        planes = labels.float().unflatten(1, (height, width)).unsqueeze(1)
        if diagonal:
            around = F.max_pool2d(planes, 3, stride=1, padding=1)
        else:
            down = F.max_pool2d(planes, (3, 1), stride=1, padding=(1, 0))
            around = torch.maximum(down, F.max_pool2d(planes, (1, 3), stride=1, padding=(0, 1)))
        spread = around.flatten(1).long() * inside
        # A label is the number of a position of the same component, and that position may know a larger one already:
        # so a number comes along a winding component in far fewer rounds than it has positions.
        spread = spread.gather(1, (spread - 1).clamp(min=0)) * inside
        if torch.equal(spread, labels):
            found: Tensor = labels.unflatten(1, (height, width))
            return found
        labels = spread


def bounds(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The extent of each component.

    Args:
        labels: (N, h, w) of `components`.

    Returns:
        (K,) int64, the mask of each component, and (K, 4) int64: its first and last row, first and last column. In
        order of masks, and within one of the components' numbers.
    """
    planes, rows, columns = labels.nonzero(as_tuple=True)
    numbers = labels[planes, rows, columns]
    most = int(numbers.max()) + 1 if len(numbers) else 1
    names, which = (planes * most + numbers).unique(return_inverse=True)
    extent = []
    for places in (rows, columns):
        least = places.new_full((len(names),), max(labels.shape[1:]))
        extent.append(least.scatter_reduce(0, which, places, "amin"))
        extent.append(torch.zeros_like(least).scatter_reduce(0, which, places, "amax"))
    return names // most, torch.stack(extent, dim=1)


def contour_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Bounding boxes of all contours of each mask: of its 8-connected parts, and of their holes.

    The contour of a hole runs over the positions of the mask around it, so that its box is one position larger than the
    hole on each side. A hole is enclosed by steps to 8 neighbours: it is connected by steps to 4.

    Args:
        masks: (N, h, w) bool.

    Returns:
        (K,) int64, the mask of each box, and (K, 4) int64: its first and last row, first and last column. First all
        parts, then all holes.
    """
    planes, parts = bounds(components(masks, diagonal=True))
    around = components(F.pad(~masks, (1, 1, 1, 1), value=True), diagonal=False)
    outside = around[:, :1, :1]
    hole_planes, holes = bounds(around.masked_fill(around == outside, 0)[:, 1:-1, 1:-1])
    larger = holes + torch.tensor([-1, 1, -1, 1], device=masks.device)
    return torch.cat([planes, hole_planes]), torch.cat([parts, larger])


def half_open(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """(K, 4) y0, y1, x0, x1 of [y0, y1) × [x0, x1) that never hold a grid's last row and column.

    So the authors of FreeCP cut boxes to the grid; a box of that row or column alone is left without area.

    Args:
        boxes: (K, 4), first and last row, first and last column.
        grid: (h, w).
    """
    y0, y1, x0, x1 = boxes.unbind(1)
    return torch.stack(
        [y0, (y1 + 1).clamp(max=grid[0] - 1), x0, (x1 + 1).clamp(max=grid[1] - 1)], dim=1
    )


def inside_boxes(planes: Tensor, boxes: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Which positions lie in any box of their mask: (N, h, w) bool.

    Args:
        planes: (K,) int64, the mask of each box.
        boxes: (K, 4), y0, y1, x0, x1 of `half_open`.
        shape: (N, h, w).
    """
    count, height, width = shape
    y0, y1, x0, x1 = boxes.unbind(1)
    # Each box's four corners in a table whose running sums over rows and columns count the boxes at each position.
    table = torch.zeros(count * (height + 1) * (width + 1), dtype=torch.int64, device=planes.device)
    for rows, columns, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        index = (planes * (height + 1) + rows) * (width + 1) + columns
        table.index_add_(0, index, torch.full_like(index, sign))
    counts = table.view(count, height + 1, width + 1).cumsum(1).cumsum(2)
    return counts[:, :height, :width] > 0
