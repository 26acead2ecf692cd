"""Probabilities over queries without all (B, Q, H, W) of them at once, shared by patch_labels and upsample_argmax.

A softmax's largest entry is 1 / Σ exp(x_q − max x), so one pass over groups of queries keeps three planes: the
largest logit, its query, and the sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.pamr import portable as pamr

# Upsampled planes held at a time (bytes of float32): small enough for a core's cache at 224 × 224.
GROUP_BYTES = 1 << 23


def best_query(
    logits: Tensor,
    size: tuple[int, int],
    *,
    logit_scale: float,
    guide: Tensor | None = None,
    refine_iterations: int = 0,
    dilations: tuple[int, ...] = (8, 16),
    through: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Largest probability of softmax(logit_scale · planes) over queries, and its query (the first on a tie).

    Args:
        logits: (B, Q, h, w), resized bilinearly to `through` first where given, then to `size`.
        guide: (B, C, H, W) for PAMR on the resized planes; None for none.

    Returns:
        (B, H, W) probabilities, float32 or wider, and (B, H, W) int64 queries.
    """
    batch, queries = logits.shape[:2]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = None
    if guide is not None and refine_iterations:
        weights = pamr.pamr_weights(guide.to(logits.dtype), dilations)
    group = max(1, GROUP_BYTES // (4 * batch * size[0] * size[1]))
    largest = logits.new_full((batch, *size), -torch.inf)
    total = logits.new_zeros(batch, *size)
    label = torch.zeros(batch, *size, dtype=torch.int64, device=logits.device)
    for first in range(0, queries, group):
        planes = upsample(logits[:, first : first + group], size, through)
        if weights is not None:
            planes = refine(planes, weights, refine_iterations, dilations)
        planes = planes.mul(logit_scale)
        peak, winner = planes.max(dim=1)
        new_largest = torch.maximum(largest, peak)
        total = total * torch.exp(largest - new_largest)
        total += planes.sub_(new_largest.unsqueeze(1)).exp_().sum(dim=1)
        label = torch.where(peak > largest, winner + first, label)
        largest = new_largest
    return total.reciprocal_(), label


def upsample(planes: Tensor, size: tuple[int, int], through: tuple[int, int] | None) -> Tensor:
    """Bilinear to `through` where given, then to `size`; a step that changes nothing is left out."""
    for step in (through, size):
        if step is not None and tuple(planes.shape[2:]) != tuple(step):
            planes = F.interpolate(planes, size=step, mode="bilinear", align_corners=False)
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
