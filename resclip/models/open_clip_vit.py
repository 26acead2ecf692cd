"""The tower of open_clip's own `VisionTransformer`: OpenAI's CLIP, LAION's, DataComp's, MetaCLIP, CLIPA, CoCa.

Its variants are average pooling, CoCa's attention pool, normed queries and keys, and scaled heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import (
    AttentionalPooler,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from resclip.models.tower import ADVICE, Tower, merge_heads, resize_position_embedding


class OpenClipTower(Tower):
    """An open_clip `VisionTransformer`, in steps; see `Tower`.

    With average pooling (CLIPA) the model itself never uses the output of `head` for [CLS].

    Raises:
        TypeError: a variant whose final block cannot be rebuilt; the message says why and names other models.
    """

    def __init__(self, visual: VisionTransformer) -> None:
        check(visual)
        super().__init__(visual)
        self.patch_size = tuple(self.visual.patch_size)
        self.trained_grid = tuple(self.visual.grid_size)
        self.blocks = list(self.visual.transformer.resblocks)
        self.heads = self.blocks[0].attn.num_heads
        self.output_dim = self.visual.output_dim
        self.has_cls = True
        self.custom = isinstance(self.blocks[0], CustomResidualAttentionBlock)

    @property
    def patch_embedding(self) -> nn.Conv2d:
        convolution: nn.Conv2d = self.visual.conv1
        return convolution

    def embed(self, pixels: Tensor) -> Tensor:
        visual = self.visual
        patches, grid = self.embed_patches(pixels)
        cls = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        position = resize_position_embedding(visual.positional_embedding, self.trained_grid, grid)
        tokens: Tensor = visual.ln_pre(torch.cat([cls, patches], 1) + position.to(patches.dtype))
        return tokens

    def norm(self, block: Any, tokens: Tensor) -> Tensor:
        normed: Tensor = block.ln_1(tokens)
        return normed

    def project_qkv(
        self, block: Any, normed: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention = block.attn
        projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
        split = projected.unflatten(-1, (3, self.heads, -1))  # [B, L, 3, A, d]
        query, key, value = split.permute(2, 0, 3, 1, 4)
        if self.custom:
            query, key = attention.ln_q(query), attention.ln_k(key)
        return query, key, value

    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        attention = block.attn
        if self.custom:
            if attention.head_scale is not None:
                heads = heads * attention.head_scale
            tokens = attention.out_proj(attention.ln_inner(merge_heads(heads)))
            tokens = block.ln_attn(tokens)
        else:
            tokens = attention.out_proj(merge_heads(heads))
        output: Tensor = block.ls_1(tokens)
        return output

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        output: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        return output

    def head(self, tokens: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is not None:
            tokens = pool_alone(visual.attn_pool, tokens)
        features: Tensor = visual.ln_post(tokens) @ visual.proj
        return features


def pool_alone(pool: AttentionalPooler, tokens: Tensor) -> Tensor:
    """CoCa's attention pool, applied to every token alone: (B, L, D) → (B, L, E).

    A softmax over one key is 1, whatever the query, so the pool is its value and output projections.
    """
    attention = pool.attn
    width = attention.embed_dim
    weight = attention.v_proj_weight
    if weight is None:  # MultiheadAttention keeps one matrix where D = E.
        weight = attention.in_proj_weight[2 * width :]
    value = F.linear(pool.ln_k(tokens), weight, attention.in_proj_bias[2 * width :])
    pooled: Tensor = attention.out_proj(value)
    return pooled


def check(visual: VisionTransformer) -> None:
    """TypeError, with the reason, for a variant whose final block cannot be rebuilt."""
    blocks = visual.transformer.resblocks
    kinds = (ResidualAttentionBlock, CustomResidualAttentionBlock)
    other = next((block for block in blocks if type(block) not in kinds), None)
    if other is not None:
        raise TypeError(
            f"the tower has a block of type {type(other).__name__}, whose layout is not CLIP's: {ADVICE}"
        )
    if getattr(blocks[0].attn, "logit_scale", None) is not None:
        raise TypeError(f"the tower's attention compares by cosines, with a learnt scale: {ADVICE}")
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        raise TypeError(
            f"the tower has two attention pools, so no token alone lies in the text's embedding space: {ADVICE}"
        )
    if visual.proj is None:
        raise TypeError(
            f"the tower's output projection was removed, so patches do not lie in the text's embedding space: {ADVICE}"
        )
