"""Presets: options of RCS, SFR and the segmenter as papers, released programs and datasets set them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from resclip.methods.catalogue import BASES, RCS, Method
from resclip.methods.composition import compose
from resclip_kernels import quoted


@dataclass(frozen=True)
class Preset:
    """Options of RCS, SFR and the segmenter; options that are not named keep their defaults."""

    name: str
    summary: str
    rcs: Mapping[str, Any] = field(default_factory=dict)
    sfr: Mapping[str, Any] = field(default_factory=dict)
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    """The data set that these are for; empty where they are for none."""

    def settings_of(self, method: Method) -> Mapping[str, Any]:
        """Settings of the segmenter for a method: those that its own authors publish, else those of this preset."""
        own = self.own_settings(method)
        return dict(self.segmenter) if own is None else own.segmenter

    def own_settings(self, method: Method) -> OwnSettings | None:
        """What a method's own authors publish for this data set."""
        if not self.dataset:
            return None
        base_settings = OWN_SETTINGS.get(method.base, {}).get(self.dataset)
        if method.steps is not None and method.steps.purification is not None:
            return OWN_SETTINGS["freecp"][self.dataset]
        if (
            base_settings is None
            and method.steps is not None
            and method.steps.adjustment is not None
        ):
            # CASS's settings are RF-CLIP's.
            return OWN_SETTINGS["rf-clip"][self.dataset]
        return base_settings

    def apply(self, method: Method) -> Method:
        """The method with this preset's values in the modules that it has."""
        rcs = dict(self.rcs)
        if BASES[method.base].rcs_temperature != RCS.temperature:
            rcs["temperature"] = BASES[method.base].rcs_temperature
        own = self.own_settings(method)
        base = BASES[method.base]
        pieces, steps = method.pieces, method.steps
        if own is not None:
            pieces = compose(base.pieces if pieces is None else pieces, own.pieces)
            there = base.steps if steps is None else steps
            # Options alone: a preset adds no step that the method does not have.
            steps = compose(
                there,
                {
                    name: options
                    for name, options in own.steps.items()
                    if getattr(there, name) is not None or name in own.added
                },
            )
        return replace(
            method,
            pieces=pieces,
            steps=steps,
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
        dataset=name,
    )


@dataclass(frozen=True)
class OwnSettings:
    """What a method's authors set for a data set, beside ResCLIP's own table."""

    segmenter: Mapping[str, Any] = field(default_factory=dict)
    pieces: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, Any] = field(default_factory=dict)
    """Options of steps by name."""
    added: tuple[str, ...] = ()
    """The steps that are added where the method does not have them."""
    deep: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the segmenter that differ for ViT-L/14."""


WINDOWS: Mapping[str, Any] = {"window": 224, "stride": 112}


def short_side(dataset: str) -> Mapping[str, Any]:
    """Cityscapes' short side is 560 in all of these releases, the others' the default."""
    return {"short_side": 560} if dataset == "cityscapes" else {}


def repaired(
    dataset: str,
    scale: float = 40.0,
    threshold: float = 0.0,
    area: float | None = None,
    deep: Mapping[str, Any] | None = None,
) -> OwnSettings:
    """SC-CLIP, SFP and DIH-CLIP."""
    settings = {"logit_scale": scale, "probability_threshold": threshold}
    return OwnSettings(
        {**WINDOWS, **short_side(dataset), **settings},
        steps={} if area is None else {"area": {"share": area}},
        added=("area",),
        deep=deep or {},
    )


def aligned(dataset: str, weight: float, grid: int, threshold: float = 0.0) -> OwnSettings:
    """PEARL."""
    windows = {"window": 0} if dataset in ("voc20", "voc21") else WINDOWS
    return OwnSettings(
        {**windows, **short_side(dataset), "probability_threshold": threshold},
        {"alignment": {"weight": weight}},
        {"laplacian": {"grid": grid}},
    )


def adjusted(
    dataset: str, gamma: float, mu: float, distance: float, threshold: float = 0.0
) -> OwnSettings:
    """RF-CLIP, and CASS's text adjustment."""
    windows = {"window": 0} if dataset == "voc21" else WINDOWS
    adjustment = {
        "global_weight": gamma,
        "text_weight": mu,
        "group_threshold": distance,
        "image": "window" if dataset == "cityscapes" else "picture",
    }
    return OwnSettings(
        {**windows, **short_side(dataset), "probability_threshold": threshold},
        steps={"adjustment": adjustment},
    )


def purified(dataset: str, redundancy: float, ambiguity: float) -> OwnSettings:
    """FreeCP, whose pictures and windows are larger than the other methods'."""
    large = (
        {"short_side": 560, "window": 224}
        if dataset == "cityscapes"
        else {"short_side": 448, "window": 384}
    )
    return OwnSettings(
        {**large, "stride": 112, "probability_threshold": 0.0},
        steps={"purification": {"redundancy": redundancy, "ambiguity": ambiguity}},
    )


REPAIRED = {
    "voc20": repaired("voc20"),
    "voc21": repaired(
        "voc21", 50.0, 0.15, 0.1, {"logit_scale": 40.0, "probability_threshold": 0.2}
    ),
    "context59": repaired("context59"),
    "context60": repaired("context60", 40.0, 0.15),
    "coco-object": repaired(
        "coco-object", 55.0, 0.35, None, {"logit_scale": 40.0, "probability_threshold": 0.25}
    ),
    "coco-stuff": repaired("coco-stuff"),
    "cityscapes": repaired("cityscapes"),
    "ade20k": repaired("ade20k"),
}
OWN_SETTINGS: Mapping[str, Mapping[str, OwnSettings]] = {
    "sc-clip": REPAIRED,
    "sfp": {
        **REPAIRED,
        "ade20k": OwnSettings({**REPAIRED["ade20k"].segmenter, "short_side": 384}),
    },
    "dih-clip": REPAIRED,
    "pearl": {
        "voc20": aligned("voc20", 0.08, 80),
        "voc21": aligned("voc21", 0.08, 80, 0.1),
        "context59": aligned("context59", 0.08, 80),
        "context60": aligned("context60", 0.08, 80, 0.1),
        "coco-object": aligned("coco-object", 0.08, 80, 0.1),
        "coco-stuff": aligned("coco-stuff", 0.08, 80),
        "cityscapes": aligned("cityscapes", 0.3, 224),
        "ade20k": aligned("ade20k", 0.3, 80),
    },
    "rf-clip": {
        "voc20": adjusted("voc20", 0.40, 0.02, 0.10),
        "voc21": adjusted("voc21", 0.10, 0.03, 0.10, 0.1),
        "context59": adjusted("context59", 0.25, 0.04, 0.09),
        "context60": adjusted("context60", 0.25, 0.04, 0.09, 0.1),
        "coco-object": adjusted("coco-object", 0.25, 0.01, 0.10, 0.1),
        "coco-stuff": adjusted("coco-stuff", 0.20, 0.02, 0.02),
        "cityscapes": adjusted("cityscapes", 0.10, 0.03, 0.14),
        "ade20k": adjusted("ade20k", 0.30, 0.05, 0.06),
    },
    "freecp": {
        "voc20": purified("voc20", 0.15, 0.7),
        "voc21": purified("voc21", 0.15, 0.8),
        "context59": purified("context59", 0.1, 0.7),
        "context60": purified("context60", 0.1, 0.7),
        "coco-object": purified("coco-object", 0.15, 0.8),
        "coco-stuff": purified("coco-stuff", 0.05, 0.7),
        "cityscapes": purified("cityscapes", 0.1, 0.8),
        "ade20k": purified("ade20k", 0.05, 0.7),
    },
}
"""By base, or step, and data set: the released programs' settings for ViT-B/16."""


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
