"""Runs a vision tower and rebuilds its final block: dense features, patch by patch.

Knows the order of the blocks and of ResCLIP's two passes. Knows no image file, no window and no class name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.backbone import VisionTower
from resclip.methods import BASES, FINAL_BLOCKS, RCS, SFR, FinalBlock
from resclip_kernels import (
    Implementation,
    SemanticFeedback,
    patch_labels,
    residual_attention,
    semantic_feedback,
)
from resclip_kernels.implementation import parse_implementation, resolve
from resclip_kernels.residual_attention import IMPLEMENTATIONS


@dataclass(frozen=True)
class DenseFeatures:
    """What the encoder makes of a batch."""

    patches: Tensor
    """(B, h, w, E): projected into the text's space, not unit-normed."""
    cls: Tensor
    """(B, E): the [CLS] token after the same final block."""
    feedback_labels: Tensor | None
    """(B, h, w) int64: the first pass's query a patch, where SFR ran."""


class FinalInputs(NamedTuple):
    """What both passes of the final block read."""

    tokens: Tensor
    """(B, L, D): the block's input."""
    query: Tensor
    key: Tensor
    value: Tensor
    """(B, A, L, d) each, of LN1(tokens)."""
    cross_layers: tuple[tuple[Tensor, Tensor], ...]
    """(q, k) of the middle blocks that RCS averages."""
    grid: tuple[int, int]
    """(h, w)."""


class DenseEncoder(nn.Module):
    """A CLIP vision tower whose final block yields features that know where things are.

    Args:
        visual: open_clip's `VisionTransformer`; used as it is, never changed.
        base: "clip", "maskclip", "sclip", "clearclip" or "naclip".
        rcs: residual cross-correlation self-attention, or None.
        sfr: semantic feedback refinement, or None.
        neighbourhood_std: σ of NACLIP's prior, in patches (only "naclip" has one).
        final_block: "attention_only" or "full_residual"; None for the base's own.
        implementation: of the ops; "auto", "triton", "torch" or "reference".

    Raises:
        TypeError: `visual` is no plain vision transformer.
        ValueError: an unknown name, a layer outside the tower, SFR on a base without a score.
    """

    def __init__(
        self,
        visual: nn.Module,
        base: str = "naclip",
        rcs: RCS | None = None,
        sfr: SFR | None = None,
        neighbourhood_std: float = 5.0,
        final_block: FinalBlock | None = None,
        implementation: Implementation | str = Implementation.AUTO,
    ) -> None:
        super().__init__()
        if base not in BASES:
            raise ValueError(f"unknown base {base!r}; use one of: {', '.join(BASES)}")
        if final_block is not None and final_block not in FINAL_BLOCKS:
            valid = ", ".join(map(repr, FINAL_BLOCKS))
            raise ValueError(
                f"final_block must be one of {valid}, or None for the base's own; got {final_block!r}"
            )
        self.base = BASES[base]
        if sfr is not None and self.base.correlation == "identity":
            raise ValueError(
                f"SFR changes the score of the attention, and base {base!r} has none: "
                "use sfr=None or another base"
            )
        self.tower = VisionTower(visual)
        self.rcs = rcs
        self.sfr = sfr
        self.layers = () if rcs is None else rcs.layers_of(self.tower.depth)
        self.neighbourhood_std = neighbourhood_std if self.base.neighbourhood else None
        self.final_block: FinalBlock = final_block or self.base.final_block
        self.implementation = parse_implementation(implementation)
        resolve(
            self.implementation, IMPLEMENTATIONS
        )  # Refuse here what the attention would refuse.

    @torch.no_grad()
    def forward(self, pixels: Tensor, text: Tensor | None = None) -> DenseFeatures:
        """Dense features of a batch of pictures of one size.

        Args:
            pixels: (B, 3, H, W), normalised with the model's mean and standard deviation; any size of at least one
                patch, and a remainder past the last whole patch is not seen.
            text: (Q, E) unit rows, one a query; needed when `sfr` is on, and read only then.

        Returns:
            Features of each picture, which do not depend on the other pictures of the batch.

        Raises:
            TypeError, ValueError: a shape or dtype that does not fit.
        """
        self.check(pixels, text)
        pixels = pixels.to(self.tower.dtype)
        inputs = self.run_blocks(pixels)
        tokens, cross_layer = self.run_final_block(inputs, None, None)
        labels = None
        if self.sfr is not None and text is not None:
            labels = self.first_segmentation(self.sfr, tokens, inputs.grid, pixels, text)
            feedback = semantic_feedback(
                labels,
                connectivity=self.sfr.connectivity,
                smoothing_std=self.sfr.smoothing_std,
                normalise=self.sfr.normalise,
                implementation=self.implementation,
            )
            tokens, _ = self.run_final_block(inputs, feedback, cross_layer)
        patches = tokens[:, 1:].unflatten(1, inputs.grid)
        return DenseFeatures(patches, tokens[:, 0], labels)

    def run_blocks(self, pixels: Tensor) -> FinalInputs:
        """All blocks but the final one, keeping q and k of the middle blocks that RCS needs."""
        tower = self.tower
        grid = tower.grid(pixels.shape[2], pixels.shape[3])
        # Nothing to fuse before the final block: plain attention is torch's own, but for the reference's sake.
        attend = F.scaled_dot_product_attention
        if self.implementation is Implementation.REFERENCE:
            attend = partial(plain_attention, grid=grid)
        tokens = tower.embed(pixels)
        kept = []
        for number, block in enumerate(tower.blocks[:-1], start=1):
            query, key, value = tower.project_qkv(block, tokens)
            if number in self.layers:
                kept.append((query, key))
            tokens = tokens + tower.project_out(block, attend(query, key, value))
            tokens = tower.feed_forward(block, tokens)
        query, key, value = tower.project_qkv(tower.blocks[-1], tokens)
        return FinalInputs(tokens, query, key, value, tuple(kept), grid)

    def run_final_block(
        self, inputs: FinalInputs, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """One pass of the final block and the head: projected tokens (B, L, E), and A_c·v for the next pass."""
        sfr, rcs = self.sfr or SFR(), self.rcs or RCS()
        attended, cross_layer = residual_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            grid=inputs.grid,
            correlation=self.base.correlation,
            neighbourhood_std=self.neighbourhood_std,
            feedback=feedback,
            feedback_weight=sfr.weight,
            feedback_temperature=sfr.temperature,
            cross_layers=inputs.cross_layers,
            cross_layer=cross_layer,
            cross_weight=rcs.weight,
            cross_temperature=rcs.temperature,
            implementation=self.implementation,
        )
        block = self.tower.blocks[-1]
        tokens = self.tower.project_out(block, attended)
        if self.final_block == "full_residual":
            tokens = self.tower.feed_forward(block, inputs.tokens + tokens)
        return self.tower.head(tokens), cross_layer

    def first_segmentation(
        self, sfr: SFR, tokens: Tensor, grid: tuple[int, int], pixels: Tensor, text: Tensor
    ) -> Tensor:
        """Pass 1's patch labels: (B, h, w)."""
        return patch_labels(
            similarity(tokens[:, 1:].unflatten(1, grid), text),
            pixels,
            patch_size=self.tower.patch_size,
            logit_scale=sfr.logit_scale,
            threshold=sfr.label_threshold,
            refine_iterations=sfr.refine_iterations,
            implementation=self.implementation,
        )

    def check(self, pixels: Tensor, text: Tensor | None) -> None:
        """Raise for inputs that do not fit, saying what would."""
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[1] != 3:
            came = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ValueError(f"pixels must be a (B, 3, H, W) tensor; got {came}")
        if not pixels.is_floating_point():
            raise TypeError(
                f"pixels must be normalised floats; got {pixels.dtype}. "
                "Divide by 255 and normalise, or pass pictures to Segmenter.segment"
            )
        height, width = pixels.shape[2:]
        if 0 in self.tower.grid(height, width):
            patch_height, patch_width = self.tower.patch_size
            raise ValueError(
                f"a picture of {height} × {width} pixels is smaller than one patch of "
                f"{patch_height} × {patch_width}: enlarge it first"
            )
        if self.sfr is None:
            return
        if text is None:
            raise ValueError("SFR segments once before it refines, so it needs text: pass (Q, E)")
        if text.ndim != 2 or text.shape[1] != self.tower.output_dim or not len(text):
            raise ValueError(
                f"text must be (Q, {self.tower.output_dim}), the image tower's output width; "
                f"got {tuple(text.shape)}"
            )


def plain_attention(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """softmax(q kᵀ/√d)·v with its map in memory: what the reference computes in the blocks before the final one."""
    return residual_attention(
        query, key, value, grid=grid, correlation="qk", implementation=Implementation.REFERENCE
    ).output


def similarity(patches: Tensor, text: Tensor) -> Tensor:
    """Cosine of every patch and every query: (B, h, w, E) and unit rows (Q, E) → (B, Q, h, w), float32 or wider."""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    unit = F.normalize(patches.to(dtype), dim=-1).flatten(1, 2)
    logits: Tensor = (text.to(dtype) @ unit.mT).unflatten(2, patches.shape[1:3])
    return logits
