"""The mIoU that papers state for a method, a backbone and a dataset.

Knows the packaged table, and which rows, models and settings its figures are of. Knows no measured figure.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resclip.methods.catalogue import BASES, MODULES, RCS, SFR
from resclip.methods.options_text import as_dict
from resclip.methods.presets import PRESETS, Preset
from resclip.text.class_names import DATASETS, dataset_classes

TABLE = Path(__file__).parents[1] / "data" / "published_miou.csv"

METHODS = {
    "clip": "CLIP",
    "maskclip": "MaskCLIP",
    "sclip": "SCLIP",
    "sclip+rcs+sfr": "SCLIP + ResCLIP",
    "clearclip": "ClearCLIP",
    "clearclip+rcs+sfr": "ClearCLIP + ResCLIP",
    "naclip": "NACLIP",
    "naclip+rcs": "NACLIP + RCS (ablation)",
    "naclip+sfr": "NACLIP + SFR (ablation)",
    "naclip+rcs+sfr": "NACLIP + ResCLIP",
}
"""The table's name of a row."""
REFINED = {"naclip": "NACLIP + PAMR"}
"""The table's name of a row whose logits PAMR refines, by the usual number of iterations."""
PROXY = {"ViT-B/16": "ProxyCLIP (DINO B/8)", "OpenCLIP ViT-H/14": "ProxyCLIP"}
"""The table's name of the row "proxyclip", by the table's name of the backbone."""
REFINE_ITERATIONS = 10

BACKBONES = {
    ("vit-b-16", "openai"): "ViT-B/16",
    ("vit-b-16-quickgelu", "openai"): "ViT-B/16",
    ("transformers:openai/clip-vit-base-patch16", None): "ViT-B/16",
    ("vit-l-14", "openai"): "ViT-L/14",
    ("vit-l-14-quickgelu", "openai"): "ViT-L/14",
    ("transformers:openai/clip-vit-large-patch14", None): "ViT-L/14",
    ("vit-h-14", "laion2b_s32b_b79k"): "OpenCLIP ViT-H/14",
    ("transformers:laion/clip-vit-h-14-laion2b-s32b-b79k", None): "OpenCLIP ViT-H/14",
}
"""The table's name of a model and its weights, by their names in small letters."""

RELEASED_LAYERS = [6, 7, 8, 9]
TEMPLATES = (None, "imagenet")
"""Names of CLIP's 80 prompts."""
USUAL_WINDOWS = (224, 112)
"""Window and stride of the papers that ResCLIP builds on."""


@dataclass(frozen=True)
class Published:
    """A figure that somebody else has measured."""

    miou: float
    """In per cent."""
    method: str
    """What its source calls the method."""
    source: str


def published(
    row: str, dataset: str, model: str, pretrained: str | None, options: Mapping[str, Any]
) -> Published | None:
    """The figure to compare a row with; None where nobody has published one for just this configuration.

    Args:
        row: a base and its modules: "naclip+rcs+sfr".
        dataset: one of `resclip.text.class_names.DATASETS`; others have no figures.
        model, pretrained: as `resclip.load` takes them.
        options: settings of the segmenter, as `Segmenter.settings` has them or as JSON gives them back. They must be
            those that the figure is of; one that is not named counts as such.
    """
    backbone = BACKBONES.get(backbone_key(model, pretrained))
    if backbone is None or dataset not in DATASETS or not is_standard(row, dataset, options):
        return None
    iterations = options.get("refine_iterations", 0)
    if row == "proxyclip":
        method = PROXY.get(backbone)
    else:
        method = (REFINED if iterations == REFINE_ITERATIONS else METHODS).get(row)
    figures = table().get((method, backbone), {})
    value = figures.get(dataset)
    return Published(float(value), str(method), figures["source"]) if value else None


def backbone_key(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """A key of `BACKBONES`: "ViT-B/16" and "ViT-B-16" are one model of open_clip's."""
    name = model.lower()
    return (name if ":" in name else name.replace("/", "-")), pretrained


def is_standard(row: str, dataset: str, options: Mapping[str, Any]) -> bool:
    """Whether a row was measured as its method is published: its base's own attention, and the protocol of the set.

    RCS and SFR may have the set's released values or those of the paper's equations. A base alone may be measured by
    the usual windows even where the released program takes the whole image.
    """
    name, *modules = row.split("+")
    if name not in BASES or not set(modules) <= set(MODULES):
        return False
    base, preset = BASES[name], PRESETS[dataset]
    protocol = {
        "split": None,
        "entries": dataset_classes(dataset),
        "correlation": asdict(base.correlation),
        "final_block": base.final_block,
        "neighbourhood_std": base.neighbourhood_std,
        "pad_multiple": 0,
        "short_side": 336,
        "long_side": 2048,
        "logit_scale": 40.0,
        "probability_threshold": 0.0,
        **preset.segmenter,
        **base.segmenter,
    }
    windows = protocol.pop("window", USUAL_WINDOWS[0]), protocol.pop("stride", USUAL_WINDOWS[1])
    allowed = [windows] if modules or base.proxy else [windows, USUAL_WINDOWS]
    return (
        options.get("templates") in TEMPLATES
        and all(options.get(option, value) == value for option, value in protocol.items())
        and options.get("refine_iterations", 0) in (0, REFINE_ITERATIONS)
        and any(has_windows(options, *pair) for pair in allowed)
        and has_proxy(options, as_dict(base.proxy))
        and any(has_modules(options, modules, values) for values in (preset, PRESETS["paper"]))
    )


def has_windows(options: Mapping[str, Any], window: int, stride: int) -> bool:
    """Whether the options name these windows; a whole image (0) has no stride."""
    if options.get("window", window) != window:
        return False
    return window == 0 or options.get("stride", stride) == stride


def has_proxy(options: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Whether the options name this proxy, with or without "timm:" in front of its model."""
    found = options.get("proxy", wanted)
    if found and wanted:
        return {**found, "model": found["model"].removeprefix("timm:")} == wanted
    return found is None and wanted is None


def has_modules(options: Mapping[str, Any], modules: Sequence[str], preset: Preset) -> bool:
    """Whether RCS and SFR, where they are among `modules`, have a preset's values, and are off where they are not."""
    rcs = asdict(RCS(**preset.rcs)) if "rcs" in modules else None
    sfr = asdict(SFR(**preset.sfr)) if "sfr" in modules else None
    found = options.get("rcs", rcs)
    if found and rcs:
        # Which blocks None and text stand for depends on the tower: "rcs_layers" says.
        found, rcs = ({**values, "layers": None} for values in (found, rcs))
    layers = RELEASED_LAYERS if rcs else []
    return (
        found == rcs
        and options.get("sfr", sfr) == sfr
        and list(options.get("rcs_layers", layers)) == layers
    )


@functools.lru_cache(maxsize=1)
def table() -> Mapping[tuple[str | None, str], Mapping[str, str]]:
    """The packaged table: by method and backbone a figure a dataset, as text, and the source."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return {(line["method"], line["backbone"]): line for line in csv.DictReader(stream)}
