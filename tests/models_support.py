"""Small models of every family with random weights, and a plain run through a tower's steps."""

from __future__ import annotations

import functools
from typing import Any
from unittest.mock import patch

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from resclip.models import Tower

EMBED = 24
"""Width of the text's space; no other width here has this number."""
IMAGE = (48, 64)
"""Three patches of 16 by four: rows and columns cannot be mistaken for one another."""
TEXT = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}

OPEN_CLIP: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.5},
    "clipa": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "average pool": {"pool_type": "avg"},
    "sines": {"pos_embed_type": "sin_cos_2d", "image_size": 48},
    "coca": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3},
    "coca of one width": {
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "width": EMBED,
        "head_width": 12,
    },
    "normed queries": {"qk_norm": True},
    "scaled": {"scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True},
}
"""Variants of open_clip's VisionTransformer."""

TIMM: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "EVA01": ("eva_giant_patch14_224", "token", None, {}),
    "EVA02": ("eva02_base_patch16_clip_224", "token", None, {"init_values": 0.5}),
    "SigLIP": ("vit_base_patch16_siglip_224", "map", "none", {}),
    "SigLIP2 giant": ("vit_giantopt_patch16_siglip_256", "map", "none", {}),
    "PE-Core": ("vit_pe_core_base_patch16_224", "map", None, {}),
    "PE-Core giant": ("vit_pe_core_gigantic_patch14_448", "map", None, {}),
    "MobileCLIP2-L": ("vit_large_patch14_clip_224", "token", None, {}),
    "average": ("vit_medium_patch16_gap_256", "", "linear", {"init_values": 0.5}),
    "average, normed after": ("vit_base_patch16_siglip_gap_224", "avg", "mlp", {"fc_norm": True}),
    "all norms": (
        "vit_base_patch16_clip_224",
        "token",
        None,
        {
            "qk_norm": True,
            "scale_attn_norm": True,
            "no_embed_class": True,
            "embed_norm_layer": "layernorm",
        },
    ),
}
"""timm's name, open_clip's `timm_pool` and `timm_proj`, and arguments beside the small sizes."""


def open_clip_model(quick_gelu: bool = False, **vision: Any) -> nn.Module:
    """A CLIP of two small blocks, in float64 with all weights random."""
    sizes = {"image_size": IMAGE, "patch_size": 16, "layers": 2, "width": 32, "head_width": 16}
    return randomise(open_clip.CLIP(EMBED, {**sizes, **vision}, TEXT, quick_gelu=quick_gelu))


def timm_model(kind: str) -> nn.Module:
    """A CLIP of the timm tower `kind`, made small, in float64 with all weights random."""
    name, pool, proj, arguments = TIMM[kind]
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj}
    with small_timm(**arguments):
        return randomise(open_clip.CustomTextCLIP(EMBED, vision, TEXT))


def timm_visual(name: str, pool: str = "token", **arguments: Any) -> TimmModel:
    """The small tower alone."""
    with small_timm(**arguments):
        return TimmModel(name, EMBED, pool=pool, proj=None)


def small_timm(**arguments: Any) -> Any:
    """Within this context timm builds any vision transformer with two small blocks."""
    sizes = {"img_size": IMAGE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm_with(**{**sizes, **arguments})


def timm_with(**arguments: Any) -> Any:
    """Within this context timm builds every model with these arguments."""
    return patch.object(timm, "create_model", functools.partial(timm.create_model, **arguments))


def randomise(model: nn.Module) -> nn.Module:
    """In float64, with every weight moved: none stays 0 or 1, where a forgotten one would not show."""
    model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q kᵀ/√d)·v."""
    return F.scaled_dot_product_attention(query, key, value)


@torch.no_grad()
def run_blocks(tower: Tower, pixels: Tensor) -> Tensor:
    """All of a tower's steps but its head: (B, L, D)."""
    grid = tower.grid(*pixels.shape[2:])
    tokens = tower.embed(pixels)
    for block in tower.blocks:
        heads = attend(*tower.project_qkv(block, tower.norm(block, tokens), grid))
        tokens = tower.feed_forward(block, tokens + tower.project_out(block, heads))
    return tokens


class OpenAIBlock(nn.Module):
    """A block with the layout of OpenAI's `clip`: tokens come first, (L, B, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class OpenAITransformer(nn.Module):
    """The blocks, in an `nn.Sequential`."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(OpenAIBlock(width, heads) for _ in range(layers)))

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.resblocks(tokens)
        return result


class OpenAIVisual(nn.Module):
    """An image tower with the layout and the names of OpenAI's `clip`; it gives [CLS] alone."""

    def __init__(self, side: int = 48, patch: int = 16, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = side, EMBED
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = OpenAITransformer(width, layers, 2)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, EMBED))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).mT
        cls = self.class_embedding.expand(len(patches), 1, -1)
        tokens = self.ln_pre(torch.cat([cls, patches], dim=1) + self.positional_embedding)
        tokens = self.transformer(tokens.transpose(0, 1)).transpose(0, 1)
        result: Tensor = self.ln_post(tokens[:, 0]) @ self.proj
        return result


def hugging_face_model(kind: str, layers: int = 4) -> nn.Module:
    """A small model of transformers by the name of its class, in float64 with all weights random."""
    import transformers

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
    }
    vision = {**sizes, "image_size": 48, "patch_size": 16, "projection_dim": EMBED}
    text = {**sizes, "vocab_size": 100, "max_position_embeddings": 16, "pad_token_id": 1}
    text |= {"bos_token_id": 0, "eos_token_id": 2}
    family = "CLIP" if kind.startswith("CLIP") else "Siglip"
    if "Vision" in kind:
        config = getattr(transformers, f"{family}VisionConfig")(**vision)
    else:
        whole = {"projection_dim": EMBED} if family == "CLIP" else {}
        config = getattr(transformers, f"{family}Config")(
            text_config=text, vision_config=vision, **whole
        )
    return randomise(getattr(transformers, kind)(config))


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))
