"""Other vision models beside CLIP: loaded by name, those that cannot be fetched named and left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.errors import WeightsUnavailable
from resclip.models import BUILTIN
from resclip.models.proxy_models import COLOUR, find_proxy
from resclip.segmenter import Segmenter

DINO = "vit_base_patch8_224.dino"
SAM = "samvit_base_patch16.sa1b"


class OtherModels(NamedTuple):
    """Models that give features of pixels in CLIP's normalisation."""

    models: Mapping[str, nn.Module]
    missing: Sequence[str]
    """A sentence for each that was left out."""


def usual_names(model: str, names: Sequence[str]) -> list[str]:
    """These names; for the built-in model, beside which nothing has to be fetched, "colour"."""
    return [COLOUR] if model == BUILTIN else list(names)


def open_models(names: Sequence[str], segmenter: Segmenter, *, need_one: bool) -> OtherModels:
    """The models called `names`, as `find_proxy` takes them, on the segmenter's device.

    Args:
        need_one: whether a study of none of them makes no sense.

    Raises:
        ValueError, TypeError: no such model, or one without patch features.
        WeightsUnavailable: none of several can be fetched, and one is needed.
    """
    models, missing = {}, []
    for name in names:
        try:
            models[name] = find_proxy(
                name,
                mean=segmenter.preparation.mean,
                std=segmenter.preparation.std,
                device=segmenter.device,
                dtype=segmenter.encoder.tower.dtype,
            )
        except WeightsUnavailable as error:
            missing.append(f"{name} is left out: {error}")
    if need_one and missing and not models:
        raise WeightsUnavailable(missing[0].replace(" is left out", "", 1))
    return OtherModels(models, missing)


@torch.no_grad()
def features_on(model: nn.Module, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """A model's features of one image, averaged over the patches of a grid: (h·w, C) of unit length, float32."""
    features = model(pixels).float()
    if tuple(features.shape[2:]) != grid:
        features = F.adaptive_avg_pool2d(features, grid)
    return F.normalize(features[0].flatten(1).T, dim=-1)
