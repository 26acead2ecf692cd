"""A state of semantic feedback taken apart: into single images, and into what an operator of torch.library takes.

Knows the state's fields. Knows neither how Ŝ is formed nor who reads it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from resclip_kernels.ops.semantic_feedback.state import Connectivity, SemanticFeedback


class Pieces(NamedTuple):
    """The fields of a `SemanticFeedback` as an operator takes them, in the order of its arguments; or none of them."""

    labels: Tensor | None = None
    far: Tensor | None = None
    row_sums: Tensor | None = None
    maximum: Tensor | None = None
    dense: Tensor | None = None
    connectivity: str | None = None
    smoothing_std: float = 0.0
    normalise: bool = False


def take_apart(feedback: SemanticFeedback | None) -> Pieces:
    """The pieces of a state, or of none."""
    if feedback is None:
        return Pieces()
    return Pieces(
        feedback.labels,
        feedback.far,
        feedback.row_sums,
        feedback.maximum,
        feedback.dense,
        feedback.connectivity,
        feedback.smoothing_std,
        feedback.normalise,
    )


def put_together(pieces: Pieces) -> SemanticFeedback | None:
    """The state that `take_apart` was given."""
    if pieces.labels is None or pieces.row_sums is None or pieces.maximum is None:
        return None
    rule: Connectivity | None = pieces.connectivity  # type: ignore[assignment]
    return SemanticFeedback(
        pieces.labels,
        rule,
        pieces.smoothing_std,
        pieces.normalise,
        pieces.far,
        pieces.row_sums,
        pieces.maximum,
        pieces.dense,
    )


def single_images(feedback: SemanticFeedback) -> list[SemanticFeedback]:
    """A state for each image of the batch, as views."""
    return [
        replace(
            feedback,
            labels=feedback.labels[one],
            far=None if feedback.far is None else feedback.far[one],
            row_sums=feedback.row_sums[one],
            maximum=feedback.maximum[one],
            dense=None if feedback.dense is None else feedback.dense[one],
        )
        for one in (slice(image, image + 1) for image in range(len(feedback.labels)))
    ]


def kernel_limit(feedback: SemanticFeedback | None) -> str | None:
    """Why kernels cannot form this state's Ŝ; None where they can, or where there is none."""
    if feedback is not None and feedback.dense is not None and feedback.far is None:
        return (
            "the kernel rebuilds Ŝ from the state's bits and this state has none: "
            "make it with semantic_feedback(..., implementation='auto')"
        )
    return None
