"""Which proxy attention runs, and how torch.compile sees it: as one opaque operator.

The operator takes tensors and numbers only, so the feedback's state travels in pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.dispatch import Implementation, deferred, resolve
from resclip_kernels.ops.proxy_attention import portable, reference
from resclip_kernels.ops.proxy_attention.terms import FeedbackTerm
from resclip_kernels.ops.semantic_feedback.pieces import (
    Pieces,
    kernel_limit,
    put_together,
    take_apart,
)

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
    height: int,
    width: int,
    beta: float,
    gamma: float,
    implementation: str,
    feedback: FeedbackTerm | None = None,
) -> Tensor:
    """Validated arguments in, the chosen implementation's result out; nothing runs where the result is empty."""
    function = resolve(
        implementation, IMPLEMENTATIONS, features, value, limit=limit_of(feedback)
    ).function
    output = empty_output(features, value)
    if output.numel() == 0:
        return output
    result: Tensor = function(features, value, (height, width), beta, gamma, feedback)
    return result


def limit_of(feedback: FeedbackTerm | None) -> str | None:
    """Why the kernels cannot take this feedback; None where they can."""
    if feedback is None:
        return None
    strength = feedback.weight * feedback.temperature
    if strength > LARGEST_FEEDBACK:
        return (
            f"with feedback the kernel takes feedback_weight · feedback_temperature up to {LARGEST_FEEDBACK:g}; "
            f"got {strength:g}: use 'torch'"
        )
    return kernel_limit(feedback.state)


def empty_output(features: Tensor, value: Tensor) -> Tensor:
    """(B, A, H_v·W_v, d) of no particular content."""
    batch, heads, _, head_width = value.shape
    return value.new_empty((batch, heads, features.shape[2] * features.shape[3], head_width))


def as_operator_call(
    features: Tensor,
    value: Tensor,
    height: int,
    width: int,
    beta: float,
    gamma: float,
    implementation: str,
    feedback: FeedbackTerm | None = None,
) -> Tensor:
    """The same through `operator`, for a caller that is being compiled."""
    plain = (features, value, height, width, beta, gamma, implementation)
    if feedback is None:
        result: Tensor = operator(*plain)
    else:
        pieces = take_apart(feedback.state)
        result = operator(*plain, feedback.weight, feedback.temperature, *pieces)
    return result


@torch.library.custom_op("resclip_kernels::proxy_attention", mutates_args=())
def operator(
    features: Tensor,
    value: Tensor,
    height: int,
    width: int,
    beta: float,
    gamma: float,
    implementation: str,
    feedback_weight: float = 0.0,
    feedback_temperature: float = 1.0,
    labels: Tensor | None = None,
    far: Tensor | None = None,
    row_sums: Tensor | None = None,
    maximum: Tensor | None = None,
    dense: Tensor | None = None,
    connectivity: str | None = None,
    smoothing_std: float = 0.0,
    normalise: bool = False,
) -> Tensor:
    """`proxy_attention` on tensors and numbers."""
    state = put_together(
        Pieces(labels, far, row_sums, maximum, dense, connectivity, smoothing_std, normalise)
    )
    feedback = None if state is None else FeedbackTerm(state, feedback_weight, feedback_temperature)
    return proxy_attention(features, value, height, width, beta, gamma, implementation, feedback)


@operator.register_fake
def _(features: Tensor, value: Tensor, *rest: object) -> Tensor:
    return empty_output(features, value)
