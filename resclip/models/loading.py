"""From a name to a CLIP model with its weights and what is needed to feed it.

Knows where models come from: the box, open_clip, Hugging Face. Knows no layout of a tower.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable, first_line
from resclip.models import hugging_face
from resclip.models.hugging_face import import_transformers, load_clip
from resclip.models.tower import ADVICE, Tower


def adapt(visual: Any) -> Tower:
    """The tower of a CLIP model, in steps; its modules are used as they are, in eval mode.

    Args:
        visual: open_clip's `VisionTransformer`, or its `TimmModel` around a plain timm vision transformer; an open_clip
            model that has one of these as its `visual`; Hugging Face's `CLIPModel` or `CLIPVisionModelWithProjection`;
            or a `Tower`, which is returned as it is.

    Raises:
        TypeError: anything else, or a tower whose final block cannot be rebuilt; the message names models that work.
    """
    if isinstance(visual, Tower):
        return visual
    if hugging_face.is_clip(visual):
        return hugging_face.HuggingFaceTower(visual)
    tower = getattr(visual, "visual", visual)  # open_clip's models hold their tower there.
    if isinstance(tower, Tower):
        return tower

    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(tower, VisionTransformer):
        from resclip.models.open_clip_vit import OpenClipTower

        return OpenClipTower(tower)
    if isinstance(tower, TimmModel):
        from resclip.models.timm_vit import TimmTower

        return TimmTower(tower)
    if isinstance(tower, ModifiedResNet):
        raise TypeError(f"the tower is a ModifiedResNet, a convolutional network: {ADVICE}")
    raise TypeError(
        "visual must be an open_clip model or its VisionTransformer or TimmModel, or Hugging Face's CLIPModel or "
        f"CLIPVisionModelWithProjection; got {describe(tower)}: {ADVICE}"
    )


def describe(something: Any) -> str:
    """What came, in words: a module's class with its library, or a type's name."""
    kind = type(something)
    if isinstance(something, nn.Module):
        return f"{kind.__name__} of {kind.__module__.partition('.')[0]}"
    return kind.__name__


BUILTIN = "builtin"
HUB_PREFIXES = ("hf-hub:", "local-dir:")
"""Names by which open_clip finds a configuration together with its weights."""
TRANSFORMERS_PREFIX = "transformers:"
"""A name or folder of a Hugging Face CLIPModel follows."""
LOCAL_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

TIMM_MODULES = ("vision_transformer", "eva")
NOT_PLAIN = {
    "eva02_enormous_patch14_clip_224",  # Its blocks norm after the attention.
    "vit_base_mci_224",  # A convolutional network makes its patches.
}
"""timm's models of these modules whose towers cannot be taken apart nevertheless."""


def list_models() -> list[tuple[str, list[str]]]:
    """open_clip's models whose towers `adapt` takes, each with its pretrained tags."""
    import open_clip

    return [
        (name, open_clip.list_pretrained_tags_by_model(name))
        for name in open_clip.list_models()
        if has_plain_tower(open_clip.get_model_config(name) or {})
    ]


def has_plain_tower(config: dict[str, Any]) -> bool:
    """Whether a configuration's image tower is one that `adapt` takes, without building it."""
    from timm.models import is_model_in_modules

    vision = config.get("vision_cfg", {})
    timm_name = vision.get("timm_model_name")
    if timm_name:
        return timm_name not in NOT_PLAIN and is_model_in_modules(timm_name, TIMM_MODULES)
    if vision.get("scaled_cosine_attn") or isinstance(vision.get("attentional_pool"), str):
        return False
    return isinstance(vision.get("layers"), int)  # A ResNet has a list of them.


def find_model(name: str, pretrained: str | None) -> str:
    """open_clip's own spelling of a model's name.

    Raises:
        ValueError: an unknown model, a missing or unknown tag, a checkpoint that is not there.
    """
    import open_clip

    models = dict(list_models())
    known = {plain(model): model for model in models}
    if plain(name) not in known:
        if plain(name) in map(plain, open_clip.list_models()):
            raise ValueError(f"model {name!r} has no plain vision transformer tower; {ADVICE}")
        raise ValueError(
            f"unknown model {name!r}; use 'builtin', 'hf-hub:…' for a model of open_clip's on the hub, "
            f"'transformers:…' for a Hugging Face CLIPModel, or one of: {', '.join(models)}"
        )
    found = known[plain(name)]
    tags = models[found]
    if pretrained is None:
        raise ValueError(
            f"model {name!r} needs pretrained weights: a tag of {', '.join(tags) or 'none (no tags)'}, "
            "or the path of a local checkpoint"
        )
    if Path(pretrained).is_file() or pretrained in tags:
        return found
    if pretrained.endswith(LOCAL_CHECKPOINTS) or "/" in pretrained:
        raise ValueError(
            f"no checkpoint at {pretrained!r}; pass a file, or a tag: {', '.join(tags)}"
        )
    raise ValueError(
        f"model {name!r} has no pretrained tag {pretrained!r}; it has: {', '.join(tags) or 'none'}"
    )


def plain(name: str) -> str:
    """Names that differ only in "/" and "-" mean one model."""
    return name.replace("/", "-").lower()


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
        name: "builtin" for the built-in model; a name of `list_models`; "hf-hub:ORG/NAME" or "local-dir:FOLDER" for
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
