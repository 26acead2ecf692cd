"""PEARL's Procrustes alignment: keys rotated towards the queries, and the centred keys beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip.methods.pieces import KeyAlignment


def aligned(query: Tensor, key: Tensor, piece: KeyAlignment, skip: int) -> tuple[Tensor, Tensor]:
    """x and y with x yᵀ = q (k R)ᵀ + α K_c K_cᵀ: (B, A, L, 2·d) each, from q and k (B, A, L, d).

    The means that are taken away weigh each patch by its query's length, and [CLS] not at all; `skip` counts it.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k = query.to(dtype), key.to(dtype)
    weights = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    weights = torch.cat([torch.zeros_like(weights[:, :, :skip]), weights[:, :, skip:]], dim=2)
    weights = weights / (weights.sum(dim=2, keepdim=True) + 1e-6)
    centred_q = q - (weights * q).sum(dim=2, keepdim=True)
    centred_k = k - (weights * k).sum(dim=2, keepdim=True)
    product = centred_k.mT @ centred_q
    if piece.solver == "svd":
        left, _, right = torch.linalg.svd(product)
        rotation = left @ right
    else:
        rotation = polar_factor(product, piece.iterations)
    x = torch.cat([q, piece.weight * centred_k], dim=-1)
    y = torch.cat([k @ rotation, centred_k], dim=-1)
    return x.to(query.dtype), y.to(query.dtype)


def polar_factor(matrix: Tensor, steps: int) -> Tensor:
    """C (CᵀC)^(-1/2) by coupled Newton–Schulz steps: (..., d, d)."""
    gram = matrix.mT @ matrix
    size = torch.linalg.matrix_norm(gram, keepdim=True).clamp_min(1e-6)
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    y, z = gram / size + 1e-6 * unit, unit.expand_as(gram)
    for _ in range(steps):
        step = (3 * unit - z @ y) / 2
        y, z = y @ step, step @ z
    factor: Tensor = matrix @ z / size.sqrt()
    return factor
