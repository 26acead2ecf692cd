"""The final block of methods with a second path beside CLIP's own: GEM and CLIP Surgery."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resclip.encoder.final_block import FinalBlock, Pass, TowerInputs
from resclip.encoder.trace import BlockStep, Trace
from resclip_kernels import (
    SemanticFeedback,
    fast_linear,
    residual_attention,
)


class PathTrace(Trace):
    """Keeps the second path as far as it has come."""

    def __init__(self, final: SecondPathBlock, pixels: Tensor, grid: tuple[int, int]) -> None:
        super().__init__(final, pixels, grid)
        self.second = final
        self.path: Tensor | None = None
        """(B, L, D)."""

    def after(self, step: BlockStep) -> Tensor:
        final = self.second
        if step.number >= final.first:
            path = step.tokens if self.path is None else self.path
            compared = final.compared(step.normed, step.query, step.key, step.value)
            attended = residual_attention(
                step.query,
                step.key,
                step.value,
                grid=self.grid,
                correlation="pp",
                projections=compared,
                implementation=final.implementation,
            ).output
            self.path = path + final.tower.project_out(step.block, attended)
        return super().after(step)


@dataclass(frozen=True, eq=False, kw_only=True)
class PathInputs(TowerInputs):
    """What every pass of the final block reads."""

    path: Tensor
    """(B, L, D): the second path before its last term."""
    own: Tensor | None
    """(B, 1, D): [CLS] of CLIP's own path behind the block; None where the path's own counts."""
    query: Tensor
    key: Tensor
    value: Tensor
    """(B, A, L, d) each, of CLIP's own path."""
    projections: tuple[Tensor, ...]
    """What is compared."""


class SecondPathBlock(FinalBlock):
    """The final block with `resclip.methods.pieces.SecondPath`; see there.

    SFR and RCS act on its own term, the last of the path's.
    """

    needs_trace = "adds to a second path in several blocks"

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        path, scores = self.pieces.path, self.correlation.scores
        if path is None:
            raise ValueError("expected a SecondPath among the pieces")
        self.path = path
        self.first = max(1, self.tower.depth - path.blocks + 1)
        """The first block that adds to the path."""
        parts = scores.split("+")
        if any(part not in ("qq", "kk", "vv") for part in parts) or self.kind != "attention_only":
            raise ValueError(
                "SecondPath compares projections with themselves, and has no residual: it takes a correlation such as "
                f"'vv' or 'qq+kk+vv', and final_block 'attention_only'; got {scores!r} and {self.kind!r}"
            )
        if self.correlation.window or self.correlation.temperature != 1.0:
            raise ValueError(
                "SecondPath takes no window and no temperature of a correlation: leave them out; its own is "
                "inverse_temperature"
            )
        if path.own_cls and not self.tower.has_cls:
            raise ValueError(
                "this path takes [CLS] from CLIP's own, and this tower has no [CLS]: use a tower with [CLS], or "
                "SecondPath(own_cls=False)"
            )

    @property
    def kept_tokens(self) -> int:
        return 1

    def trace(self, pixels: Tensor, grid: tuple[int, int]) -> PathTrace:
        return PathTrace(self, pixels, grid)

    def compared(
        self, normed: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, ...]:
        """What is compared with itself, (B, A, L, d) each, so that p pᵀ/√d is its score."""
        parts = {"q": query, "k": key, "v": value}
        chosen = [parts[score[0]] for score in self.correlation.scores.split("+")]
        if not self.path.unit:
            return tuple(chosen)
        width = query.shape[-1]
        beta = self.path.inverse_temperature
        if beta is None:
            lengths = torch.linalg.vector_norm(
                normed, dim=-1, dtype=torch.promote_types(normed.dtype, torch.float32)
            )
            factor = (lengths.mean(dim=1) / math.sqrt(width))[:, None, None, None]
        else:
            factor = torch.full((1, 1, 1, 1), beta, device=query.device)
        root = (factor * math.sqrt(width)).sqrt()
        return tuple(self.rescaled(part, root) for part in chosen)

    def rescaled(self, part: Tensor, root: Tensor) -> Tensor:
        """Unit vectors of q, k or v, averaged by their own map as often as `iterations`, times √(β·√d)."""
        scaled = unit(part, root)
        for _ in range(self.path.iterations):
            # The factor of what is averaged goes with the length, which is set anew.
            averaged = residual_attention(
                scaled,
                scaled,
                scaled,
                grid=(1, part.shape[2]),
                correlation="qq",
                implementation=self.implementation,
            ).output
            scaled = unit(averaged, root)
        return scaled

    def make_traced_inputs(self, block: Any, tokens: Tensor, trace: Trace) -> PathInputs:
        if not isinstance(trace, PathTrace):
            raise TypeError("expected what SecondPath keeps of the blocks before")
        tower, own = self.tower, None
        with fast_linear():
            normed = tower.norm(block, tokens)
            query, key, value = tower.project_qkv(block, normed, trace.grid)
            if self.path.own_cls:
                own = self.own_cls(tokens, query, key, value)
        return PathInputs(
            path=tokens if trace.path is None else trace.path,
            own=own,
            query=query,
            key=key,
            value=value,
            projections=self.compared(normed, query, key, value),
            cross_layers=tuple(trace.cross_layers),
            grid=trace.grid,
        )

    def run(
        self, inputs: Any, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> Pass:
        """One pass: the last term's attention, added to the path."""
        options = self.attention_options(inputs)
        attended, cross_layer = residual_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            options,
            projections=inputs.projections,
            feedback=feedback,
            cross_layers=inputs.cross_layers,
            cross_layer=cross_layer,
            implementation=self.implementation,
        )
        with fast_linear():
            tokens = inputs.path + self.tower.project_out(self.tower.block_list[-1], attended)
        if inputs.own is not None:
            tokens = torch.cat([inputs.own, tokens[:, 1:]], dim=1)
        return Pass(tokens, cross_layer, feedback)

    def op_name(self, projects: bool) -> Any:
        """The mean of the maps of what is compared."""
        return "pp"


def unit(heads: Tensor, factor: Tensor) -> Tensor:
    """Unit vectors along the last axis, times a factor; 0 where there is no length."""
    dtype = torch.promote_types(heads.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(heads, dim=-1, keepdim=True, dtype=dtype)
    scaled: Tensor = heads * (factor / lengths.clamp_min(1e-12))
    return scaled.to(heads.dtype)
