"""The tower of a plain timm vision transformer, alone or as open_clip has it: EVA, EVA02, SigLIP, SigLIP2, PE-Core.

It covers timm's `VisionTransformer` and `Eva`, with their rotary embeddings and pooling heads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers.attention import Attention, AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.patch_dropout import PatchDropout
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from resclip.models.tower import (
    ADVICE,
    RELEASED,
    Tower,
    check_blocks,
    merge_heads,
    resize_position_embedding,
    split_heads,
)


class TimmTower(Tower):
    """A timm vision transformer, alone or inside open_clip's `TimmModel`, in steps; see `Tower`.

    Raises:
        TypeError: another timm model, or a variant whose final block cannot be rebuilt; the message says what it is
            and names other models.
    """

    KNOWN_TYPES = (
        TimmModel,
        VisionTransformer,
        Eva,
        PatchEmbed,
        PatchDropout,
        RotaryEmbeddingCat,
        Block,
        EvaBlock,
        Attention,
        EvaAttention,
        AttentionRope,
        AttentionPoolLatent,
    )

    def __init__(self, visual: TimmModel | VisionTransformer | Eva) -> None:
        check(visual)
        super().__init__(visual)
        self.patch_size = tuple(self.trunk.patch_embed.patch_size)
        self.trained_grid = tuple(self.trunk.patch_embed.grid_size)
        self.heads = self.blocks[0].attn.num_heads
        self.has_cls = self.trunk.cls_token is not None
        with torch.no_grad():
            token = torch.zeros(1, 1, self.width, device=self.device, dtype=self.dtype)
            self.output_dim = self.head(token).shape[-1]
        no_output = isinstance(self.trunk.head, nn.Identity) and self.trunk.attn_pool is None
        if (
            no_output and self.visual is self.trunk
        ):  # SigLIP's pool gives what lies in a text's space.
            self.text_obstacle = (
                "this timm model has no output layer (num_classes=0), so its features are not in "
                "a text's space"
            )
        self.last_rotation: tuple[Any, Tensor] | None = None

    @property
    def trunk(self) -> Any:
        """The timm model."""
        return self.visual.trunk if isinstance(self.visual, TimmModel) else self.visual

    @property
    def projections(self) -> list[nn.Module]:
        """What follows the trunk's last norm, in order."""
        head = [self.visual.head] if isinstance(self.visual, TimmModel) else []
        return [self.trunk.fc_norm, self.trunk.head, *head]

    @property
    def block_list(self) -> Any:
        return self.trunk.blocks

    def head_parts(self) -> list[nn.Module]:
        return [] if self.trunk.attn_pool is None else [self.trunk.attn_pool]

    @property
    def patch_embedding(self) -> nn.Module:
        embedding: nn.Module = self.trunk.patch_embed.proj
        return embedding

    def called_parts(self) -> Iterator[nn.Module]:
        trunk = self.trunk
        yield from (trunk.patch_embed.proj, trunk.patch_embed.norm, trunk.norm_pre, trunk.norm)
        yield from self.projections
        for block in self.blocks:
            yield from (block.norm1, block.norm2, block.mlp, block.drop_path1, block.drop_path2)
            if hasattr(block, "ls1"):
                yield from (block.ls1, block.ls2)
            attention = block.attn
            yield from (attention.q_norm, attention.k_norm)
            yield from (attention.norm, attention.proj, attention.proj_drop)
            if not has_bias_of_its_own(attention):
                yield from query_key_value_layers(attention)
        if trunk.attn_pool is not None:
            pool = trunk.attn_pool
            # Of one token alone the pool is its values, so that its queries and keys change nothing.
            yield from (pool.q, pool.q_norm, pool.k_norm)
            yield from (pool.kv, pool.proj, pool.norm, pool.mlp)

    def embed(self, pixels: Tensor, position: str = RELEASED) -> Tensor:
        trunk = self.trunk
        tokens, grid = self.embed_patches(pixels)
        tokens = trunk.patch_embed.norm(tokens)
        cls_has_position = self.has_cls and not trunk.no_embed_class
        added = resize_position_embedding(
            trunk.pos_embed[0], self.trained_grid, grid, has_cls=cls_has_position, position=position
        )
        if not cls_has_position:
            tokens = tokens + added
        if self.has_cls:
            tokens = torch.cat([trunk.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if cls_has_position:
            tokens = tokens + added
        ready: Tensor = trunk.norm_pre(tokens)
        return ready

    def norm(self, block: Any, tokens: Tensor) -> Tensor:
        normed: Tensor = block.norm1(tokens)
        return normed

    def project_qkv(
        self, block: Any, normed: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention = block.attn
        query, key, value = (split_heads(x, self.heads) for x in project(attention, normed))
        query, key = attention.q_norm(query), attention.k_norm(key)
        return self.as_heads(query, grid), self.as_heads(key, grid), value

    def query_key_layers(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.attn.q_norm, block.attn.k_norm

    def as_heads(self, projected: Tensor, grid: tuple[int, int]) -> Tensor:
        rotation = self.rotation(grid)
        return projected if rotation is None else self.rotate(projected, rotation)

    def rotate(self, tokens: Tensor, rotation: Tensor) -> Tensor:
        """Rotary embedding of the patches by their positions; [CLS] is left alone: (B, A, L, d) → (B, A, L, d)."""
        cls, patches = tokens[:, :, : int(self.has_cls)], tokens[:, :, int(self.has_cls) :]
        turned = apply_rot_embed_cat(patches, rotation)
        return torch.cat([cls, turned.to(tokens.dtype)], dim=2)

    def rotation(self, grid: tuple[int, int]) -> Tensor | None:
        """Sines and cosines of the patches' angles, (h·w, 2·d); None for a model without rotary embeddings.

        At another grid than the trained one they are timm's own for that grid: EVA02 and PE-Core stretch any grid over
        the square they were trained on, so patches half as wide rotate by steps half as large. The last such table is
        kept, since every block of an image needs the same one.
        """
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return None
        table: Tensor
        if grid == self.trained_grid and rope.pos_embed is not None:
            table = rope.get_embed()
            return table
        wanted = (grid, self.device, self.dtype)
        last = self.last_rotation
        if last is None or last[0] != wanted:
            # What is made in inference mode could not take part in a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                if rope.pos_embed is None:
                    table = rope.get_embed(shape=list(grid))
                else:
                    resized = copy.deepcopy(rope)
                    resized.update_feat_shape(grid)
                    table = resized.get_embed()
            last = self.last_rotation = (wanted, table)
        return last[1]

    def attention_output(self, block: Any, heads: Tensor) -> Tensor:
        attention = block.attn
        output: Tensor = attention.proj_drop(attention.proj(attention.norm(merge_heads(heads))))
        return output

    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        tokens = self.attention_output(block, heads)
        output: Tensor = block.drop_path1(layer_scale(block, 1, tokens))
        return output

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        output: Tensor = tokens + block.drop_path2(
            layer_scale(block, 2, block.mlp(block.norm2(tokens)))
        )
        return output

    def head(self, tokens: Tensor) -> Tensor:
        trunk = self.trunk
        tokens = trunk.norm(tokens)
        if trunk.attn_pool is not None:
            tokens = pool_alone(trunk.attn_pool, tokens)
        for part in self.projections:
            tokens = part(tokens)
        return tokens


def project(attention: Any, normed: Tensor) -> tuple[Tensor, ...]:
    """q, k and v before they are split into heads: (B, L, D) → three (B, L, A·d)."""
    layers = query_key_value_layers(attention)
    if len(layers) == 3:
        return tuple(layer(normed) for layer in layers)
    if has_bias_of_its_own(attention):
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        return F.linear(normed, attention.qkv.weight, bias).chunk(3, dim=-1)
    return tuple(layers[0](normed).chunk(3, dim=-1))


def query_key_value_layers(attention: Any) -> tuple[nn.Module, ...]:
    """The one layer that projects to q, k and v, or the three."""
    if attention.qkv is not None:
        return (attention.qkv,)
    return attention.q_proj, attention.k_proj, attention.v_proj


def has_bias_of_its_own(attention: Any) -> bool:
    """Whether the biases of q and v alone are learnt (EVA), so that the model reads `qkv.weight` and calls no layer."""
    return attention.qkv is not None and getattr(attention, "q_bias", None) is not None


def layer_scale(block: Any, branch: int, tokens: Tensor) -> Tensor:
    """Scales each channel of the output of a block's attention (branch 1) or MLP (branch 2), if it learnt a factor."""
    if hasattr(block, "ls1"):
        scaled: Tensor = (block.ls1 if branch == 1 else block.ls2)(tokens)
        return scaled
    gamma = getattr(block, f"gamma_{branch}", None)
    return tokens if gamma is None else gamma * tokens


def pool_alone(pool: AttentionPoolLatent, tokens: Tensor) -> Tensor:
    """The attention pool, applied to every token alone: (B, L, D) → (B, L, D).

    A softmax over one key is 1, whatever the query, so what remains of the attention is its value and output
    projections; the pool's own MLP follows, with its residual.
    """
    _, value = pool.kv(tokens).chunk(2, dim=-1)
    projected = pool.proj(value)
    pooled: Tensor = projected + pool.mlp(pool.norm(projected))
    return pooled


def check(visual: TimmModel | VisionTransformer | Eva) -> None:
    """TypeError, with the reason, for a trunk or head whose final block cannot be rebuilt."""
    reason = obstacle(visual)
    if reason is not None:
        raise TypeError(f"{reason}: {ADVICE}")


def obstacle(visual: TimmModel | VisionTransformer | Eva) -> str | None:
    """Why a tower cannot be run in steps, or None if it can."""
    trunk: Any = visual.trunk if isinstance(visual, TimmModel) else visual
    if type(trunk) not in (VisionTransformer, Eva):
        return f"the tower is timm's {type(trunk).__name__}, which is no plain vision transformer"
    if type(trunk.patch_embed) is not PatchEmbed:
        kind = type(trunk.patch_embed).__name__
        return (
            f"the tower's patches are not made by timm's PatchEmbed but by a {kind}, as in a hybrid"
        )
    check_blocks(trunk.blocks)
    blocks = list(trunk.blocks)
    other = next((block for block in blocks if type(block) not in (Block, EvaBlock)), None)
    if other is not None:
        return (
            f"the tower has a block of timm's {type(other).__name__}, which is not one of CLIP's: those norm before "
            "the attention"
        )
    kinds = (Attention, EvaAttention, AttentionRope)
    odd = next((block.attn for block in blocks if type(block.attn) not in kinds), None)
    if odd is not None:
        return f"the tower's attention is timm's {type(odd).__name__}, which is not CLIP's"
    if any(
        getattr(block.attn, "gate", None) is not None or getattr(block.attn, "num_kv_groups", 1) > 1
        for block in blocks
    ):
        return "the tower's attention has gates or shares keys between heads, as CLIP's does not"
    rope = getattr(trunk, "rope", None)
    rotates_halves = any(getattr(block.attn, "rotate_half", False) for block in blocks)
    if rope is not None and (type(rope) is not RotaryEmbeddingCat or rotates_halves):
        return f"the tower's rotary embedding, timm's {type(rope).__name__}, is not EVA's"
    if trunk.pos_embed is None:
        return "the tower has no position embedding at its input"
    if trunk.num_prefix_tokens > 1:
        return "the tower has register tokens beside [CLS]"
    if not isinstance(trunk.attn_pool, AttentionPoolLatent | None) or hasattr(visual.head, "pool"):
        return (
            "the tower's pooling mixes its patches so that no single patch has an output of its own"
        )
    return None
