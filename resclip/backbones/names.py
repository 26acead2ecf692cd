"""open_clip's model names: which have a tower that can be used, with which weights, and what is wrong with a name.

Knows open_clip's configurations. Builds and loads nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resclip.backbones.tower import ADVICE

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
