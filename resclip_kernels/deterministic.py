"""Steps of torch that on a CPU round by the number of threads, done so that they give the same bits for any number.

Knows tensors of any device. Knows nothing of what they mean.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

FEW_QUERIES = 4
"""torch's fused attention rounds 1 to 3 queries by the number of threads; of 4 to 139, and of 1,025, no bit moved."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale·q kᵀ + mask)·v as F.scaled_dot_product_attention does it, (B, A, R, d); `scale` is 1/√d if None."""
    if query.device.type != "cpu" or query.shape[-2] >= FEW_QUERIES:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)
    score = (query * (scale or 1 / math.sqrt(query.shape[-1]))) @ key.mT
    if attn_mask is not None:
        score = score + attn_mask
    mixed: Tensor = score.softmax(dim=-1) @ value
    return mixed


def softmax_over_first(scores: Tensor) -> Tensor:
    """`scores.softmax(dim=0)`; written over `scores`, which are finite, unless they have a gradient.

    Over any axis but the last, torch cuts the positions into one run a thread, and takes another exponential for the
    few at a run's end.
    """
    if scores.requires_grad:
        return scores.softmax(dim=0)
    scores = scores.sub_(scores.amax(dim=0)).exp_()
    return scores.div_(scores.sum(dim=0))


def resize_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) → (B, C, H, W) as F.interpolate does it (bilinear, `align_corners=False`), plane by plane.

    Three channels together, and no other number of them, take another way in torch where it has one thread, which
    rounds differently: on a CPU a result would hang on the number of threads by up to 2e-6 of values of order 1.
    """
    alone = planes.flatten(0, 1).unsqueeze(1)
    resized = F.interpolate(alone, size=size, mode="bilinear", align_corners=False)
    together: Tensor = resized.squeeze(1).unflatten(0, planes.shape[:2])
    return together
