"""The recorded outputs of the released program: its random vision tower and its cases."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import QuickGELU
from open_clip.transformer import VisionTransformer

from resclip import RCS, SFR, DenseEncoder

FOLDER = Path(__file__).parent / "goldens"


@functools.cache
def cases() -> dict[str, dict[str, Any]]:
    """Settings of every case by name."""
    return {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text())["cases"]}


@functools.cache
def arrays(name: str) -> dict[str, torch.Tensor]:
    """Recorded arrays of a case."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def tower(dtype: torch.dtype = torch.float32, heads: int = 2) -> VisionTransformer:
    """A released tower of its own."""
    return copy.deepcopy(released(heads)).to(dtype)


@functools.cache
def released(heads: int) -> VisionTransformer:
    """The released tower, in open_clip's class."""
    visual = VisionTransformer(
        image_size=224,
        patch_size=16,
        width=128,
        layers=12,
        heads=heads,
        mlp_ratio=4.0,
        output_dim=64,
        act_layer=QuickGELU,
    )
    visual.load_state_dict({key: value.float() for key, value in arrays("vit").items()})
    return visual.eval()


def encoder(case: dict[str, Any], implementation: str, **changes: Any) -> DenseEncoder:
    """A `DenseEncoder` with a case's settings."""
    rcs = sfr = None
    if case["rcs"]:
        temperature, weight = case["rcs_temperature_lambda"]
        rcs = RCS(layers=(6, 7, 8, 9), weight=weight, temperature=temperature)
    if case["sfr"]:
        temperature, weight = case["sfr_temperature_lambda"]
        sfr = SFR(
            weight=weight,
            temperature=temperature,
            label_threshold=case["label_threshold"],
            smoothing_std=case["gaussian_std"],
            connectivity="prefix" if case["path_decay"] else None,
            logit_scale=case["logit_scale"],
        )
    settings = {
        "base": case["base"],
        "rcs": rcs,
        "sfr": sfr,
        "neighbourhood_std": case["gaussian_std"],
        "final_block": case["final_block"],
        "implementation": implementation,
        **changes,
    }
    return DenseEncoder(tower(settings.pop("dtype", torch.float32)), **settings)


@functools.cache
def predictor_cases() -> dict[str, dict[str, Any]]:
    """Settings of the cases of GroupViT's rules and of ReCo, by name."""
    text = (FOLDER / "baselines/predictors.json").read_text()
    return {case["name"]: case for case in json.loads(text)["cases"]}


def predictor_arrays(name: str) -> dict[str, torch.Tensor]:
    """Recorded arrays of one of them."""
    return arrays(f"baselines/{name}")
