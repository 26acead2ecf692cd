"""The mIoU that papers state for a method, a backbone and a dataset, and the settings that these figures are of."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resclip.methods.catalogue import BASES, MODULES, PAMR, RCS, SFR, combinations, find_method
from resclip.methods.composition import as_parts
from resclip.methods.presets import PRESETS, Preset
from resclip.text.class_names import DATASETS, dataset_classes

DATA = Path(__file__).parents[1] / "data"
TABLE = DATA / "published_miou.csv"
"""The figures: a line per method and backbone, a column per dataset."""
ABLATIONS = DATA / "published_ablations.csv"
"""Figures of parts and variants of a method: a line per setting, a column per dataset, and the source's mean over all
datasets of its table. Those with a study are what `resclip ablate` puts beside its settings; the others are for
reading."""
NAMES = DATA / "published_names.json"
"""What the table calls the rows of a report and the models of `resclip.load`.

"methods": by the row's name. "refined": the same for rows whose logits PAMR refines. "proxy": the row "proxyclip", by
backbone. "backbones": by model and weights in small letters, with a space between them. "predictors": by a predictor's
name, its line, and the settings and options that it is of. A name that the catalogue does not have is no row's.
"""

REFINE_ITERATIONS = 10
"""PAMR's iterations where published logits are refined."""
RELEASED_LAYERS = [6, 7, 8, 9]
"""The blocks that RCS averages in the released program."""
TEMPLATES = (None, "imagenet")
"""What the option `templates` is where CLIP's 80 prompts are used."""
USUAL_WINDOWS = (224, 112)
"""Window and stride of the papers that ResCLIP builds on, in pixels."""


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
    """The figure to compare a row with; None where nobody has published one for exactly this configuration.

    Args:
        row: a base and its modules: "naclip+rcs+sfr".
        dataset: one of `resclip.text.class_names.DATASETS`; others have no figures.
        model, pretrained: as `resclip.load` takes them.
        options: settings of the segmenter, as `Segmenter.settings` has them or as JSON gives them back. They must be
            those that the figure is of; an option that is missing counts as such.
    """
    if "predictor" in options:
        return published_predictor(dataset, options)
    names, figures = tables()
    # "ViT-B/16" and "ViT-B-16" are one model of open_clip's; the "/" in "transformers:owner/name" stays.
    model = model.lower() if ":" in model else model.lower().replace("/", "-")
    backbone: str | None = names["backbones"].get(
        model if pretrained is None else f"{model} {pretrained}"
    )
    if backbone is None or dataset not in DATASETS:
        return None
    if not is_standard(row, dataset, options, backbone):
        return None
    if row == "proxyclip":
        method = names["proxy"].get(backbone)
    elif options.get("refine_iterations", 0) == REFINE_ITERATIONS:
        method = names["refined"].get(row.removesuffix(f"+{PAMR}"))
    else:
        method = names["methods"].get(row)
    return figure_of(figures.get((method, backbone), {}), dataset)


def figure_of(line: Mapping[str, str], dataset: str) -> Published | None:
    """A line's figure for a dataset."""
    value = line.get(dataset)
    return Published(float(value), line["method"], line["source"]) if value else None


def published_predictor(dataset: str, options: Mapping[str, Any]) -> Published | None:
    """The figure to compare a predictor's row with; arguments as those of `published`."""
    names, figures = tables()
    given = {**options, **options["predictor"]}
    known: Any = names["predictors"].get(str(given.get("name")))
    if known is None or dataset not in DATASETS:
        return None
    wanted = {
        "split": None,
        "entries": dataset_classes(dataset),
        **known["settings"],
        **known["sets"].get(dataset, {}),
    }
    if any(given.get(option, value) != value for option, value in wanted.items()):
        return None
    return figure_of(figures.get((known["method"], known["backbone"]), {}), dataset)


def paper_rows() -> list[str]:
    """The rows of the papers' tables: each base that has figures, alone, with all modules that fit, and its ablations.

    What the catalogue does not have is left out.
    """
    names, _ = tables()
    rows = []
    for base in BASES.values():
        fitting = [method.name for method in combinations(base)]
        if base.name in names["methods"] or base.proxy is not None:
            wanted = {base.name, fitting[-1], *names["methods"]}
            rows += [name for name in fitting if name in wanted]
    return rows


@functools.lru_cache(maxsize=1)
def tables() -> tuple[
    Mapping[str, Mapping[str, Any]], Mapping[tuple[str | None, str], Mapping[str, str]]
]:
    """The packaged names; and by method and backbone, a figure per dataset, as text, and the source."""
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    with TABLE.open(encoding="utf-8", newline="") as stream:
        lines = {(line["method"], line["backbone"]): line for line in csv.DictReader(stream)}
    return names, lines


def is_standard(row: str, dataset: str, options: Mapping[str, Any], backbone: str) -> bool:
    """Whether a row was measured as its method is published: its base's own attention, and the dataset's protocol.

    RCS and SFR may have the dataset's released values or those of the paper's equations. A base alone may be measured
    by the usual windows even where the released program takes the whole image.
    """
    try:
        method = find_method(row)
    except ValueError:
        return False
    base, preset = BASES[method.base], PRESETS[dataset]
    modules = [name for name in MODULES if getattr(method, name) is not None]
    own = preset.own_settings(method)
    with_preset = preset.apply(method)
    deep = {} if own is None or "/14" not in backbone else own.deep
    protocol = {
        "split": None,
        "entries": dataset_classes(dataset),
        "correlation": asdict(base.correlation),
        "final_block": base.final_block,
        "neighbourhood_std": base.neighbourhood_std,
        "position": base.position,
        "pieces": as_parts(base.pieces if with_preset.pieces is None else with_preset.pieces),
        "steps": as_parts(base.steps if with_preset.steps is None else with_preset.steps),
        "pad_multiple": 0,
        "short_side": 336,
        "long_side": 2048,
        "logit_scale": 40.0,
        "probability_threshold": 0.0,
        **preset.settings_of(method),
        **base.segmenter,
        **deep,
    }
    windows = protocol.pop("window", USUAL_WINDOWS[0]), protocol.pop("stride", USUAL_WINDOWS[1])
    allowed = [windows] if modules or base.proxy or own else [windows, USUAL_WINDOWS]
    # A whole image (window 0) has no stride.
    has_windows = any(
        options.get("window", window) == window
        and (window == 0 or options.get("stride", stride) == stride)
        for window, stride in allowed
    )
    # Options that are left out at their defaults.
    if options.get("correlation"):
        options = {**options, "correlation": {**protocol["correlation"], **options["correlation"]}}
    proxy = None if base.proxy is None else asdict(base.proxy)
    used_proxy = options.get("proxy", proxy)
    if used_proxy:
        model = used_proxy["model"].removeprefix("timm:")
        used_proxy = {**(proxy or {}), **used_proxy, "model": model}
    return (
        options.get("templates") in TEMPLATES
        # Pixels that are left out are not in any protocol.
        and not options.get("threshold")
        and not options.get("min_margin")
        and all(options.get(option, value) == value for option, value in protocol.items())
        and options.get("refine_iterations", 0) in (0, REFINE_ITERATIONS)
        and has_windows
        and used_proxy == proxy
        and any(has_modules(options, modules, values) for values in (preset, PRESETS["paper"]))
    )


def has_modules(options: Mapping[str, Any], modules: Sequence[str], preset: Preset) -> bool:
    """Whether RCS and SFR have a preset's values where they are among `modules`, and are off where they are not."""
    rcs = asdict(RCS(**preset.rcs)) if "rcs" in modules else None
    sfr = asdict(SFR(**preset.sfr)) if "sfr" in modules else None
    used_rcs = options.get("rcs", rcs)
    if used_rcs and rcs:
        # Which blocks None and text stand for depends on the tower: "rcs_layers" says.
        used_rcs, rcs = {**used_rcs, "layers": None}, {**rcs, "layers": None}
    layers = RELEASED_LAYERS if rcs else []
    return (
        used_rcs == rcs
        and options.get("sfr", sfr) == sfr
        and list(options.get("rcs_layers", layers)) == layers
    )
