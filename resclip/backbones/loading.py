"""From a name to a CLIP model with its weights and what is needed to feed it.

Knows where models come from: the box, open_clip, Hugging Face. Knows no layout of a tower.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resclip.backbones.families import adapt
from resclip.backbones.hugging_face import import_transformers, load_clip
from resclip.backbones.names import BUILTIN, HUB_PREFIXES, TRANSFORMERS_PREFIX, find_model
from resclip.backbones.reasons import first_line
from resclip.backbones.tower import Tower
from resclip.errors import WeightsUnavailable

Tokenizer = Callable[[list[str]], Tensor]


class LoadedModel(NamedTuple):
    """A CLIP model with what is needed to feed it."""

    model: Any
    """With `encode_text`: (N, context) token ids → (N, E), and `encode_image`."""
    visual: Tower
    """The model's image tower."""
    tokenizer: Tokenizer
    """A list of N prompts → (N, context) token ids."""
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
        name: "builtin" for the model in the box; a name of `list_models`; "hf-hub:ORG/NAME" or "local-dir:FOLDER" for
            a model in open_clip's format; "transformers:ORG/NAME" or "transformers:FOLDER" for a CLIPModel in Hugging
            Face's.
        pretrained: for a plain name, an open_clip pretrained tag, or the path of a local checkpoint: safetensors, or a
            pickle that torch can load with `weights_only`. None: the weights that come with any other name.
        device, dtype: where and in which precision the weights are held.

    Raises:
        ValueError: unknown model or tag (with the valid ones), no weights named for a plain model name, or weights
            named for one that comes with them.
        TypeError: the model found has no tower that can be used.
        ImportError: the model needs transformers, an extra.
        WeightsUnavailable: the weights or the tokenizer cannot be fetched or read.
    """
    brings_weights = name == BUILTIN or name.startswith((*HUB_PREFIXES, TRANSFORMERS_PREFIX))
    if brings_weights and pretrained is not None:
        raise ValueError(f"model {name!r} comes with its weights; leave out pretrained")
    model: Any
    tokenizer: Tokenizer
    if name == BUILTIN:
        from resclip.builtin import load_builtin

        model, tokenizer, mean, std = load_builtin()
    elif name.startswith(TRANSFORMERS_PREFIX):
        model, tokenizer, mean, std = load_clip(name.removeprefix(TRANSFORMERS_PREFIX))
    else:
        if not brings_weights:
            name = find_model(name, pretrained)
        tokenizer = load_tokenizer(name)  # First: a tokenizer that fails costs no large download.
        model = load_open_clip(name, pretrained)
        mean, std = image_statistics(model, name, pretrained)
    tower = adapt(model)
    return LoadedModel(model.to(device, dtype).eval(), tower, tokenizer, mean, std)


def load_open_clip(name: str, pretrained: str | None) -> Any:
    """open_clip's model with its weights, or WeightsUnavailable."""
    import open_clip

    # Some tags were trained with QuickGELU under a model name that says nothing of it ("openai" for one).
    tag = open_clip.get_pretrained_cfg(name, pretrained or "") or {}
    try:
        return open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=bool(tag.get("quick_gelu")),
            weights_only=True,
            require_pretrained=True,
        )
    except Exception as error:
        raise WeightsUnavailable(explain(name, pretrained, error)) from error


def load_tokenizer(name: str) -> Tokenizer:
    """open_clip's tokenizer; many are Hugging Face's (SigLIP, CLIPA, the multilingual models)."""
    import open_clip

    try:
        tokenizer: Tokenizer = open_clip.get_tokenizer(name)
    except ImportError:
        import_transformers()
        raise
    except Exception as error:
        raise WeightsUnavailable(
            f"cannot fetch the tokenizer of {name!r} ({first_line(error)}); check the network"
        ) from error
    return tokenizer


def image_statistics(
    model: Any, name: str, pretrained: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of pixels in [0, 1], that the model was trained with.

    A checkpoint file says nothing of them: what all tags of its model agree on holds for it too (0.5 for SigLIP), and
    where they differ OpenAI's are the likely ones, as open_clip has it.
    """
    import open_clip

    configs = [model.visual.preprocess_cfg]
    if pretrained is not None and Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags] or configs
    stated = {(tuple(config["mean"]), tuple(config["std"])) for config in configs}
    if len(stated) == 1:
        return stated.pop()
    return open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def explain(name: str, pretrained: str | None, error: Exception) -> str:
    """One sentence for a model whose weights could not be loaded, and what to do."""
    source = f"{name!r}" if pretrained is None else f"{name!r} with pretrained {pretrained!r}"
    if pretrained is not None and Path(pretrained).is_file():
        return (
            f"cannot load {source}: {first_line(error)}; the file must be a state dict of this model, "
            "as safetensors or a pickle of tensors alone"
        )
    advice = (
        "check the network, or download them and pass the file's path as pretrained"
        if pretrained is not None
        else "check the name and the network"
    )
    return f"cannot fetch the weights of {source} ({first_line(error)}); {advice}"
