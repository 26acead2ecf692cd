"""Presets: options of RCS, SFR and the segmenter as papers, released programs and datasets set them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from resclip.methods.catalogue import BASES, RCS, Method
from resclip_kernels import quoted


@dataclass(frozen=True)
class Preset:
    """Options of RCS, SFR and the segmenter; options that are not named keep their defaults."""

    name: str
    summary: str
    rcs: Mapping[str, Any] = field(default_factory=dict)
    sfr: Mapping[str, Any] = field(default_factory=dict)
    segmenter: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, method: Method) -> Method:
        """The method with this preset's values in the modules that it has."""
        rcs = dict(self.rcs)
        if BASES[method.base].rcs_temperature != RCS.temperature:
            rcs["temperature"] = BASES[method.base].rcs_temperature
        return replace(
            method,
            rcs=method.rcs and replace(method.rcs, **rcs),
            sfr=method.sfr and replace(method.sfr, **self.sfr),
        )


def released(
    name: str,
    label_threshold: float,
    sfr: tuple[float, float],
    rcs: tuple[float, float],
    **segmenter: float,
) -> Preset:
    """The settings of the authors' program for a dataset; pairs are (temperature, weight), as published."""
    return Preset(
        name,
        f"settings of the authors' program for {name}",
        rcs={"layers": (6, 7, 8, 9), "temperature": rcs[0], "weight": rcs[1]},
        sfr={"label_threshold": label_threshold, "temperature": sfr[0], "weight": sfr[1]},
        segmenter=segmenter,
    )


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "released",
            "the authors' program: RCS takes layers 6-9 whatever the depth",
            rcs={"layers": (6, 7, 8, 9)},
        ),
        Preset(
            "paper",
            "the paper's equations: no PAMR, feedback not normalised, connectivity by the whole line between patches",
            rcs={"layers": (6, 7, 8, 9), "temperature": 1.0, "weight": 0.5},
            sfr={
                "temperature": 1.0,
                "weight": 0.7,
                "connectivity": "line",
                "refine_iterations": 0,
                "normalise": False,
            },
        ),
        released("voc20", 0.10, (2.1, 0.6), (2.0, 0.6), window=0),
        released("voc21", 0.50, (2.2, 0.7), (2.0, 0.3), window=0, probability_threshold=0.1),
        released("context59", 0.25, (1.8, 0.7), (2.0, 0.4)),
        released("context60", 0.30, (1.8, 0.7), (2.0, 0.3), probability_threshold=0.1),
        released("coco-object", 0.11, (1.8, 0.7), (2.0, 0.4), probability_threshold=0.1),
        released("coco-stuff", 0.11, (1.8, 0.7), (2.0, 0.4)),
        released("cityscapes", 0.10, (2.1, 0.6), (2.0, 0.2), short_side=560),
        released("ade20k", 0.25, (2.1, 0.7), (2.0, 0.3)),
        Preset(
            "builtin",
            "chosen for the built-in model on its validation scenes",
            segmenter={"window": 112, "stride": 56, "short_side": 224},
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset called `name`; ValueError with the valid names otherwise."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset {quoted(name)}; use one of: {', '.join(PRESETS)}")
    return PRESETS[name]
