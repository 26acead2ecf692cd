"""Hugging Face's CLIPModel: its tower in steps, its text side as open_clip's models have it, and loading from a folder.

Knows the module layout and the configuration of transformers' CLIP, of versions 4.4x and 5. transformers is an extra
and is imported only inside these functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable, first_line
from resclip.models.tower import Tower, merge_heads, resize_position_embedding, split_heads

INSTALL = 'pip install "resclip[hf]"'
LEGACY_END_OF_TEXT = 2
"""Older configurations say so whatever the tokenizer does; transformers then looks for the largest id, as open_clip."""


class HuggingFaceTower(Tower):
    """The image tower of a `CLIPModel` or `CLIPVisionModelWithProjection`, in steps; see `Tower`.

    For the same weights it gives what open_clip's tower gives, position embeddings at any grid included.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual)
        self.vision: Any = self.visual.vision_model
        embeddings = self.vision.embeddings
        side = embeddings.image_size // embeddings.patch_size
        self.patch_size = (embeddings.patch_size, embeddings.patch_size)
        self.trained_grid = (side, side)
        self.blocks = list(self.vision.encoder.layers)
        self.heads = self.blocks[0].self_attn.num_heads
        self.output_dim = self.visual.visual_projection.out_features
        self.has_cls = True

    @property
    def patch_embedding(self) -> nn.Conv2d:
        convolution: nn.Conv2d = self.vision.embeddings.patch_embedding
        return convolution

    def embed(self, pixels: Tensor) -> Tensor:
        embeddings = self.vision.embeddings
        patches, grid = self.embed_patches(pixels)
        cls = embeddings.class_embedding.expand(len(patches), 1, -1)
        position = resize_position_embedding(
            embeddings.position_embedding.weight, self.trained_grid, grid
        )
        # The library's own spelling.
        tokens: Tensor = self.vision.pre_layrnorm(torch.cat([cls, patches], dim=1) + position)
        return tokens

    def norm(self, block: Any, tokens: Tensor) -> Tensor:
        normed: Tensor = block.layer_norm1(tokens)
        return normed

    def project_qkv(
        self, block: Any, normed: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention = block.self_attn
        return (
            split_heads(attention.q_proj(normed), self.heads),
            split_heads(attention.k_proj(normed), self.heads),
            split_heads(attention.v_proj(normed), self.heads),
        )

    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        tokens: Tensor = block.self_attn.out_proj(merge_heads(heads))
        return tokens

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        output: Tensor = tokens + block.mlp(block.layer_norm2(tokens))
        return output

    def head(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.visual.visual_projection(self.vision.post_layernorm(tokens))
        return features


class HuggingFaceClip(nn.Module):
    """A `CLIPModel` with the methods of open_clip's models: `visual`, `encode_image`, `encode_text`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.visual = HuggingFaceTower(model)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(N, context) token ids, as the tokenizer pads them → (N, E)."""
        return pooled(self.visual.visual.get_text_features(input_ids=tokens))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels of the trained size → (B, E)."""
        return pooled(self.visual.visual.get_image_features(pixel_values=pixels))


class HuggingFaceTokenizer:
    """A list of prompts → (N, context) token ids, cut or padded to the model's context."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length

    def __call__(self, prompts: list[str]) -> Tensor:
        # No attention mask is needed: text attends backwards alone, so what pads the end changes nothing before it.
        ids: Tensor = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]
        return ids


class HuggingFaceParts(NamedTuple):
    """What a folder or repository holds."""

    model: HuggingFaceClip
    tokenizer: HuggingFaceTokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]; OpenAI's where no image processor is stored."""


def is_clip(model: Any) -> bool:
    """Whether this is one of transformers' CLIP models with a projected image tower; told without the import."""
    kinds = {
        kind.__name__
        for kind in type(model).__mro__
        if kind.__module__ == "transformers.models.clip.modeling_clip"
    }
    return not kinds.isdisjoint({"CLIPModel", "CLIPVisionModelWithProjection"})


def pooled(features: Any) -> Tensor:
    """What get_…_features gives: the projected embedding itself up to transformers 4, and within an output in 5."""
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def load_clip(source: str) -> HuggingFaceParts:
    """Load a CLIPModel with its tokenizer, on the CPU.

    Args:
        source: a repository on the hub, or a folder with what `save_pretrained` writes.

    Raises:
        ImportError: transformers is not installed.
        TypeError: a model of another kind.
        WeightsUnavailable: it cannot be fetched or read, lacks weights, or its tokenizer ends texts otherwise than its
            configuration says.
    """
    transformers = import_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(unavailable(source, error)) from error
    if config.model_type != "clip":
        raise TypeError(
            f"'transformers:{source}' is a model of type {config.model_type!r}; it must be a CLIPModel ('clip'). "
            "For SigLIP and EVA use open_clip's names, such as 'ViT-B-16-SigLIP2' or 'EVA02-B-16'"
        )
    try:
        # weights_only: a pickle must not run code.
        model, report = transformers.CLIPModel.from_pretrained(
            source, config=config, weights_only=True, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        processor = load_image_processor(source)
    except Exception as error:
        raise WeightsUnavailable(unavailable(source, error)) from error
    missing = sorted(report["missing_keys"])
    if missing:  # The library fills them with noise and warns.
        raise WeightsUnavailable(
            f"cannot load 'transformers:{source}': {len(missing)} weights are missing, {missing[0]} first; "
            "it must hold a whole CLIPModel"
        )
    text = model.config.text_config
    if text.eos_token_id not in (LEGACY_END_OF_TEXT, tokenizer.eos_token_id):
        raise WeightsUnavailable(
            f"'transformers:{source}' ends texts with id {tokenizer.eos_token_id}, but its configuration reads the "
            f"embedding at id {text.eos_token_id}: correct eos_token_id of text_config in config.json"
        )
    return HuggingFaceParts(
        HuggingFaceClip(model),
        HuggingFaceTokenizer(tokenizer, text.max_position_embeddings),
        tuple(processor.image_mean),
        tuple(processor.image_std),
    )


def load_image_processor(source: str) -> Any:
    """The stored one, which knows `image_mean` and `image_std`, or OpenAI's where none is stored."""
    transformers = import_transformers()
    try:
        return transformers.CLIPImageProcessor.from_pretrained(source)
    except OSError:  # The model has just come from there, so it is the file that is not.
        return transformers.CLIPImageProcessor()


def import_transformers() -> Any:
    """The library, or an ImportError that says how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"this model needs transformers: {INSTALL}") from error
    return transformers


def unavailable(source: str, error: Exception) -> str:
    """One sentence for a model that could not be loaded, and what to do."""
    advice = (
        "the folder must hold what save_pretrained writes for a CLIPModel and its tokenizer"
        if Path(source).is_dir()
        else "check the name and the network, or pass a folder that holds the model"
    )
    return f"cannot load 'transformers:{source}' ({first_line(error)}); {advice}"
