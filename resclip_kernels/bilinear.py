"""Bilinear resizing on any device, the same bits for any number of threads.

Knows planes. Knows nothing of what they mean.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize_planes"]


def resize_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) → (B, C, H, W) as F.interpolate does it (bilinear, `align_corners=False`), plane by plane.

    Three channels together, and no other number of them, take another way in torch where it has one thread, which
    rounds differently: on a CPU a result would hang on the number of threads by up to 2e-6 of values of order 1.
    """
    alone = planes.flatten(0, 1).unsqueeze(1)
    resized = F.interpolate(alone, size=size, mode="bilinear", align_corners=False)
    together: Tensor = resized.squeeze(1).unflatten(0, planes.shape[:2])
    return together
