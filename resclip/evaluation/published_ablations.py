"""The mIoU that papers state for the settings of their own studies, and the settings that these figures are of."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from typing import Any

from resclip.evaluation.published import ABLATIONS, Published, is_standard, tables

BASE = "sclip"
"""The base that these figures are of."""


def published_setting(
    study: str,
    setting: str,
    dataset: str,
    model: str,
    pretrained: str | None,
    options: Mapping[str, Any],
) -> Published | None:
    """The figure to compare a study's setting with; None where nobody has published one for just this.

    Args:
        study, setting: the study's name and the setting's label.
        dataset, model, pretrained, options: as `resclip.evaluation.published.published` takes them. The correlation,
            which the study varies, is the setting's own; all else must be as the figure was measured.
    """
    lines = figures()
    # "ViT-B/16" and "ViT-B-16" are one model of open_clip's.
    model = model.lower() if ":" in model else model.lower().replace("/", "-")
    backbone = tables()[0]["backbones"].get(
        model if pretrained is None else f"{model} {pretrained}"
    )
    if backbone is None:
        return None
    line = lines.get((study, setting, backbone), {})
    value = line.get(dataset)
    usual = {name: option for name, option in options.items() if name != "correlation"}
    if not value or options.get("base") != BASE or not is_standard(BASE, dataset, usual, backbone):
        return None
    refined = usual.get("refine_iterations", 0) or usual.get("rcs") or usual.get("sfr")
    return None if refined else Published(float(value), f"SCLIP, {setting}", line["source"])


@functools.lru_cache(maxsize=1)
def figures() -> Mapping[tuple[str, str, str], Mapping[str, str]]:
    """The packaged lines, by study, setting and backbone."""
    with ABLATIONS.open(encoding="utf-8", newline="") as stream:
        return {
            (line["study"], line["setting"], line["backbone"]): line
            for line in csv.DictReader(stream)
            if line["study"]
        }
