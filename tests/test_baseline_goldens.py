"""Every number of recorded cases of GEM, CLIP Surgery, CLIPtrase and MaskCLIP, for the implementations that run anywhere."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from golden import FOLDER, arrays, tower
from kernel_support import kernel_device
from torch import Tensor, nn

from resclip import RCS, SFR, DenseEncoder
from resclip.methods.pieces import Pieces, SecondPath

IMPLEMENTATIONS = ("torch", "reference")
BASES = {"gem": "gem", "clip_surgery": "clipsurgery", "cliptrase": "cliptrase"}
POSITIONS = {"cliptrase": "released", "gem": "antialias", "clipsurgery": "bilinear"}


@functools.cache
def cases() -> dict[str, dict[str, Any]]:
    """Settings of every case by name."""
    listed = json.loads((FOLDER / "baselines" / "cases.json").read_text())["cases"]
    return {case["name"]: case for case in listed}


def names(prefix: str) -> list[str]:
    return [name for name in cases() if name.startswith(prefix)]


def recorded(name: str) -> dict[str, Tensor]:
    return arrays(f"baselines/{name}")


def encoder(name: str, implementation: str = "torch", **changes: Any) -> DenseEncoder:
    """A `DenseEncoder` with a case's settings."""
    case = cases()[name]
    settings: dict[str, Any] = {"base": BASES[case.get("base", case["method"])]}
    if settings["base"] == "gem":
        path = SecondPath(
            blocks=case["depth"] - 1,
            iterations=case["iterations"],
            inverse_temperature=case["inverse_temperature"],
        )
        settings["pieces"] = Pieces(path=path)
    if "rcs" in case:
        temperature, weight = case["rcs"]
        settings["rcs"] = RCS((6, 7, 8, 9), weight, temperature)
    if "sfr" in case:
        temperature, weight = case["sfr"]
        settings["sfr"] = SFR(weight, temperature, case["label_threshold"])
    device = settings.pop("device", "cpu")
    settings |= {"implementation": implementation, **changes}
    return DenseEncoder(tower().to(device), **settings)


def check(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """As a whole and at the worst element."""
    got = got.cpu()
    assert got.shape == expected.shape
    assert (got - expected).norm() / expected.norm() <= tolerance
    assert (got - expected).abs().max() / expected.abs().max() <= tolerance


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", [name for name in cases() if name.endswith("_modules")])
def test_modules(name: str, implementation: str) -> None:
    case = recorded(name)
    dense = encoder(name, implementation)
    features = dense(case["image"][None], case["text"])
    assert torch.equal(features.feedback_labels[0], case["labels"])
    check(torch.cat([features.cls[:, None], features.patches.flatten(1, 2)], 1)[0], case["tokens"])
