"""GLA-CLIP: the final block's attention over the patches of all windows of an image.

See `resclip.methods.steps.CrossWindowKeys`. On a base that compares queries (ClearCLIP) or another model's features
(ProxyCLIP).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.encoder.final_block import FinalBlock, FinalInputs, resize_heads
from resclip.methods.steps import CrossWindowKeys
from resclip.models.tower import merge_heads
from resclip_kernels import check_float, fast_linear

BLOCK_BYTES = 1 << 26
"""Bytes of similarities that are held at a time."""


@dataclass(frozen=True, eq=False)
class WindowTokens:
    """What windows of an image attend by: S = h·w patches each, without [CLS]."""

    compared: Tensor
    """(B, S, C), of any length: queries of all heads side by side, or the proxy's features."""
    value: Tensor
    """(B, A, S, d)."""
    grid: tuple[int, int]
    """(h, w)."""
    is_proxy: bool
    """Whether another model's features are compared."""

    @classmethod
    def of(cls, final: FinalBlock, inputs: FinalInputs) -> WindowTokens:
        """Of a batch of windows, out of `DenseEncoder.run_blocks`.

        Raises:
            ValueError: the method compares anything else, or changes the map in a way that has no sense across windows.
        """
        check_method(final)
        skip = int(final.tower.has_cls)
        value = inputs.value[:, :, skip:]
        if inputs.features is None:
            compared = inputs.query[:, :, skip:].transpose(1, 2).flatten(2)
            return cls(compared, value, inputs.grid, False)
        value = resize_heads(value, inputs.grid, inputs.output_grid)
        return cls(inputs.features.flatten(2).mT, value, inputs.output_grid, True)

    def window(self, number: int) -> WindowTokens:
        """One of them."""
        one = slice(number, number + 1)
        return replace(self, compared=self.compared[one], value=self.value[one])

    @classmethod
    def cat(cls, parts: Sequence[WindowTokens]) -> WindowTokens:
        """One image's windows out of several batches; ValueError for none, and for different grids."""
        grids = sorted({part.grid for part in parts})
        if len(grids) != 1:
            raise ValueError(
                f"expected at least one batch of windows, all of one grid; got {grids or 'none'}: the windows of an "
                "image have one size"
            )
        return cls(
            torch.cat([part.compared for part in parts]),
            torch.cat([part.value for part in parts]),
            parts[0].grid,
            parts[0].is_proxy,
        )


def attend_windows(
    final: FinalBlock,
    tokens: WindowTokens,
    corners: Sequence[tuple[int, int]],
    option: CrossWindowKeys,
) -> Tensor:
    """Dense features of all windows of an image, which attend to one another.

    Args:
        final: the method's final block.
        tokens: of all B windows.
        corners: (y, x) of each window's first pixel; with a proxy they make no difference.
        option: how keys belong to anchors, and how similarities are normalised.

    Returns:
        (B, h, w, E), projected into the text's space, not unit-normed.

    Raises:
        ValueError: another number of corners than windows.
    """
    check_method(final)
    if len(corners) != len(tokens.value):
        raise ValueError(
            f"corners must name one pixel for each of {len(tokens.value)} windows; got {len(corners)}"
        )
    keys = unit_rows(tokens.compared)
    anchors = keys
    if not tokens.is_proxy:
        anchors = neighbour_means(tokens.compared, tokens.grid, corners, final.tower.patch_size)
    value = tokens.value
    attended = cross_window_attention(keys, anchors, merge_heads(value), option)
    heads = attended.to(value.dtype).unflatten(2, (value.shape[1], value.shape[3])).transpose(1, 2)
    tower = final.tower
    with fast_linear():
        projected = tower.head(tower.project_out(tower.block_list[-1], heads))
    features: Tensor = projected.unflatten(1, tokens.grid)
    return features


def cross_window_attention(
    keys: Tensor, anchors: Tensor, values: Tensor, option: CrossWindowKeys
) -> Tensor:
    """What every patch gathers from the patches of all B windows; N = B·S.

    1. `option.steps` times: the keys whose similarity with a patch's anchor exceeds ρ belong to it, the patch's own key
       where none does; the anchor becomes their mean, at unit length.
    2. s = anchor·key; s ← (s − β μ) γ. μ is the row's mean, at least 0, or the mean of everything, as it is;
       γ = 1 + `gamma_alpha` / the number of keys that belonged to the anchor last (that belong to it, without steps).
    3. Entries below 0 and below their row's largest are dropped, and softmax over the rest weighs the values.

    Each row of the N × N map is by itself, so that a block of rows goes through all of it, and no more of the map is
    ever held; the mean of everything takes all anchors first.

    Args:
        keys: (B, S, C) unit rows.
        anchors: (B, S, C) unit rows.
        values: (B, S, D), all heads side by side, which share the map.
        option: ρ, steps, β and γ.

    Returns:
        (B, S, D), float32 or wider.

    Raises:
        TypeError, ValueError: a shape or dtype that does not fit.
    """
    check_float("keys", keys, 3, "(B, S, C)")
    check_float("anchors", anchors, 3, "(B, S, C)")
    check_float("values", values, 3, "(B, S, D)")
    windows, patches, _ = keys.shape
    if anchors.shape != keys.shape or values.shape[:2] != keys.shape[:2] or not windows * patches:
        raise ValueError(
            "keys, anchors and values must have one row for each of S patches of B windows, at least one, and anchors "
            f"the keys' width; got {tuple(keys.shape)}, {tuple(anchors.shape)} and {tuple(values.shape)}"
        )
    dtype = torch.promote_types(keys.dtype, torch.float32)
    beta = 1 + option.beta_alpha * math.log(1 + windows) if option.beta is None else option.beta
    across = keys.to(dtype).flatten(0, 1)
    starts = anchors.to(dtype).flatten(0, 1)
    gathered = values.to(dtype).flatten(0, 1)
    total = windows * patches
    block = max(1, BLOCK_BYTES // (total * dtype.itemsize))
    blocks = [slice(first, min(first + block, total)) for first in range(0, total, block)]
    moved = None
    everything: Tensor | None = None
    if not option.row_mean:
        moved = [move_anchors(starts[rows], across, rows, option) for rows in blocks]
        # Linear in the anchors: the mean over all pairs needs none of them.
        together = torch.stack([anchor.sum(dim=0) for anchor, _ in moved]).sum(dim=0)
        everything = together @ across.sum(dim=0) / total**2
    attended = []
    for number, rows in enumerate(blocks):
        anchor, count = moved[number] if moved else move_anchors(starts[rows], across, rows, option)
        score = anchor @ across.mT
        mean = everything
        if mean is None:
            mean = score.mean(dim=1, keepdim=True).clamp(min=0)
        alpha = option.gamma_alpha
        sharpness = option.gamma if alpha is None else 1 + alpha / count
        score = (score - beta * mean) * sharpness
        lowest = score.amax(dim=1, keepdim=True).clamp(max=0)
        attended.append(score.masked_fill(score < lowest, -torch.inf).softmax(dim=1) @ gathered)
    result: Tensor = torch.cat(attended).unflatten(0, (windows, patches))
    return result


def move_anchors(
    anchors: Tensor, keys: Tensor, rows: slice, option: CrossWindowKeys
) -> tuple[Tensor, Tensor]:
    """Anchors (R, C) of some rows after `option.steps`, and (R, 1) how many keys (N, C) belonged to each."""
    count = anchors.new_ones(len(anchors), 1)
    for step in range(max(1, option.steps)):
        belongs = (anchors @ keys.mT > option.threshold).to(keys.dtype)
        count = belongs.sum(dim=1, keepdim=True)
        alone = count == 0
        count = count.clamp(min=1)
        if step < option.steps:
            mean = torch.where(alone, keys[rows], belongs @ keys) / (count + 1e-6)
            anchors = F.normalize(mean, dim=1)
    return anchors, count


def neighbour_means(
    compared: Tensor,
    grid: tuple[int, int],
    corners: Sequence[tuple[int, int]],
    patch_size: tuple[int, int],
) -> Tensor:
    """First anchors of patches: the mean over what surrounds them, at unit length.

    A patch's mean is over its 3 × 3 neighbourhood in its window, itself included, and over the patches of other
    windows whose first pixel is the same.

    Args:
        compared: (B, S, C) of any length.
        grid: (h, w).
        corners: (y, x) of each window's first pixel.
        patch_size: (height, width) in pixels.

    Returns:
        (B, S, C), float32 or wider.
    """
    dtype = torch.promote_types(compared.dtype, torch.float32)
    planes = compared.to(dtype).mT.unflatten(2, grid)
    ones = planes.new_ones(len(planes), 1, *grid)
    # `divisor_override` makes these sums.
    total = F.avg_pool2d(planes, 3, stride=1, padding=1, divisor_override=1)
    count = F.avg_pool2d(ones, 3, stride=1, padding=1, divisor_override=1)
    for one, (top, left) in enumerate(corners):
        for other, (other_top, other_left) in enumerate(corners):
            down, down_rest = divmod(other_top - top, patch_size[0])
            right, right_rest = divmod(other_left - left, patch_size[1])
            if one == other or down_rest or right_rest:
                continue
            rows, their_rows = overlap(grid[0], down)
            columns, their_columns = overlap(grid[1], right)
            total[one, :, rows, columns] += planes[other, :, their_rows, their_columns]
            count[one, :, rows, columns] += 1
    return F.normalize((total / count).flatten(2).mT, dim=-1)


def overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Which positions of a row of patches lie in another that begins `shift` positions later: in each one's own."""
    return (
        slice(max(0, shift), max(0, min(length, length + shift))),
        slice(max(0, -shift), max(0, min(length, length - shift))),
    )


def unit_rows(rows: Tensor) -> Tensor:
    """(…, C) at unit length, float32 or wider."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)


def check_method(final: FinalBlock) -> None:
    """ValueError unless the method compares what windows can be compared by, and nothing else makes its map."""
    correlation = final.correlation
    if final.base.proxy is None and correlation.scores != "qq":
        raise ValueError(
            "keys of all windows are queries, or another model's features: use base 'clearclip' or 'proxyclip', or "
            f"correlation 'qq'; base {final.base.name!r} compares {correlation.scores!r}"
        )
    if final.rcs is not None or final.sfr is not None or final.overview is not None:
        raise ValueError(
            "RCS, SFR and an overview are not defined across windows: use rcs=None, sfr=None and overview=None, or "
            "leave the keys of all windows out"
        )
    if final.neighbourhood_std is not None or correlation.window is not None:
        raise ValueError(
            "a prior or a window of neighbours is not defined across windows: use neighbourhood_std=None and a "
            "correlation without window, or leave the keys of all windows out"
        )
    own = [name for name, _ in final.pieces.items() if name not in ("denoising", "refocusing")]
    if own or final.kind != "attention_only" or correlation.layer is not None:
        raise ValueError(
            "patches that attend across windows have neither pieces of another method, nor a residual, nor another "
            f"block's tokens; got pieces {own}, final_block {final.kind!r} and layer {correlation.layer}: leave "
            "the keys of all windows out"
        )
