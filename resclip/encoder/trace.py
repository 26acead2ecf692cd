"""The blocks before the final one: what a method keeps of them, and what it changes on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.methods.correlation import Correlation
from resclip.methods.pieces import Denoising, Pieces, Refocusing
from resclip.models import Tower
from resclip_kernels import deterministic_attention

MAP_BYTES = 1 << 25
"""Bytes of attention maps that are held at a time where a method reads the maps themselves."""

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class BlockStep(NamedTuple):
    """One block before the final one, as it has run."""

    number: int
    """From 1."""
    block: Any
    tokens: Tensor
    """(B, L, D): its input."""
    normed: Tensor
    """LN1 of it."""
    query: Tensor
    key: Tensor
    value: Tensor
    """(B, A, L, d) each, of its attention."""
    output: Tensor
    """(B, L, D)."""


class TracedMethod(Protocol):
    """What a trace has to know of a method: its final block, see `resclip.encoder.final_block`."""

    tower: Tower
    pieces: Pieces
    correlation: Correlation
    layers: tuple[int, ...]

    def run_proxy(self, pixels: Tensor) -> Tensor | None:
        """The proxy's features; None where the base has none."""

    def attend_before(
        self, normed: Tensor, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """The correlation in a block before the final one."""


class Trace:
    """What one forward pass keeps of the blocks before the final one; a method that needs more has a subclass.

    Args:
        final: the final block with its method.
        pixels: (B, 3, H, W), normalised.
        grid: (h, w) in patches.
    """

    def __init__(self, final: TracedMethod, pixels: Tensor, grid: tuple[int, int]) -> None:
        self.final = final
        self.grid = grid
        self.features = final.run_proxy(pixels)
        """(B, C, H_v, W_v) of the proxy; None where the base has none."""
        self.cross_layers: list[tuple[Tensor, Tensor]] = []
        """(q, k) of the middle blocks that RCS averages."""
        self.compared: tuple[Tensor, Tensor, Tensor] | None = None
        """LN1's output, q and k of the block whose tokens are compared, where that is not the final one."""
        self.shown: tuple[Tensor, Tensor] | None = None
        """q and k of the block whose own attention is to be looked at."""
        self.wanted: frozenset[str] = frozenset()
        """What steps behind the tokens ask for, of `resclip.encoder.dense_encoder.WANTED`."""
        self.context: dict[str, Tensor] = {}
        """What has been kept for them so far, by the same names."""

    def attend(
        self, number: int, normed: Tensor, heads: tuple[Tensor, Tensor, Tensor], attend: Attention
    ) -> Tensor:
        """A block's attention: (B, A, L, d).

        Args:
            number: the block's, from 1.
            normed: LN1's output (B, L, D).
            heads: q, k and v of it.
            attend: CLIP's own attention.
        """
        query, key, value = heads
        refocusing = self.final.pieces.refocusing
        if number > self.final.tower.depth - self.final.correlation.blocks:
            return self.final.attend_before(normed, query, key, value, self.grid)
        if refocusing is None:
            return attend(query, key, value)
        return refocused_attention(query, key, value, refocusing, int(self.final.tower.has_cls))

    def after(self, step: BlockStep) -> Tensor:
        """What the next block gets: the block's output, or what the method makes of it."""
        if step.number in self.final.layers:
            self.cross_layers.append((step.query, step.key))
        if step.number == self.final.correlation.layer:
            self.compared = step.normed, step.query, step.key
        depth, skip = self.final.tower.depth, int(self.final.tower.has_cls)
        if "spread" in self.wanted:
            share = mean_map(step.query, step.key, skip) / (depth - 1)
            self.context["spread"] = self.context.get("spread", 0) + share
        if "correlation" in self.wanted and step.number == depth - 1:
            self.context["correlation"] = self_correlation(step.query, step.key, step.value)
        denoising = self.final.pieces.denoising
        if denoising is None:
            return step.output
        return denoised(step.output, denoising, self.final.tower, self.grid)


def denoised(tokens: Tensor, piece: Denoising, tower: Tower, grid: tuple[int, int]) -> Tensor:
    """`Denoising` of a block's output (B, L, D), [CLS] as it is."""
    skip = tokens.shape[1] - grid[0] * grid[1]
    channels = list(piece.channels_of(tower.depth, tower.width, tower.patch_size[0]))
    if not channels:
        return tokens
    patches = tokens[:, skip:]
    wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
    above = wide - wide.amin(dim=-1, keepdim=True)
    share = above[..., channels].amax(dim=-1) / above.sum(dim=-1)
    stands_out = (share > piece.sigma / tokens.shape[2]).unsqueeze(-1)
    around = sums_around(patches, grid) / 9
    mixed = torch.where(stands_out, torch.lerp(patches, around, piece.alpha), patches)
    return torch.cat([tokens[:, :skip], mixed], dim=1)


def sums_around(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The sum of each patch's 3 × 3 neighbourhood, 0 outside the grid: (B, n, D) → (B, n, D)."""
    # Along one axis and then the other, patch by patch as they lie in memory.
    rows = F.pad(patches.unflatten(1, grid), (0, 0, 1, 1, 1, 1))
    across = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    return (across[:, :-2] + across[:, 1:-1] + across[:, 2:]).flatten(1, 2)


def refocused_attention(
    query: Tensor, key: Tensor, value: Tensor, piece: Refocusing, skip: int
) -> Tensor:
    """softmax(q kᵀ/√d)·v with a part of the sinks' share given to the other patches; see `Refocusing`.

    Its maps are formed twice, rows by rows: first for each column's sum.
    """
    tokens = query.shape[2]
    received = query.new_zeros(*query.shape[:2], tokens, dtype=torch.float32)
    for _, rows in map_blocks(query, key, skip, tokens):
        received += rows.sum(dim=2)
    is_patch = torch.arange(tokens, device=query.device) >= skip
    sinks = (received / tokens > piece.threshold) & is_patch  # [B, A, L]
    others = ~sinks & is_patch
    attended = [deterministic_attention(query[:, :, :skip], key, value)] if skip else []
    for _, rows in map_blocks(query, key, skip, tokens):
        at_sinks, at_others = rows * sinks.unsqueeze(2), rows * others.unsqueeze(2)
        freed = (1 - piece.weight) * at_sinks.sum(dim=-1, keepdim=True)
        gain = 1 + freed / (at_others.sum(dim=-1, keepdim=True) + 1e-8)
        weights = piece.weight * at_sinks + gain * at_others
        weights[..., :skip] = rows[..., :skip]
        attended.append(weights.to(value.dtype) @ value)
    return torch.cat(attended, dim=2)


def mean_map(query: Tensor, key: Tensor, skip: int) -> Tensor:
    """The mean over heads of softmax(q kᵀ/√d), rows and columns of patches: (B, n, n) float32 or wider."""
    blocks = [
        rows[..., skip:].mean(dim=1) for _, rows in map_blocks(query, key, skip, query.shape[2])
    ]
    return torch.cat(blocks, dim=1)


def self_correlation(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, L, L), the mean over heads of (q̂q̂ᵀ + k̂k̂ᵀ + v̂v̂ᵀ) / 3, with unit vectors; float32 or wider.

    Args:
        query, key, value: (B, A, L, d) of a block, [CLS] first.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    parts = torch.cat([query, key, value], dim=1).to(dtype)
    # Side by side, products of all heads add up within one, and no map of a head is formed.
    together = F.normalize(parts, dim=-1).transpose(1, 2).flatten(2)
    return together @ together.mT / parts.shape[1]


def map_blocks(query: Tensor, key: Tensor, first: int, last: int) -> Any:
    """Rows `first` to `last` of softmax(q kᵀ/√d), a block at a time: (first row, (B, A, R, L) float32 or wider)."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    images, heads, tokens, width = query.shape
    across = key.to(dtype).mT / width**0.5
    if torch.compiler.is_exporting():
        # A graph for any size has no blocks.
        yield first, (query[:, :, first:last].to(dtype) @ across).softmax(dim=-1)
        return
    rows = max(1, MAP_BYTES // max(1, images * heads * tokens * dtype.itemsize))
    for start in range(first, last, rows):
        stop = min(start + rows, last)
        yield start, (query[:, :, start:stop].to(dtype) @ across).softmax(dim=-1)
