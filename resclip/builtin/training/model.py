"""The built-in CLIP as training needs it: its configuration, one forward pass for all losses, and its export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor, nn

from resclip.builtin import CONFIG_NAME, WEIGHTS_NAME, WORDS_NAME
from resclip.builtin.tokenizer import WordTokenizer
from resclip.io.files import write_atomically

# CLIP's own statistics, so that images are normalised as for any CLIP.
MEAN, STD = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
# Blocks of a tower of 12, counted from 1; a shallower tower uses the same fractions of its depth.
MIDDLE_BLOCKS = (6, 7, 8, 9)


def configuration(
    vocab_size: int, layers: int = 12, width: int = 128, size: int = 112
) -> dict[str, Any]:
    """open_clip's model_cfg of the small CLIP: patches of 8, heads of 64."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": size, "layers": layers, "width": width, "head_width": 64, "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 32, "vocab_size": vocab_size, "width": 128, "heads": 2, "layers": 2,
        },
    }  # fmt: skip


def build(config: Mapping[str, Any]) -> CLIP:
    """The model of a configuration, with fresh weights."""
    return CLIP(
        embed_dim=config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=config["text_cfg"]
    )


def middle_blocks(depth: int) -> tuple[int, ...]:
    """The 1-based blocks whose mean attention is RCS's map, for a tower of `depth` blocks."""
    return tuple(dict.fromkeys(max(1, round(block * depth / 12)) for block in MIDDLE_BLOCKS))


def _heads(x: Tensor, heads: int) -> Tensor:
    return cast(Tensor, x.unflatten(-1, (heads, -1))).transpose(1, 2)  # (B, A, L, d)


def image_views(model: CLIP, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the image tower on (B, 3, H, W) pixels.

    Returns:
        The image embeddings (B, E), as by `model.encode_image`, and by name three embeddings (B, n, E) of each patch,
        made of the final block's values (no residual, no MLP, then LN_post and projection): `value` is the patch's own,
        `key` is averaged by the final block's key-key attention, `middle` by the mean query-key attention of the
        middle blocks.
    """
    visual = cast(Any, model.visual)
    blocks = visual.transformer.resblocks
    wanted = {block - 1 for block in middle_blocks(len(blocks))}
    x = visual._embeds(pixels)
    middle: Tensor | None = None
    for index, block in enumerate(blocks):
        attention = block.attn
        heads = attention.num_heads
        normed = block.ln_1(x)
        q, k, v = (
            _heads(part, heads)
            for part in F.linear(normed, attention.in_proj_weight, attention.in_proj_bias).chunk(
                3, -1
            )
        )
        if index in wanted:
            weights = _softmax(q, k)
            middle = weights if middle is None else middle + weights
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        if index == len(blocks) - 1:
            break
        x = x + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    if middle is None:
        raise ValueError(f"no middle block in a tower of {len(blocks)} blocks")
    middle = middle / len(wanted)

    first = x[:, 0] + attention.out_proj(mixed[:, :, 0].flatten(1))
    first = first + block.mlp(block.ln_2(first))
    images = visual.ln_post(first) @ visual.proj

    views = {"value": v, "key": _softmax(k, k) @ v, "middle": middle @ v}
    return images, {
        name: visual.ln_post(attention.out_proj(view[:, :, 1:].transpose(1, 2).flatten(2)))
        @ visual.proj
        for name, view in views.items()
    }


def text_embeddings(model: CLIP, tokens: Tensor) -> Tensor:
    """(N, length) ids → (N, E), as by `model.encode_text`, but without the padding past the longest text."""
    length = int((tokens > 0).sum(1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=cast(Tensor, model.attn_mask)[:length, :length])
    ends = model.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(1)]
    return cast(Tensor, ends @ cast(Tensor, model.text_projection))


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(-1)


def export(
    directory: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    tokenizer: WordTokenizer,
) -> int:
    """Write a folder that `open_clip.create_model_and_transforms("local-dir:...")` loads; returns its size in bytes."""
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    stored = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n"
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / CONFIG_NAME, stored.encode())
    write_atomically(directory / WORDS_NAME, tokenizer.as_json().encode())
    halves = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in weights.items()
    }
    write_atomically(directory / WEIGHTS_NAME, save(halves, metadata={"format": "pt"}))
    return sum(
        (directory / name).stat().st_size for name in (CONFIG_NAME, WORDS_NAME, WEIGHTS_NAME)
    )


def decayed_and_plain(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weight matrices, which weight decay applies to, and all other parameters."""
    plain_names = (
        "positional_embedding",
        "class_embedding",
        "token_embedding.weight",
        "logit_scale",
    )
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or name.endswith(plain_names)
        (plain if is_plain else decayed).append(parameter)
    return decayed, plain
