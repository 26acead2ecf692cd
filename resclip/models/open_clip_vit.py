"""The towers of open_clip's own `VisionTransformer` and of OpenAI's `clip`: OpenAI's CLIP, LAION's, MetaCLIP, CoCa.

Variants are average pooling, CoCa's attention pool, normed queries and keys, and scaled heads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    AttentionalPooler,
    CustomResidualAttentionBlock,
    CustomTransformer,
    PatchDropout,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
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

NO_PROJECTION = (
    "the tower's output projection was removed, so patches do not lie in the text's embedding space: "
    + ADVICE
)


class OpenClipTower(Tower):
    """An open_clip `VisionTransformer`, in steps; see `Tower`.

    With average pooling (CLIPA) the model itself never uses the output of `head` for [CLS].

    Raises:
        TypeError: a variant whose final block cannot be rebuilt; the message says why and names other models.
    """

    KNOWN_TYPES = (
        VisionTransformer,
        Transformer,
        CustomTransformer,
        ResidualAttentionBlock,
        CustomResidualAttentionBlock,
        Attention,
        AttentionalPooler,
        PatchDropout,
    )

    def __init__(self, visual: VisionTransformer) -> None:
        check(visual)
        super().__init__(visual)
        self.patch_size = tuple(self.visual.patch_size)
        self.trained_grid = tuple(self.visual.grid_size)
        self.heads = self.blocks[0].attn.num_heads
        self.output_dim = self.visual.output_dim
        self.has_cls = True

    @property
    def block_list(self) -> Any:
        return self.visual.transformer.resblocks

    def head_parts(self) -> list[nn.Module]:
        pool = getattr(self.visual, "attn_pool", None)
        return [] if pool is None else [pool]

    @property
    def patch_embedding(self) -> nn.Module:
        embedding: nn.Module = self.visual.conv1
        return embedding

    def called_parts(self) -> Iterator[nn.Module]:
        visual = self.visual
        yield from (visual.conv1, visual.ln_pre, visual.ln_post)
        for block in self.blocks:
            yield from (block.ln_1, block.ls_1, block.ln_2, block.mlp, block.ls_2)
            if isinstance(block.attn, Attention):
                attention = block.attn
                yield from (block.ln_attn, attention.ln_q, attention.ln_k)
                yield from (attention.ln_inner, attention.out_proj, attention.out_drop)
        if visual.attn_pool is not None:
            # Of one token alone the pool is its values, so that its queries change nothing.
            yield from (visual.attn_pool.ln_k, visual.attn_pool.ln_q)

    def embed(self, pixels: Tensor, position: str = RELEASED) -> Tensor:
        visual = self.visual
        patches, grid = self.embed_patches(pixels)
        cls = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        added = resize_position_embedding(
            visual.positional_embedding, self.trained_grid, grid, position=position
        )
        tokens: Tensor = visual.ln_pre(torch.cat([cls, patches], 1) + added.to(patches.dtype))
        return tokens

    def norm(self, block: Any, tokens: Tensor) -> Tensor:
        normed: Tensor = block.ln_1(tokens)
        return normed

    def project_qkv(
        self, block: Any, normed: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention = block.attn
        # PEFT's wrapper gives the weights of what it wraps.
        projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (split_heads(x, self.heads) for x in projected.chunk(3, dim=-1))
        if isinstance(attention, Attention):
            query, key = attention.ln_q(query), attention.ln_k(key)
        return query, key, value

    def query_key_layers(self, block: Any) -> tuple[nn.Module, nn.Module] | None:
        attention = block.attn
        return (attention.ln_q, attention.ln_k) if isinstance(attention, Attention) else None

    def attention_output(self, block: Any, heads: Tensor) -> Tensor:
        attention = block.attn
        if not isinstance(attention, Attention):
            layer = attention.out_proj
            return F.linear(merge_heads(heads), layer.weight, layer.bias)
        if attention.head_scale is not None:
            heads = heads * attention.head_scale
        output: Tensor = attention.out_proj(attention.ln_inner(merge_heads(heads)))
        return attention.out_drop(output)  # type: ignore[no-any-return]

    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        tokens = self.attention_output(block, heads)
        if isinstance(block.attn, Attention):
            tokens = block.ln_attn(tokens)
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


class OpenAITower(OpenClipTower):
    """The `VisionTransformer` of OpenAI's `clip` package, in steps; see `Tower`.

    The package is often copied and changed, so it is told by its layout, not by its type: these children, and no
    others; and what the steps give is compared with what the model itself gives.

    Raises:
        TypeError: a tower without projection, or one that computes something else with the same layout.
    """

    LAYOUT: ClassVar[dict[str, set[str]]] = {
        "": {"conv1", "ln_pre", "transformer", "ln_post"},
        "transformer": {"resblocks"},
        "transformer.resblocks.0": {"attn", "ln_1", "mlp", "ln_2"},
    }
    """Names of a module's children, by the path of the module."""

    batch_first = False

    def __init__(self, visual: nn.Module) -> None:
        Tower.__init__(self, visual)
        check_blocks(self.block_list)
        if self.visual.proj is None:
            raise TypeError(NO_PROJECTION)
        height, width = self.convolution.kernel_size
        self.patch_size = (height, width)
        side = self.visual.input_resolution // self.patch_size[0]
        self.trained_grid = (side, side)
        self.heads = self.blocks[0].attn.num_heads
        self.output_dim = self.visual.output_dim
        self.has_cls = True
        self.layout_types = {
            type(self.visual),
            type(self.visual.transformer),
            type(self.blocks[0]),
        }
        self.check_host()
        self.check_result()

    @torch.no_grad()
    def check_result(self, read: Collection[int] | None = None) -> None:
        """Like `Tower.check_result`, and for [CLS] behind the head, which has no type to go by either."""
        super().check_result(read)
        last: list[Tensor] = []
        hook = self.block_list[-1].register_forward_hook(lambda *call: last.append(call[-1]))
        try:
            expected = self.visual(self.noise())
        finally:
            hook.remove()
        came = self.head(self.block_input(last[0])[:, 0])
        if came.shape != expected.shape or (came - expected).norm() > 0.05 * expected.norm():
            raise TypeError(
                f"the tower has the layout of OpenAI's CLIP and another head behind its blocks: {ADVICE}"
            )

    @classmethod
    def fits(cls, visual: Any) -> bool:
        """Whether a module has the layout."""
        parts = dict(visual.named_modules()) if isinstance(visual, nn.Module) else {}
        parameters = {"class_embedding", "positional_embedding", "proj", "input_resolution"}
        return all(hasattr(visual, name) for name in parameters) and all(
            path in parts and {name for name, _ in parts[path].named_children()} == children
            for path, children in cls.LAYOUT.items()
        )

    def called_parts(self) -> Iterator[nn.Module]:
        visual = self.visual
        yield from (visual.conv1, visual.ln_pre, visual.ln_post)
        for block in self.blocks:
            yield from (block.ln_1, block.ln_2, block.mlp)

    def knows(self, kind: type[nn.Module]) -> bool:
        return super().knows(kind) or kind in self.layout_types

    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        return self.attention_output(block, heads)

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        output: Tensor = tokens + block.mlp(block.ln_2(tokens))
        return output

    def head(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.visual.ln_post(tokens) @ self.visual.proj
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
    check_blocks(blocks)
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
        raise TypeError(NO_PROJECTION)
