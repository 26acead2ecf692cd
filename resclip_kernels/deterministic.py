"""Steps that torch rounds by the number of threads on a CPU, done so that any number gives the same bits."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

# torch's fused attention rounds 1 to 3 queries by the number of threads; of 4 to 139, and of 1,025, no bit moved.
MIN_FUSED_QUERIES = 4


def deterministic_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale·q kᵀ + mask)·v as F.scaled_dot_product_attention does it, (B, A, R, d); `scale` is 1/√d if None."""
    if query.device.type != "cpu" or query.shape[-2] >= MIN_FUSED_QUERIES:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)
    score = (query * (scale or 1 / math.sqrt(query.shape[-1]))) @ key.mT
    if attn_mask is not None:
        score = score + attn_mask
    mixed: Tensor = score.softmax(dim=-1) @ value
    return mixed


def softmax_over_first(scores: Tensor) -> Tensor:
    """`scores.softmax(dim=0)`; written over `scores`, which are finite, unless they have a gradient.

    Over any axis but the last, torch cuts the positions into one run per thread, and takes another exponential for
    the few at a run's end.
    """
    if scores.requires_grad:
        return scores.softmax(dim=0)
    scores = scores.sub_(scores.amax(dim=0)).exp_()
    return scores.div_(scores.sum(dim=0))


def resize_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) → (B, C, H, W) as F.interpolate does it (bilinear, `align_corners=False`), plane by plane.

    For three channels together, and for no other number of them, torch with one thread runs other code than with
    several: on a CPU results would differ by up to 2e-6 of values of order 1.
    """
    alone = planes.flatten(0, 1).unsqueeze(1)
    resized = F.interpolate(alone, size=size, mode="bilinear", align_corners=False)
    together: Tensor = resized.squeeze(1).unflatten(0, planes.shape[:2])
    return together
