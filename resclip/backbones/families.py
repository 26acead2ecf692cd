"""Which adapter fits a model. Knows the families' classes, and nothing of what is inside them."""

from __future__ import annotations

from typing import Any

from torch import nn

from resclip.backbones import hugging_face
from resclip.backbones.tower import ADVICE, Tower


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
        from resclip.backbones.open_clip_vit import OpenClipTower

        return OpenClipTower(tower)
    if isinstance(tower, TimmModel):
        from resclip.backbones.timm_vit import TimmTower

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
