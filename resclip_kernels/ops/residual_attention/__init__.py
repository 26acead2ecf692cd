"""The final block's attention of a dense CLIP: self-correlation, neighbourhood prior, semantic feedback, RCS.

SCLIP (arXiv 2312.01597), ClearCLIP (arXiv 2407.12442) and NACLIP (arXiv 2404.08181) choose the self-correlation and
the prior; ResCLIP (arXiv 2411.15851) adds the cross-layer residual (RCS, section 3.2) and the feedback term (SFR,
section 3.3). Projections, score temperature and window are those of SCLIP's ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from resclip_kernels.checks import merge_options
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.ops.residual_attention import graph, portable, reference
from resclip_kernels.ops.residual_attention.arguments import (
    as_tuples,
    check_arguments,
    check_values,
    named_tensors,
)
from resclip_kernels.ops.semantic_feedback import semantic_feedback
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback, kernel_limit
from resclip_kernels.options.residual_attention import (
    CORRELATIONS,
    AttentionKeywords,
    AttentionOptions,
    Correlation,
    score_operands,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "CORRELATIONS",
    "AttentionOptions",
    "Correlation",
    "ResidualAttentionOutput",
    "residual_attention",
    "score_operands",
]

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.residual_attention.triton", "residual_attention"
    ),
    # Triton's, but for the middle blocks where the launch table leaves them to PyTorch.
    Implementation.AUTO: deferred(
        "resclip_kernels.ops.residual_attention.triton", "fastest_attention"
    ),
    Implementation.LIBRARY: deferred(
        "resclip_kernels.ops.residual_attention.library", "residual_attention"
    ),
    Implementation.TORCH: portable.residual_attention,
    Implementation.REFERENCE: reference.residual_attention,
}
# Width of a head, in channels, as far as which the kernel's tiles reach.
MAX_HEAD_WIDTH = 128


class ResidualAttentionOutput(NamedTuple):
    """What `residual_attention` returns."""

    output: Tensor
    """(B, A, L, d_v) in `value`'s dtype: the whole sum. In memory it lies as a merge of the heads wants it,
    (B, L, A, d_v), where a kernel or a compiled graph wrote it."""
    cross_layer: Tensor | None
    """(B, A, L, d_v): A_c·v without its weight, to hand to the next call on the same value; None without RCS."""


def residual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions | None = None,
    *,
    projections: Sequence[Tensor] = (),
    feedback: SemanticFeedback | None = None,
    cross_layers: Sequence[tuple[Tensor, Tensor]] = (),
    cross_layer: Tensor | None = None,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[AttentionKeywords],
) -> ResidualAttentionOutput:
    """Attention of the final block, with every term of ResCLIP and of the methods that it plugs into.

    Per image and head, over L tokens, h·w patches with or without [CLS] in front, all softmaxes over the last axis:

        S    = x yᵀ / (√d·τ)                           (x, y) by `correlation`; 0 for "none"
        S'   = τ_s · ((1 − λ_s) · S + λ_s · Ŝ)           with `feedback`, else S
        A_b  = Σ softmax(S' + ω)                        one term, two for "qq+kk", the mean of N for "pp", their sum for
                                                        "pp-sum"; the unit matrix for "identity"
        A_c  = mean over `cross_layers` of softmax(q_i k_iᵀ / √d_i)
        out  = τ_r · ((1 − λ_r) · A_b + λ_r · A_c) · v   with RCS, else A_b · v

    ω[i, j] = exp(−‖p_i − p_j‖² / (2·`neighbourhood_std`²)) between patches; ω and Ŝ are 0 in [CLS]'s row and column.
    λ_s·Ŝ is rounded to float16 where Ŝ is normalised, as in the released program. With a `window`, S' + ω is −∞ outside
    it: a patch attends to the patches in a square around it and not to [CLS], while [CLS]'s row sees everything. Of
    [CLS], patches then read neither key nor value ("reference" and "library" multiply its value by 0).

    Args:
        query, key: (B, A, L, d), any strides, one floating dtype. Products accumulate in float32 at least.
        value: (B, A, L, d_v), in most methods as wide as the query.
        options: grid, correlation, temperatures, weights, window and prior; L must be 1 + h·w, or h·w for a tower
            without [CLS]. None: all by keyword.
        projections: p_1 … p_N for "pp" and "pp-sum", each like `query`: x = y = p_i in the i-th term. Empty for the
            others.
        feedback: state of `semantic_feedback` for these images; None for no SFR.
        cross_layers: (q_i, k_i) of the middle blocks, each (B, A, L, d_i); empty for no RCS.
        cross_layer: A_c·v from an earlier call with the same value, which spares its computation; it replaces
            `cross_layers`.
        implementation: see `Implementation`. "library" is `scaled_dot_product_attention` for the middle blocks, and
            for the base FlexAttention with the prior, the window and a stored λ_s·Ŝ as its `score_mod`; on a CPU that
            one holds (B, A, L, L) scores. It takes heads of any width, float64 too, and no gradient.
        keywords: fields of `AttentionOptions`, in place of those of `options`.

    Returns:
        The sum, and A_c·v for the next pass.

    Raises:
        TypeError, ValueError: a shape, dtype or combination that does not fit; the message says what was expected.
    """
    options = merge_options(AttentionOptions, options, keywords)
    projections, cross_layers = as_tuples(projections, cross_layers)
    others = [("key", key), *named_tensors(projections, ())]
    check_arguments(options, query, others, projections, feedback)
    check_values(query, value, cross_layers, cross_layer)
    output, computed = run(
        query,
        key,
        value,
        options,
        projections,
        feedback,
        cross_layers,
        cross_layer,
        parse_implementation(implementation).value,
    )
    # An operator's result is dense: token by token, so that a compiled caller's merge of the heads is free as well.
    output = output.transpose(1, 2)
    return ResidualAttentionOutput(output, computed if cross_layer is None else cross_layer)


def fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor | None]:
    """The shapes that `run` returns."""
    computed = cross_layer is None and len(cross_layers) > 0
    output = value.new_empty(value.transpose(1, 2).shape)
    return output, value.new_empty(value.shape) if computed else None


def exported(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor | None]:
    """What `run` gives, in plain operators."""
    output, average = graph.residual_attention(
        query, key, value, options, projections, feedback, cross_layers, cross_layer
    )
    return output.transpose(1, 2), average if cross_layer is None else None


@custom_op("residual_attention", fake, exported)
def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor | None]:
    """The chosen implementation's output as (B, L, A, d), and A_c·v where it was computed here."""
    limit = kernel_limit(feedback)
    widest = max(query.shape[3], value.shape[3], *(pair[0].shape[3] for pair in cross_layers))
    if widest > MAX_HEAD_WIDTH:
        limit = f"the kernel takes heads up to {MAX_HEAD_WIDTH} wide; got {widest}: use 'torch'"
    layers = [tensor for pair in cross_layers for tensor in pair]
    tensors = (query, key, value, cross_layer, *layers, *projections)
    function = resolve(
        implementation, IMPLEMENTATIONS, *tensors, limit=limit, op="residual_attention"
    ).function
    output, average = function(
        query, key, value, options, projections, feedback, cross_layers, cross_layer
    )
    if output is value:
        output = value.clone()  # Of "identity" without RCS; a result is no view of an argument.
    return output.transpose(1, 2), average if cross_layer is None else None


@trial("residual_attention")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """All terms together on a small grid; see `resclip_kernels.first_use`."""
    query, key, value, first, second = (
        sample(device, dtype, 2, 2, 36, 64, seed=seed) for seed in range(5)
    )
    labels = (sample(device, torch.float32, 2, 5, 7) > 0).long()
    output, cross_layer = residual_attention(
        query,
        key,
        value,
        grid=(5, 7),
        correlation="qq+kk",
        neighbourhood_std=5.0,
        feedback=semantic_feedback(labels, implementation="torch"),
        cross_layers=[(first, second), (second, first)],
        implementation=implementation,
    )
    return [output, cross_layer]
