"""Which residual attention runs, and how torch.compile sees it: as one opaque operator.

The operator takes tensors and numbers only, so the feedback's state travels in pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from resclip_kernels.dispatch import Implementation, deferred, resolve
from resclip_kernels.ops.residual_attention import portable, reference
from resclip_kernels.ops.residual_attention.terms import Correlation, Terms
from resclip_kernels.ops.semantic_feedback import pieces

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.residual_attention.triton", "residual_attention"
    ),
    Implementation.TORCH: portable.residual_attention,
    Implementation.REFERENCE: reference.residual_attention,
}
WIDEST_HEAD = 128


class Inputs(NamedTuple):
    """The tensors of one call."""

    query: Tensor
    key: Tensor
    value: Tensor
    cross_layers: tuple[tuple[Tensor, Tensor], ...]
    cross_layer: Tensor | None
    projections: tuple[Tensor, ...] = ()


def other_tensors(inputs: Inputs) -> list[Tensor | None]:
    """All but q, k, v."""
    layers = [tensor for pair in inputs.cross_layers for tensor in pair]
    return [inputs.cross_layer, *layers, *inputs.projections]


def residual_attention(
    inputs: Inputs, terms: Terms, implementation: str
) -> tuple[Tensor, Tensor | None]:
    """Validated arguments in, the chosen implementation's (output, A_c·v) out."""
    function = resolve(
        implementation,
        IMPLEMENTATIONS,
        inputs.query,
        inputs.key,
        inputs.value,
        *other_tensors(inputs),
        limit=kernel_limit(inputs, terms),
    ).function
    result: tuple[Tensor, Tensor | None] = function(
        inputs.query,
        inputs.key,
        inputs.value,
        terms,
        inputs.cross_layers,
        inputs.cross_layer,
        inputs.projections,
    )
    return result


def kernel_limit(inputs: Inputs, terms: Terms) -> str | None:
    """Why the kernel cannot take these arguments; None where it can."""
    width = inputs.query.shape[3]
    if width > WIDEST_HEAD:
        return f"the kernel takes heads up to {WIDEST_HEAD} wide; got {width}: use 'torch'"
    return pieces.kernel_limit(terms.feedback)


def as_operator_call(
    inputs: Inputs, terms: Terms, implementation: str
) -> tuple[Tensor, Tensor | None]:
    """The same through `operator`, for a caller that is being compiled."""
    results = operator(
        inputs.query,
        inputs.key,
        inputs.value,
        [query for query, _ in inputs.cross_layers],
        [key for _, key in inputs.cross_layers],
        inputs.cross_layer,
        list(inputs.projections),
        *pieces.take_apart(terms.feedback),
        list(terms.grid),
        terms.correlation,
        terms.neighbourhood_std,
        terms.feedback_weight,
        terms.feedback_temperature,
        terms.cross_weight,
        terms.cross_temperature,
        terms.score_temperature,
        terms.window,
        implementation,
    )
    return results[0], results[1] if len(results) > 1 else inputs.cross_layer


@torch.library.custom_op("resclip_kernels::residual_attention", mutates_args=())
def operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cross_queries: list[Tensor],
    cross_keys: list[Tensor],
    cross_layer: Tensor | None,
    projections: list[Tensor],
    labels: Tensor | None,
    far: Tensor | None,
    row_sums: Tensor | None,
    maximum: Tensor | None,
    dense: Tensor | None,
    connectivity: str | None,
    smoothing_std: float,
    normalise: bool,
    grid: list[int],
    correlation: str,
    neighbourhood_std: float | None,
    feedback_weight: float,
    feedback_temperature: float,
    cross_weight: float,
    cross_temperature: float,
    score_temperature: float,
    window: int | None,
    implementation: str,
) -> list[Tensor]:
    """[output], and A_c·v where it was computed here."""
    state = pieces.Pieces(
        labels, far, row_sums, maximum, dense, connectivity, smoothing_std, normalise
    )
    name: Correlation = correlation  # type: ignore[assignment]
    terms = Terms(
        (grid[0], grid[1]),
        name,
        neighbourhood_std,
        pieces.put_together(state),
        feedback_weight,
        feedback_temperature,
        cross_weight,
        cross_temperature,
        score_temperature,
        window,
    )
    layers = tuple(zip(cross_queries, cross_keys, strict=True))
    inputs = Inputs(query, key, value, layers, cross_layer, tuple(projections))
    output, average = residual_attention(inputs, terms, implementation)
    # An operator's results may not be its arguments, and lie as its fake implementation says.
    output = output.clone(memory_format=torch.contiguous_format) if output is value else output
    results = [output] if cross_layer is not None or average is None else [output, average]
    return [result.contiguous() for result in results]


@operator.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cross_queries: list[Tensor],
    cross_keys: list[Tensor],
    cross_layer: Tensor | None,
    *rest: object,
) -> list[Tensor]:
    computed = cross_layer is None and len(cross_queries) > 0
    return [value.new_empty(value.shape) for _ in range(2 if computed else 1)]
