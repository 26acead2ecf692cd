"""Every op, imported: torch then knows their operators, and `TRIALS` their trials."""

from __future__ import annotations

from resclip_kernels.first_use import TRIALS
from resclip_kernels.ops import (
    laplacian_propagation,
    pamr,
    patch_labels,
    proxy_attention,
    residual_attention,
    semantic_feedback,
    similarity_aggregation,
    upsample_argmax,
)

__all__ = [
    "TRIALS",
    "laplacian_propagation",
    "pamr",
    "patch_labels",
    "proxy_attention",
    "residual_attention",
    "semantic_feedback",
    "similarity_aggregation",
    "upsample_argmax",
]
