"""Studies: one option at a time through its settings, each setting measured once on every dataset.

`STUDIES` are those of RCS and SFR; `resclip.evaluation.studies.sweeps` has those of other papers. A study says which
settings it has, `ablate` measures them; tables and plots are made elsewhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.evaluation.datasets import Dataset
from resclip.evaluation.datasets.base import cut
from resclip.evaluation.report import DatasetReport, Report
from resclip.evaluation.runner import OnProgress, measure, report_lock
from resclip.methods.catalogue import METHODS, MODULES, RCS, SFR, Method
from resclip.methods.correlation import Correlation
from resclip.methods.presets import find_preset
from resclip.models.proxy_models import find_proxy
from resclip.segmenter import Segmenter
from resclip_kernels import Connectivity

WINDOW = 4
"""How many neighbouring blocks RCS averages in the study of layers: as many as the paper's 6-9."""
WEIGHTS = tuple(tenth / 10 for tenth in range(11))
"""The weights of a module that are tried."""
ITERATIONS = (0, 1, 5, 10, 20)
"""The numbers of iterations of PAMR that are tried."""

SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "no path decay": {"connectivity": None},
    "no smoothing": {"smoothing_std": 0.0},
    "no normalisation": {"normalise": False},
    "no PAMR on the labels": {"refine_iterations": 0},
    "no label threshold": {"label_threshold": 0.0},
}
"""Options of SFR that switch off one part, by what SFR without it is called."""


class Variation(NamedTuple):
    """One setting of a study."""

    label: str
    x: float | str
    """Its position on the study's axis: a number where the scale has numbers, else the label."""
    method: Method


@dataclass(frozen=True)
class Study:
    """One option, varied over its settings."""

    name: str
    """As `resclip ablate --study` takes it."""
    title: str
    shows: str
    """What the study shows, as a sentence, and where the paper asks the same."""
    x_label: str
    scale: Literal["numbers", "steps", "kinds"]
    """What x is: numbers; labels in an order that means something; or labels that could stand in any order."""
    needs: tuple[str, ...]
    """The modules that the study puts on the base, of `MODULES`."""
    reference: tuple[str, ...]
    """The modules of what figures are compared with, at the settings that the study starts from; () for the base."""
    vary: Callable[[Method, int], Sequence[Variation]]
    """Makes the settings from a method with `needs` and the depth of a tower."""
    min_depth: int = 1
    """How many blocks a tower must have."""
    about: Literal["modules", "correlation", "proxy"] = "modules"
    """What it varies: RCS and SFR on any base; what a base compares; or the attention of a base with a proxy."""
    base: str = "naclip"
    """The base that it is put on where none is named."""

    def variations(self, method: Method, depth: int) -> Sequence[Variation]:
        """The settings of this study.

        Args:
            method: a base with RCS and, if it has a score, SFR, at the settings to start from.
            depth: the number of the tower's blocks.

        Raises:
            ValueError: the base has no score for SFR to change, does not compare what the study varies, or the tower
                lacks blocks.
        """
        if self.about != "modules" and (method.proxy is not None) != (self.about == "proxy"):
            has = (
                "compares its own tokens" if method.proxy is None else "compares a proxy's features"
            )
            wanted = "with a proxy" if self.about == "proxy" else "without one"
            raise ValueError(
                f"study {self.name!r} is for a base {wanted}, and base {method.base!r} {has}: "
                f"use base {self.base!r}"
            )
        if "sfr" in self.needs and method.sfr is None:
            others = [study.name for study in STUDIES if "sfr" not in study.needs]
            raise ValueError(
                f"study {self.name!r} is about SFR, which changes the score of the attention, and base {method.base!r} "
                f"has none: use another base, or only the studies {','.join(others)}"
            )
        if depth < self.min_depth:
            raise ValueError(
                f"study {self.name!r} needs a tower of at least {self.min_depth} blocks, got one of {depth}: "
                "leave the study out, or use another model"
            )
        variations = self.vary(with_modules(method, self.needs), depth)
        for variation in variations:
            # Refuses before anything is measured.
            if variation.method.rcs is not None:
                variation.method.rcs.layers_of(depth)
        return variations


def with_modules(method: Method, modules: Iterable[str]) -> Method:
    """The method with these of its modules alone."""
    dropped: dict[str, Any] = {module: None for module in MODULES if module not in modules}
    return replace(method, **dropped)


def with_rcs(method: Method, **options: Any) -> Method:
    """The method with other options of RCS."""
    return replace(method, rcs=method.rcs and replace(method.rcs, **options))


def with_sfr(method: Method, **options: Any) -> Method:
    """The method with other options of SFR."""
    return replace(method, sfr=method.sfr and replace(method.sfr, **options))


def with_layers(method: Method, first: int, last: int) -> Variation:
    """RCS with the blocks `first` to `last`."""
    layers = tuple(range(first, last + 1))
    return Variation(spell(layers), spell(layers), with_rcs(method, layers=layers))


def layer_windows(method: Method, depth: int) -> list[Variation]:
    """1-4, 2-5, …; the last window ends before the final block."""
    return [
        with_layers(method, first, first + WINDOW - 1) for first in range(1, depth - WINDOW + 1)
    ]


def layers_from_first(method: Method, depth: int) -> list[Variation]:
    """1, 1-2, …; the last one holds every block but the final one."""
    return [with_layers(method, 1, last) for last in range(1, depth)]


def weights(module: str, method: Method, _: int) -> list[Variation]:
    """Weights of a module. 0 is the base alone: a module of weight 0 would still have its temperature."""
    change = with_rcs if module == "rcs" else with_sfr
    alone = with_modules(method, ())
    return [
        Variation(f"{weight:g}", weight, change(method, weight=weight) if weight else alone)
        for weight in WEIGHTS
    ]


def module_combinations(method: Method, _: int) -> list[Variation]:
    """The base, each module, and both."""
    variations = []
    for modules in ((), ("rcs",), ("sfr",), ("rcs", "sfr")):
        label = " + ".join((method.base, *map(str.upper, modules)))
        variations.append(Variation(label, label, with_modules(method, modules)))
    return variations


def sfr_parts(method: Method, _: int) -> list[Variation]:
    """SFR as a whole, and without one part at a time."""
    return [
        Variation(label, label, with_sfr(method, **options))
        for label, options in {"whole": {}, **SWITCHES}.items()
    ]


def connectivities(method: Method, _: int) -> list[Variation]:
    """Every rule for the pairs that path decay spares, and no decay."""
    return [
        Variation(spell(kind), spell(kind), with_sfr(method, connectivity=kind))
        for kind in (*get_args(Connectivity), None)
    ]


def refinements(method: Method, _: int) -> list[Variation]:
    """Iterations of SFR's own PAMR."""
    return [
        Variation(str(count), float(count), with_sfr(method, refine_iterations=count))
        for count in ITERATIONS
    ]


STUDIES: Sequence[Study] = (
    Study(
        name="modules",
        title="What each module adds",
        shows="The base alone, with RCS, with SFR and with both, as in table 3 of arXiv 2411.15851.",
        x_label="modules",
        scale="kinds",
        needs=("rcs", "sfr"),
        reference=(),
        vary=module_combinations,
        min_depth=2,
    ),
    Study(
        name="layers-window",
        title="RCS: four neighbouring layers",
        shows="Which layers' query-key attention helps, four at a time; arXiv 2411.15851 settles on 6-9 of 12.",
        x_label="layers",
        scale="steps",
        needs=("rcs",),
        reference=(),
        vary=layer_windows,
        min_depth=WINDOW + 1,
    ),
    Study(
        name="layers-cumulative",
        title="RCS: all layers from the first on",
        shows="Whether more layers help; arXiv 2411.15851 tries this beside windows of four.",
        x_label="layers",
        scale="steps",
        needs=("rcs",),
        reference=(),
        vary=layers_from_first,
        min_depth=2,
    ),
    Study(
        name="rcs-weight",
        title="RCS: its weight",
        shows="How much of the middle layers' attention helps: 0 is the base alone, 1 leaves nothing of its attention.",
        x_label="λ_r",
        scale="numbers",
        needs=("rcs",),
        reference=(),
        vary=partial(weights, "rcs"),
        min_depth=2,
    ),
    Study(
        name="sfr-weight",
        title="SFR: its weight",
        shows="How much feedback helps: 0 is the base alone, 1 leaves nothing of its score.",
        x_label="λ_s",
        scale="numbers",
        needs=("sfr",),
        reference=(),
        vary=partial(weights, "sfr"),
    ),
    Study(
        name="sfr-switches",
        title="SFR: without one of its parts",
        shows="What each part of the feedback is worth.",
        x_label="SFR",
        scale="kinds",
        needs=("sfr",),
        reference=("sfr",),
        vary=sfr_parts,
    ),
    Study(
        name="connectivity",
        title="SFR: which pairs path decay spares",
        shows="Two patches of one label are connected by the first part of the straight path between them (prefix, "
        "the released program), by all of it (line, the paper) or by their region (component); none: no decay.",
        x_label="connectivity",
        scale="kinds",
        needs=("sfr",),
        reference=("sfr",),
        vary=connectivities,
    ),
    Study(
        name="pamr",
        title="SFR: PAMR before its feedback",
        shows="How far the segmentation that is fed back should be refined. The result itself is not.",
        x_label="iterations",
        scale="numbers",
        needs=("sfr",),
        reference=("sfr",),
        vary=refinements,
    ),
)
"""In the order in which they are shown."""


def find_studies(names: Iterable[str], known: Sequence[Study] | None = None) -> list[Study]:
    """The studies called `names`, each once, in the order of `known`, which is `STUDIES` if it is None.

    Raises:
        ValueError: no such study, or none at all.
    """
    studies = {study.name: study for study in (STUDIES if known is None else known)}
    wanted = list(names)
    for name in wanted:
        if name not in studies:
            near = difflib.get_close_matches(name, studies, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"unknown study {cut(name)!r}{hint}; use some of: {', '.join(studies)}"
            )
    if not wanted:
        raise ValueError(
            f"expected at least one study, got none; use some of: {', '.join(studies)}"
        )
    return [study for name, study in studies.items() if name in wanted]


def row_name(method: Method, start: Method) -> str:
    """What a report calls a method: base and modules, with the options that differ from those of `start`.

    Equal settings have equal names, so that studies share them: "naclip+rcs(layers=3-6)", and "naclip+rcs" for RCS as
    in `start`; "sclip(random,seed=1)" and "proxyclip(beta=1)" for a base that compares something else.
    """
    parts = [method.base]
    changed = []
    if method.correlation is not None and method.correlation != start.correlation:
        # Of a file the name alone: which folder it lies in changes nothing.
        other = replace(method.correlation, scores="kk", path=None)
        changed = [method.correlation.scores, *changed_options(other, Correlation("kk"))]
        if method.correlation.path is not None:
            changed.append(Path(method.correlation.path).stem)
    if method.proxy is not None and method.proxy != start.proxy:
        changed = changed_options(method.proxy, start.proxy)
    if changed:
        parts = [f"{method.base}({','.join(changed)})"]
    for module in MODULES:
        options, usual = getattr(method, module), getattr(start, module)
        if options is not None:
            changes = changed_options(options, usual)
            parts.append(f"{module}({','.join(changes)})" if changes else module)
    return "+".join(parts)


def changed_options(options: Any, usual: Any) -> list[str]:
    """name=value of each option that differs from another such object's."""
    return [
        f"{field.name}={spell(getattr(options, field.name))}"
        for field in fields(options)
        if getattr(options, field.name) != getattr(usual, field.name)
    ]


def spell(value: Any) -> str:
    """An option's value as the command line takes it; a range of blocks by its ends."""
    if isinstance(value, tuple):
        first, last = value[0], value[-1]
        if value == tuple(range(first, last + 1)):
            return f"{first}-{last}" if last > first else str(first)
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


@dataclass(frozen=True)
class Setting:
    """One setting of a study, on every dataset."""

    label: str
    x: float | str
    rows: Mapping[str, str]
    """By the dataset's name, the name of the row that has its figures there."""

    def miou(self, column: DatasetReport) -> float | None:
        """On one of the datasets; None if nothing could be measured."""
        return column.rows[self.rows[column.dataset]].scores.miou

    def has_row_of(self, other: Setting, column: DatasetReport) -> bool:
        """Whether two settings come to the same on a dataset."""
        return self.rows[column.dataset] == other.rows[column.dataset]


@dataclass(frozen=True)
class Findings:
    """A study with the rows that have its figures."""

    study: Study
    reference: Setting
    """What the others are compared with; it may be one of them as well."""
    settings: tuple[Setting, ...]

    @property
    def shown(self) -> tuple[Setting, ...]:
        """All settings, the reference first unless one of them has its rows on every dataset."""
        if any(setting.rows == self.reference.rows for setting in self.settings):
            return self.settings
        return (self.reference, *self.settings)


@dataclass(frozen=True)
class Ablation:
    """What some studies came to."""

    report: Report
    """A row per setting."""
    findings: tuple[Findings, ...]


def ablate(
    studies: Sequence[Study],
    datasets: Sequence[Dataset],
    base_of: Callable[[Dataset], Segmenter],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    on_dataset: Callable[[Study, Dataset, Segmenter], Study] = lambda study, dataset, base: study,
    checkpoint: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Ablation:
    """Measure every setting of some studies on every dataset.

    Args:
        studies: of `STUDIES`.
        datasets: the columns.
        base_of: makes the segmenter of the base alone for a dataset, as `resclip.load` does. All settings share its
            model and vocabulary, so that they are made once per dataset; its preset says where the studies start from.
        options: of "rcs" and "sfr", above the preset's; the option that a study varies is above both.
        on_dataset: makes a study as it is on one dataset, from its base there, such as with a file that was learned
            from it. Its settings have the same labels on all datasets.
        checkpoint, fresh, workers, on_progress: as `resclip.evaluation.runner.evaluate` takes them.

    Raises:
        ValueError: a study that does not fit the base or the tower; and as `evaluate`.
        OSError: the file cannot be written, or another run is at work on it.
    """
    if not studies:
        raise ValueError("expected at least one study, got none")
    with report_lock(checkpoint):
        how = {"checkpoint": checkpoint, "fresh": fresh, "workers": workers}
        return _ablate(
            studies, datasets, base_of, options or {}, on_dataset, **how, on_progress=on_progress
        )


def _ablate(
    studies: Sequence[Study],
    datasets: Sequence[Dataset],
    base_of: Callable[[Dataset], Segmenter],
    options: Mapping[str, Mapping[str, Any]],
    on_dataset: Callable[[Study, Dataset, Segmenter], Study],
    **how: Any,
) -> Ablation:
    """`ablate` under its lock; `how` is for `measure`."""
    report = Report()
    # By study: its reference and its settings, each with a row per dataset.
    settings: dict[str, list[Setting]] = {}
    for dataset in datasets:
        segmenter = base_of(dataset)
        start = starting_point(segmenter, options)
        methods: dict[str, Method] = {}
        for study in studies:
            reference = with_modules(start, study.reference)
            label = row_name(reference, start)
            here = on_dataset(study, dataset, segmenter)
            variations = here.variations(start, segmenter.encoder.tower.depth)
            points = [Variation(label, label, reference), *variations]
            earlier = settings.get(study.name, [Setting(*point[:2], {}) for point in points])
            for point in points:
                methods[row_name(point.method, start)] = point.method
            settings[study.name] = [
                replace(setting, rows={**setting.rows, dataset.name: row_name(point.method, start)})
                for setting, point in zip(earlier, points, strict=True)
            ]
        entries = {
            name: partial(segmenter_with, segmenter, replace(method, name=name))
            for name, method in methods.items()
        }
        measured = measure(entries, [dataset], **how)
        report.datasets |= measured.datasets
    return Ablation(
        report,
        tuple(
            Findings(study, settings[study.name][0], tuple(settings[study.name][1:]))
            for study in studies
        ),
    )


def starting_point(segmenter: Segmenter, options: Mapping[str, Mapping[str, Any]]) -> Method:
    """A segmenter's base with RCS and, if it has a score, SFR, at its preset's settings and above them `options`.

    The layers of RCS are spelled out, so that a study of layers recognises them. What the base compares is the
    segmenter's, a correlation or a proxy.
    """
    encoder = segmenter.encoder
    has_score = encoder.base.proxy is not None or encoder.correlation.has_score
    start = replace(
        METHODS[encoder.base.name],
        rcs=RCS(),
        sfr=SFR() if has_score else None,
        correlation=None if encoder.base.proxy is not None else encoder.correlation,
        proxy=None if encoder.base.proxy is None else encoder.final.proxy_attention,
    )
    preset = segmenter.settings["preset"]
    if preset is not None:
        start = find_preset(preset).apply(start)
    start = with_sfr(with_rcs(start, **options.get("rcs", {})), **options.get("sfr", {}))
    if start.rcs is not None and start.rcs.layers is None:
        start = with_rcs(start, layers=start.rcs.layers_of(encoder.tower.depth))
    return start


def segmenter_with(segmenter: Segmenter, method: Method, _: Dataset) -> Segmenter:
    """A copy with a method's RCS, SFR, correlation and proxy; all else is the segmenter's own."""
    encoder = segmenter.encoder
    proxy, attention = encoder.proxy, method.proxy or encoder.final.proxy_attention
    own = encoder.final.proxy_attention
    if own and attention and (attention.model, attention.input_size) != (own.model, own.input_size):
        proxy = find_proxy(
            attention.model,
            mean=segmenter.preparation.mean,
            std=segmenter.preparation.std,
            device=segmenter.device,
            dtype=encoder.tower.dtype,
            input_size=attention.input_size,
        )
    changed = DenseEncoder(
        encoder.tower,
        base=encoder.base.name,
        rcs=method.rcs,
        sfr=method.sfr,
        neighbourhood_std=encoder.neighbourhood_std,
        final_block=encoder.final_block,
        implementation=encoder.implementation,
        pieces=encoder.pieces,
        position=encoder.position,
        # The proxy compares its own features, and takes no correlation.
        correlation=None
        if encoder.base.proxy is not None
        else method.correlation or encoder.correlation,
        proxy=proxy,
        proxy_attention=attention,
        overview=encoder.overview,
    )
    return segmenter.with_encoder(changed, method=method.name)
