"""The rebuilt final block: one pass of a base's attention with SFR, RCS and overview, then the tower's head."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.methods.catalogue import RCS, SFR, FinalBlockKind, Overview, ProxyAttention
from resclip.methods.correlation import Correlation
from resclip.models import Tower
from resclip_kernels import (
    AttentionOptions,
    Implementation,
    ProxyAttentionOptions,
    SemanticFeedback,
    deterministic_attention,
    proxy_attention,
    residual_attention,
    score_operands,
)
from resclip_kernels import Correlation as OpCorrelation


@dataclass(frozen=True, eq=False)
class Coarse:
    """The final block's keys and values of whole images at a small size; each tensor has one row per image.

    `coarse[2]` is one image's, `coarse[[2, 0, 2]]` and `coarse[1:3]` are several images', and a loop over it goes
    image by image.
    """

    keys: tuple[Tensor, ...]
    """(B, A, m, d), one for each score of the base (two for "qq+kk"): what a window's tokens are compared with."""
    value: Tensor
    """(B, A, m, d): what they gather. m counts [CLS] where the tower has it."""

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, numbers: int | slice | Sequence[int] | Tensor) -> Coarse:
        index = [numbers] if isinstance(numbers, int) else numbers
        return Coarse(tuple(key[index] for key in self.keys), self.value[index])

    @property
    def key(self) -> int:
        """m, the number of tokens: images with equal m fit into one batch, whatever their grids."""
        return self.value.shape[2]

    @classmethod
    def stack(cls, images: Sequence[Coarse]) -> Coarse:
        """One batch of several, in their order; ValueError for none, and for different `key`s."""
        counts = sorted({image.key for image in images})
        if len(counts) != 1:
            raise ValueError(
                f"expected at least one coarse pass, and as many tokens in each; got {counts or 'none'}: "
                "stack those that have the same key"
            )
        keys = zip(*(image.keys for image in images), strict=True)
        return cls(
            tuple(torch.cat(key) for key in keys),
            torch.cat([image.value for image in images]),
        )


def attend_coarse(
    queries: Sequence[Tensor], coarse: Coarse, temperature: float, *, plain: bool = False
) -> Tensor:
    """What every token of a window gathers from the whole image.

        A_o·v_o = Σ softmax(x y_oᵀ / (√d·τ)) v_o

    over the scores of the base, each softmax over the coarse pass's m tokens: the base's attention within the window
    without prior, local window, feedback and cross-layer term. Rows add to the number of scores.

    Args:
        queries: x of each score, (B, A, L, d), in the order of `coarse.keys`.
        coarse: of the B windows' images.
        temperature: τ > 0.
        plain: the formula with its (B, A, L, m) maps in memory; else torch's attention, whose memory is linear in L.

    Returns:
        (B, A, L, d).
    """
    scale = 1 / (math.sqrt(coarse.value.shape[-1]) * temperature)
    if plain:
        maps = (
            (scale * query @ key.mT).softmax(dim=-1)
            for query, key in zip(queries, coarse.keys, strict=True)
        )
        return functools.reduce(torch.add, maps) @ coarse.value
    branches = (
        deterministic_attention(query, key, coarse.value, scale=scale)
        for query, key in zip(queries, coarse.keys, strict=True)
    )
    return functools.reduce(torch.add, branches)


class FinalInputs(NamedTuple):
    """What every pass of the final block reads."""

    tokens: Tensor
    """(B, L, D): the block's input."""
    value: Tensor
    """(B, A, L, d), of LN1(tokens)."""
    query: Tensor
    key: Tensor
    """(B, A, L, d) each: what is compared, from the final block or from the correlation's `layer`."""
    projections: tuple[Tensor, ...]
    """(B, A, L, d) each: what is compared instead, for the correlations that project anew."""
    cross_layers: tuple[tuple[Tensor, Tensor], ...]
    """(q, k) of the middle blocks that RCS averages."""
    grid: tuple[int, int]
    """(h, w) of the tower."""
    features: Tensor | None
    """(B, C, H_v, W_v) of the proxy."""
    overview: Tensor | None = None
    """(B, A, L, d): A_o·v_o, what the tokens gather from the whole image's coarse pass."""

    @property
    def output_grid(self) -> tuple[int, int]:
        """(h, w) of the result."""
        if self.features is None:
            return self.grid
        return self.features.shape[2], self.features.shape[3]


class Pass(NamedTuple):
    """What one pass of the final block gives."""

    patches: Tensor
    """(B, h, w, E)."""
    cls: Tensor | None
    """(B, E)."""
    cross_layer: Tensor | None
    """A_c·v, for the next pass."""
    feedback: SemanticFeedback | None
    """The state that was fed back into this pass; None for the first."""


@dataclass(frozen=True)
class FinalBlock:
    """The final block with a method's attention in place of its own; the fields are `DenseEncoder`'s arguments."""

    tower: Tower
    kind: FinalBlockKind
    correlation: Correlation
    neighbourhood_std: float | None
    proxy_attention: ProxyAttention | None
    rcs: RCS | None
    sfr: SFR | None
    overview: Overview | None
    implementation: Implementation

    def make_coarse(self, inputs: FinalInputs) -> Coarse:
        """The keys and values of whole images, to which their windows will attend."""
        return Coarse(tuple(right for _, right in self.operands(inputs)), inputs.value)

    def add_overview(self, inputs: FinalInputs, coarse: Coarse) -> FinalInputs:
        """The inputs together with what their tokens gather from a coarse pass: once for all passes."""
        gathered = attend_coarse(
            [left for left, _ in self.operands(inputs)],
            coarse,
            self.correlation.temperature,
            plain=self.implementation is Implementation.REFERENCE,
        )
        # The base's map is the mean over random projections, and the sum of all its other scores.
        return inputs._replace(overview=gathered / max(1, len(inputs.projections)))

    def operands(self, inputs: FinalInputs) -> list[tuple[Tensor, Tensor]]:
        """(x, y) of every score x yᵀ that the base compares tokens by."""
        return score_operands(
            self.op_correlation(inputs), inputs.query, inputs.key, inputs.projections
        )

    def op_correlation(self, inputs: FinalInputs) -> OpCorrelation:
        """The correlation under the op's names: "xx" and "random", which project anew, are both "pp" there."""
        return "pp" if inputs.projections else cast(OpCorrelation, self.correlation.scores)

    def run(
        self, inputs: FinalInputs, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> Pass:
        """One pass: the attention, the rest of the block, the head."""
        tower, block = self.tower, self.tower.blocks[-1]
        attend = self.attend if inputs.features is None else self.attend_by_proxy
        attended, cross_layer = attend(inputs, feedback, cross_layer)
        tokens = tower.project_out(block, attended)
        if self.kind == "full_residual":
            tokens = tower.feed_forward(block, inputs.tokens + tokens)
        tokens = tower.head(tokens)
        has_cls = tower.has_cls and inputs.features is None
        patches = tokens[:, int(has_cls) :].unflatten(1, inputs.output_grid)
        return Pass(patches, tokens[:, 0] if has_cls else None, cross_layer, feedback)

    def attend(
        self, inputs: FinalInputs, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The base's attention with SFR and RCS: (B, A, L, d), and A_c·v for the next pass."""
        attended, cross_layer = residual_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            self.attention_options(inputs),
            projections=inputs.projections,
            feedback=feedback,
            cross_layers=inputs.cross_layers,
            cross_layer=cross_layer,
            implementation=self.implementation,
        )
        if self.overview is not None and inputs.overview is not None:
            attended = torch.lerp(
                attended, self.with_rcs(inputs.overview, cross_layer), self.overview.weight
            )
        return attended, cross_layer

    def with_rcs(self, attended: Tensor, cross_layer: Tensor | None) -> Tensor:
        """τ_r · ((1 − λ_r) · attended + λ_r · A_c·v): what `residual_attention` makes of the base's attention.

        RCS's sum is linear, so that mixing two of its results is mixing what came into it.
        """
        if self.rcs is None or cross_layer is None:
            return attended
        return self.rcs.temperature * torch.lerp(attended, cross_layer, self.rcs.weight)

    def attention_options(self, inputs: FinalInputs) -> AttentionOptions:
        """What decides the map of `residual_attention` beside its tensors."""
        return AttentionOptions(
            grid=inputs.grid,
            correlation=self.op_correlation(inputs),
            score_temperature=self.correlation.temperature,
            window=self.correlation.window,
            neighbourhood_std=self.neighbourhood_std,
            **(self.sfr.attention_options() if self.sfr else {}),
            **(self.rcs.attention_options() if self.rcs else {}),
        )

    def attend_by_proxy(
        self, inputs: FinalInputs, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """ProxyCLIP's attention with SFR and RCS: (B, A, H_v·W_v, d), and A_c·v on that grid for the next pass.

        SFR works on the proxy's grid, RCS on CLIP's: A_c·v is computed there, without [CLS]'s row, and then resized
        bilinearly to the proxy's grid, which resizes the rows of A_c and leaves its columns as they are.
        """
        features = inputs.features
        if features is None:
            raise ValueError("expected the features of a proxy; got None")
        skip = int(self.tower.has_cls)
        attended = proxy_attention(
            features,
            inputs.value[:, :, skip:],
            self.proxy_options(),
            grid=inputs.grid,
            feedback=feedback,
            implementation=self.implementation,
        )
        if self.rcs is None:
            return attended, None
        if cross_layer is None:
            averaged = residual_attention(
                inputs.query,
                inputs.key,
                inputs.value,
                grid=inputs.grid,
                correlation="identity",
                cross_layers=inputs.cross_layers,
                implementation=self.implementation,
            ).cross_layer
            if averaged is None:
                raise ValueError("RCS needs at least one layer")
            cross_layer = resize_heads(averaged[:, :, skip:], inputs.grid, inputs.output_grid)
        return self.with_rcs(attended, cross_layer), cross_layer

    def proxy_options(self) -> ProxyAttentionOptions:
        """What decides the map of `proxy_attention` beside its tensors."""
        options = self.proxy_attention or ProxyAttention()
        return ProxyAttentionOptions(
            beta=options.beta,
            gamma=options.gamma,
            **(self.sfr.attention_options() if self.sfr else {}),
        )


def resize_heads(heads: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, A, h·w, d) on one grid → (B, A, H·W, d) on another, bilinearly (`align_corners=False`)."""
    if grid == size:
        return heads
    planes = heads.mT.unflatten(-1, grid).flatten(0, 1)  # [B * A, d, h, w]
    wide = torch.promote_types(heads.dtype, torch.float32)
    resized = F.interpolate(planes.to(wide), size=size, mode="bilinear", align_corners=False)
    result: Tensor = resized.to(heads.dtype).flatten(2).mT.unflatten(0, heads.shape[:2])
    return result
