"""The residual attention in one graph for any size, which is what `torch.export` writes out.

No step depends on a size in Python: every additive term is a tensor of all pairs of tokens, (B or 1, 1, L, L).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.options.residual_attention import AttentionOptions, score_operands


def residual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The formula of `resclip_kernels.residual_attention`, of a state that holds Ŝ itself."""
    output = base_attention(query, key, value, options, projections, feedback)
    if cross_layer is None and cross_layers:
        attended = [F.scaled_dot_product_attention(*layer, value) for layer in cross_layers]
        cross_layer = functools.reduce(torch.add, attended) / len(attended)
    return options.mixed(output, cross_layer), cross_layer


def base_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: AttentionOptions,
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
) -> Tensor:
    """A_b · v: (B, A, L, d)."""
    scores = score_operands(options.correlation, query, key, projections)
    if not scores and not options.has_terms(feedback):
        return options.unattended(value)
    bias = additive_terms(options, feedback, query)
    if not scores and bias is not None:
        return bias.softmax(dim=-1) @ value
    scale = options.scale(query.shape[-1], has_feedback=feedback is not None)
    attended = [
        F.scaled_dot_product_attention(left, right, value, attn_mask=bias, scale=scale)
        for left, right in scores
    ]
    output = functools.reduce(torch.add, attended)
    return output / len(scores) if options.correlation == "pp" else output


def additive_terms(
    options: AttentionOptions, feedback: SemanticFeedback | None, query: Tensor
) -> Tensor | None:
    """τ_s·λ_s·Ŝ + ω, −∞ outside the window, [CLS]'s row and column with it: (B or 1, 1, L, L), or None for none."""
    terms: list[Tensor] = []
    if feedback is not None and feedback.dense is not None:
        _, temperature = options.mixing
        terms.append(temperature * options.weighted(feedback.dense, feedback.options.normalise))
    if options.neighbourhood_std is not None:
        terms.append(neighbourhood_prior(options, query).unsqueeze(0))
    cls = int(options.cls_tokens(query.shape[2]))
    around = (cls, 0, cls, 0)
    bias = F.pad(functools.reduce(torch.add, terms), around) if terms else None
    if options.window is not None:
        outside = outside_window(options, query.device)
        # A patch does not see [CLS], whose own row sees everything.
        outside = F.pad(F.pad(outside, (cls, 0), value=True), (0, 0, cls, 0), value=False)
        if bias is None:
            bias = query.new_zeros(()).expand(1, *outside.shape)
        bias = bias.masked_fill(outside, -torch.inf)
    return None if bias is None else bias.unsqueeze(1).to(query.dtype)


def neighbourhood_prior(options: AttentionOptions, like: Tensor) -> Tensor:
    """ω: (n, n), float32 or wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    vertical, horizontal = (
        torch.exp(-offsets.to(dtype).square() / (2 * options.prior_std**2))
        for offsets in axis_offsets(options, like.device)
    )
    product = vertical[:, None, :, None] * horizontal[None, :, None, :]
    return product.flatten(2, 3).flatten(0, 1)


def outside_window(options: AttentionOptions, device: torch.device) -> Tensor:
    """Which patches a patch does not attend to: (n, n) bool."""
    vertical, horizontal = (
        offsets.abs() > options.reach for offsets in axis_offsets(options, device)
    )
    outside = vertical[:, None, :, None] | horizontal[None, :, None, :]
    return outside.flatten(2, 3).flatten(0, 1)


def axis_offsets(options: AttentionOptions, device: torch.device) -> list[Tensor]:
    """How far positions lie apart along y and along x: (h, h) and (w, w)."""
    positions = [torch.arange(size, device=device) for size in options.grid]
    return [position[:, None] - position for position in positions]
