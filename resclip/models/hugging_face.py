"""Hugging Face's CLIP and SigLIP models: the tower in steps, its text encoder behind open_clip's interface, loading.

It works with versions 4.4x and 5 of transformers, which is an extra and is imported only when a model is loaded.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable, first_sentence
from resclip.models.tower import (
    RELEASED,
    Tower,
    check_blocks,
    hook_of,
    merge_heads,
    resize_position_embedding,
    split_heads,
)

if TYPE_CHECKING:
    from typing_extensions import Self

INSTALL = 'pip install "resclip[hf]"'
MODULES = (
    "transformers.models.clip.modeling_clip",
    "transformers.models.siglip.modeling_siglip",
)
"""Where transformers defines the models that `HuggingFaceTower` runs in steps, and all their layers."""
LEGACY_END_OF_TEXT = 2
"""Value of eos_token_id in older configurations, whatever the tokenizer does.

transformers then reads the embedding at the largest id, as open_clip does.
"""


class HuggingFaceTower(Tower):
    """The image tower of a CLIP or SigLIP model of transformers, with or without its text side, in steps; see `Tower`.

    For the same weights it gives what open_clip's tower gives, position embeddings at any grid included.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual)
        check_blocks(self.block_list)
        embeddings = self.vision.embeddings
        side = embeddings.image_size // embeddings.patch_size
        self.patch_size = (embeddings.patch_size, embeddings.patch_size)
        self.trained_grid = (side, side)
        self.heads = self.blocks[0].self_attn.num_heads
        self.has_cls = hasattr(embeddings, "class_embedding")
        self.output_dim = (
            self.width if self.projection is None else self.visual.config.projection_dim
        )
        if self.has_cls and self.projection is None:
            self.text_obstacle = (
                "a CLIPVisionModel has no projection into the text's space: use CLIPVisionModelWithProjection "
                "or CLIPModel"
            )
        elif not self.has_cls and self.pool is None:
            self.text_obstacle = (
                "this SigLIP model was made without its pooling head (vision_use_head=False), so its features are "
                "not in the text's space"
            )

    def on(self, entrance: nn.Module) -> Self:
        other = super().on(entrance)
        if other is not self:
            # The entrance lies within the model that has the projection, of which no replica passes by.
            vars(other)["outer"] = self.visual
        return other

    @property
    def vision(self) -> Any:
        """The module that has the embeddings, the encoder and the final norm."""
        vision = self.visual
        while not hasattr(vision, "embeddings"):
            vision = vision.vision_model
        return vision

    @property
    def projection(self) -> Any:
        """CLIP's projection into the text's space; None where the model has none."""
        return getattr(vars(self).get("outer", self.visual), "visual_projection", None)

    @property
    def pool(self) -> Any:
        """SigLIP's pooling head; None where the model has none."""
        return getattr(self.vision, "head", None)

    @property
    def block_list(self) -> Any:
        return self.vision.encoder.layers

    @property
    def entrance(self) -> nn.Module:
        entrance: nn.Module = self.vision
        return entrance

    @property
    def patch_embedding(self) -> nn.Module:
        embedding: nn.Module = self.vision.embeddings.patch_embedding
        return embedding

    def host_parts(self) -> Iterable[tuple[str, nn.Module]]:
        return [("model", self.visual)]

    def head_parts(self) -> list[nn.Module]:
        return [part for part in (self.pool, self.projection) if part is not None]

    def called_parts(self) -> Iterator[nn.Module]:
        vision = self.vision
        yield from (self.patch_embedding, vision.post_layernorm)
        # The other side of the model runs by itself.
        for name in ("text_model", "text_projection"):
            if hasattr(self.visual, name):
                yield getattr(self.visual, name)
        if self.has_cls:
            yield vision.pre_layrnorm  # transformers spells it so.
        if self.projection is not None:
            yield self.projection
        for block in self.blocks:
            attention = block.self_attn
            yield from (block.layer_norm1, block.layer_norm2, block.mlp)
            yield from (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
        if self.pool is not None:
            yield from (self.pool.layernorm, self.pool.mlp)

    def knows(self, kind: type[nn.Module]) -> bool:
        return super().knows(kind) or kind.__module__ in MODULES or kind is nn.Embedding

    def attention(self, block: Any) -> nn.Module:
        attention: nn.Module = block.self_attn
        return attention

    def embed(self, pixels: Tensor, position: str = RELEASED) -> Tensor:
        embeddings = self.vision.embeddings
        tokens, grid = self.embed_patches(pixels)
        if self.has_cls:
            cls = embeddings.class_embedding.expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([cls, tokens], dim=1)
        tokens = tokens + resize_position_embedding(
            embeddings.position_embedding.weight,
            self.trained_grid,
            grid,
            has_cls=self.has_cls,
            position=position,
        )
        return self.vision.pre_layrnorm(tokens) if self.has_cls else tokens

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

    def query_key_layers(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.self_attn.q_proj, block.self_attn.k_proj

    def as_heads(self, projected: Tensor, grid: tuple[int, int]) -> Tensor:
        return split_heads(projected, self.heads)

    def attention_output(self, block: Any, heads: Tensor) -> Tensor:
        tokens: Tensor = block.self_attn.out_proj(merge_heads(heads))
        return tokens

    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        output: Tensor = tokens + block.mlp(block.layer_norm2(tokens))
        return output

    def block_output(self, block: Any, tokens: Tensor) -> Any:
        # Layers return a tuple in transformers 4, and the tokens themselves in 5.
        parameters = inspect.signature(type(block).forward).parameters
        return (tokens,) if "output_attentions" in parameters else tokens

    def head(self, tokens: Tensor) -> Tensor:
        tokens = self.vision.post_layernorm(tokens)
        if self.pool is not None:
            tokens = pool_alone(self.pool, tokens)
        if self.projection is None:
            return tokens
        if "outer" in vars(self):
            if type(self.projection) is not nn.Linear or hook_of(self.projection):
                raise TypeError(
                    "in DataParallel the model's visual_projection must be a plain nn.Linear without hooks: merge what "
                    "was put on it, or use one device"
                )
            return F.linear(tokens, self.projection.weight.to(tokens.device))
        features: Tensor = self.projection(tokens)
        return features


def pool_alone(pool: Any, tokens: Tensor) -> Tensor:
    """SigLIP's pooling head, applied to every token alone: (B, L, D) → (B, L, D).

    A softmax over one key is 1, whatever the query, so what remains of the attention is its value and output
    projections; the pool's own MLP follows, with its residual.
    """
    attention = pool.attention
    width = attention.embed_dim
    value = F.linear(
        tokens, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    )
    projected = F.linear(value, attention.out_proj.weight, attention.out_proj.bias)
    pooled: Tensor = projected + pool.mlp(pool.layernorm(projected))
    return pooled


class HuggingFaceClip(nn.Module):
    """A `CLIPModel` or `SiglipModel` with open_clip's interface: `visual`, `encode_image`, `encode_text`."""

    def __init__(self, model: nn.Module, tower: Tower | None = None) -> None:
        super().__init__()
        self.visual = HuggingFaceTower(model) if tower is None else tower

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(N, context) token ids, padded by the tokenizer → (N, E)."""
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
        # No attention mask is needed: text attends backwards only, so padding at the end changes nothing before it.
        ids: Tensor = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )["input_ids"]
        return ids


def statistics(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that transformers' processors use for this family by default."""
    transformers = import_transformers()
    family = (
        transformers.SiglipImageProcessor if is_siglip(model) else transformers.CLIPImageProcessor
    )
    processor = family()
    return tuple(processor.image_mean), tuple(processor.image_std)


def is_siglip(model: Any) -> bool:
    """Whether a model that `is_clip` accepts is a SigLIP."""
    return any(kind.__module__ == MODULES[1] for kind in type(model).__mro__)


def fit_tokenizer(tokenizer: Any, model: Any) -> HuggingFaceTokenizer:
    """A tokenizer of transformers in the length that a model's text side takes."""
    return HuggingFaceTokenizer(tokenizer, model.config.text_config.max_position_embeddings)


def find_tokenizer(model: Any) -> HuggingFaceTokenizer:
    """The tokenizer of the name or folder that a model came from.

    Raises:
        ValueError: it came from none.
        WeightsUnavailable: it cannot be read.
    """
    source = model.config.name_or_path
    if not source:
        raise ValueError(
            "this model was not loaded from a name or folder, so its tokenizer is not known: pass tokenizer="
        )
    transformers = import_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise WeightsUnavailable(
            f"cannot load the tokenizer of {source!r} ({first_sentence(error)}); pass tokenizer="
        ) from error
    return fit_tokenizer(tokenizer, model)


class HuggingFaceParts(NamedTuple):
    """What is loaded from a folder or repository."""

    model: HuggingFaceClip
    tokenizer: HuggingFaceTokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation per channel of pixels in [0, 1]; OpenAI's if no image processor is stored."""


def is_clip(model: Any) -> bool:
    """Whether this is a CLIP or SigLIP model of transformers with an image tower; does not import transformers."""
    names = {kind.__name__ for kind in type(model).__mro__ if kind.__module__ in MODULES}
    return not names.isdisjoint(
        {
            "CLIPModel",
            "CLIPVisionModel",
            "CLIPVisionModelWithProjection",
            "SiglipModel",
            "SiglipVisionModel",
        }
    )


def pooled(features: Any) -> Tensor:
    """The projected embedding, which get_…_features returns itself in transformers 4 and within an output in 5."""
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def load_clip(source: str) -> HuggingFaceParts:
    """Load a CLIPModel with its tokenizer, on the CPU.

    Args:
        source: a repository on the hub, or a folder with what `save_pretrained` writes.

    Raises:
        ImportError: transformers is not installed.
        TypeError: a model of another kind.
        WeightsUnavailable: it cannot be fetched or read, lacks weights, or its tokenizer ends texts with another
            id than its configuration says.
    """
    transformers = import_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
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
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
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
    """The stored image processor, with `image_mean` and `image_std`, or OpenAI's where none is stored."""
    transformers = import_transformers()
    try:
        return transformers.CLIPImageProcessor.from_pretrained(source)
    except OSError:  # The model was just read from there, so only this file is missing.
        return transformers.CLIPImageProcessor()


@contextlib.contextmanager
def no_questions() -> Iterator[None]:
    """Within it transformers refuses the code of a repository or folder at once, instead of asking on stdin.

    For what open_clip loads by it, without a way to say so.
    """
    # It is there where something of transformers has been imported; open_clip imports it at its own import.
    try:
        from transformers import dynamic_module_utils
    except ImportError:
        yield
        return
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def import_transformers() -> Any:
    """The package transformers, or an ImportError that says how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"this model needs transformers: {INSTALL}") from error
    return transformers


def unavailable(source: str, error: Exception) -> str:
    """One sentence on why a model could not be loaded, and what to do."""
    advice = (
        "the folder must hold what save_pretrained writes for a CLIPModel and its tokenizer"
        if Path(source).is_dir()
        else "check the name and the network, or pass a folder that holds the model"
    )
    return f"cannot load 'transformers:{source}' ({first_sentence(error)}); {advice}"
