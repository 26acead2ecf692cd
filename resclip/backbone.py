"""The only file that imports open_clip: loading models, and the parts of a vision tower that the encoder runs.

Knows open_clip's names and module layout. Knows nothing of methods, segmentation or windows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable

Tokenizer = Callable[[list[str]], Tensor]
BUILTIN = "builtin"
LOCAL_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class VisionTower(nn.Module):
    """Embedding, blocks and head of an open_clip `VisionTransformer`, callable one by one.

    Tokens are (B, L, D) with [CLS] first. The wrapped modules are used as they are: nothing is copied or changed.

    Args:
        visual: open_clip's `VisionTransformer` with plain residual attention blocks.

    Raises:
        TypeError: another kind of tower; the message names what can be used instead.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        check_tower(visual)
        self.visual = cast(Any, visual.eval())  # nn.Module's attributes have no types.
        self.patch_size: tuple[int, int] = tuple(self.visual.patch_size)
        self.trained_grid: tuple[int, int] = tuple(self.visual.grid_size)
        self.blocks: list[Any] = list(self.visual.transformer.resblocks)
        self.heads: int = self.blocks[0].attn.num_heads
        self.output_dim: int = self.visual.output_dim

    @property
    def depth(self) -> int:
        """Number of blocks M."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.visual.conv1.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        dtype: torch.dtype = self.visual.conv1.weight.dtype
        return dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) in patches of a picture of height × width pixels; a remainder is dropped by the convolution."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels → (B, 1 + h·w, D) tokens ready for block 1."""
        visual = self.visual
        patches = visual.conv1(pixels)
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        cls = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        position = resize_position_embedding(
            visual.positional_embedding, self.trained_grid, grid
        ).to(patches.dtype)
        tokens: Tensor = visual.ln_pre(torch.cat([cls, patches], dim=1) + position)
        return tokens

    def project_qkv(self, block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of LN1(tokens), each (B, heads, L, d)."""
        attention = block.attn
        projected = F.linear(
            block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias
        ).unflatten(-1, (3, self.heads, -1))  # [B, L, 3, A, d]
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        return query, key, value

    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        """(B, heads, L, d) attended values → (B, L, D), layer scale included where the model has one."""
        output: Tensor = block.ls_1(block.attn.out_proj(heads.transpose(1, 2).flatten(2)))
        return output

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        """tokens + MLP(LN2(tokens))."""
        output: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        return output

    def head(self, tokens: Tensor) -> Tensor:
        """LN_post and the output projection on every token: (B, L, D) → (B, L, E)."""
        tokens = self.visual.ln_post(tokens)
        return tokens if self.visual.proj is None else tokens @ self.visual.proj


def resize_position_embedding(
    embedding: Tensor, trained: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """(1 + trained patches, D) → (1 + grid patches, D): bicubic, [CLS]'s row left alone.

    The scale factors (h + 0.1)/g and (w + 0.1)/g themselves go to the interpolation, as in the released program.
    """
    if grid == trained:
        return embedding
    cls, patches = embedding[:1], embedding[1:]
    planes = patches.unflatten(0, trained).permute(2, 0, 1).unsqueeze(0)
    scale = [(new + 0.1) / old for new, old in zip(grid, trained, strict=True)]
    resized = F.interpolate(
        planes.float() if planes.dtype in (torch.float16, torch.bfloat16) else planes,
        scale_factor=scale,
        mode="bicubic",
        align_corners=False,
        recompute_scale_factor=False,
    )
    return torch.cat([cls, resized.flatten(2).squeeze(0).T.to(cls.dtype)])


def check_tower(visual: nn.Module) -> None:
    """TypeError unless `visual` is a vision transformer whose final block can be rebuilt."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    advice = "use a model with a plain vision transformer, such as ViT-B-16 or ViT-L-14"
    if not isinstance(visual, VisionTransformer):
        raise TypeError(
            f"visual must be open_clip's VisionTransformer; got {type(visual).__name__}: {advice}"
        )
    blocks = visual.transformer.resblocks
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise TypeError(
            f"the tower's blocks are {type(blocks[0]).__name__}, whose attention is not CLIP's: {advice}"
        )
    if visual.attn_pool is not None:
        raise TypeError(f"the tower pools by attention, so patches have no output space: {advice}")


class LoadedModel(NamedTuple):
    """A CLIP model with what is needed to feed it."""

    model: Any
    """open_clip's CLIP: `visual`, `encode_text`, `encode_image`."""
    tokenizer: Tokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""


def load_model(
    name: str,
    pretrained: str | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load a CLIP model by name, in eval mode.

    Args:
        name: "builtin" for the model in the box, any open_clip model name, or an open_clip hub name ("hf-hub:…").
        pretrained: an open_clip pretrained tag, or the path of a local checkpoint: safetensors, or a pickle that
            torch can load with `weights_only`. None: the weights that come with a "builtin" or hub name.
        device, dtype: where and in which precision the weights are held.

    Raises:
        ValueError: unknown model or tag (with the valid ones), or no weights named for a plain model name.
        WeightsUnavailable: the weights cannot be fetched or read.
    """
    if name == BUILTIN:
        if pretrained is not None:
            raise ValueError("the built-in model comes with its weights; leave out pretrained")
        from resclip.builtin import load_builtin

        model, tokenizer, mean, std = load_builtin()
        return LoadedModel(model.to(device, dtype).eval(), tokenizer, mean, std)

    import open_clip

    if not name.startswith(("hf-hub:", "local-dir:")):
        check_names(name, pretrained)
    # Some tags were trained with QuickGELU under a model name that says nothing of it ("openai" for one).
    tag = open_clip.get_pretrained_cfg(name, pretrained or "") or {}
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=bool(tag.get("quick_gelu")),
            weights_only=True,
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        raise WeightsUnavailable(explain(name, pretrained, error)) from error
    check_tower(model.visual)
    mean, std = image_statistics(model)
    return LoadedModel(model.to(device, dtype).eval(), tokenizer, mean, std)


def check_names(name: str, pretrained: str | None) -> None:
    """ValueError for an unknown model, a missing or unknown tag, or a checkpoint that is not there."""
    import open_clip

    models = dict(list_models())
    known = {plain(model): model for model in models}
    if name not in models and plain(name) not in known:
        if name in open_clip.list_models():
            raise ValueError(
                f"model {name!r} has no plain vision transformer tower; "
                "use one that has, such as 'ViT-B-16' or 'ViT-L-14'"
            )
        raise ValueError(f"unknown model {name!r}; use 'builtin' or one of: {', '.join(models)}")
    tags = models[known[plain(name)]]
    if pretrained is None:
        raise ValueError(
            f"model {name!r} needs pretrained weights: a tag of {', '.join(tags) or 'none (no tags)'}, "
            "or the path of a local checkpoint"
        )
    is_path = pretrained.endswith(LOCAL_CHECKPOINTS) or "/" in pretrained
    if is_path and not Path(pretrained).is_file():
        raise ValueError(
            f"no checkpoint at {pretrained!r}; pass a file, or a tag: {', '.join(tags)}"
        )
    if not is_path and not Path(pretrained).is_file() and pretrained not in tags:
        raise ValueError(
            f"model {name!r} has no pretrained tag {pretrained!r}; it has: {', '.join(tags) or 'none'}"
        )


def explain(name: str, pretrained: str | None, error: Exception) -> str:
    """One sentence for a model whose weights could not be loaded, and what to do."""
    source = f"{name!r}" if pretrained is None else f"{name!r} with pretrained {pretrained!r}"
    if pretrained is not None and Path(pretrained).is_file():
        reason = first_line(error)
        return (
            f"cannot load {source}: {reason}; the file must be a state dict of this model, "
            "as safetensors or a pickle of tensors alone"
        )
    return (
        f"cannot fetch the weights of {source} ({first_line(error)}); "
        "check the network, or download them and pass the file's path as pretrained"
    )


def first_line(error: Exception) -> str:
    """The gist of an error: its type and the first sentence of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].split(". ")[0][:200] if lines else "no message"
    return f"{type(error).__name__}: {text}"


def plain(name: str) -> str:
    """Names that differ only in "/" and "-" mean one model."""
    return name.replace("/", "-").lower()


def list_models() -> list[tuple[str, list[str]]]:
    """open_clip's models with a plain vision transformer tower, each with its pretrained tags."""
    import open_clip

    found = []
    for name in open_clip.list_models():
        config: dict[str, Any] = open_clip.get_model_config(name) or {}
        vision = config.get("vision_cfg", {})
        layers = vision.get("layers")
        special = ("timm_model_name", "attentional_pool", "block_type", "qk_norm", "scale_heads")
        if isinstance(layers, int) and not any(vision.get(key) for key in special):
            found.append((name, open_clip.list_pretrained_tags_by_model(name)))
    return found


def image_statistics(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels in [0, 1], that the model was trained with."""
    import open_clip

    visual = model.visual
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return tuple(mean), tuple(std)


def imagenet_templates() -> tuple[str, ...]:
    """CLIP's 80 ImageNet prompt templates, each with "{}" for the class name."""
    import open_clip

    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def quiet_logging() -> None:
    """Keep open_clip's progress messages out of a command's output."""
    logging.getLogger().setLevel(logging.ERROR)
