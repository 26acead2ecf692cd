"""The final block's attention of a dense CLIP: self-correlation, neighbourhood prior, semantic feedback, RCS.

SCLIP (arXiv 2312.01597), ClearCLIP (arXiv 2407.12442) and NACLIP (arXiv 2404.08181) choose the self-correlation and
the prior; ResCLIP (arXiv 2411.15851) adds the cross-layer residual (RCS, section 3.2) and the feedback term (SFR,
section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

from torch import Tensor

from resclip_kernels.checks import check_float, check_fraction, check_positive
from resclip_kernels.implementation import Implementation, as_operator, parse_implementation
from resclip_kernels.residual_attention import dispatch
from resclip_kernels.residual_attention.dispatch import IMPLEMENTATIONS
from resclip_kernels.residual_attention.terms import SCORES, Correlation, Terms
from resclip_kernels.semantic_feedback.state import SemanticFeedback

__all__ = [
    "CORRELATIONS",
    "IMPLEMENTATIONS",
    "Correlation",
    "ResidualAttentionOutput",
    "residual_attention",
]

CORRELATIONS: tuple[str, ...] = get_args(Correlation)


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

    Per image and head, over L = 1 + h·w tokens ([CLS] first), all softmaxes over the last axis:

        S    = x yᵀ / √d                               (x, y) by `correlation`
        S'   = τ_s · ((1 − λ_s) · S + λ_s · Ŝ)           with `feedback`, else S
        A_b  = Σ softmax(S' + ω)                        one term, or two for "qq+kk"; the unit matrix for "identity"
        A_c  = mean over `cross_layers` of softmax(q_i k_iᵀ / √d)
        out  = τ_r · ((1 − λ_r) · A_b + λ_r · A_c) · v   with RCS, else A_b · v

    ω[i, j] = exp(−‖p_i − p_j‖² / (2·`neighbourhood_std`²)) between patches; ω and Ŝ are 0 in [CLS]'s row and column.
    λ_s·Ŝ is rounded to float16 where Ŝ is normalised, as in the released program.

    Args:
        query, key, value: (B, A, L, d), any strides, one floating dtype. Products accumulate in float32 at least.
        grid: (h, w) in patches; L must be 1 + h·w.
        correlation: "qk", "qq", "kk", "qq+kk" (the sum: rows add to 2) or "identity" (no score: takes neither a prior
            nor feedback).
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
    check_float("query", query, 4, "(B, A, L, d)")
    for name, tensor in (("key", key), ("value", value)):
        check_like(name, tensor, query)
    for number, (layer_query, layer_key) in enumerate(cross_layers):
        check_like(f"cross_layers[{number}]'s query", layer_query, query)
        check_like(f"cross_layers[{number}]'s key", layer_key, query)
    if cross_layer is not None:
        check_like("cross_layer", cross_layer, query)
    tokens = 1 + grid[0] * grid[1]
    if query.shape[2] != tokens:
        raise ValueError(
            f"a grid of {grid[0]} × {grid[1]} patches has {tokens} tokens with [CLS]; "
            f"query has {query.shape[2]}"
        )
    if correlation not in CORRELATIONS:
        valid = ", ".join(repr(name) for name in CORRELATIONS)
        raise ValueError(f"correlation must be one of {valid}; got {correlation!r}")
    if not SCORES[correlation] and (neighbourhood_std is not None or feedback is not None):
        raise ValueError(
            "correlation 'identity' has no score that a neighbourhood prior or semantic feedback could change; "
            "leave both out, or choose another correlation"
        )
    if neighbourhood_std is not None:
        check_positive("neighbourhood_std", neighbourhood_std)
    if feedback is not None and (
        feedback.grid != tuple(grid) or len(feedback.labels) != len(query)
    ):
        raise ValueError(
            f"feedback is for {len(feedback.labels)} images of {feedback.grid} patches; "
            f"query holds {len(query)} of {tuple(grid)}"
        )
    check_fraction("feedback_weight", feedback_weight)
    check_fraction("cross_weight", cross_weight)
    check_positive("feedback_temperature", feedback_temperature)
    check_positive("cross_temperature", cross_temperature)
    terms = Terms(
        (grid[0], grid[1]),
        correlation,
        neighbourhood_std,
        feedback,
        feedback_weight,
        feedback_temperature,
        cross_weight,
        cross_temperature,
    )
    inputs = dispatch.Inputs(query, key, value, tuple(cross_layers), cross_layer)
    layers = [tensor for pair in cross_layers for tensor in pair]
    compiling = as_operator(query, key, value, cross_layer, *layers)
    run = dispatch.as_operator_call if compiling else dispatch.residual_attention
    return ResidualAttentionOutput(*run(inputs, terms, parse_implementation(implementation).value))


def check_like(name: str, tensor: Tensor, query: Tensor) -> None:
    """`tensor` must have the query's shape, dtype and device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
    if tensor.shape != query.shape:
        raise ValueError(
            f"{name} must have query's shape {tuple(query.shape)}; got {tuple(tensor.shape)}"
        )
    if tensor.dtype != query.dtype or tensor.device != query.device:
        raise TypeError(
            f"{name} must be {query.dtype} on {query.device} like query; "
            f"got {tensor.dtype} on {tensor.device}"
        )
