"""Resizing along one axis as a product with a matrix, which `torch.export` writes out for any size."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_planes_by_matrices(
    planes: Tensor, size: tuple[int, int], position: str, *, exact: bool
) -> Tensor:
    """(g, g', D) → (h, w, D), as `resclip.models.tower.POSITIONS` says; sizes may be symbols.

    Args:
        planes: what is resized.
        size: (h, w).
        position: a name of `POSITIONS`.
        exact: whether the factors are (h + 0.1)/g, as in ResCLIP's released program, for another size than that of
            the planes, which stay as they are at their own.
    """
    wide = planes.to(torch.promote_types(planes.dtype, torch.float32))
    numbers = [torch.arange(side, device=planes.device) for side in size]
    sizes = [number.amax(dim=0) + 1 for number in numbers]
    same = (sizes[0] == planes.shape[0]) & (sizes[1] == planes.shape[1])
    matrices = []
    for number, new, old in zip(numbers, sizes, planes.shape[:2], strict=True):
        # At its own size a resize by factor 1 gives what it takes.
        added = torch.where(same, 0.0, 0.1) if exact else 0.0
        step = old / (new.float() + added)
        matrices.append(KINDS[position](number.float(), step, old).to(wide.dtype))
    down, across = matrices
    lines = (down @ wide.flatten(1)).unflatten(1, planes.shape[1:])  # [h, g', D]
    resized: Tensor = (across @ lines).to(planes.dtype)
    return resized


def cubic_matrix(number: Tensor, step: Tensor, old: int) -> Tensor:
    """The weights of four neighbours, by Keys' cubic with a = −0.75; beyond an end the last one counts: (size, old)."""
    place = (number + 0.5) * step - 0.5
    first = place.floor()
    column = torch.arange(old, device=number.device)
    matrix = torch.zeros((), device=number.device)
    for offset in range(-1, 3):
        weight = keys(first + offset - place, -0.75)
        at = (first + offset).clamp(0, old - 1)
        matrix = matrix + weight[:, None] * (at[:, None] == column)
    return matrix


def antialiased_matrix(number: Tensor, step: Tensor, old: int) -> Tensor:
    """Keys' cubic with a = −0.5, as wide as a step where that is longer than 1, each row of sum 1: (size, old)."""
    centre = (number + 0.5) * step
    column = torch.arange(old, device=number.device)
    weights = keys((column + 0.5 - centre[:, None]) / step.clamp(min=1.0), -0.5)
    return weights / weights.sum(dim=1, keepdim=True)


def linear_matrix(number: Tensor, step: Tensor, old: int) -> Tensor:
    """The weights of two neighbours: (size, old)."""
    place = ((number + 0.5) * step - 0.5).clamp(0, old - 1)
    column = torch.arange(old, device=number.device)
    return (1 - (place[:, None] - column).abs()).clamp(min=0)


def keys(offset: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel, IEEE Trans. ASSP 29 (1981), at these offsets."""
    x = offset.abs()
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, inner, torch.where(x < 2, outer, 0.0))


KINDS = {
    "released": cubic_matrix,
    "bicubic": cubic_matrix,
    "antialias": antialiased_matrix,
    "bilinear": linear_matrix,
}
"""By the names of `resclip.models.tower.POSITIONS`."""
