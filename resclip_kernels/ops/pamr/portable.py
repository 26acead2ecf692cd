"""PAMR in lean torch: the weights once, then sums over neighbours on a few planes at a time.

Nothing of size 8·|dilations| × planes exists. On a CPU many planes lie side by side, see `resclip_kernels.pixel_rows`;
elsewhere they are shifted and added one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.deterministic import softmax_over_first
from resclip_kernels.dispatch import needs_gradient
from resclip_kernels.pixel_rows import mix_rows

# Bytes of the planes that are shifted together: their padded copy and result stay in cache through all iterations.
PLANE_BYTES = 1 << 21
# So many planes are faster side by side on a CPU than shifted; fewer of them leave most of a row's time to looking up
# its place. 10 iterations on 224 × 224, one core of an AMD EPYC: 4 planes 25 against 16 ms, 9 planes 26 against 32.
SIDE_BY_SIDE = 8
# Most and fewest planes side by side, and the bytes that decide between them.
PLANES = (8, 32)
ROW_BYTES = 1 << 25
# Pixels whose sums are made together, which stay in a core's cache. Bands of as many lines share the list of their
# neighbours' places, so that for a large image the lists take no more memory than for a small one.
BAND_PIXELS = 12_544


def pamr(image: Tensor, masks: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """The formula of `resclip_kernels.pamr`; float16 and bfloat16 compute in float32."""
    refined = torch.empty_like(masks, memory_format=torch.contiguous_format)
    dtype = torch.promote_types(image.dtype, torch.float32)
    if masks.shape[1] >= SIDE_BY_SIDE and masks.is_cpu and not needs_gradient(image, masks):
        for number, (guide, planes) in enumerate(zip(image, masks.flatten(2), strict=True)):
            bands = pixel_bands(guide, dilations)
            for first, last in plane_groups(*planes.shape):
                rows = planes.new_empty((planes.shape[1], last - first), dtype=dtype)
                rows = refine_rows(rows.copy_(planes[first:last].T), bands, iterations)
                refined[number, first:last] = rows.T.unflatten(1, image.shape[2:])
        return refined
    weights = pamr_weights(image, dilations)
    group = planes_per_group(masks)
    for first in range(0, masks.shape[1], group):
        planes = masks[:, first : first + group].to(dtype)
        refined[:, first : first + group] = refine(planes, weights, iterations, dilations)
    return refined


class Band(NamedTuple):
    """Some lines of an image, where the neighbours of their pixels stand, and what these weigh."""

    pixels: slice
    """Which pixels of the image these are."""
    reach: slice
    """The pixels that hold them and all their neighbours."""
    places: Tensor
    """(2·P, K/2) int32: a pixel's K neighbours in two rows, counted from the first pixel of `reach`."""
    weights: Tensor
    """(2·P, K/2): a pixel's two rows sum to 1."""


def pixel_bands(image: Tensor, dilations: tuple[int, ...]) -> list[Band]:
    """(C, H, W) guide on a CPU → all its lines, in order."""
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    height, width = image.shape[1:]
    margin = max(dilations)
    lines = max(1, BAND_PIXELS // width)
    # Bands inside the image are alike, save for the lines of the last.
    known: dict[tuple[int, ...], Tensor] = {}
    bands = []
    for first in range(0, height, lines):
        last = min(first + lines, height)
        low, high = max(0, first - margin), min(height, last + margin)
        line, column = torch.arange(first, last), torch.arange(width)
        alike = (first - low, last - first, high - low)
        if alike not in known:
            # Counted from the first pixel of `low`.
            places = [
                ((line + dy).clamp(0, height - 1) - low)[:, None] * width
                + (column + dx).clamp(0, width - 1)
                for dy, dx in offsets(dilations)
            ]
            known[alike] = torch.stack(places, dim=-1).view(-1, len(places) // 2).int()
        around = torch.arange(first - margin, last + margin).clamp(0, height - 1)
        padded = F.pad(image[:, around], (margin, margin), mode="replicate")
        weights = weigh(image[None, :, first:last], padded[None], dilations)
        bands.append(
            Band(
                slice(first * width, last * width),
                slice(low * width, high * width),
                known[alike],
                weights.flatten(1).T.reshape(known[alike].shape),
            )
        )
    return bands


def refine_rows(rows: Tensor, bands: list[Band], iterations: int) -> Tensor:
    """`iterations` steps on dense (H·W, Q) planes side by side, which are overwritten."""
    mixed = torch.empty_like(rows)
    for _ in range(iterations):
        for band in bands:
            # Halves first: a running sum of 16 terms loses several roundings an iteration.
            halves = mix_rows(rows[band.reach], band.places, band.weights).unflatten(0, (-1, 2))
            torch.add(halves[:, 0], halves[:, 1], out=mixed[band.pixels])
        rows, mixed = mixed, rows
    return rows


def plane_groups(planes: int, pixels: int) -> list[tuple[int, int]]:
    """(first, last) of the planes that are refined side by side: as many in each group."""
    fewest, most = PLANES
    together = max(fewest, min(most, ROW_BYTES // (4 * pixels)))
    share = max(1, math.ceil(planes / math.ceil(max(1, planes) / together)))
    return [(first, min(first + share, planes)) for first in range(0, planes, share)]


def planes_per_group(masks: Tensor) -> int:
    """How many mask planes are shifted together."""
    batch, _, height, width = masks.shape
    return max(1, PLANE_BYTES // max(1, 4 * batch * height * width))


def pamr_weights(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) guide → (8·|dilations|, B, 1, H, W) weights that sum to 1 over the first axis."""
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    return weigh(image, pad(image, dilations), dilations)


def weigh(image: Tensor, padded: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) and the same by max(dilations) wider on each side → weights as those of `pamr_weights`."""
    count = 9 * len(dilations)
    # Two passes: a sum of squares would lose the digits of a nearly flat neighbourhood.
    mean = image * len(dilations)
    for shifted in shifts(padded, image.shape, dilations):
        mean = mean + shifted
    mean = mean / count
    variance = (image - mean).square() * len(dilations)
    for shifted in shifts(padded, image.shape, dilations):
        variance = variance.addcmul_(shifted - mean, shifted - mean)
    scale = 1e-8 + 0.1 * (variance / (count - 1)).sqrt_()
    affinity = [
        (shifted - image).abs_().div_(scale).mean(dim=1, keepdim=True).neg_()
        for shifted in shifts(padded, image.shape, dilations)
    ]
    return softmax_over_first(torch.stack(affinity))


def refine(planes: Tensor, weights: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """`iterations` steps on (B, Q, H, W) planes with the weights of `pamr_weights`."""
    for _ in range(iterations):
        padded = pad(planes, dilations)
        terms = list(zip(weights, shifts(padded, planes.shape, dilations), strict=True))
        planes = weighted_sum(terms)
    return planes


def weighted_sum(terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ weight · plane, halves first: a running sum of 16 terms loses several roundings an iteration."""
    if len(terms) == 1:
        return terms[0][0] * terms[0][1]
    if len(terms) == 2:
        return (terms[0][0] * terms[0][1]).addcmul_(*terms[1])
    half = len(terms) // 2
    return weighted_sum(terms[:half]).add_(weighted_sum(terms[half:]))


def pad(planes: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Repeat the border far enough for the widest ring."""
    return F.pad(planes, (max(dilations),) * 4, mode="replicate")


def shifts(padded: Tensor, shape: torch.Size, dilations: tuple[int, ...]) -> Iterator[Tensor]:
    """Views of `padded`, one a neighbour, each of the unpadded (…, H, W) `shape`."""
    height, width = shape[-2:]
    margin = max(dilations)
    for dy, dx in offsets(dilations):
        top, left = margin + dy, margin + dx
        yield padded[..., top : top + height, left : left + width]


def offsets(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    """(lines, columns) from a pixel to each of its neighbours, in the order of the weights."""
    return [
        (dy, dx)
        for dilation in dilations
        for dy in (-dilation, 0, dilation)
        for dx in (-dilation, 0, dilation)
        if dy or dx
    ]
