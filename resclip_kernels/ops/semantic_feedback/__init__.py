"""Semantic feedback: a label map of the patches becomes an attention term that favours patches of one class.

ResCLIP (CVPR 2025, arXiv 2411.15851), section 3.3 (SFR): same-class mask, Chebyshev path decay, Gaussian smoothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resclip_kernels.checks import check_count
from resclip_kernels.dispatch import Implementation, as_operator, parse_implementation
from resclip_kernels.ops.semantic_feedback import dispatch
from resclip_kernels.ops.semantic_feedback.state import (
    CONNECTIVITIES,
    Connectivity,
    SemanticFeedback,
)

__all__ = [
    "CONNECTIVITIES",
    "Connectivity",
    "SemanticFeedback",
    "feedback_matrix",
    "semantic_feedback",
]


def semantic_feedback(
    labels: Tensor,
    *,
    connectivity: Connectivity | None = "prefix",
    smoothing_std: float = 5.0,
    normalise: bool = True,
    implementation: Implementation | str = Implementation.AUTO,
) -> SemanticFeedback:
    """Turn patch labels into the state from which pass 2's attention rebuilds Ŝ.

    For patches i (row) and j (column) of one image, d the Chebyshev distance and M = max(h, w) − 1:

    1. same[i, j] = 1 where the labels are equal, else 0; times exp(−d/M) unless j is connected to i;
    2. smoothed along j by a zero-padded Gaussian (σ = `smoothing_std`, K = min(n, int(6σ + 1)) taps, odd, sum 1);
    3. with `normalise`: each row divided by (its sum + 1e-8), the image's matrix by its largest entry, the result
       rounded to float16.

    Args:
        labels: (B, h, w) integer labels.
        connectivity: how j can be connected to i:
            "prefix", the released program's test of the first d/M of the segment from i to j;
            "line", the whole segment (the paper's equation);
            "component", the same 8-connected component of equal label;
            None, no path decay.
        smoothing_std: σ in patches; 0 turns smoothing off.
        normalise: step 3, which the released program has and the paper's equations do not.
        implementation: see `Implementation`.

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
    check_count("the number of patches", labels[0].numel() if len(labels) else 1, 1)
    if connectivity is not None and connectivity not in CONNECTIVITIES:
        valid = ", ".join(repr(name) for name in CONNECTIVITIES)
        raise ValueError(
            f"connectivity must be one of {valid}, or None for no decay; got {connectivity!r}"
        )
    if not (math.isfinite(smoothing_std) and smoothing_std >= 0):
        raise ValueError(
            f"smoothing_std must be a finite number of at least 0; got {smoothing_std}"
        )
    run = dispatch.as_operator_call if as_operator(labels) else dispatch.semantic_feedback
    return run(
        labels.long(),
        connectivity,
        float(smoothing_std),
        normalise,
        parse_implementation(implementation).value,
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
    asked = parse_implementation(implementation)
    if feedback.dense is not None:
        return feedback.dense
    return dispatch.feedback_matrix(feedback, asked.value)
