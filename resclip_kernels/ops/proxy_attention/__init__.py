"""Attention of CLIP's values by the similarity of another vision model's features.

ProxyCLIP: Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation", ECCV 2024
(arXiv 2408.04883), section 3.3; with feedback ResCLIP's SFR on top (arXiv 2411.15851, section 3.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resclip_kernels.checks import (
    check_count,
    check_float,
    check_fraction,
    check_positive,
    check_same_images,
)
from resclip_kernels.dispatch import Implementation, as_operator, parse_implementation
from resclip_kernels.ops.proxy_attention import dispatch, portable
from resclip_kernels.ops.proxy_attention.terms import FeedbackTerm
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback

__all__ = ["proxy_attention", "proxy_rows"]


def proxy_attention(
    features: Tensor,
    value: Tensor,
    *,
    grid: tuple[int, int],
    beta: float = 1.2,
    gamma: float = 3.0,
    feedback: SemanticFeedback | None = None,
    feedback_weight: float = 0.7,
    feedback_temperature: float = 1.0,
    implementation: Implementation | str = Implementation.AUTO,
) -> Tensor:
    """Aggregate CLIP's values over the positions that a vision foundation model finds alike.

    With X the n = H_v·W_v positions of `features`, each of unit length (a position shorter than 1e-12 counts as 0), per
    image:

        S   = γ · (X Xᵀ − β · mean(X Xᵀ))            the mean over all n² pairs of the image
        S'  = τ_s · ((1 − λ_s) · S + λ_s · Ŝ)          with `feedback`, else S
        out = softmax(S' where S' ≥ 0, else −∞) · v    the same map for every head

    A position with nothing left attends to itself alone. v is `value` resized bilinearly (`align_corners=False`) from
    CLIP's grid to (H_v, W_v). λ_s·Ŝ is rounded to float16 where Ŝ is normalised, as in ResCLIP's released program. The
    map jumps where an entry passes 0: results of two dtypes are comparable only where no entry lies within rounding of
    it.

    Args:
        features: (B, C, H_v, W_v), any length a position, any floating dtype and strides.
        value: (B, A, h·w, d), the patches' values of CLIP's final block without [CLS], in row-major order. Products
            accumulate in float32 at least.
        grid: (h, w) in CLIP's patches.
        beta: how far above the mean similarity an entry must lie, as a multiple of the mean; any finite number.
        gamma: sharpness of the softmax, above 0.
        feedback: state of `semantic_feedback` for these images, of labels on the features' grid (H_v, W_v); None for
            no SFR.
        feedback_weight, feedback_temperature: λ_s in [0, 1] and τ_s > 0.
        implementation: see `Implementation`.

    Returns:
        (B, A, H_v·W_v, d) in `value`'s dtype.

    Raises:
        TypeError, ValueError: a shape, dtype or number that does not fit; the message says what was expected.
    """
    term = check_map(features, beta, gamma, feedback, feedback_weight, feedback_temperature)
    check_float("value", value, 4, "(B, A, h·w, d)")
    check_same_images("features", features, "value", value)
    height, width = grid
    for name, size in (("grid's height", height), ("grid's width", width)):
        check_count(name, size, 1)
    if value.shape[2] != height * width:
        raise ValueError(
            f"a grid of {height} × {width} patches has {height * width} values without [CLS]; "
            f"value has {value.shape[2]}: leave [CLS] out, or correct grid"
        )
    asked = parse_implementation(implementation).value
    run = dispatch.as_operator_call if as_operator(features, value) else dispatch.proxy_attention
    return run(features, value, height, width, float(beta), float(gamma), asked, term)


def proxy_rows(
    features: Tensor,
    rows: Tensor,
    *,
    beta: float = 1.2,
    gamma: float = 3.0,
    feedback: SemanticFeedback | None = None,
    feedback_weight: float = 0.7,
    feedback_temperature: float = 1.0,
) -> Tensor:
    """Rows of the map that `proxy_attention` applies, for looking at them: where some positions attend to.

    Args:
        features, beta, gamma, feedback, feedback_weight, feedback_temperature: see `proxy_attention`.
        rows: (R,) int64, positions in row-major order, the same for every image.

    Returns:
        (B, R, H_v·W_v), without a gradient, in float32 or in the features' dtype where that is wider; each row sums
        to 1.

    Raises:
        TypeError, ValueError: as `proxy_attention`; a row outside the grid.
    """
    term = check_map(features, beta, gamma, feedback, feedback_weight, feedback_temperature)
    if not isinstance(rows, Tensor) or rows.ndim != 1 or rows.dtype != torch.int64:
        got = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else repr(rows)
        raise TypeError(f"rows must be an int64 tensor (R,) of positions; got {got}")
    positions = features.shape[2] * features.shape[3]
    numbers = rows.tolist()
    if any(not 0 <= row < positions for row in numbers):
        raise ValueError(f"rows must lie between 0 and {positions - 1}; got {numbers}")
    return portable.proxy_rows(features, numbers, float(beta), float(gamma), term)


def check_map(
    features: Tensor,
    beta: float,
    gamma: float,
    feedback: SemanticFeedback | None,
    weight: float,
    temperature: float,
) -> FeedbackTerm | None:
    """TypeError or ValueError unless these make a map; its feedback in one piece."""
    check_float("features", features, 4, "(B, C, H_v, W_v)")
    if features.shape[1] < 1:
        raise ValueError(
            f"features must have at least one channel (B, C, H_v, W_v); got {tuple(features.shape)}"
        )
    if not math.isfinite(beta):
        raise ValueError(f"beta must be a finite number; got {beta}")
    check_positive("gamma", gamma)
    check_fraction("feedback_weight", weight)
    check_positive("feedback_temperature", temperature)
    if feedback is None:
        return None
    size = (features.shape[2], features.shape[3])
    if feedback.grid != size or len(feedback.labels) != len(features):
        raise ValueError(
            f"feedback is for {len(feedback.labels)} images of {feedback.grid} patches; features hold "
            f"{len(features)} of {size}: make it from labels on the features' grid"
        )
    return FeedbackTerm(feedback, float(weight), float(temperature))
