"""What `residual_attention` and `attention_maps` ask of their arguments; errors only, nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import get_args

from torch import Tensor

from resclip_kernels.checks import check_count, check_float, check_fraction, check_positive
from resclip_kernels.ops.residual_attention.terms import Correlation, Terms

CORRELATIONS: tuple[str, ...] = get_args(Correlation)


def check_tensors(query: Tensor, others: Iterable[tuple[str, Tensor]]) -> None:
    """(B, A, L, d) floating point, the others like the query."""
    check_float("query", query, 4, "(B, A, L, d)")
    for name, tensor in others:
        check_like(name, tensor, query)


def named_tensors(
    projections: Iterable[Tensor], cross_layers: Iterable[tuple[Tensor, Tensor]]
) -> list[tuple[str, Tensor]]:
    """The sequences' tensors under the names that errors give them."""
    named = [(f"projections[{number}]", tensor) for number, tensor in enumerate(projections)]
    for number, (query, key) in enumerate(cross_layers):
        named.append((f"cross_layers[{number}]'s query", query))
        named.append((f"cross_layers[{number}]'s key", key))
    return named


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


def check_terms(terms: Terms, query: Tensor, projections: tuple[Tensor, ...]) -> None:
    """Options in their ranges, and a combination that has a meaning for this query."""
    height, width = terms.grid
    patches = math.prod(terms.grid)
    tokens = query.shape[2]
    if tokens not in (patches, 1 + patches):
        raise ValueError(
            f"a grid of {height} × {width} patches has {1 + patches} tokens with [CLS]; query has {tokens} "
            f"(without [CLS] there would be {patches})"
        )
    check_correlation(terms, projections)
    if terms.neighbourhood_std is not None:
        check_positive("neighbourhood_std", terms.neighbourhood_std)
    check_positive("score_temperature", terms.score_temperature)
    if terms.window is not None:
        check_count("window", terms.window, 1)
        if terms.window % 2 == 0:
            raise ValueError(
                f"window must be odd, for the patch to stand in its middle; got {terms.window}"
            )
    feedback = terms.feedback
    if feedback is not None and (feedback.grid != terms.grid or len(feedback.labels) != len(query)):
        raise ValueError(
            f"feedback is for {len(feedback.labels)} images of {feedback.grid} patches; "
            f"query holds {len(query)} of {terms.grid}"
        )
    check_fraction("feedback_weight", terms.feedback_weight)
    check_fraction("cross_weight", terms.cross_weight)
    check_positive("feedback_temperature", terms.feedback_temperature)
    check_positive("cross_temperature", terms.cross_temperature)


def check_correlation(terms: Terms, projections: tuple[Tensor, ...]) -> None:
    """A correlation that exists, with what it needs and nothing that it could not use."""
    if terms.correlation not in CORRELATIONS:
        valid = ", ".join(repr(name) for name in CORRELATIONS)
        raise ValueError(f"correlation must be one of {valid}; got {terms.correlation!r}")
    if terms.correlation == "pp" and not projections:
        raise ValueError(
            "correlation 'pp' correlates projections with themselves; got none: "
            "pass projections=(p_1, …), each of query's shape"
        )
    if terms.correlation != "pp" and projections:
        raise ValueError(
            f"only correlation 'pp' takes projections; got {len(projections)} with {terms.correlation!r}: "
            "leave them out, or choose 'pp'"
        )
    changes = {
        "a neighbourhood prior": terms.neighbourhood_std is not None,
        "semantic feedback": terms.feedback is not None,
        "a window": terms.window is not None,
        "a score temperature": terms.score_temperature != 1.0,
    }
    given = [name for name, is_given in changes.items() if is_given]
    if terms.correlation == "identity" and given:
        raise ValueError(
            f"correlation 'identity' has no score that {' or '.join(given)} could change; "
            "leave it out, or choose another correlation"
        )
