"""Studies × datasets → figures: every setting is measured once, whichever studies it belongs to.

Knows where a study starts from and how a segmenter gets other RCS and SFR. Which settings a study has is studies.py's,
measuring protocol.py's, showing figures study_tables.py's and study_plots.py's.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.evaluation.datasets import Dataset
from resclip.evaluation.distributed import ALONE, World
from resclip.evaluation.report import Evaluation, Report
from resclip.evaluation.runner import Candidate, evaluate
from resclip.methods.catalogue import METHODS, MODULES, RCS, SFR, Method
from resclip.methods.presets import find_preset
from resclip.segmenter import Segmenter
from resclip_kernels import Connectivity

WINDOW = 4
"""Neighbouring blocks that RCS averages: as many as the paper's 6-9."""
WEIGHTS = tuple(tenth / 10 for tenth in range(11))
ITERATIONS = (0, 1, 5, 10, 20)

SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "no path decay": {"connectivity": None},
    "no smoothing": {"smoothing_std": 0.0},
    "no normalisation": {"normalise": False},
    "no PAMR on the labels": {"refine_iterations": 0},
    "no label threshold": {"label_threshold": 0.0},
}
"""Parts of SFR by what their absence is called."""


class Variation(NamedTuple):
    """One point of a study."""

    label: str
    x: float | str
    """Where it stands on the study's axis: a number where the scale has numbers, else the label."""
    method: Method


@dataclass(frozen=True)
class Study:
    """One option, turned through its settings."""

    name: str
    """As `resclip ablate --study` takes it."""
    title: str
    shows: str
    """What can be read off it, as a sentence, and where the paper asks the same."""
    x_label: str
    scale: Literal["numbers", "steps", "kinds"]
    """Of x: numbers; labels in an order that means something; or labels that could stand in any order."""
    needs: tuple[str, ...]
    """Modules that it puts on the base: of `MODULES`."""
    reference: tuple[str, ...]
    """Modules of what its figures are compared with, at the settings that the study starts from; () for the base."""
    vary: Callable[[Method, int], Sequence[Variation]]
    """The points, from a method with `needs` and the depth of a tower."""
    least_depth: int = 1
    """Blocks that a tower must have."""

    def variations(self, method: Method, depth: int) -> Sequence[Variation]:
        """The points of this study.

        Args:
            method: a base with RCS and, where it has a score, SFR, at the settings to start from.
            depth: number of the tower's blocks.

        Raises:
            ValueError: the base has no score for SFR to change, or the tower lacks blocks.
        """
        if "sfr" in self.needs and method.sfr is None:
            others = [study.name for study in STUDIES if "sfr" not in study.needs]
            raise ValueError(
                f"study {self.name!r} is about SFR, which changes the score of the attention, and base {method.base!r} "
                f"has none: use another base, or only the studies {','.join(others)}"
            )
        if depth < self.least_depth:
            raise ValueError(
                f"study {self.name!r} needs a tower of at least {self.least_depth} blocks, got one of {depth}: "
                "leave the study out, or use another model"
            )
        points = self.vary(with_modules(method, self.needs), depth)
        for point in points:
            if point.method.rcs is not None:
                point.method.rcs.layers_of(depth)  # Refuse before anything is measured.
        return points


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


def windows(method: Method, depth: int) -> list[Variation]:
    """1-4, 2-5, …; the last window ends before the final block."""
    return [
        with_layers(method, first, first + WINDOW - 1) for first in range(1, depth - WINDOW + 1)
    ]


def cumulative(method: Method, depth: int) -> list[Variation]:
    """1, 1-2, …; the last one holds every block but the final one."""
    return [with_layers(method, 1, last) for last in range(1, depth)]


def weights(method: Method, change: Callable[..., Method]) -> list[Variation]:
    """Weights of a module. 0 is the base alone: a module of weight 0 would still have its temperature."""
    alone = with_modules(method, ())
    return [
        Variation(f"{weight:g}", weight, change(method, weight=weight) if weight else alone)
        for weight in WEIGHTS
    ]


def rcs_weights(method: Method, _: int) -> list[Variation]:
    """λ_r."""
    return weights(method, with_rcs)


def sfr_weights(method: Method, _: int) -> list[Variation]:
    """λ_s."""
    return weights(method, with_sfr)


def modules(method: Method, _: int) -> list[Variation]:
    """The base, each module, and both."""
    points = []
    for chosen in ((), ("rcs",), ("sfr",), ("rcs", "sfr")):
        label = " + ".join((method.base, *map(str.upper, chosen)))
        points.append(Variation(label, label, with_modules(method, chosen)))
    return points


def switches(method: Method, _: int) -> list[Variation]:
    """SFR as a whole, and without one part at a time."""
    parts = {"whole": {}, **SWITCHES}
    return [
        Variation(label, label, with_sfr(method, **options)) for label, options in parts.items()
    ]


def connectivities(method: Method, _: int) -> list[Variation]:
    """Every rule for pairs that path decay spares, and no decay."""
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
        vary=modules,
        least_depth=2,
    ),
    Study(
        name="layers-window",
        title="RCS: four neighbouring layers",
        shows="Which layers' query-key attention helps, four at a time; arXiv 2411.15851 settles on 6-9 of 12.",
        x_label="layers",
        scale="steps",
        needs=("rcs",),
        reference=(),
        vary=windows,
        least_depth=WINDOW + 1,
    ),
    Study(
        name="layers-cumulative",
        title="RCS: all layers from the first on",
        shows="Whether more layers help; arXiv 2411.15851 tries this beside windows of four.",
        x_label="layers",
        scale="steps",
        needs=("rcs",),
        reference=(),
        vary=cumulative,
        least_depth=2,
    ),
    Study(
        name="rcs-weight",
        title="RCS: its weight",
        shows="How much of the middle layers' attention helps: 0 is the base alone, 1 leaves nothing of its attention.",
        x_label="λ_r",
        scale="numbers",
        needs=("rcs",),
        reference=(),
        vary=rcs_weights,
        least_depth=2,
    ),
    Study(
        name="sfr-weight",
        title="SFR: its weight",
        shows="How much feedback helps: 0 is the base alone, 1 leaves nothing of its score.",
        x_label="λ_s",
        scale="numbers",
        needs=("sfr",),
        reference=(),
        vary=sfr_weights,
    ),
    Study(
        name="sfr-switches",
        title="SFR: without one of its parts",
        shows="What each part of the feedback is worth.",
        x_label="SFR",
        scale="kinds",
        needs=("sfr",),
        reference=("sfr",),
        vary=switches,
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


def find_studies(names: Iterable[str]) -> list[Study]:
    """The studies called `names`, each once, in the order of `STUDIES`.

    Raises:
        ValueError: no such study, or none at all.
    """
    known = {study.name: study for study in STUDIES}
    asked = list(names)
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown study {name!r}{hint}; use some of: {', '.join(known)}")
    if not asked:
        raise ValueError(f"expected at least one study, got none; use some of: {', '.join(known)}")
    return [study for name, study in known.items() if name in asked]


def row_name(method: Method, start: Method) -> str:
    """What a report calls a method: base and modules, with the options that differ from those of `start`.

    Equal settings have equal names, so that studies share them: "naclip+rcs(layers=3-6)", and "naclip+rcs" for RCS as
    in `start`.
    """
    parts = [method.base]
    for module in MODULES:
        options, usual = getattr(method, module), getattr(start, module)
        if options is not None:
            changes = [
                f"{field.name}={spell(getattr(options, field.name))}"
                for field in fields(options)
                if getattr(options, field.name) != getattr(usual, field.name)
            ]
            parts.append(f"{module}({','.join(changes)})" if changes else module)
    return "+".join(parts)


def spell(value: Any) -> str:
    """An option's value as the command line takes it; a range of blocks by its ends."""
    if isinstance(value, tuple):
        first, last = value[0], value[-1]
        if value == tuple(range(first, last + 1)):
            return f"{first}-{last}" if last > first else str(first)
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


@dataclass(frozen=True)
class Line:
    """One setting, on every set."""

    label: str
    x: float | str
    rows: Mapping[str, str]
    """By the set's name, the name of the row that has its figures there."""

    def miou(self, figures: Evaluation) -> float | None:
        """On one of the sets; None where nothing could be measured."""
        return figures.rows[self.rows[figures.dataset]].scores.miou


@dataclass(frozen=True)
class Findings:
    """A study with where its figures are."""

    study: Study
    reference: Line
    """What the others are compared with; it may be one of them as well."""
    lines: tuple[Line, ...]

    def is_reference(self, line: Line, dataset: str) -> bool:
        """Whether a line has the reference's settings on a set."""
        return line.rows[dataset] == self.reference.rows[dataset]

    @property
    def shown(self) -> tuple[Line, ...]:
        """All lines, the reference first where none of them has its settings on every set."""
        if any(line.rows == self.reference.rows for line in self.lines):
            return self.lines
        return (self.reference, *self.lines)


@dataclass(frozen=True)
class Ablation:
    """What some studies came to."""

    report: Report
    """A row a setting."""
    findings: tuple[Findings, ...]


def ablate(
    studies: Sequence[Study],
    datasets: Sequence[Dataset],
    base_of: Callable[[Dataset], Segmenter],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    path: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    world: World = ALONE,
    progress: bool = False,
) -> Ablation:
    """Measure every setting of some studies on every set.

    Args:
        studies: of `resclip.evaluation.ablation.STUDIES`.
        datasets: the columns.
        base_of: the segmenter of the base alone for a set, as `resclip.load` makes it. All settings share its model
            and vocabulary, so that they are made once a set; its preset says where the studies start from.
        options: of "rcs" and "sfr", above the preset's; the option that a study turns is above both.
        path, fresh, workers, world, progress: as `resclip.evaluation.runner.evaluate` takes them.

    Raises:
        ValueError: a study that the base or the tower cannot be put to; and as `evaluate`.
        OSError: the file cannot be written.
    """
    if not studies:
        raise ValueError("expected at least one study, got none")
    report = Report()
    plans: list[list[Findings]] = []
    for dataset in datasets:
        segmenter = base_of(dataset)
        start = starting_point(segmenter, options or {})
        plan, methods = plan_of(studies, start, segmenter.encoder.tower.depth, dataset.name)
        measured = evaluate(
            [candidate(name, segmenter, method) for name, method in methods.items()],
            [dataset],
            path=path,
            fresh=fresh,
            workers=workers,
            world=world,
            progress=progress,
        )
        report.sets |= measured.sets
        plans.append(plan)
    return Ablation(report, tuple(map(joined, zip(*plans, strict=True))))


def starting_point(segmenter: Segmenter, options: Mapping[str, Mapping[str, Any]]) -> Method:
    """A segmenter's base with RCS and, where there is a score, SFR, at its preset's settings and above them `options`.

    The layers of RCS are named, so that a study of layers meets them again.
    """
    encoder = segmenter.encoder
    has_score = encoder.base.proxy is not None or encoder.correlation.has_score
    start = replace(METHODS[encoder.base.name], rcs=RCS(), sfr=SFR() if has_score else None)
    preset = segmenter.settings["preset"]
    if preset is not None:
        start = find_preset(preset).apply(start)
    start = with_sfr(with_rcs(start, **options.get("rcs", {})), **options.get("sfr", {}))
    if start.rcs is not None and start.rcs.layers is None:
        start = with_rcs(start, layers=start.rcs.layers_of(encoder.tower.depth))
    return start


def plan_of(
    studies: Sequence[Study], start: Method, depth: int, dataset: str
) -> tuple[list[Findings], dict[str, Method]]:
    """Where each study's figures on a set will be, and what has to be measured for them, by the row's name."""
    methods: dict[str, Method] = {}

    def line(label: str, x: float | str, method: Method) -> Line:
        name = row_name(method, start)
        methods[name] = method
        return Line(label, x, {dataset: name})

    plan = []
    for study in studies:
        variations = study.variations(start, depth)
        reference = with_modules(start, study.reference)
        label = row_name(reference, start)
        plan.append(
            Findings(
                study,
                line(label, label, reference),
                tuple(line(*variation) for variation in variations),
            )
        )
    return plan, methods


def joined(parts: Sequence[Findings]) -> Findings:
    """One study's findings on several sets, from those on each."""

    def merged(lines: Sequence[Line]) -> Line:
        return replace(
            lines[0], rows={name: row for line in lines for name, row in line.rows.items()}
        )

    return Findings(
        parts[0].study,
        merged([part.reference for part in parts]),
        tuple(map(merged, zip(*(part.lines for part in parts), strict=True))),
    )


def candidate(name: str, segmenter: Segmenter, method: Method) -> Candidate:
    """A row of the report: a base's segmenter with a method's modules."""
    return Candidate(name, lambda _: with_method(segmenter, replace(method, name=name)))


def with_method(segmenter: Segmenter, method: Method) -> Segmenter:
    """A copy with a method's RCS and SFR; model, vocabulary and windows are shared."""
    encoder = segmenter.encoder
    other = copy.copy(segmenter)
    other.source = {**segmenter.source, "method": method.name}
    other.encoder = DenseEncoder(
        encoder.tower,
        base=encoder.base.name,
        rcs=method.rcs,
        sfr=method.sfr,
        # A base without the prior, whose σ is None, makes nothing of it.
        neighbourhood_std=encoder.neighbourhood_std or 0.0,
        final_block=encoder.final_block,
        implementation=encoder.implementation,
        # The proxy compares its own features, and takes no correlation.
        correlation=None if encoder.base.proxy is not None else encoder.correlation,
        proxy=encoder.proxy,
        proxy_attention=encoder.final.proxy_attention,
        overview=encoder.overview,
    )
    return other
