"""Attention of CLIP's values by the similarity of another vision model's features.

ProxyCLIP: Lan et al., "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation", ECCV 2024
(arXiv 2408.04883), section 3.3; with feedback ResCLIP's SFR on top (arXiv 2411.15851, section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resclip_kernels.checks import (
    check_float,
    check_pair,
    check_same_images,
    merge_options,
    row_numbers,
)
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.ops.proxy_attention import portable, reference
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback, check_state, kernel_limit
from resclip_kernels.options.proxy_attention import (
    ProxyAttentionKeywords,
    ProxyAttentionOptions,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ProxyAttentionOptions", "proxy_attention", "proxy_rows"]

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.proxy_attention.triton", "proxy_attention"
    ),
    Implementation.TORCH: portable.proxy_attention,
    Implementation.REFERENCE: reference.proxy_attention,
}
# With feedback the kernel knows a row's largest entry only to within τ_s·λ_s, so that its weights may be e^(τ_s·λ_s)
# times smaller than 1: e^8 leaves float16 its eleven bits. The released settings reach 1.6.
LARGEST_FEEDBACK = 8.0


def proxy_attention(
    features: Tensor,
    value: Tensor,
    options: ProxyAttentionOptions | None = None,
    *,
    grid: tuple[int, int],
    feedback: SemanticFeedback | None = None,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[ProxyAttentionKeywords],
) -> Tensor:
    """Aggregate CLIP's values over the positions that a vision foundation model finds alike.

    With X the n = H_v·W_v positions of `features`, each of unit length (a position shorter than 1e-12 counts as 0), per
    image:

        S   = γ · (X Xᵀ − β · mean(X Xᵀ))            the mean over all n² pairs of the image, which `cut` changes
        S'  = τ_s · ((1 − λ_s) · S + λ_s · Ŝ)          with `feedback`, else S
        out = softmax(S' where S' ≥ 0, else −∞) · v    the same map for every head

    With `cut`, entries of X Xᵀ below it are set to 0 first: the mean counts them as 0, and so does S. SFP (ICCV 2025)
    cuts so at 0.4.

    A position with nothing left attends to itself alone. v is `value` resized bilinearly (`align_corners=False`) from
    CLIP's grid to (H_v, W_v). λ_s·Ŝ is rounded to float16 where Ŝ is normalised, as in ResCLIP's released program. The
    map jumps where an entry passes 0: results of two dtypes are comparable only where no entry lies within rounding of
    it.

    Args:
        features: (B, C, H_v, W_v), any length per position, any floating dtype and strides.
        value: (B, A, h·w, d), the patches' values of CLIP's final block without [CLS], in row-major order. Products
            accumulate in float32 at least.
        options: β, γ, the cut, λ_s and τ_s; None for the defaults.
        grid: (h, w) in CLIP's patches.
        feedback: state of `semantic_feedback` for these images, of labels on the features' grid (H_v, W_v); None for
            no SFR.
        implementation: see `Implementation`.
        keywords: fields of `ProxyAttentionOptions`, in place of those of `options`.

    Returns:
        (B, A, H_v·W_v, d) in `value`'s dtype; in memory it lies as a merge of the heads wants it, (B, H_v·W_v, A, d),
        except from "reference".

    Raises:
        TypeError, ValueError: a shape, dtype or number that does not fit; the message says what was expected.
    """
    options = merge_options(ProxyAttentionOptions, options, keywords)
    check_features(features, feedback)
    check_float("value", value, 4, "(B, A, h·w, d)")
    check_same_images("features", features, "value", value)
    height, width = check_pair("grid", grid, "(h, w) in patches", 1)
    if value.shape[2] != height * width:
        raise ValueError(
            f"a grid of {height} × {width} patches has {height * width} values without [CLS]; "
            f"value has {value.shape[2]}: leave [CLS] out, or correct grid"
        )
    by_position = run(
        features,
        value,
        options,
        (height, width),
        feedback,
        parse_implementation(implementation).value,
    )
    # An operator's result is dense: position by position, so that a compiled caller's merge of the heads is free.
    return by_position.transpose(1, 2)


def proxy_rows(
    features: Tensor,
    rows: Tensor,
    options: ProxyAttentionOptions | None = None,
    *,
    feedback: SemanticFeedback | None = None,
    **keywords: Unpack[ProxyAttentionKeywords],
) -> Tensor:
    """Some rows of the map that `proxy_attention` applies to the values, for looking at it.

    Args:
        features, options, feedback, keywords: as in `proxy_attention`.
        rows: (R,) int64, positions in row-major order, the same for every image.

    Returns:
        (B, R, H_v·W_v), without a gradient, in float32 or in the features' dtype where that is wider; each row sums
        to 1.

    Raises:
        TypeError, ValueError: as `proxy_attention`; rows that are no positions of the grid.
    """
    options = merge_options(ProxyAttentionOptions, options, keywords)
    check_features(features, feedback)
    numbers = row_numbers(rows, features.shape[2] * features.shape[3], allow_none=True)
    return portable.proxy_rows(features, numbers, options, feedback)


def check_features(features: Tensor, feedback: SemanticFeedback | None) -> None:
    """TypeError or ValueError unless these are features, with feedback on their grid."""
    check_float("features", features, 4, "(B, C, H_v, W_v)")
    if features.shape[1] < 1:
        raise ValueError(
            f"features must have at least one channel (B, C, H_v, W_v); got {tuple(features.shape)}"
        )
    size = (features.shape[2], features.shape[3])
    check_state(feedback, size, "features", features)


def fake(
    features: Tensor,
    value: Tensor,
    options: ProxyAttentionOptions,
    grid: tuple[int, int],
    feedback: SemanticFeedback | None,
    implementation: str,
) -> Tensor:
    """The shape that `run` returns: (B, H_v·W_v, A, d)."""
    batch, heads, _, head_width = value.shape
    return value.new_empty((batch, features.shape[2] * features.shape[3], heads, head_width))


def exported(
    features: Tensor,
    value: Tensor,
    options: ProxyAttentionOptions,
    grid: tuple[int, int],
    feedback: SemanticFeedback | None,
    implementation: str,
) -> Tensor:
    """What `run` gives, in plain operators: the reference's are."""
    return reference.proxy_attention(features, value, grid, options, feedback).transpose(1, 2)


@custom_op("proxy_attention", fake, exported)
def run(
    features: Tensor,
    value: Tensor,
    options: ProxyAttentionOptions,
    grid: tuple[int, int],
    feedback: SemanticFeedback | None,
    implementation: str,
) -> Tensor:
    """The chosen implementation's result, as (B, H_v·W_v, A, d)."""
    limit = kernel_limit(feedback)
    weight, temperature = options.mixing
    if feedback is not None and weight * temperature > LARGEST_FEEDBACK:
        limit = (
            f"the kernel takes feedback_weight times the feedback's temperature up to {LARGEST_FEEDBACK:g}; "
            f"got {weight * temperature:g}: use 'torch'"
        )
    function = resolve(
        implementation, IMPLEMENTATIONS, features, value, limit=limit, op="proxy_attention"
    ).function
    empty = fake(features, value, options, grid, feedback, implementation)
    if empty.numel() == 0:
        return empty
    result: Tensor = function(features, value, grid, options, feedback)
    return result.transpose(1, 2)


@trial("proxy_attention")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """What a small image's positions gather, without and with a cut; see `resclip_kernels.first_use`."""
    features, value = (
        sample(device, dtype, 2, 24, 5, 7),
        sample(device, dtype, 2, 2, 12, 64, seed=1),
    )
    return [
        proxy_attention(features, value, grid=(3, 4), cut=cut, implementation=implementation)
        for cut in (None, 0.2)
    ]
