"""How alike patches and texts are: the logits of most methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_QUERIES = 16
"""Fewer queries of one window are multiplied as a whole number of eights, so that no bit depends on the threads."""


def similarity(patches: Tensor, text: Tensor) -> Tensor:
    """Cosine of every patch and every query: (B, h, w, E) and unit rows (Q, E) → (B, Q, h, w), float32 or wider."""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    unit = F.normalize(patches.to(dtype), dim=-1).flatten(1, 2)
    queries, rows = text.shape[0], text.to(dtype)
    is_graph = torch.compiler.is_exporting()
    if not is_graph and patches.shape[0] == 1 and patches.is_cpu and queries < FEW_QUERIES:
        # For 5 to 7 and 9 to 11 rows MKL takes other code with one thread than with several, whose last bit differs.
        rows = F.pad(rows, (0, 0, 0, -queries % 8))
    logits: Tensor = (rows @ unit.mT)[:, :queries].unflatten(2, patches.shape[1:3])
    return logits
