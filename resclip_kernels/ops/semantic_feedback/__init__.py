"""Semantic feedback: a label map of the patches becomes an attention term that favours patches of one class.

ResCLIP (CVPR 2025, arXiv 2411.15851), section 3.3 (SFR): same-class mask, Chebyshev path decay, Gaussian smoothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resclip_kernels.checks import check_count, check_type, merge_options, row_numbers
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.ops.semantic_feedback import graph, portable, reference
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback
from resclip_kernels.options.semantic_feedback import (
    CONNECTIVITIES,
    Connectivity,
    FeedbackKeywords,
    FeedbackOptions,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "CONNECTIVITIES",
    "Connectivity",
    "FeedbackOptions",
    "SemanticFeedback",
    "feedback_matrix",
    "feedback_rows",
    "semantic_feedback",
]

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
# Patches of an image as far as which the kernels number them.
MAX_PATCHES = 1 << 20


def semantic_feedback(
    labels: Tensor,
    options: FeedbackOptions | None = None,
    *,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[FeedbackKeywords],
) -> SemanticFeedback:
    """Turn patch labels into the state from which the second pass's attention rebuilds Ŝ.

    For patches i (row) and j (column) of one image, d the Chebyshev distance and M = max(h, w) − 1:

    1. same[i, j] = 1 where the labels are equal, else 0; times exp(−d/M) unless j is connected to i;
    2. smoothed along j by a zero-padded Gaussian (σ = `smoothing_std`, K = min(n, int(6σ + 1)) taps, odd, sum 1);
    3. with `normalise`: each row divided by (its sum + 1e-8), the image's matrix by its largest entry, the result
       rounded to float16.

    Args:
        labels: (B, h, w) integer labels.
        options: connectivity, smoothing and normalisation; None for the released program's.
        implementation: see `Implementation`.
        keywords: fields of `FeedbackOptions`, in place of those of `options`.

    Returns:
        The compact state; labels and maxima are per image, so it does not depend on the rest of the batch.

    Raises:
        TypeError, ValueError: a shape, dtype or value that does not fit.
    """
    if not isinstance(labels, Tensor) or labels.ndim != 3:
        shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be a (B, h, w) tensor of integers; got {shape}")
    if labels.dtype.is_floating_point or labels.dtype in (torch.bool, torch.complex64):
        raise TypeError(f"labels must be integers; got {labels.dtype}")
    check_count("the number of patches", labels[0].numel() if labels.shape[0] else 1, 1)
    options = merge_options(FeedbackOptions, options, keywords)
    labels = labels.long()
    return SemanticFeedback(
        labels, options, *run(labels, options, parse_implementation(implementation).value)
    )


def feedback_matrix(
    feedback: SemanticFeedback, *, implementation: Implementation | str = Implementation.AUTO
) -> Tensor:
    """Ŝ of every image as a (B, n, n) float32 matrix. For looking at it: memory grows with n².

    Args:
        feedback: a state of `semantic_feedback`; one that holds Ŝ already gives it as it is.
        implementation: see `Implementation`; "reference" makes Ŝ together with the state, so there is nothing to do.

    Raises:
        ValueError: an implementation that cannot run here.
    """
    check_type("feedback", feedback, SemanticFeedback, "a state of semantic_feedback")
    requested = parse_implementation(implementation)
    if feedback.dense is not None:
        return feedback.dense
    matrix: Tensor = resolve(requested, MATRICES, feedback.labels).function(feedback)
    return matrix


def feedback_rows(feedback: SemanticFeedback, rows: Tensor) -> Tensor:
    """Some rows of Ŝ; rows that follow one another are formed together, a bounded number at a time.

    Args:
        feedback: a state of `semantic_feedback`.
        rows: (R,) int64 patches, 0 ≤ row < n, in row-major order.

    Returns:
        (B, R, n) float32.

    Raises:
        TypeError, ValueError: rows that are no indices of patches.
    """
    check_type("feedback", feedback, SemanticFeedback, "a state of semantic_feedback")
    if feedback.labels.is_meta:
        return feedback.row_sums.new_empty((len(feedback.labels), len(rows), feedback.patches))
    numbers = row_numbers(rows, feedback.patches)
    blocks = portable.row_blocks(feedback.patches, len(feedback.labels) * feedback.patches)
    most = max((last - first for first, last in blocks), default=1)
    runs: list[list[int]] = []
    for row in numbers:
        if runs and row == runs[-1][1] and row - runs[-1][0] < most:
            runs[-1][1] += 1
        else:
            runs.append([row, row + 1])
    return torch.cat([portable.feedback_rows(feedback, *run) for run in runs], dim=1)


Fields = tuple[Tensor | None, Tensor, Tensor, Tensor | None]


def fake(labels: Tensor, options: FeedbackOptions, implementation: str) -> Fields:
    """The shapes that `run` returns."""
    batch, patches = labels.shape[0], labels.shape[1] * labels.shape[2]
    is_reference = Implementation(implementation) is Implementation.REFERENCE
    # No bits without path decay, for a single patch, or from the reference.
    has_far = options.connectivity is not None and patches > 1 and batch > 0 and not is_reference
    far = labels.new_empty((batch, patches, (patches + 7) // 8), dtype=torch.uint8)
    dense = labels.new_empty((batch, patches, patches), dtype=torch.float32)
    return (
        far if has_far else None,
        labels.new_empty((batch, patches), dtype=torch.float32),
        labels.new_empty((batch,), dtype=torch.float32),
        dense if is_reference else None,
    )


def exported(labels: Tensor, options: FeedbackOptions, implementation: str) -> Fields:
    """What `run` gives, in plain operators."""
    state = graph.semantic_feedback(labels, options)
    return state.far, state.row_sums, state.maximum, state.dense


@custom_op("semantic_feedback", fake, exported)
def run(labels: Tensor, options: FeedbackOptions, implementation: str) -> Fields:
    """The chosen implementation's fields of the state: far pairs, row sums, maximum, Ŝ."""
    limit = None
    if labels.shape[1] * labels.shape[2] > MAX_PATCHES:
        limit = (
            f"the kernels take at most {MAX_PATCHES} patches an image; got "
            f"{labels.shape[1]} × {labels.shape[2]}: segment in windows, or use 'torch'"
        )
    function = resolve(
        implementation, IMPLEMENTATIONS, labels, limit=limit, op="semantic_feedback"
    ).function
    state: SemanticFeedback = function(labels, options)
    return state.far, state.row_sums, state.maximum, state.dense


@trial("semantic_feedback")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """Ŝ of a small label map; see `resclip_kernels.first_use`."""
    labels = (sample(device, torch.float32, 2, 5, 7) > 0).long()
    state = semantic_feedback(labels, implementation=implementation)
    return [feedback_matrix(state, implementation="torch")]
