"""The options of one residual attention, and what its arguments must be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from resclip_kernels.checks import (
    check_choice,
    check_count,
    check_float,
    check_fraction,
    check_grid,
    check_positive,
    check_type,
    quoted,
    set_floats,
)
from resclip_kernels.ops.semantic_feedback.options import FeedbackMixing, MixingKeywords
from resclip_kernels.ops.semantic_feedback.state import SemanticFeedback, check_state

Correlation = Literal["qk", "qq", "kk", "qq+kk", "pp", "pp-sum", "none", "identity"]
CORRELATIONS: tuple[str, ...] = get_args(Correlation)
# Which of (query, key) stand left and right in each score. "pp" and "pp-sum" correlate the call's projections, "none"
# has one score of zeros, and with "identity" the map is the unit matrix.
SCORES: dict[str, tuple[tuple[int, int], ...]] = {
    "qk": ((0, 1),),
    "qq": ((0, 0),),
    "kk": ((1, 1),),
    "qq+kk": ((0, 0), (1, 1)),
    "pp": (),
    "pp-sum": (),
    "none": (),
    "identity": (),
}
PROJECTED = ("pp", "pp-sum")


def score_operands(
    correlation: Correlation, query: Tensor, key: Tensor, projections: tuple[Tensor, ...]
) -> list[tuple[Tensor, Tensor]]:
    """(x, y) of every score x yᵀ of a correlation; empty for "none" and "identity"."""
    if correlation in PROJECTED:
        return [(projection, projection) for projection in projections]
    return [((query, key)[left], (query, key)[right]) for left, right in SCORES[correlation]]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(FeedbackMixing):
    """Everything that decides `residual_attention` beside its tensors.

    The weights and temperatures of feedback and cross-layer residual are the released program's; the paper's equations
    have 0.7 and 1 for the feedback (`FeedbackMixing`), and 0.5 and 1 for the residual.

    Raises:
        TypeError, ValueError: a value out of its range.
    """

    grid: tuple[int, int]
    """(h, w) in patches."""
    correlation: Correlation = "kk"
    """What is compared: "qk", "qq", "kk", "qq+kk" (the sum: rows add to 2), "pp" (the mean over the call's
    projections), "pp-sum" (their sum), "none" (the prior, the feedback and the window alone; query and key are not
    read) or "identity" (no score: takes none of these, and no score temperature)."""
    score_temperature: float = 1.0
    """τ > 0 of the base's own scores, before the feedback, not of A_c's; under 1 it sharpens."""
    window: int | None = None
    """Odd side of the square in patches that a patch attends to; 1 leaves each patch to itself, None is no limit."""
    neighbourhood_std: float | None = None
    """σ of the neighbourhood prior ω in patches; None for no prior."""
    cross_weight: float = 0.4
    """λ_r in [0, 1]: the share of the middle blocks' attention."""
    cross_temperature: float = 2.0
    """τ_r > 0: factor of the mixed attention."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # A list or a torch.Size does as well.
        object.__setattr__(self, "grid", check_grid(self.grid))
        check_choice("correlation", self.correlation, CORRELATIONS)
        check_positive("score_temperature", self.score_temperature)
        if self.window is not None:
            check_count("window", self.window, 1)
            if self.window % 2 == 0:
                raise ValueError(
                    f"window must be odd, for the patch to stand in its middle; got {self.window}"
                )
        check_fraction("cross_weight", self.cross_weight)
        check_positive("cross_temperature", self.cross_temperature)
        set_floats(self, "score_temperature", "cross_weight", "cross_temperature")
        if self.neighbourhood_std is not None:
            check_positive("neighbourhood_std", self.neighbourhood_std)
            set_floats(self, "neighbourhood_std")

    def cls_tokens(self, tokens: int) -> int:
        """1 where a sequence of this length begins with [CLS], 0 where it holds patches alone."""
        return tokens - math.prod(self.grid)

    @property
    def reach(self) -> int:
        """Chebyshev distance in patches as far as which a patch sees: (`window` − 1)/2."""
        if self.window is None:
            raise ValueError("these options have no window")
        return (self.window - 1) // 2

    @property
    def prior_std(self) -> float:
        """σ where its square can be computed with: below and above, ω is the unit matrix and 1 in any dtype."""
        if self.neighbourhood_std is None:
            raise ValueError("these options have no neighbourhood prior")
        return min(max(self.neighbourhood_std, 1e-9), 1e9)

    def neighbourhood(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """ω's factors along y and x, (h, h) and (w, w): the Gaussian of two axes is the product of both."""
        factors = []
        for size in self.grid:
            position = torch.arange(size, dtype=torch.float64)
            offset = position[:, None] - position[None, :]
            factors.append(torch.exp(-offset.square() / (2 * self.prior_std**2)))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return factors[0].to(like.device, dtype), factors[1].to(like.device, dtype)

    def scale(self, width: int, has_feedback: bool) -> float:
        """The whole factor of x yᵀ for heads of `width`: τ_s·(1 − λ_s) with feedback, else 1, over √d·τ."""
        weight, temperature = self.mixing if has_feedback else (0.0, 1.0)
        return temperature * (1.0 - weight) / (math.sqrt(width) * self.score_temperature)

    def has_terms(self, feedback: SemanticFeedback | None) -> bool:
        """Whether anything but a factor changes the scores between patches."""
        terms = (self.neighbourhood_std, feedback, self.window)
        return any(term is not None for term in terms)

    def unattended(self, value: Tensor) -> Tensor:
        """A_b·v where nothing is compared and nothing added: the tokens' values ("identity"), or their mean."""
        if self.correlation == "identity":
            return value
        return value.mean(dim=2, keepdim=True).repeat(1, 1, value.shape[2], 1)

    def mixed(self, base: Tensor, cross_layer: Tensor | None) -> Tensor:
        """τ_r · ((1 − λ_r) · A_b·v + λ_r · A_c·v), or A_b·v where there is no RCS."""
        if cross_layer is None:
            return base
        return self.cross_temperature * torch.lerp(base, cross_layer, self.cross_weight)


class AttentionKeywords(MixingKeywords, total=False):
    """The fields of `AttentionOptions` as keyword arguments."""

    grid: tuple[int, int]
    correlation: Correlation
    score_temperature: float
    window: int | None
    neighbourhood_std: float | None
    cross_weight: float
    cross_temperature: float


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
