"""Text-aware Laplacian propagation: logits smoothed within a picture's edges, more where a patch is less sure.

PEARL's TLP: every plane of cosines is the solution of a linear system on a coarse grid of the picture, whose edges
weigh less across an edge of the picture and more between positions that prefer the same queries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resclip_kernels.checks import (
    check_count,
    check_float,
    check_same_images,
    merge_options,
)
from resclip_kernels.custom_op import custom_op
from resclip_kernels.dispatch import Implementation, deferred, parse_implementation, resolve
from resclip_kernels.first_use import sample, trial
from resclip_kernels.ops.laplacian_propagation import portable, reference
from resclip_kernels.options.laplacian_propagation import (
    LaplacianPropagationKeywords,
    LaplacianPropagationOptions,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LaplacianPropagationOptions", "laplacian_propagation"]

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.laplacian_propagation.triton", "laplacian_propagation"
    ),
    Implementation.TORCH: portable.laplacian_propagation,
    Implementation.REFERENCE: reference.laplacian_propagation,
}


def laplacian_propagation(
    logits: Tensor,
    guide: Tensor,
    text: Tensor,
    options: LaplacianPropagationOptions | None = None,
    *,
    implementation: Implementation | str = Implementation.AUTO,
    **keywords: Unpack[LaplacianPropagationKeywords],
) -> Tensor:
    """Smooth planes of cosines within the edges of a picture, as PEARL does before it scales them.

    Per picture, with z the (Q, h, w) planes and I the (3, h, w) guide after average pooling by (s_h, s_w) pixels, where
    s = max(1, side / `grid` rounded half to even) and a remainder is dropped (by (1, 1) nothing is pooled or resized):

        p = softmax of z over the queries, unscaled
        g = the diagonal of softmax(2 · text textᵀ) + 10 I, whose rows are divided by (their sum + 1e-6)
        a(i, j) = Σ_q p_q(i) · g_q · p_q(j), limited to [0, 1]
        ρ(i) = max(0.05, max_q p_q(i))² · (1 + a(i, i))
        w(i, j) = min(1, exp(−5 · |Y(i) − Y(j)| / (m + 1e-6)) · (1 + a(i, j))) of two cells side by side

    where Y = 0.299 I₀ + 0.587 I₁ + 0.114 I₂ and m is the mean of |Y(i) − Y(j)| over all pairs side by side along x, or
    along y, whichever i and j are. (ρ + L) F = ρ z, L the Laplacian of w, is solved for all planes together by
    `iterations` steps of conjugate gradients from F = z, with one step length for the picture, 1e-12 added to each
    denominator and no other end. F is resized to the logits' size bilinearly (`align_corners=False`), or with `cells`
    it is the result: where labels alone are wanted, nothing of the picture's size has to be made.

    As in the released program G's diagonal alone counts: no query speaks for another.

    Args:
        logits: (B, Q, H, W) cosines of text and image, finite, not scaled, at the picture's size.
        guide: (B, 3, H, W) picture, red, green and blue, normalised as for CLIP.
        text: (Q, E) unit rows, the queries' embeddings.
        options: grid, iterations and cells; None for the defaults.
        implementation: see `Implementation`.
        keywords: fields of `LaplacianPropagationOptions`, in place of those of `options`.

    Returns:
        (B, Q, H, W) in `logits`' dtype, or (B, Q, H // s_h, W // s_w) with `cells`; float16 and bfloat16 are computed
        in float32 and rounded once.

    Raises:
        TypeError, ValueError: a shape, dtype or count that does not fit; the message says what was expected.
    """
    options = merge_options(LaplacianPropagationOptions, options, keywords)
    check_float("logits", logits, 4, "(B, Q, H, W)")
    check_float("guide", guide, 4, "(B, 3, H, W)")
    check_float("text", text, 2, "(Q, E)")
    check_same_images("logits", logits, "guide", guide)
    check_count("the number of queries", logits.shape[1], 1)
    for side in logits.shape[2:]:
        check_count("each side of the logits", side, 1)
    if tuple(guide.shape[1:]) != (3, *logits.shape[2:]):
        raise ValueError(
            f"guide must be (B, 3, {logits.shape[2]}, {logits.shape[3]}), a picture of the logits' size; "
            f"got {tuple(guide.shape)}"
        )
    if text.shape[0] != logits.shape[1]:
        raise ValueError(
            f"text must have one row for each of the logits' {logits.shape[1]} queries; got {text.shape[0]}"
        )
    if text.device != logits.device:
        raise ValueError(
            f"logits and text must be on one device; got {logits.device} and {text.device}"
        )
    return run(logits, guide, text, options, parse_implementation(implementation).value)


def fake(
    logits: Tensor,
    guide: Tensor,
    text: Tensor,
    options: LaplacianPropagationOptions,
    implementation: str,
) -> Tensor:
    """The shape that `run` returns."""
    images, queries, height, width = logits.shape
    return logits.new_empty((images, queries, *options.output_size(height, width)))


@custom_op("laplacian_propagation", fake)
def run(
    logits: Tensor,
    guide: Tensor,
    text: Tensor,
    options: LaplacianPropagationOptions,
    implementation: str,
) -> Tensor:
    """The chosen implementation's result."""
    function = resolve(
        implementation, IMPLEMENTATIONS, logits, guide, text, op="laplacian_propagation"
    ).function
    if logits.numel() == 0:
        return fake(logits, guide, text, options, implementation)
    result: Tensor = function(logits, guide, text, options)
    return result


@trial("laplacian_propagation")
def try_kernels(
    device: torch.device, dtype: torch.dtype, implementation: str
) -> list[Tensor | None]:
    """Planes of a small picture; see `resclip_kernels.first_use`."""
    logits, guide = sample(device, dtype, 2, 5, 13, 18), sample(device, dtype, 2, 3, 13, 18, seed=1)
    text = torch.nn.functional.normalize(sample(device, dtype, 5, 16, seed=2), dim=1)
    return [
        laplacian_propagation(
            logits, guide, text, grid=6, iterations=4, implementation=implementation
        )
    ]
