"""Attention of CLIP's values by the likeness of another vision model's features.

ProxyCLIP: Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation", ECCV 2024
(arXiv 2408.04883), section 3.3.
"""

from __future__ import annotations

import math

from torch import Tensor

from resclip_kernels.checks import check_count, check_float, check_positive, check_same_images
from resclip_kernels.implementation import Implementation, as_operator, parse_implementation
from resclip_kernels.proxy_attention import dispatch

__all__ = ["proxy_attention"]


def proxy_attention(
    features: Tensor,
    value: Tensor,
    *,
    grid: tuple[int, int],
    beta: float = 1.2,
    gamma: float = 3.0,
    implementation: Implementation | str = Implementation.AUTO,
) -> Tensor:
    """Aggregate CLIP's values over the positions that a vision foundation model finds alike.

    With X the n = H_v·W_v positions of `features`, each of unit length (a position shorter than 1e-12 counts as 0), per
    image:

        A   = γ · (X Xᵀ − β · mean(X Xᵀ))       the mean over all n² pairs of the image
        out = softmax(A where A ≥ 0, else −∞) · v    the same map for every head

    A position with nothing left attends to itself alone. v is `value` resized bilinearly (`align_corners=False`) from
    CLIP's grid to (H_v, W_v). The map jumps where an entry passes 0: results of two dtypes are comparable only where no
    entry lies within rounding of it.

    Args:
        features: (B, C, H_v, W_v), any length a position, any floating dtype and strides.
        value: (B, A, h·w, d), the patches' values of CLIP's final block without [CLS], in row-major order. Products
            accumulate in float32 at least.
        grid: (h, w) in CLIP's patches.
        beta: how far above the mean similarity an entry must lie, as a multiple of the mean; any finite number.
        gamma: sharpness of the softmax, above 0.
        implementation: see `Implementation`.

    Returns:
        (B, A, H_v·W_v, d) in `value`'s dtype.

    Raises:
        TypeError, ValueError: a shape, dtype or number that does not fit; the message says what was expected.
    """
    check_float("features", features, 4, "(B, C, H_v, W_v)")
    check_float("value", value, 4, "(B, A, h·w, d)")
    check_same_images("features", features, "value", value)
    if features.shape[1] < 1:
        raise ValueError(
            f"features must have at least one channel (B, C, H_v, W_v); got {tuple(features.shape)}"
        )
    height, width = grid
    for name, size in (("grid's height", height), ("grid's width", width)):
        check_count(name, size, 1)
    if value.shape[2] != height * width:
        raise ValueError(
            f"a grid of {height} × {width} patches has {height * width} values without [CLS]; "
            f"value has {value.shape[2]}: leave [CLS] out, or correct grid"
        )
    if not math.isfinite(beta):
        raise ValueError(f"beta must be a finite number; got {beta}")
    check_positive("gamma", gamma)
    asked = parse_implementation(implementation).value
    run = dispatch.operator if as_operator(features, value) else dispatch.proxy_attention
    return run(features, value, height, width, float(beta), float(gamma), asked)
