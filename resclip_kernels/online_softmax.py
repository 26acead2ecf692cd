"""The best query of each pixel without all (B, Q, H, W) probabilities, for patch_labels and upsample_argmax.

A softmax's largest entry is 1 / Σ exp(x_q − max x), so one pass over groups of queries keeps three planes: the
largest logit, its query, and the sum. On a CPU the planes lie side by side, see `resclip_kernels.pixel_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from resclip_kernels.deterministic import resize_planes
from resclip_kernels.dispatch import needs_gradient
from resclip_kernels.linear import linear
from resclip_kernels.ops.pamr import portable as pamr
from resclip_kernels.pixel_rows import resized_lines

# Upsampled planes held at a time (bytes of float32): small enough for a core's cache at 224 × 224.
GROUP_BYTES = 1 << 23

# Planes folded at a time; groups are whole chunks, so that sums do not depend on the size of a group.
CHUNK = 8

# On a CPU: values that are compared at a time, small enough for a core's own cache.
BLOCK = 1 << 19

# A smaller exponent adds nothing to a sum that holds 1; its exponential would be a denormal number, which takes a CPU
# ten times as long.
LEAST_EXPONENT = -80.0

# On a CPU the planes of more queries than patches are products of one refined plane a patch, as long as these planes
# take no more bytes than this, and that is cheaper: the product of a query takes as long as refining it where there are
# this many patches. On two cores of an AMD EPYC, 196 patches of 224 × 224 pixels, by products and one by one: 189
# against 177 ms for 300 queries, 200 against 255 for 400.
BASIS_BYTES = 1 << 26
BASIS_PATCHES = 460

# Stands for −inf: F.interpolate makes NaN of a neighbour at −inf whose weight is 0.
LOWEST = -1e30


def kernel_limit(size: Sequence[int]) -> str | None:
    """Why kernels that number an image's pixels in 32 bits cannot write this size; None where they can."""
    if size[0] * size[1] < 1 << 31:
        return None
    return f"the kernels take at most 2^31 − 1 pixels an image; got {tuple(size)}: cut it, or use 'torch'"


def best_query(
    logits: Tensor,
    size: tuple[int, int],
    *,
    logit_scale: float,
    guide: Tensor | None = None,
    refine_iterations: int = 0,
    dilations: tuple[int, ...] = (8, 16),
    through: tuple[int, int] | None = None,
    order: Tensor | None = None,
    need_probability: bool = True,
) -> tuple[Tensor, Tensor]:
    """Largest probability of softmax(logit_scale · planes) over queries, and its query (the first on a tie).

    Args:
        logits: (B, Q, h, w), resized bilinearly to `through` first, if it is not None, then to `size`.
        guide: (B, C, H, W) for PAMR on the resized planes; None for none.
        order: (Q,) the order in which queries are taken, None: as they come; the result is a position in it.
        need_probability: whether the first result is read; else it may be anything.

    Returns:
        (B, H, W) probabilities, float32 or wider, and (B, H, W) int64 queries.
    """
    if not refine_iterations:
        guide = None
    side_by_side = logits.is_cpu and logits.shape[1] >= pamr.SIDE_BY_SIDE
    if side_by_side and not needs_gradient(logits, guide):
        guides = [None] * len(logits) if guide is None else [*guide]
        sizes = [(logits.shape[2], logits.shape[3]), *([through] if through else []), size]
        winners = [
            best_of_image(
                rows_of(image if order is None else image[order], logit_scale),
                sizes,
                guide_image,
                refine_iterations,
                dilations,
                need_probability,
            )
            for image, guide_image in zip(logits, guides, strict=True)
        ]
        shape = (len(winners), *size)
        if not winners:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            return logits.new_zeros(shape, dtype=dtype), logits.new_zeros(shape, dtype=torch.int64)
        best = torch.cat([winner.total for winner in winners]).reciprocal_()
        label = torch.cat([winner.label for winner in winners])
        return best.view(shape), label.view(shape)
    batch, queries = logits.shape[:2]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = None
    if guide is not None:
        weights = pamr.pamr_weights(guide.to(dtype), dilations)
    chunk_bytes = 4 * CHUNK * max(1, batch) * size[0] * size[1]
    group = CHUNK * max(1, GROUP_BYTES // chunk_bytes)
    largest = logits.new_full((batch, *size), -torch.inf, dtype=dtype)
    total = torch.zeros_like(largest)
    label = torch.zeros_like(largest, dtype=torch.int64)
    for first in range(0, queries, group):
        last = min(first + group, queries)
        taken = logits[:, first:last] if order is None else logits[:, order[first:last]]
        planes = upsample((taken.to(dtype) * logit_scale).clamp(min=LOWEST), size, through)
        if weights is not None:
            planes = refine(planes, weights, refine_iterations, dilations)
        for start in range(0, last - first, CHUNK):
            chunk = planes[:, start : start + CHUNK]
            peak, winner = chunk.max(dim=1)
            new_largest = torch.maximum(largest, peak)
            total = total * torch.exp(largest - new_largest)
            for share in (chunk - new_largest.unsqueeze(1)).exp_().unbind(dim=1):
                total = total + share
            label = torch.where(peak > largest, winner + (first + start), label)
            largest = new_largest
    return total.reciprocal(), label


class Winners(NamedTuple):
    """The first of the largest values of each pixel among some queries."""

    peak: Tensor
    """(P,): its value."""
    label: Tensor
    """(P,) int64: its query."""
    total: Tensor
    """(P,): Σ exp(value − peak) over the queries; 1 where it is not wanted."""


def rows_of(image: Tensor, logit_scale: float) -> Tensor:
    """(Q, h, w) logits → (h·w, Q), scaled, float32 or wider; a scaled −inf, or less than `LOWEST`, becomes that."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    scaled: Tensor = image.flatten(1).T.to(dtype) * logit_scale
    return scaled.clamp_(min=LOWEST).contiguous()


def best_of_image(
    rows: Tensor,
    sizes: Sequence[tuple[int, int]],
    guide: Tensor | None,
    iterations: int,
    dilations: tuple[int, ...],
    need_total: bool,
) -> Winners:
    """Of each pixel of one image on a CPU.

    Args:
        rows: (h·w, Q) of the first of `sizes`.
        sizes: from grid to image, each (height, width); the planes are resized bilinearly from one to the next.
        guide: (C, H, W) for PAMR; None for none.
        iterations, dilations: of PAMR.
        need_total: whether the sum is wanted.
    """
    queries = rows.shape[1]
    height, width = sizes[-1]
    pixels = height * width
    if guide is None:
        lines = max(1, BLOCK // (width * queries))
        return joined(
            fold(resized_lines(rows, sizes, first, min(first + lines, height)), need_total)
            for first in range(0, height, lines)
        )
    bands = pamr.pixel_bands(guide.to(rows.dtype), dilations)
    if basis_pays(len(rows), queries, pixels * rows.element_size(), BASIS_BYTES):
        # Resizing and PAMR are linear: those of any plane are sums of those of the planes that are 1 at one patch.
        one_hot = torch.eye(len(rows), dtype=rows.dtype)
        basis = rows.new_empty((pixels, len(rows)))
        for first, last in pamr.plane_groups(len(rows), pixels):
            planes = one_hot[:, first:last].contiguous()
            basis[:, first:last] = refined(planes, sizes, bands, iterations)
        values = rows.T.contiguous()
        return joined(
            fold(linear(part, values), need_total) for part in basis.split(max(1, BLOCK // queries))
        )
    result: Winners | None = None
    for first, last in pamr.plane_groups(queries, pixels):
        planes = refined(rows[:, first:last].contiguous(), sizes, bands, iterations)
        parts = planes.split(max(1, BLOCK // (last - first)))
        winners = joined(fold(part, need_total) for part in parts)
        result = winners if result is None else merged(result, winners, first)
    assert result is not None  # There are queries.
    return result


def basis_pays(patches: int, queries: int, plane_bytes: int, most_bytes: int) -> bool:
    """Whether refining one plane a patch, and a product for each query, is cheaper than refining the queries.

    False where the planes of all patches take more than `most_bytes`.
    """
    return (
        patches * plane_bytes <= most_bytes
        and patches + queries * patches / BASIS_PATCHES < queries
    )


def refined(
    rows: Tensor, sizes: Sequence[tuple[int, int]], bands: list[pamr.Band], iterations: int
) -> Tensor:
    """(h·w, Q) of a grid → (H·W, Q), resized and refined."""
    height, width = sizes[-1]
    queries = rows.shape[1]
    planes = rows.new_empty((height * width, queries))
    lines = max(1, BLOCK // (width * queries))
    for first in range(0, height, lines):
        last = min(first + lines, height)
        planes[first * width : last * width] = resized_lines(rows, sizes, first, last)
    return pamr.refine_rows(planes, bands, iterations)


def fold(planes: Tensor, need_total: bool) -> Winners:
    """The winners among (P, Q) values, which are overwritten."""
    peak, label = planes.max(dim=1)
    if not need_total:
        return Winners(peak, label, torch.ones_like(peak))
    exponents = planes.sub_(peak[:, None]).clamp_(min=LEAST_EXPONENT)
    return Winners(peak, label, exponents.exp_().sum(dim=1))


def joined(parts: Iterable[Winners]) -> Winners:
    """Those of the parts' pixels, one part after another."""
    return Winners(*(torch.cat(of_all) for of_all in zip(*parts, strict=True)))


def merged(one: Winners, other: Winners, first: int) -> Winners:
    """Those of the same pixels among all queries; `other` has the queries from `first` on."""
    peak = torch.maximum(one.peak, other.peak)
    label = torch.where(other.peak > one.peak, other.label + first, one.label)
    total = one.total * torch.exp(one.peak - peak) + other.total * torch.exp(other.peak - peak)
    return Winners(peak, label, total)


def upsample(planes: Tensor, size: tuple[int, int], through: tuple[int, int] | None) -> Tensor:
    """Bilinear to `through`, if it is not None, then to `size`; a step that changes nothing is left out."""
    for step in (through, size):
        if step is not None and tuple(planes.shape[2:]) != tuple(step):
            planes = resize_planes(planes, (step[0], step[1]))
    return planes


def refine(planes: Tensor, weights: Tensor, iterations: int, dilations: tuple[int, ...]) -> Tensor:
    """PAMR on a group of planes, a few at a time."""
    step = pamr.planes_per_group(planes)
    return torch.cat(
        [
            pamr.refine(planes[:, first : first + step], weights, iterations, dilations)
            for first in range(0, planes.shape[1], step)
        ],
        dim=1,
    )
