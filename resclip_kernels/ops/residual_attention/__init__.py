"""The final block's attention of a dense CLIP: self-correlation, neighbourhood prior, semantic feedback, RCS.

SCLIP (arXiv 2312.01597), ClearCLIP (arXiv 2407.12442) and NACLIP (arXiv 2404.08181) choose the self-correlation and
the prior; ResCLIP (arXiv 2411.15851) adds the cross-layer residual (RCS, section 3.2) and the feedback term (SFR,
section 3.3). Projections, score temperature and window are those of SCLIP's ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from resclip_kernels.dispatch import Implementation, as_operator, parse_implementation
from resclip_kernels.ops.residual_attention import dispatch
from resclip_kernels.ops.residual_attention.dispatch import IMPLEMENTATIONS
from resclip_kernels.ops.residual_attention.terms import Correlation, Terms
from resclip_kernels.ops.residual_attention.validation import (
    CORRELATIONS,
    check_tensors,
    check_terms,
    named_tensors,
)
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback

__all__ = [
    "CORRELATIONS",
    "IMPLEMENTATIONS",
    "Correlation",
    "ResidualAttentionOutput",
    "residual_attention",
]


class ResidualAttentionOutput(NamedTuple):
    """What `residual_attention` returns."""

    output: Tensor
    """(B, A, L, d) in `value`'s dtype: the whole sum."""
    cross_layer: Tensor | None
    """(B, A, L, d): A_c·v without its weight, to hand to the next call on the same value; None without RCS."""


def residual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: tuple[int, int],
    correlation: Correlation = "kk",
    projections: Sequence[Tensor] = (),
    score_temperature: float = 1.0,
    window: int | None = None,
    neighbourhood_std: float | None = None,
    feedback: SemanticFeedback | None = None,
    feedback_weight: float = 0.7,
    feedback_temperature: float = 1.0,
    cross_layers: Sequence[tuple[Tensor, Tensor]] = (),
    cross_layer: Tensor | None = None,
    cross_weight: float = 0.5,
    cross_temperature: float = 1.0,
    implementation: Implementation | str = Implementation.AUTO,
) -> ResidualAttentionOutput:
    """Attention of the final block, with every term of ResCLIP and of the methods that it plugs into.

    Per image and head, over L tokens, h·w patches with or without [CLS] in front, all softmaxes over the last axis:

        S    = x yᵀ / (√d·τ)                           (x, y) by `correlation`; 0 for "none"
        S'   = τ_s · ((1 − λ_s) · S + λ_s · Ŝ)           with `feedback`, else S
        A_b  = Σ softmax(S' + ω)                        one term, two for "qq+kk", the mean of N for "pp"; the unit
                                                        matrix for "identity"
        A_c  = mean over `cross_layers` of softmax(q_i k_iᵀ / √d)
        out  = τ_r · ((1 − λ_r) · A_b + λ_r · A_c) · v   with RCS, else A_b · v

    ω[i, j] = exp(−‖p_i − p_j‖² / (2·`neighbourhood_std`²)) between patches; ω and Ŝ are 0 in [CLS]'s row and column.
    λ_s·Ŝ is rounded to float16 where Ŝ is normalised, as in the released program. With a `window`, S' + ω is −∞ outside
    it: a patch attends to the patches in a square around it and not to [CLS], while [CLS]'s row sees everything.

    Args:
        query, key, value: (B, A, L, d), any strides, one floating dtype. Products accumulate in float32 at least.
        grid: (h, w) in patches; L must be 1 + h·w, or h·w for a tower without [CLS].
        correlation: "qk", "qq", "kk", "qq+kk" (the sum: rows add to 2), "pp" (the mean over `projections`), "none" (the
            prior, the feedback and the window alone; query and key are not read) or "identity" (no score: takes none
            of these, and no score temperature).
        projections: p_1 … p_N for "pp", each like `query`: x = y = p_i in the i-th term. Empty for the others.
        score_temperature: τ > 0; under 1 it sharpens. Of the base's own scores, before the feedback; not of A_c's.
        window: odd side of the square in patches that a patch attends to; 1 leaves each patch to itself, None is no
            limit. Of [CLS], patches then read neither key nor value ("reference" multiplies its value by 0).
        neighbourhood_std: σ of ω in patches; None for no prior.
        feedback: state of `semantic_feedback` for these images; None for no SFR.
        feedback_weight, feedback_temperature: λ_s in [0, 1] and τ_s > 0.
        cross_layers: (q_i, k_i) of the middle blocks, each (B, A, L, d); empty for no RCS.
        cross_layer: A_c·v from an earlier call with the same value, which spares its computation; it replaces
            `cross_layers`.
        cross_weight, cross_temperature: λ_r in [0, 1] and τ_r > 0.
        implementation: see `Implementation`.

    Returns:
        The sum, and A_c·v for the next pass.

    Raises:
        TypeError, ValueError: a shape, dtype or combination that does not fit; the message says what was expected.
    """
    projections, cross_layers = tuple(projections), tuple(cross_layers)
    others = [("key", key), ("value", value), *named_tensors(projections, cross_layers)]
    if cross_layer is not None:
        others.append(("cross_layer", cross_layer))
    check_tensors(query, others)
    terms = Terms(
        (grid[0], grid[1]),
        correlation,
        neighbourhood_std,
        feedback,
        feedback_weight,
        feedback_temperature,
        cross_weight,
        cross_temperature,
        score_temperature,
        window,
    )
    check_terms(terms, query, projections)
    inputs = dispatch.Inputs(query, key, value, cross_layers, cross_layer, projections)
    compiling = as_operator(query, key, value, *dispatch.other_tensors(inputs))
    run = dispatch.as_operator_call if compiling else dispatch.residual_attention
    return ResidualAttentionOutput(*run(inputs, terms, parse_implementation(implementation).value))
