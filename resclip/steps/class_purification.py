"""FreeCP: each class's map is spread by CLIP's own attention, and classes that it does not confirm are dropped.

See `resclip.methods.steps.ClassPurification`. The maps are those of a window: `LogitStitcher` puts them together as it
does logits, and the label of a pixel is the class of the largest map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.methods.steps import ClassPurification
from resclip.steps.boxes import bounds, components, contour_boxes, half_open, inside_boxes
from resclip_kernels import check_callable, check_count, check_float, check_pair

SCALE = 100.0
"""Factor of the cosines in the softmax."""
LEVEL = 0.4
"""Part of a map's largest value that its mask lies above."""
NORMALISATIONS = 3
"""Times that the mean map's columns, then its rows, are divided by their sums."""
CROP = 112
"""Side in pixels at which CLIP sees a box."""
TINY = 1e-8
"""What FreeCP adds to its divisors."""


def spread_matrix(mean_map: Tensor) -> Tensor:
    """T of FreeCP from the mean map (B, n, n): its columns and rows normalised in turn, made symmetric, and squared."""
    spread = mean_map
    for _ in range(NORMALISATIONS):
        spread = spread / spread.sum(dim=1, keepdim=True)
        spread = spread / spread.sum(dim=2, keepdim=True)
    spread = (spread + spread.mT) / 2
    squared: Tensor = spread @ spread
    return squared


class Purified(NamedTuple):
    """What purification leaves of a batch of windows."""

    maps: Tensor
    """(B, C, h, w) in [0, 1], 0 for a class that was dropped."""
    kept: Tensor
    """(B, C) bool."""


def purify(
    cosines: Tensor,
    mean_map: Tensor,
    pixels: Tensor,
    text: Tensor,
    image_vectors: Callable[[Tensor], Tensor],
    option: ClassPurification,
    *,
    patch_size: tuple[int, int],
    background: int = 0,
    second_text: Tensor | None = None,
) -> Purified:
    """The purified maps of windows' classes.

    Where all cosines of a window are alike, or only one query is there, its maps are flat, and no class is kept.

    Args:
        cosines: (B, Q, h, w) of patches and text: first `background` queries, then one for each of C classes.
        mean_map: (B, n, n) of the windows, "spread" of `resclip.encoder.dense_encoder.WANTED`.
        pixels: (B, 3, H, W), the windows as the encoder got them.
        text: (Q, E) unit rows.
        image_vectors: CLIP's own vectors of images (N, 3, 112, 112): (N, E), such as `DenseEncoder.image_vectors`. It
            is called once at most, for the crops of all windows.
        option: θ_r and θ_a.
        patch_size: (height, width) of a patch in pixels.
        background: number of queries that are no class.
        second_text: (Q, E) unit rows, another description of each query that crops are compared with; None: `text`.

    Returns:
        Maps and kept classes. A window whose cosines hold NaN gets NaN.

    Raises:
        TypeError, ValueError: a shape, dtype or number that does not fit.
    """
    check_inputs(cosines, mean_map, pixels, text, second_text, background)
    check_callable("image_vectors", image_vectors, "a function of pixels (N, 3, H, W)")
    patch_size = check_pair("patch_size", patch_size, "(height, width) in pixels", 1)
    dtype = torch.promote_types(cosines.dtype, torch.float32)
    broken = cosines.flatten(1).isnan().any(dim=1)
    usable = cosines.to(dtype).masked_fill(broken[:, None, None, None], 0)
    shares = (SCALE * usable).softmax(dim=1)
    least, most = shares.flatten(1).aminmax(dim=1)
    height = (most - least)[:, None, None, None]
    maps = (shares - least[:, None, None, None]) / height.where(height > 0, 1)
    shares, maps = shares[:, background:], maps[:, background:]

    cut = maps * map_boxes(maps)
    spread = cut.flatten(2) @ spread_matrix(mean_map.to(dtype)).mT  # [B, C, n]
    least, most = spread.amin(dim=2, keepdim=True), spread.amax(dim=2, keepdim=True)
    spread = (spread - least) / (most - least + TINY)
    flat = shares.flatten(2)
    agreement = (flat * spread).sum(dim=2) / (flat.sum(dim=2) + spread.sum(dim=2) + TINY)
    kept = agreement > option.redundancy
    spread = spread * kept.unsqueeze(2)
    if option.ambiguity <= 1:
        rows = (text if second_text is None else second_text)[background:]
        kept = without_ambiguous(
            spread.unflatten(2, maps.shape[2:]),
            kept,
            pixels,
            rows,
            image_vectors,
            option.ambiguity,
            patch_size,
        )
    result = (spread * kept.unsqueeze(2)).unflatten(2, maps.shape[2:])
    return Purified(
        result.masked_fill(broken[:, None, None, None], torch.nan), kept & ~broken[:, None]
    )


def with_background(maps: Tensor) -> Tensor:
    """(…, C, H, W) → (…, 1 + C, H, W): first a background, 1 − the largest map."""
    return torch.cat([1 - maps.amax(dim=-3, keepdim=True), maps], dim=-3)


def map_masks(maps: Tensor) -> Tensor:
    """Where maps (N, h, w) in [0, 1], in steps of 1/255, lie above 0.4 times their largest value: bool."""
    steps = (255 * maps).floor()
    masks: Tensor = steps > (LEVEL * steps.amax(dim=(1, 2), keepdim=True)).floor()
    return masks


def map_boxes(maps: Tensor) -> Tensor:
    """Where maps (B, C, h, w) lie inside a box of their masks: bool of that shape."""
    together = maps.flatten(0, 1)
    # The box of a hole lies within that of its part.
    planes, parts = bounds(components(map_masks(together), diagonal=True))
    height, width = maps.shape[2:]
    inside = inside_boxes(planes, half_open(parts, (height, width)), (len(together), height, width))
    result: Tensor = inside.unflatten(0, maps.shape[:2])
    return result


class Ambiguity(NamedTuple):
    """Classes of a window that cover the same positions."""

    window: int
    classes: list[int]
    boxes: list[tuple[int, int, int, int]]
    """y0, y1, x0, x1 in patches."""


def without_ambiguous(
    maps: Tensor,
    kept: Tensor,
    pixels: Tensor,
    text: Tensor,
    image_vectors: Callable[[Tensor], Tensor],
    threshold: float,
    patch_size: tuple[int, int],
) -> Tensor:
    """The classes that stay: of those that cover the same boxes the ones that CLIP finds likeliest in a box.

    Args:
        maps: (B, C, h, w).
        kept: (B, C) bool, those that are left.
        pixels: (B, 3, H, W).
        text: (C, E).
        image_vectors: of crops.
        threshold: θ_a.
        patch_size: (height, width) in pixels.

    Returns:
        (B, C) bool.
    """
    groups = [
        Ambiguity(window, classes, group_boxes(maps[window, classes].mean(dim=0)))
        for window in range(len(maps))
        for classes in ambiguous_groups(maps[window], kept[window], threshold)
    ]
    # Where no box has an area, or one has none, nothing can be said: the group stays.
    groups = [
        group
        for group in groups
        if group.boxes and all(y1 > y0 and x1 > x0 for y0, y1, x0, x1 in group.boxes)
    ]
    if not groups:
        return kept
    crops = [crop(pixels[group.window], box, patch_size) for group in groups for box in group.boxes]
    vectors = image_vectors(torch.stack(crops))
    cosines = F.normalize(vectors.to(maps.dtype), dim=1) @ text.to(maps.dtype).mT
    kept = kept.clone()
    first = 0
    for group in groups:
        members = cosines[first : first + len(group.boxes)][:, group.classes]
        first += len(group.boxes)
        chosen = {group.classes[number] for number in members.argmax(dim=1).tolist()}
        kept[group.window, [one for one in group.classes if one not in chosen]] = False
    return kept


def ambiguous_groups(maps: Tensor, kept: Tensor, threshold: float) -> list[list[int]]:
    """Groups of several classes of a window, linked where Σ min / Σ max of two maps reaches the threshold.

    Args:
        maps: (C, h, w).
        kept: (C,) bool, the classes that count.
        threshold: θ_a.
    """
    numbers = kept.nonzero()[:, 0].tolist()
    if len(numbers) < 2:
        return []
    flat = maps.flatten(1)[numbers]
    linked = torch.stack(
        [
            torch.minimum(row, flat).sum(dim=1) >= threshold * torch.maximum(row, flat).sum(dim=1)
            for row in flat
        ]
    )
    links = {one: row.nonzero()[:, 0].tolist() for one, row in enumerate(linked.cpu())}
    groups, seen = [], set()
    for start in links:
        group, waiting = [], [start]
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                group.append(numbers[one])
                waiting.extend(links[one])
        if len(group) > 1:
            groups.append(sorted(group))
    return groups


def group_boxes(mean: Tensor) -> list[tuple[int, int, int, int]]:
    """Boxes y0, y1, x0, x1 in patches of all contours of a map (h, w)."""
    _, boxes = contour_boxes(map_masks(mean.unsqueeze(0)))
    return [tuple(box) for box in half_open(boxes, (mean.shape[0], mean.shape[1])).tolist()]


def crop(pixels: Tensor, box: tuple[int, int, int, int], patch_size: tuple[int, int]) -> Tensor:
    """A box's pixels (3, 112, 112), resized bilinearly (`align_corners=False`, no antialiasing).

    Args:
        pixels: (3, H, W).
        box: y0, y1, x0, x1 in patches.
        patch_size: (height, width) in pixels.
    """
    y0, y1, x0, x1 = box
    height, width = patch_size
    part = pixels[:, y0 * height : y1 * height, x0 * width : x1 * width]
    resized: Tensor = F.interpolate(
        part.unsqueeze(1), size=(CROP, CROP), mode="bilinear", align_corners=False
    )
    return resized.squeeze(1)


def check_inputs(
    cosines: Tensor,
    mean_map: Tensor,
    pixels: Tensor,
    text: Tensor,
    second_text: Tensor | None,
    background: int,
) -> None:
    """TypeError or ValueError unless these belong together."""
    check_float("cosines", cosines, 4, "(B, Q, h, w)")
    check_float("mean_map", mean_map, 3, "(B, n, n)")
    check_float("pixels", pixels, 4, "(B, 3, H, W)")
    batch, queries, height, width = cosines.shape
    count = height * width
    if not count:
        raise ValueError(f"cosines must have at least one patch; got {tuple(cosines.shape)}")
    check_count("background", background, 0)
    if background >= queries:
        raise ValueError(
            f"background must leave at least one of {queries} queries for a class; got {background}"
        )
    if mean_map.shape != (batch, count, count):
        raise ValueError(
            f"mean_map must be ({batch}, {count}, {count}), the windows' patches; got {tuple(mean_map.shape)}"
        )
    if len(pixels) != batch or pixels.shape[2] < height or pixels.shape[3] < width:
        raise ValueError(
            f"pixels must be those of {batch} windows of {height} × {width} patches; got {tuple(pixels.shape)}"
        )
    for name, rows in (("text", text), ("second_text", second_text)):
        if rows is None:  # There is no second text.
            continue
        check_float(name, rows, 2, "(Q, E)")
        if len(rows) != queries:
            raise ValueError(
                f"{name} must have one row for each of {queries} queries; got {tuple(rows.shape)}"
            )
