"""What `resclip models` recommends, against open_clip's configurations and the published table."""

from __future__ import annotations

import csv
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

import resclip
from resclip.models import list_models
from resclip.models.recommended import PUBLISHED_AVERAGES, RECOMMENDED, REMOTE_SENSING

BY_MODEL = {one.model: one for one in RECOMMENDED}


@pytest.mark.parametrize("name", BY_MODEL)
def test_parameters_and_sizes(name: str) -> None:
    config = dict(open_clip.get_model_config(name))
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    with torch.device("meta"):
        model = kind(**config)
    stated = BY_MODEL[name]
    assert stated.parameters == sum(one.numel() for one in model.parameters())
    assert stated.gigabytes == pytest.approx(stated.parameters * 4e-9)
    vision = config["vision_cfg"]
    # Towers of timm have the patch's side in their name.
    patch = vision.get("patch_size") or int(vision["timm_model_name"].split("patch")[1][:2])
    assert (stated.side, stated.patch) == (vision["image_size"], patch)


def test_recommended_weights_are_there() -> None:
    listed = dict(list_models())
    assert all(one.tag in listed[one.model] for one in RECOMMENDED)
    assert len({(one.model, one.tag) for one in RECOMMENDED}) == len(RECOMMENDED) == 5
    named = [name for _, models, _ in REMOTE_SENSING[:2] for name in models.split(", ")]
    assert set(named) <= set(listed)


def test_published_averages() -> None:
    table = Path(resclip.__file__).with_name("data") / "published_miou.csv"
    with table.open(encoding="utf-8") as file:
        rows = {
            row["backbone"]: row
            for row in csv.DictReader(file)
            if row["method"] == "NACLIP + ResCLIP"
        }
    for backbone, stated in PUBLISHED_AVERAGES.items():
        row = rows[backbone]
        figures = [
            float(value)
            for name, value in row.items()
            if name not in ("method", "backbone", "source")
        ]
        assert len(figures) == 8
        assert stated == round(sum(figures) / 8, 1)
