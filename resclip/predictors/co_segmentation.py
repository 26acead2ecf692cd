"""What some pictures of one class have in common, as one feature: ReCo's arithmetic (Shin et al., NeurIPS 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels import check_count, check_flag

SHARPNESS = 10.0
"""Factor of a cosine to the text before its sigmoid."""
BLOCK = 1024
"""Rows of the matrix of all pairs of locations that are held at a time: 50 pictures of 14 × 14 have 9,800 columns."""


def text_fit(patches: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
    """How well a text fits at each location: σ(10 · cosine), and then resized bilinearly.

    Args:
        patches: (B, E, h, w) of any norm.
        text: (C, E) of any norm.
        size: (H, W) of the result.

    Returns:
        (B, C, H, W) in (0, 1).
    """
    cosines = torch.einsum("behw,ce->bchw", F.normalize(patches, dim=1), F.normalize(text, dim=1))
    return F.interpolate((SHARPNESS * cosines).sigmoid(), size=size, mode="bilinear")


def reference_fit(features: Tensor, references: Tensor) -> Tensor:
    """How well references fit at each location: σ(F̂ · reference).

    Args:
        features: (B, D, h, w) of any norm.
        references: (C, D) unit rows.

    Returns:
        (B, C, h, w) in (0, 1).
    """
    units = F.normalize(features, dim=1)
    return torch.einsum("bdhw,cd->bchw", units, references).sigmoid()


def co_segment(
    features: Tensor,
    weights: Tensor | None = None,
    contexts: Tensor | None = None,
    *,
    released_slip: bool = True,
    block: int = BLOCK,
) -> Tensor:
    """The reference of a class: what its pictures have in common.

    With F̂ the unit features of all m · h · w locations, ω their weights and adj = F̂ F̂ᵀ, whose columns are multiplied
    by ω: g of a location is the mean over pictures of its largest adj to one of theirs. Each picture gives the feature,
    as it is, at its largest g; the reference is the unit mean of these.

    Args:
        features: (m, D, h, w) of m pictures, of any norm.
        weights: (m, h, w) of the locations, such as `text_fit`; None: 1.
        contexts: (K, D) unit references of what is to be left out, each by a factor 1 − σ(F̂ · reference); None: none.
        released_slip: read columns i · h · w to (2i + 1) · h · w as picture i's, as the released program does: a later
            picture then has those of the following ones too. False: its own alone, as meant.
        block: rows of adj that are held at a time; it changes nothing but memory.

    Returns:
        (D,) unit.

    Raises:
        TypeError, ValueError: a shape or option that does not fit.
    """
    check_flag("released_slip", released_slip)
    check_count("block", block, 1)
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(f"features must be (m, D, h, w) of pictures; got {tuple(features.shape)}")
    pictures, _, *grid = features.shape
    omega = features.new_ones(pictures, *grid) if weights is None else weights
    if omega.shape != (pictures, *grid):
        raise ValueError(
            f"weights must be {(pictures, *grid)}, one a location; got {tuple(omega.shape)}"
        )
    if contexts is not None and len(contexts):
        omega = omega * (1 - reference_fit(features, contexts)).prod(dim=1)
    locations = grid[0] * grid[1]
    rows = features.flatten(2).transpose(1, 2).flatten(0, 1)  # (m · h · w, D)
    units = F.normalize(rows, dim=1)
    columns = (units * omega.flatten().unsqueeze(1)).T
    ends = [
        (2 * number + 1 if released_slip else number + 1) * locations for number in range(pictures)
    ]
    common = torch.cat(
        [
            torch.stack(
                [
                    adjacent[:, number * locations : end].amax(dim=1)
                    for number, end in enumerate(ends)
                ]
            ).mean(dim=0)
            for adjacent in (part @ columns for part in units.split(block))
        ]
    )
    best = common.view(pictures, locations).argmax(dim=1)
    seeds = rows.view(pictures, locations, -1)[torch.arange(pictures, device=best.device), best]
    return F.normalize(seeds.mean(dim=0), dim=0)


def reco_scores(
    features: Tensor,
    references: Tensor,
    size: tuple[int, int],
    patches: Tensor | None = None,
    text: Tensor | None = None,
) -> Tensor:
    """Scores of pixels by references, and by the text where dense features of CLIP are given.

    Args:
        features: (B, D, h, w) of any norm.
        references: (C, D) unit rows.
        size: (H, W) of the result.
        patches: (B, E, h', w') dense features of CLIP; None: the references alone.
        text: (C, E) with `patches`.

    Returns:
        (B, C, H, W) in (0, 1).
    """
    fit = F.interpolate(reference_fit(features, references), size=size, mode="bilinear")
    if patches is None or text is None:
        return fit
    return fit * text_fit(patches, text, size)
