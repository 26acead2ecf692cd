"""Which semantic feedback runs, and how torch.compile sees it: as opaque operators on tensors and numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.dispatch import Implementation, deferred, resolve
from resclip_kernels.ops.semantic_feedback import portable, reference
from resclip_kernels.ops.semantic_feedback.state import Connectivity, SemanticFeedback

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.semantic_feedback.triton", "semantic_feedback"
    ),
    Implementation.TORCH: portable.semantic_feedback,
    Implementation.REFERENCE: reference.semantic_feedback,
}
MATRICES = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.semantic_feedback.triton", "feedback_matrix"
    ),
    Implementation.TORCH: portable.feedback_matrix,
}
MAX_PATCHES = 1 << 20


def semantic_feedback(
    labels: Tensor,
    connectivity: Connectivity | None,
    smoothing_std: float,
    normalise: bool,
    implementation: str,
) -> SemanticFeedback:
    """Validated arguments in, the chosen implementation's state out."""
    limit = None
    if labels.shape[1] * labels.shape[2] > MAX_PATCHES:
        limit = (
            f"the kernels take at most {MAX_PATCHES} patches an image; got "
            f"{labels.shape[1]} × {labels.shape[2]}: segment in windows, or use 'torch'"
        )
    function = resolve(implementation, IMPLEMENTATIONS, labels, limit=limit).function
    state: SemanticFeedback = function(labels, connectivity, smoothing_std, normalise)
    return state


def feedback_matrix(feedback: SemanticFeedback, implementation: str) -> Tensor:
    """Ŝ of a state without one, by the chosen implementation."""
    function = resolve(implementation, MATRICES, feedback.labels).function
    matrix: Tensor = function(feedback)
    return matrix


def as_operator_call(
    labels: Tensor,
    connectivity: Connectivity | None,
    smoothing_std: float,
    normalise: bool,
    implementation: str,
) -> SemanticFeedback:
    """`semantic_feedback` through `operator`, for a caller that is being compiled."""
    far, row_sums, maximum, dense = operator(
        labels, connectivity, smoothing_std, normalise, implementation
    )
    return SemanticFeedback(
        labels,
        connectivity,
        smoothing_std,
        normalise,
        far if has_far(labels, connectivity, implementation) else None,
        row_sums,
        maximum,
        dense if Implementation(implementation) is Implementation.REFERENCE else None,
    )


def has_far(labels: Tensor, connectivity: str | None, implementation: str) -> bool:
    """Whether the state holds bits: not without path decay, for a single patch, or from the reference."""
    patches = labels.shape[1] * labels.shape[2]
    plain = Implementation(implementation) is Implementation.REFERENCE
    return connectivity is not None and patches > 1 and labels.shape[0] > 0 and not plain


@torch.library.custom_op("resclip_kernels::semantic_feedback", mutates_args=())
def operator(
    labels: Tensor,
    connectivity: str | None,
    smoothing_std: float,
    normalise: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(far, row sums, maximum, Ŝ); what a state does not hold is an empty tensor."""
    rule: Connectivity | None = connectivity  # type: ignore[assignment]
    state = semantic_feedback(labels, rule, smoothing_std, normalise, implementation)
    empty = state.row_sums.new_empty(0)
    bits = empty.byte() if state.far is None else state.far.contiguous()
    return bits, state.row_sums, state.maximum, empty if state.dense is None else state.dense


@operator.register_fake
def _(
    labels: Tensor,
    connectivity: str | None,
    smoothing_std: float,
    normalise: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, patches = labels.shape[0], labels.shape[1] * labels.shape[2]
    bits = (batch, patches, (patches + 7) // 8)
    far = bits if has_far(labels, connectivity, implementation) else (0,)
    plain = Implementation(implementation) is Implementation.REFERENCE
    return (
        labels.new_empty(far, dtype=torch.uint8),
        labels.new_empty((batch, patches), dtype=torch.float32),
        labels.new_empty((batch,), dtype=torch.float32),
        labels.new_empty((batch, patches, patches) if plain else (0,), dtype=torch.float32),
    )
