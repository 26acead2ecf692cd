"""Attention maps for looking at: what the final block attends with, as planes over the image, patch by patch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.encoder.final_block import FinalBlock, FinalInputs, unit_positions
from resclip_kernels import (
    SemanticFeedback,
    attention_maps,
    cross_layer_rows,
    feedback_rows,
    proxy_rows,
)


@dataclass(frozen=True)
class AttentionMaps:
    """The rows of the maps that belong to R patches, as planes over the patches attended to.

    A plane sums to less than its row where there is a [CLS] token, whose share it leaves out. A is the number of heads,
    or 1 where all heads share the map.
    """

    base: Tensor
    """(B, A, R, h, w): the base's attention without RCS and SFR; on the proxy's grid where there is a proxy."""
    cross_layer: Tensor | None
    """(B, A, R, h, w): A_c, the mean map of the middle blocks, on the tower's grid; None without RCS."""
    feedback: Tensor | None
    """(B, 1, R, h, w): Ŝ, on the grid of `base`; None without SFR."""
    final: Tensor
    """(B, A, R, h, w): what the values are gathered with, on the tower's grid. Rows add to τ_r (twice that for a sum of
    two maps)."""

    def planes(self) -> dict[str, Tensor]:
        """The maps that are not None, averaged over heads, by name: (B, R, h, w) each."""
        maps = {
            "base": self.base,
            "cross-layer": self.cross_layer,
            "feedback": self.feedback,
            "final": self.final,
        }
        return {name: planes.mean(dim=1) for name, planes in maps.items() if planes is not None}

    def of_head(self, head: int) -> AttentionMaps:
        """The maps of one head, counted from 1; those that all heads share are as they are."""

        def chosen(planes: Tensor) -> Tensor:
            return planes if planes.shape[1] == 1 else planes[:, head - 1 : head]

        cross_layer = None if self.cross_layer is None else chosen(self.cross_layer)
        return replace(
            self, base=chosen(self.base), cross_layer=cross_layer, final=chosen(self.final)
        )


@dataclass(frozen=True)
class LayerMaps:
    """The rows of one block's own attention that belong to R patches, softmax(q kᵀ/√d), as planes over the patches.

    The block is CLIP's own; what reaches it is what the method lets through.
    """

    layer: int
    """Number of the block, from 1."""
    head: int | None
    """Number of the head, from 1; None for all of them."""
    values: Tensor
    """(B, A, R, h, w) on the tower's grid; A is 1 for one head. The rest of a row is [CLS]'s share."""

    def planes(self) -> dict[str, Tensor]:
        """The map, averaged over heads where all are there, by its name: (B, R, h, w)."""
        name = f"layer {self.layer}" + ("" if self.head is None else f", head {self.head}")
        return {name: self.values.mean(dim=1)}


def layer_maps(
    query: Tensor, key: Tensor, rows: Tensor, grid: tuple[int, int], layer: int, head: int | None
) -> LayerMaps:
    """Maps of patches `rows` (R,) by a block's q and k (B, A, L, d); [CLS], if any, comes before the patches."""
    skip = query.shape[2] - grid[0] * grid[1]
    if head is not None:
        query, key = query[:, head - 1 : head], key[:, head - 1 : head]
    values = cross_layer_rows([(query, key)], rows + skip)
    return LayerMaps(layer, head, values[..., skip:].unflatten(-1, grid))


def tower_maps(
    final: FinalBlock, inputs: FinalInputs, rows: Tensor, feedback: SemanticFeedback | None
) -> AttentionMaps:
    """Maps of patches `rows` (R,) for a base that attends by the tower's own tokens."""
    skip = int(final.tower.has_cls)
    maps = attention_maps(
        inputs.query,
        inputs.key,
        rows + skip,
        final.attention_options(inputs),
        projections=inputs.projections,
        feedback=feedback,
        cross_layers=inputs.cross_layers,
    )

    def planes(values: Tensor) -> Tensor:
        on_grid: Tensor = values[..., skip:].unflatten(-1, inputs.grid)
        return on_grid

    semantic = None if maps.feedback is None else planes(maps.feedback).unsqueeze(1)
    cross_layer = None if maps.cross_layer is None else planes(maps.cross_layer)
    return AttentionMaps(planes(maps.base), cross_layer, semantic, planes(maps.final))


def proxy_maps(
    final: FinalBlock,
    inputs: FinalInputs,
    features: Tensor,
    rows: Tensor,
    feedback: SemanticFeedback | None,
) -> AttentionMaps:
    """Maps of positions `rows` (R,) of a proxy's grid, for a base that attends by the proxy's features.

    The values come from the tower's grid: with R the bilinear resizing of values to the proxy's grid, the final map is
    A_proxy·R, and with RCS τ_r · ((1 − λ_r) · A_proxy·R + λ_r · R·A_c), over the tower's patches.
    """
    size, options = inputs.output_grid, final.proxy_options()
    is_masked = final.proxy_attention is None or final.proxy_attention.masked

    def weights(state: SemanticFeedback | None) -> Tensor:
        """(B, 1, R, n_v)."""
        if is_masked:
            return proxy_rows(features, rows, options, feedback=state).unsqueeze(1)
        unit = unit_positions(features)
        return (options.gamma * unit[:, rows] @ unit.mT).softmax(dim=-1).unsqueeze(1)

    base = weights(None)
    resizing = resizing_matrix(inputs.grid, size, base)
    whole = weights(feedback) @ resizing
    cross_layer = None
    if final.rcs is not None:
        skip = int(final.tower.has_cls)
        # A row of R names the few positions of the tower's grid that the resizing mixes for it.
        mixed = resizing[rows]
        sources = mixed.any(dim=0).nonzero().squeeze(1)
        averaged = cross_layer_rows(inputs.cross_layers, sources + skip)[..., skip:]
        cross_layer = mixed[:, sources] @ averaged.to(mixed.dtype)
        whole = final.with_rcs(whole.expand_as(cross_layer), cross_layer)
    semantic = None if feedback is None else feedback_rows(feedback, rows).unsqueeze(1)
    return AttentionMaps(
        base.unflatten(-1, size),
        None if cross_layer is None else cross_layer.unflatten(-1, inputs.grid),
        None if semantic is None else semantic.unflatten(-1, size),
        whole.unflatten(-1, inputs.grid),
    )


def resizing_matrix(grid: tuple[int, int], size: tuple[int, int], like: Tensor) -> Tensor:
    """R (H·W, h·w): R @ v resizes (h·w, d) values bilinearly to another grid."""
    unit = torch.eye(grid[0] * grid[1], dtype=like.dtype, device=like.device)
    planes = unit.unflatten(1, grid).unsqueeze(0)
    resized: Tensor = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return resized.squeeze(0).flatten(1).mT
