"""The best query of each pixel without all (B, Q, H, W) probabilities, for patch_labels and upsample_argmax.

A softmax's largest entry is 1 / Σ exp(x_q − max x), so one pass over groups of queries keeps three planes: the
largest logit, its query, and the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resclip_kernels.deterministic import resize_planes
from resclip_kernels.ops.pamr import portable as pamr

# Upsampled planes held at a time (bytes of float32): small enough for a core's cache at 224 × 224.
GROUP_BYTES = 1 << 23

# Planes folded at a time; groups are whole chunks, so that sums do not depend on the size of a group.
CHUNK = 8

# Stands for −inf: F.interpolate makes NaN of a neighbour at −inf whose weight is 0.
LOWEST = -1e30


def check_no_nan(logits: Tensor) -> None:
    """ValueError that names the images whose logits hold NaN.

    One reduction on the coarse grid, and one wait for it. Where there are no values (on "meta", while a graph is
    traced) nothing is checked.
    """
    if logits.is_meta or logits.numel() == 0 or torch.compiler.is_compiling():
        return
    broken = logits.detach().amax(dim=(1, 2, 3)).isnan().tolist()
    if any(broken):
        images = ", ".join(str(image) for image, bad in enumerate(broken) if bad)
        raise ValueError(
            f"logits must not hold NaN; they do in image {images} of the batch: "
            "check the image and the features they were computed from, or leave it out"
        )


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
) -> tuple[Tensor, Tensor]:
    """Largest probability of softmax(logit_scale · planes) over queries, and its query (the first on a tie).

    Args:
        logits: (B, Q, h, w), resized bilinearly to `through` first, if it is not None, then to `size`.
        guide: (B, C, H, W) for PAMR on the resized planes; None for none.
        order: (Q,) the order in which queries are taken, None: as they come; the result is a position in it.

    Returns:
        (B, H, W) probabilities, float32 or wider, and (B, H, W) int64 queries.
    """
    batch, queries = logits.shape[:2]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = None
    if guide is not None and refine_iterations:
        weights = pamr.pamr_weights(guide.to(dtype), dilations)
    chunk_bytes = 4 * CHUNK * max(1, batch) * size[0] * size[1]
    group = CHUNK * max(1, GROUP_BYTES // chunk_bytes)
    largest = logits.new_full((batch, *size), -torch.inf, dtype=dtype)
    total = torch.zeros_like(largest)
    label = torch.zeros_like(largest, dtype=torch.int64)
    for first in range(0, queries, group):
        last = min(first + group, queries)
        taken = logits[:, first:last] if order is None else logits[:, order[first:last]]
        planes = upsample(taken.to(dtype).clamp(min=LOWEST), size, through)
        if weights is not None:
            planes = refine(planes, weights, refine_iterations, dilations)
        for start in range(0, last - first, CHUNK):
            chunk = planes[:, start : start + CHUNK] * logit_scale
            peak, winner = chunk.max(dim=1)
            new_largest = torch.maximum(largest, peak)
            total = total * torch.exp(largest - new_largest)
            for share in chunk.sub_(new_largest.unsqueeze(1)).exp_().unbind(dim=1):
                total = total + share
            label = torch.where(peak > largest, winner + (first + start), label)
            largest = new_largest
    return total.reciprocal(), label


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
