"""What the tensors of one residual attention must be."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from resclip_kernels.checks import check_float, check_type, quoted
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback, check_state
from resclip_kernels.options.residual_attention import PROJECTED, AttentionOptions


def check_arguments(
    options: AttentionOptions,
    query: Tensor,
    others: Iterable[tuple[str, Tensor]],
    projections: tuple[Tensor, ...],
    feedback: SemanticFeedback | None,
) -> None:
    """TypeError or ValueError unless the tensors fit one another and the options.

    Args:
        options: checked on their own.
        query: (B, A, L, d) floating point.
        others: what must be like the query, under the names that errors give it.
        projections: of the correlation "pp", among `others` too.
        feedback: of SFR.
    """
    check_float("query", query, 4, "(B, A, L, d)")
    # While torch.jit traces, a size is a tensor.
    if query.shape[3] < 1:
        raise ValueError("the width of query's heads must be at least 1; got 0")
    for name, tensor in others:
        check_like(name, tensor, query)
    height, width = options.grid
    patches = math.prod(options.grid)
    tokens = query.shape[2]
    if tokens not in (patches, 1 + patches):
        raise ValueError(
            f"a grid of {height} × {width} patches has {1 + patches} tokens with [CLS]; query has {tokens} "
            f"(without [CLS] there would be {patches})"
        )
    check_correlation(options, projections, has_feedback=feedback is not None)
    check_state(feedback, options.grid, "query", query)


def as_tuples(
    projections: Iterable[Tensor], cross_layers: Iterable[tuple[Tensor, Tensor]]
) -> tuple[tuple[Tensor, ...], tuple[tuple[Tensor, Tensor], ...]]:
    """Both as tuples; TypeError unless they are sequences, the second one of pairs."""
    check_type("projections", projections, Iterable, "a tuple of tensors")
    check_type("cross_layers", cross_layers, Iterable, "a tuple of (query, key)")
    layers = tuple(cross_layers)
    for layer in layers:
        if not isinstance(layer, (tuple, list)) or len(layer) != 2:
            raise TypeError(f"each of cross_layers must be (query, key); got {quoted(layer)}")
    return tuple(projections), layers


def named_tensors(
    projections: Iterable[Tensor], cross_layers: Iterable[tuple[Tensor, Tensor]]
) -> list[tuple[str, Tensor]]:
    """The sequences' tensors under the names that errors give them."""
    named = [(f"projections[{number}]", tensor) for number, tensor in enumerate(projections)]
    for number, (query, key) in enumerate(cross_layers):
        named.append((f"cross_layers[{number}]'s query", query))
        named.append((f"cross_layers[{number}]'s key", key))
    return named


def check_values(
    query: Tensor,
    value: Tensor,
    cross_layers: tuple[tuple[Tensor, Tensor], ...],
    cross_layer: Tensor | None,
) -> None:
    """TypeError or ValueError unless the values and the middle blocks fit the query; each has a width of its own.

    Args:
        query: (B, A, L, d).
        value: (B, A, L, d_v).
        cross_layers: (q_i, k_i) of the middle blocks, each (B, A, L, d_i).
        cross_layer: A_c·v, like `value`.
    """
    check_like("value", value, query, any_width=True)
    for (name, tensor), (other, key) in zip(
        *[iter(named_tensors((), cross_layers))] * 2, strict=True
    ):
        check_like(name, tensor, query, any_width=True)
        check_like(other, key, tensor, name)
    if cross_layer is not None:
        check_like("cross_layer", cross_layer, value, "value")


def check_like(
    name: str, tensor: Tensor, query: Tensor, like: str = "query", *, any_width: bool = False
) -> None:
    """`tensor` must have the shape, dtype and device of the query, or of another tensor with the name `like`.

    With `any_width` its last axis may be of any length but 0.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
    is_like = tensor.shape == query.shape
    if any_width and tensor.ndim == query.ndim:
        is_like = tensor.shape[:-1] == query.shape[:-1] and tensor.shape[-1] > 0
    if not is_like:
        raise ValueError(
            f"{name} must have {like}'s shape {tuple(query.shape)}; got {tuple(tensor.shape)}"
        )
    if tensor.dtype != query.dtype or tensor.device != query.device:
        raise TypeError(
            f"{name} must be {query.dtype} on {query.device} like {like}; "
            f"got {tensor.dtype} on {tensor.device}"
        )


def check_correlation(
    options: AttentionOptions, projections: tuple[Tensor, ...], *, has_feedback: bool
) -> None:
    """ValueError unless the correlation has what it needs and nothing that it could not use."""
    if options.correlation in PROJECTED and not projections:
        raise ValueError(
            f"correlation {options.correlation!r} correlates projections with themselves; got none: "
            "pass projections=(p_1, …), each of query's shape"
        )
    if options.correlation not in PROJECTED and projections:
        raise ValueError(
            f"only correlation 'pp' takes projections; got {len(projections)} with {options.correlation!r}: "
            "leave them out, or choose 'pp'"
        )
    changes = {
        "a neighbourhood prior": options.neighbourhood_std is not None,
        "semantic feedback": has_feedback,
        "a window": options.window is not None,
        "a score temperature": options.score_temperature != 1.0,
    }
    unusable = [name for name, requested in changes.items() if requested]
    if options.correlation == "identity" and unusable:
        raise ValueError(
            f"correlation 'identity' has no score that {' or '.join(unusable)} could change; "
            "leave it out, or choose another correlation"
        )
