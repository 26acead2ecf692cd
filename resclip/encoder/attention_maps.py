"""Attention maps on request: what the final block attends with, patch by patch.

Knows how the maps of a tower and of a proxy become planes over an image. Knows no image file and no drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.methods.catalogue import RCS
from resclip_kernels import attention_maps
from resclip_kernels.attention_maps import cross_layer_rows
from resclip_kernels.ops.proxy_attention import proxy_rows
from resclip_kernels.ops.semantic_feedback.portable import feedback_rows


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
        """The maps that there are, averaged over heads, by name: (B, R, h, w) each."""
        maps = {
            "base": self.base,
            "cross-layer": self.cross_layer,
            "feedback": self.feedback,
            "final": self.final,
        }
        return {name: planes.mean(dim=1) for name, planes in maps.items() if planes is not None}


def tower_maps(
    query: Tensor, key: Tensor, rows: Tensor, has_cls: bool, options: Mapping[str, Any]
) -> AttentionMaps:
    """Maps of patches `rows` (R,), by the arguments of `residual_attention`."""
    skip = int(has_cls)
    maps = attention_maps(query, key, rows + skip, **options)

    def planes(values: Tensor) -> Tensor:
        on_grid: Tensor = values[..., skip:].unflatten(-1, options["grid"])
        return on_grid

    feedback = None if maps.feedback is None else planes(maps.feedback).unsqueeze(1)
    cross_layer = None if maps.cross_layer is None else planes(maps.cross_layer)
    return AttentionMaps(planes(maps.base), cross_layer, feedback, planes(maps.final))


def proxy_maps(
    features: Tensor,
    rows: Tensor,
    options: Mapping[str, Any],
    cross_layers: Sequence[tuple[Tensor, Tensor]],
    grid: tuple[int, int],
    has_cls: bool,
    rcs: RCS | None,
) -> AttentionMaps:
    """Maps of positions `rows` (R,) of a proxy's grid, by the arguments of `proxy_attention`.

    The values come from the tower's grid: with R the bilinear resizing of values to the proxy's grid, the final map is
    A_proxy·R, and with RCS τ_r · ((1 − λ_r) · A_proxy·R + λ_r · R·A_c), over the tower's patches.
    """
    size = (features.shape[2], features.shape[3])
    alone = {name: options[name] for name in ("beta", "gamma")}
    base = proxy_rows(features, rows, **alone).unsqueeze(1)  # [B, 1, R, n_v]
    resizing = resizing_matrix(grid, size, base)
    final = proxy_rows(features, rows, **options).unsqueeze(1) @ resizing
    cross_layer = None
    if rcs is not None:
        skip = int(has_cls)
        # R's rows name the tower's rows that a position mixes: few, whatever the grid.
        mixed = resizing[rows]
        sources = mixed.any(dim=0).nonzero().squeeze(1)
        averaged = cross_layer_rows(cross_layers, sources + skip)[..., skip:]
        cross_layer = mixed[:, sources] @ averaged.to(mixed.dtype)
        final = rcs.temperature * torch.lerp(final.expand_as(cross_layer), cross_layer, rcs.weight)
    feedback = None
    state = options["feedback"]
    if state is not None:
        feedback = torch.cat(
            [feedback_rows(state, row, row + 1) for row in rows.tolist()], dim=1
        ).unsqueeze(1)
    return AttentionMaps(
        base.unflatten(-1, size),
        None if cross_layer is None else cross_layer.unflatten(-1, grid),
        None if feedback is None else feedback.unflatten(-1, size),
        final.unflatten(-1, grid),
    )


def resizing_matrix(grid: tuple[int, int], size: tuple[int, int], like: Tensor) -> Tensor:
    """R (H·W, h·w): R @ v resizes (h·w, d) values bilinearly to another grid."""
    unit = torch.eye(grid[0] * grid[1], dtype=like.dtype, device=like.device)
    planes = unit.unflatten(1, grid).unsqueeze(0)
    resized: Tensor = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return resized.squeeze(0).flatten(1).mT
