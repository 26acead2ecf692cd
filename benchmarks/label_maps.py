"""Label maps as a first segmentation gives them, for the benchmarks of everything that takes feedback."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def label_map(
    seed: int, *, batch: int = 1, grid: tuple[int, int], classes: int = 4, blob: int = 3
) -> Tensor:
    """(B, h, w) int64 labels in blobs about `blob` patches wide, with a tenth of the patches flipped."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (batch, 1, -(-grid[0] // blob), -(-grid[1] // blob))
    labels = torch.randint(classes, coarse, generator=generator).float()
    labels = F.interpolate(labels, scale_factor=blob, mode="nearest")[:, 0, : grid[0], : grid[1]]
    noise = torch.randint(classes, labels.shape, generator=generator)
    flipped = torch.rand(labels.shape, generator=generator) < 0.1
    return torch.where(flipped, noise, labels.long())
