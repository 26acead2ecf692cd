"""Studies × data sets → figures: every setting is measured once, whichever studies it belongs to.

Knows where a study starts from and how a segmenter gets other RCS and SFR. Which settings a study has is studies.py's,
measuring protocol.py's, showing figures study_tables.py's and study_plots.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resclip.encoder import DenseEncoder
from resclip.evaluation.datasets import Dataset
from resclip.evaluation.protocol import Candidate, evaluate
from resclip.evaluation.record import Evaluation, Report
from resclip.evaluation.studies import (
    Study,
    row_name,
    with_modules,
    with_rcs,
    with_sfr,
)
from resclip.evaluation.world import ALONE, World
from resclip.methods import METHODS, RCS, SFR, Method
from resclip.presets import find_preset
from resclip.segmenter import Segmenter



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
    knobs: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    path: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    world: World = ALONE,
    progress: bool = False,
) -> Ablation:
    """Measure every setting of some studies on every set.

    Args:
        studies: of `resclip.evaluation.studies.STUDIES`.
        datasets: the columns.
        base_of: the segmenter of the base alone for a set, as `resclip.load` makes it. All settings share its model
            and vocabulary, so that they are made once a set; its preset says where the studies start from.
        knobs: of "rcs" and "sfr", above the preset's; the knob that a study turns is above both.
        path, fresh, workers, world, progress: as `resclip.evaluation.protocol.evaluate` takes them.

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
        start = starting_point(segmenter, knobs or {})
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


def starting_point(segmenter: Segmenter, knobs: Mapping[str, Mapping[str, Any]]) -> Method:
    """A segmenter's base with RCS and, where there is a score, SFR, at its preset's settings and above them `knobs`.

    The layers of RCS are named, so that a study of layers meets them again.
    """
    encoder = segmenter.encoder
    has_score = encoder.base.proxy is not None or encoder.correlation.has_score
    start = replace(METHODS[encoder.base.name], rcs=RCS(), sfr=SFR() if has_score else None)
    preset = segmenter.settings["preset"]
    if preset is not None:
        start = find_preset(preset).apply(start)
    start = with_sfr(with_rcs(start, **knobs.get("rcs", {})), **knobs.get("sfr", {}))
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
