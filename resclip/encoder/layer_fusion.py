"""RF-CLIP's final block: the mean of all blocks' key-key maps, over two sets of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resclip.encoder.final_block import FinalBlock, Pass, TowerInputs
from resclip.encoder.token_repair import cross_layer_values
from resclip.encoder.trace import BlockStep, Trace, denoised
from resclip_kernels import (
    SemanticFeedback,
    deterministic_attention,
    fast_linear,
    residual_attention,
    similarity_aggregation,
)


class FusionTrace(Trace):
    """Keeps every block's keys, and the sum of the blocks' outputs."""

    def __init__(self, final: FinalBlock, pixels: Tensor, grid: tuple[int, int]) -> None:
        super().__init__(final, pixels, grid)
        self.keys: list[Tensor] = []
        """(B, A, L, d) of each block before the final one."""
        self.total: Tensor | None = None
        """(B, L, D)."""

    def after(self, step: BlockStep) -> Tensor:
        output = super().after(step)
        # A copy: the view would keep the block's queries and values as well.
        self.keys.append(step.key.contiguous())
        self.total = output if self.total is None else self.total + output
        return output


@dataclass(frozen=True, eq=False, kw_only=True)
class FusionInputs(TowerInputs):
    """What every pass of the final block reads."""

    keys: tuple[Tensor, ...]
    """(B, A, L, d) of the blocks before."""
    own_key: Tensor
    value: Tensor
    """(2·B, A, L, d) each: the final block's, first of its input's tokens, then of the mean's."""


class FusedBlock(FinalBlock):
    """The final block with `resclip.methods.pieces.LayerFusion`; see there.

    With SFR every block's score gets Ŝ, for the final block's alone is one map among all blocks'.
    """

    needs_trace = "averages the maps of all blocks"
    streams = 2

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        if self.correlation.scores != "kk" or self.kind != "attention_only":
            raise ValueError(
                "LayerFusion averages key-key maps without a residual: it takes correlation 'kk' and final_block "
                f"'attention_only'; got {self.correlation.scores!r} and {self.kind!r}"
            )

    @property
    def kept_tokens(self) -> int:
        return self.tower.depth + 1

    def trace(self, pixels: Tensor, grid: tuple[int, int]) -> FusionTrace:
        return FusionTrace(self, pixels, grid)

    def make_traced_inputs(self, block: Any, tokens: Tensor, trace: Trace) -> FusionInputs:
        tower, pieces, grid = self.tower, self.pieces, trace.grid
        if not isinstance(trace, FusionTrace) or pieces.fusion is None:
            raise TypeError("expected what LayerFusion keeps of the blocks before")
        skip = int(tower.has_cls)
        with fast_linear():
            query, key, value = tower.project_qkv(block, tower.norm(block, tokens), grid)
            attended = tower.project_out(block, deterministic_attention(query, key, value))
            last = tower.feed_forward(block, tokens + attended)
        if pieces.denoising is not None:
            last = denoised(last, pieces.denoising, tower, grid)
        total = last if trace.total is None else trace.total + last
        mean = total / tower.depth
        both = torch.cat([tokens, mean])
        compared = mean[:, skip:]
        patches = similarity_aggregation(
            torch.cat([compared, compared]),
            both[:, skip:],
            threshold=pieces.fusion.threshold,
            normalise=False,
            implementation=self.implementation,
        )
        both = torch.cat([both[:, :skip], patches], dim=1)
        with fast_linear():
            _, key, value = tower.project_qkv(block, tower.norm(block, both), grid)
        return FusionInputs(
            keys=tuple(trace.keys),
            own_key=key,
            value=value,
            cross_layers=tuple(trace.cross_layers),
            grid=grid,
        )

    def run(
        self, inputs: Any, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> Pass:
        """One pass: both sets' attention, without [CLS] among rows and columns, and their mean."""
        tower, block = self.tower, self.tower.block_list[-1]
        skip = int(tower.has_cls)
        # [CLS]'s column gathers nothing: its values are 0.
        values = torch.nn.functional.pad(inputs.value[:, :, skip:], (0, 0, skip, 0))
        images = values.shape[0] // 2
        # The maps of the blocks before gather from both sets at once, side by side.
        wide = torch.cat([values[:images], values[images:]], dim=-1)
        if feedback is None:
            total = self.sum_of_maps(inputs, wide)
        else:
            total = torch.zeros_like(wide)
            for key in inputs.keys:
                total = total + self.map_with(key, wide, inputs.grid, feedback)
        heads_width = values.shape[-1]
        earlier = torch.cat([total[..., :heads_width], total[..., heads_width:]])
        own = torch.cat(
            [
                self.map_with(inputs.own_key[part], values[part], inputs.grid, feedback)
                for part in (slice(0, images), slice(images, None))
            ]
        )
        attended = ((earlier + own) / (len(inputs.keys) + 1))[:, :, skip:]
        if self.rcs is not None:
            if cross_layer is None:
                cross_layer = self.cross_layer(inputs, skip)
            attended = self.with_rcs(attended, cross_layer)
        with fast_linear():
            tokens = tower.project_out(block, attended)
        return Pass((tokens[:images] + tokens[images:]) / 2, cross_layer, feedback)

    def sum_of_maps(self, inputs: FusionInputs, values: Tensor) -> Tensor:
        """The sum over the blocks before of softmax(k kᵀ/√d)·v."""
        if not inputs.keys:
            return torch.zeros_like(values)
        averaged = residual_attention(
            inputs.keys[0],
            inputs.keys[0],
            values,
            grid=inputs.grid,
            correlation="identity",
            cross_layers=[(key, key) for key in inputs.keys],
            implementation=self.implementation,
        ).cross_layer
        if averaged is None:
            raise ValueError("expected the keys of one block at least")
        return len(inputs.keys) * averaged

    def map_with(
        self,
        key: Tensor,
        values: Tensor,
        grid: tuple[int, int],
        feedback: SemanticFeedback | None,
    ) -> Tensor:
        """softmax(k kᵀ/√d)·v of one block, with SFR."""
        return residual_attention(
            key,
            key,
            values,
            self.base_options(grid, projects=False),
            feedback=feedback,
            implementation=self.implementation,
        ).output

    def cross_layer(self, inputs: FusionInputs, skip: int) -> Tensor:
        """A_c·v of both sets, among patches alone: (2·B, A, n, d)."""
        values = inputs.value[:, :, skip:]
        images = values.shape[0] // 2
        wide = torch.cat([values[:images], values[images:]], dim=-1)
        averaged = cross_layer_values(
            inputs.cross_layers,
            wide,
            inputs.grid,
            self.implementation,
            patches_alone=True,
        )
        width = values.shape[-1]
        return torch.cat([averaged[..., :width], averaged[..., width:]])
