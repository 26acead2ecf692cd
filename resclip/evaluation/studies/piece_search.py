"""Which composition to take, measured: base × RCS × SFR × outlier repair × aggregation × TLP or PAMR.

The choice is made on one half of the images and judged on the other: the best of many is flattered by the images that
it was chosen on. Every composition is measured on the same images, so that two are compared draw by draw.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from resclip.evaluation.bootstrap import (
    RESAMPLES,
    ImageCounts,
    draws,
    halves,
    interval,
    mious,
    share_ahead,
)
from resclip.evaluation.checkpoint import DAMAGED, DatasetResult
from resclip.evaluation.coverage import coverage_of
from resclip.evaluation.datasets.base import IGNORED, Dataset, Problem, Sample
from resclip.evaluation.distributed import gather, machine_name, process_count, rank
from resclip.evaluation.metrics import confusion, scores_of
from resclip.evaluation.plots import plot_intervals
from resclip.evaluation.report import MethodResult
from resclip.evaluation.runner import (
    OnProgress,
    Progress,
    check_same_images,
    conditions_of,
    evaluate_dataset,
)
from resclip.evaluation.studies.findings import Finding
from resclip.io.files import make_folder, write_atomically
from resclip.methods.catalogue import PAMR_ITERATIONS, Base, find_base
from resclip.segmenter import Segmenter

NAME = "pieces"
"""As `resclip ablate --study` takes it."""
BASES = ("clearclip", "naclip", "sclip", "sc-clip", "pearl", "rf-clip")
"""The bases that are tried where none are named."""
BEST = 3
"""On how many bases the pieces are tried, where not on all."""
LEAST_IMAGES = 4
"""The fewest images: two in each half, as one cannot be drawn again in two ways."""
SEED = 0
"""Of the halves and of the draws."""
SURE = 0.95
"""From what share of the draws on the chosen composition counts as ahead of another."""
VERSION = 1
"""Of the stored counts."""

Behind = Literal["none", "TLP", "PAMR"]
COLUMNS = (
    "base", "modules", "outliers", "aggregation", "behind", "chosen on", "mIoU", "low", "high", "best is ahead",
)  # fmt: skip


@dataclass(frozen=True)
class Composition:
    """One setting of the search."""

    base: str
    rcs: bool = False
    sfr: bool = False
    outliers: bool = False
    """Whether outliers are repaired."""
    aggregation: bool = False
    behind: Behind = "none"
    """What refines the logits: PEARL's Laplacian propagation, PAMR, or nothing."""

    @classmethod
    def of(cls, base: str, rcs: bool = False, sfr: bool = False) -> Composition:
        """A base as its catalogue has it, with ResCLIP's modules."""
        own = find_base(base)
        return cls(
            base,
            rcs,
            sfr,
            own.pieces.outliers is not None,
            own.pieces.aggregation is not None,
            "none" if own.steps.laplacian is None else "TLP",
        )

    @property
    def method(self) -> str:
        """Base and modules, as `resclip.load` takes them."""
        return self.base + "+rcs" * self.rcs + "+sfr" * self.sfr

    @property
    def modules(self) -> str:
        return " + ".join(["RCS"] * self.rcs + ["SFR"] * self.sfr) or "none"

    @property
    def name(self) -> str:
        """In words: "naclip+rcs, outliers, PAMR", with all that it has of what is tried."""
        parts = ["outliers"] * self.outliers + ["aggregation"] * self.aggregation
        return ", ".join((self.method, *parts, *([self.behind] if self.behind != "none" else [])))

    def changes(self, wanted: Mapping[str, str] | None = None) -> Changes:
        """What has to be asked for beside `method`: what the base does not have or do by itself.

        Args:
            wanted: how a part is spelled where it is there, such as {"outliers": "outliers:detector=norm"}, and
                {"refine": "5"}; a part that is not named has its defaults, or the base's own options.
        """
        own, wanted = find_base(self.base), wanted or {}
        pieces = [
            *spelled("outliers", self.outliers, own.pieces.outliers, wanted),
            *spelled("aggregation", self.aggregation, own.pieces.aggregation, wanted),
        ]
        steps = spelled("laplacian", self.behind == "TLP", own.steps.laplacian, wanted)
        iterations = int(wanted.get("refine", PAMR_ITERATIONS)) if self.behind == "PAMR" else None
        return Changes(tuple(pieces), tuple(steps), iterations)


class Changes(NamedTuple):
    """What a composition asks for beside a method's name, as the command line takes it."""

    pieces: tuple[str, ...]
    """Of --piece."""
    steps: tuple[str, ...]
    """Of --step."""
    refine: int | None
    """Of --refine."""


def spelled(name: str, has_it: bool, own: object, wanted: Mapping[str, str]) -> Iterator[str]:
    """How a part is asked for or left out; nothing where the base's own is wanted."""
    if has_it and (name in wanted or own is None):
        yield wanted.get(name, name)
    elif not has_it and own is not None:
        yield f"{name}:none"


def first_stage(bases: Sequence[str]) -> list[Composition]:
    """Each base as it is, with RCS, with SFR and with both."""
    return [
        Composition.of(base, *modules)
        for base in bases
        for modules in ((False, False), (True, False), (False, True), (True, True))
    ]


def variants(composition: Composition) -> list[Composition]:
    """The same base and modules with and without each piece and step, itself among them."""
    choices = itertools.product((False, True), (False, True), get_args(Behind))
    return [
        replace(composition, outliers=outliers, aggregation=aggregation, behind=behind)
        for outliers, aggregation, behind in choices
    ]


def most_settings(bases: int, best: int, full: bool) -> tuple[int, int]:
    """How many settings the first stage has, and how many both have at most."""
    of_base = len(variants(Composition("clip")))
    first = bases * 4
    return first, first * of_base if full else first + min(best, bases) * (of_base - 1)


def budget(bases: int, images: int, best: int, full: bool) -> str:
    """What the search takes, as a sentence."""
    first, most = most_settings(bases, best, full)
    stages = (
        "the full product"
        if full
        else f"{first} of bases and modules, then {most - first} with and without the pieces on the best "
        f"{min(best, bases)} bases"
    )
    return f"at most {most} settings ({stages}) on {images:,} images: {most * images:,} images to segment"


@dataclass(frozen=True)
class Measured:
    """A composition's counts on a dataset."""

    composition: Composition
    counts: ImageCounts
    problems: tuple[Problem, ...]
    seconds: float

    def miou(self, images: Iterable[int]) -> float:
        """On those of these images that could be read; −1 where no class can be counted."""
        known = [image for image in images if image in self.counts.cells]
        miou = scores_of(self.counts.confusion(known)).miou
        return -1.0 if miou is None else miou


@dataclass
class Collector:
    """Counts each image by itself as it is segmented; an `OnImage` of `evaluate_dataset`."""

    counts: ImageCounts
    order: Mapping[str, int]
    """The index of each sample, by its name."""

    def __call__(
        self,
        method: str,
        dataset: Dataset,
        sample: Sample,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        found = confusion(truth, labels, self.counts.classes, ignored=IGNORED)
        self.counts.add(self.order[sample.name], found)


Make = Callable[[Composition], Segmenter]


@dataclass
class Search:
    """Measures compositions on a dataset, each once, and keeps what does not go together.

    Args:
        dataset: what to measure on.
        make: makes the segmenter of a composition; ValueError where its parts do not go together.
        store: a folder for the counts, where those of earlier runs are looked for; None: nothing is kept.
        fresh: whether earlier runs do not count.
        workers, on_progress: as `resclip.evaluation.runner.evaluate` takes them.
        total: how many settings there will be at most, for `on_progress`.
    """

    dataset: Dataset
    make: Make
    store: Path | None = None
    fresh: bool = False
    workers: int | None = None
    on_progress: OnProgress | None = None
    total: int = 0
    measured: dict[Composition, Measured] = field(default_factory=dict)
    refused: dict[Composition, str] = field(default_factory=dict)
    """Why a composition cannot be, by the composition."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What all compositions share, as JSON-able values."""

    def measure(self, compositions: Iterable[Composition]) -> None:
        """Measure those that have not been, one after the other.

        Raises:
            ValueError: all of them were refused, with the reason of the first.
        """
        wanted = list(compositions)
        for composition in wanted:
            if composition in self.measured or composition in self.refused:
                continue
            try:
                segmenter = self.make(composition)
            except ValueError as error:
                self.refused[composition] = str(error)
            else:
                self.measured[composition] = self.measure_one(composition, segmenter)
        if wanted and not any(composition in self.measured for composition in wanted):
            raise ValueError(self.refused[wanted[0]])

    def measure_one(self, composition: Composition, segmenter: Segmenter) -> Measured:
        """A composition's counts, stored ones if there are any."""
        column, options = conditions_of(self.dataset, segmenter)
        self.conditions = column.settings
        values = {
            "version": VERSION,
            "dataset": column.dataset,
            "settings": column.settings,
            "options": options,
        }
        classes, count = len(self.dataset.entries), len(self.dataset)
        path = None
        if self.store is not None:
            digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
            path = self.store / f"{digest[:24]}.json"
        found = None
        if rank() == 0 and path is not None and not self.fresh:
            found = stored(path, composition, values, classes, count)
        found = gather(found)[0]
        is_stored = found is not None
        if found is None:
            order = {sample.name: index for index, sample in enumerate(self.dataset.samples)}
            collector = Collector(ImageCounts.empty(classes), order)
            result = evaluate_dataset(
                composition.name,
                segmenter,
                self.dataset,
                workers=self.workers,
                on_progress=self.show,
                on_image=collector,
            )
            counts = ImageCounts.empty(classes)
            for part in gather(collector.counts.cells):
                counts.cells.update(part)
            found = Measured(composition, counts, result.problems, result.seconds)
            if path is not None and rank() == 0:
                keep(path, found, values)
        self.show_whole(found, segmenter, options, is_stored)
        return found

    def show(self, progress: Progress) -> None:
        """Pass on how far the search has come."""
        if self.on_progress is not None:
            size = len(self.dataset)
            done = (len(self.measured) + len(self.refused)) * size
            total = max(self.total * size, done + size)
            self.on_progress(replace(progress, images=done + progress.images, total=total))

    def show_whole(
        self, found: Measured, segmenter: Segmenter, options: Mapping[str, Any], is_stored: bool
    ) -> None:
        """Pass on the figures of a whole composition."""
        images = sorted(found.counts.cells)
        counts = found.counts.confusion(images)
        scores = scores_of(counts)
        row = MethodResult(
            scores,
            len(images),
            found.problems,
            options,
            found.seconds,
            process_count(),
            torch.get_num_threads(),
            machine_name(segmenter.device),
            0,
            coverage_of(self.dataset, DatasetResult(counts, len(images), found.problems)),
        )
        size, name = len(self.dataset), found.composition.name
        self.show(Progress(self.dataset.name, name, size, size, scores.miou, row, is_stored))


def stored(
    path: Path, composition: Composition, values: Mapping[str, Any], classes: int, images: int
) -> Measured | None:
    """The counts in a file; None where there is none, or another run's.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["conditions"] != values:
            return None
        counts = ImageCounts.from_json(classes, content["images"], images)
        problems = tuple(Problem(str(name), str(why)) for name, why in content["problems"])
        return Measured(composition, counts, problems, float(content["seconds"]))
    except (FileNotFoundError, *DAMAGED):
        return None


def keep(path: Path, found: Measured, values: Mapping[str, Any]) -> None:
    """Write the counts to a file; OSError where that cannot be done."""
    make_folder(path.parent)
    content = {
        "composition": found.composition.name,
        "conditions": values,
        "seconds": found.seconds,
        "problems": [[problem.name, problem.reason] for problem in found.problems],
        "images": found.counts.as_json(),
    }
    write_atomically(path, (json.dumps(content) + "\n").encode(errors="backslashreplace"))


class Figures(NamedTuple):
    """What a composition came to."""

    composition: Composition
    chosen_on: float
    """mIoU in per cent on the half that the choice is made on."""
    miou: float
    """mIoU on the other half."""
    low: float
    high: float
    """The ends of its 95 % interval there."""
    beaten: float | None
    """In what share of the draws of the other half the chosen composition is above; None for itself."""


@dataclass(frozen=True)
class Recommendation:
    """What the search came to on a dataset."""

    dataset: Dataset
    figures: tuple[Figures, ...]
    """By the mIoU on the half that the choice is made on, the chosen composition first."""
    choosing: tuple[int, ...]
    judging: tuple[int, ...]
    """The images of the two halves that could be read, by their index in the dataset."""
    refused: Mapping[Composition, str]
    problems: tuple[Problem, ...]
    conditions: Mapping[str, Any]
    most: str
    """What the search was to take at most, as `budget` says it."""

    @property
    def best(self) -> Figures:
        """The chosen composition."""
        return self.figures[0]

    def notes(self) -> Iterator[str]:
        """What the figures are of and how sure they are, as sentences."""
        best, others = self.best, self.figures[1:]
        yield (
            f"{self.dataset.name}: {self.dataset.description}; {self.conditions.get('model')}, "
            f"{self.conditions.get('precision')}. The budget was {self.most}; "
            f"{len(self.figures)} settings were measured."
        )
        yield (
            f"chosen on: mIoU in per cent on {len(self.choosing):,} images, by which the choice is made and the lines "
            f"are sorted. mIoU: on the other {len(self.judging):,}, with the ends of its 95 % interval when these are "
            f"drawn again {RESAMPLES:,} times. best is ahead: in what per cent of these draws, alike for all, the "
            "chosen composition is above."
        )
        yield (
            f"Chosen: {best.composition.name}. mIoU {best.chosen_on:.1f} on the half that it was chosen on, which "
            f"flatters it, and {best.miou:.1f} on the other half (95 % interval {best.low:.1f} to {best.high:.1f})."
        )
        if others:
            second = others[0]
            yield (
                f"It is ahead of the second, {second.composition.name}, in {100 * (second.beaten or 0):.1f} % of the "
                "draws."
            )
            near = [line for line in others if (line.beaten or 0) < SURE]
            yield (
                f"{len(near)} of the other {len(others)} are not told apart from it by these images: it is ahead of "
                f"them in less than {100 * SURE:.0f} % of the draws."
            )
            top = max(self.figures, key=lambda line: line.miou)
            if top.miou > best.miou:
                yield (
                    f"On the other half {top.composition.name} has more, {top.miou:.1f}; the choice stays, as that "
                    "half is there to judge it."
                )
        for reason, compositions in by_reason(self.refused).items():
            first, *rest = compositions
            more = f" and {len(rest)} more" if rest else ""
            yield f"Left out: {first.name}{more}: {reason}."
        if self.problems:
            count = len(self.problems)
            yield f"{count} image{'' if count == 1 else 's'} could not be read and count{'s' * (count == 1)} nowhere."

    def finding(self, command: str, more: Iterable[str], draw: bool) -> Finding:
        """As table, files and picture.

        Args:
            command: the command line that runs the chosen composition.
            more: sentences behind all others.
            draw: whether there is a picture.
        """
        lines = [
            dict(
                zip(
                    COLUMNS,
                    (
                        line.composition.base,
                        line.composition.modules,
                        "yes" if line.composition.outliers else "no",
                        "yes" if line.composition.aggregation else "no",
                        line.composition.behind,
                        *line[1:5],
                        None if line.beaten is None else 100 * line.beaten,
                    ),
                    strict=True,
                )
            )
            for line in self.figures
        ]
        details = {
            "command": command,
            "seed": SEED,
            "resamples": RESAMPLES,
            "chosen_on": [self.dataset.samples[index].name for index in self.choosing],
            "judged_on": [self.dataset.samples[index].name for index in self.judging],
            "figures": [
                {**asdict(line.composition), **line._asdict(), "composition": line.composition.name}
                for line in self.figures
            ],
            "left_out": {found.name: reason for found, reason in self.refused.items()},
        }
        return Finding(
            NAME,
            self.dataset.name,
            f"which composition to take on {self.dataset.name}",
            COLUMNS,
            lines,
            [*self.notes(), f"It runs by: {command}", *more],
            self.conditions,
            partial(draw_intervals, self) if draw else None,
            details,
            self.problems,
            decimals=1,
        )


def by_reason(refused: Mapping[Composition, str]) -> dict[str, list[Composition]]:
    """The compositions that were refused, by the sentence that refused them."""
    found: dict[str, list[Composition]] = {}
    for composition, reason in refused.items():
        found.setdefault(reason, []).append(composition)
    return found


def recommend(
    search: Search, bases: Sequence[str], best: int = BEST, full: bool = False
) -> Recommendation:
    """Search, choose on one half of the images, and judge on the other.

    Args:
        search: measures; what it has measured already is not measured again.
        bases: names; each is tried with RCS and SFR.
        best: on how many of the bases, each with its best modules by the half that chooses, the pieces are tried.
        full: whether they are tried on all bases with all modules.

    Raises:
        ValueError: an unknown base, fewer than `LEAST_IMAGES` images, no composition that can be, or no pixel that
            counts; and as `evaluate_dataset`.
        OSError: the counts cannot be written.
    """
    known: list[Base] = [find_base(name) for name in bases]
    dataset = search.dataset
    if len(dataset) < LEAST_IMAGES:
        raise ValueError(
            f"expected at least {LEAST_IMAGES} images of {dataset.name}, half to choose on and half to judge on; got "
            f"{len(dataset)}"
        )
    check_same_images(dataset)
    search.total = most_settings(len(known), best, full)[1]
    choosing, judging = halves(len(dataset), SEED)
    stage = first_stage([base.name for base in known])
    if full:
        stage = [variant for composition in stage for variant in variants(composition)]
    search.measure(stage)
    if not full:
        ranked = sorted(search.measured.values(), key=lambda found: -found.miou(choosing))
        leaders = {found.composition.base: found.composition for found in reversed(ranked)}
        chosen = [
            found.composition
            for found in ranked
            if leaders[found.composition.base] == found.composition
        ]
        search.measure(
            variant for composition in chosen[:best] for variant in variants(composition)
        )
    readable = set.intersection(*(set(found.counts.cells) for found in search.measured.values()))
    choosing, judging = (
        [image for image in half if image in readable] for half in (choosing, judging)
    )
    for half in (choosing, judging):
        if len(half) < LEAST_IMAGES // 2:
            raise ValueError(
                f"expected at least {LEAST_IMAGES // 2} images of {dataset.name} in each half that can be read, got "
                f"{len(half)}: repair them, or measure on more"
            )
    most = budget(len(known), len(dataset), best, full)
    return Recommendation(
        dataset,
        figures_of(search.measured.values(), choosing, judging),
        tuple(choosing),
        tuple(judging),
        dict(search.refused),
        next(iter(search.measured.values())).problems,
        search.conditions,
        most,
    )


def figures_of(
    measured: Iterable[Measured], choosing: Sequence[int], judging: Sequence[int]
) -> tuple[Figures, ...]:
    """The figures of each composition, the chosen one first.

    Raises:
        ValueError: no pixel counts in one of the halves.
    """
    ranked = sorted(measured, key=lambda found: -found.miou(choosing))
    if min(ranked[0].miou(choosing), ranked[0].miou(judging)) < 0:
        raise ValueError("expected pixels that have a class in both halves of the images, got none")
    drawn = draws(len(judging), RESAMPLES, SEED)
    winner = mious(ranked[0].counts.areas(judging), drawn)
    figures = []
    for found in ranked:
        values = mious(found.counts.areas(judging), drawn)
        beaten = None if found is ranked[0] else share_ahead(winner, values)
        figures.append(
            Figures(
                found.composition,
                found.miou(choosing),
                found.miou(judging),
                *interval(values),
                beaten,
            )
        )
    return tuple(figures)


def draw_intervals(recommendation: Recommendation, path: Path) -> None:
    """The mIoU of every composition on the half that judges, with its interval; raises as `plot_intervals`."""
    plot_intervals(
        f"{recommendation.dataset.name}: mIoU on {len(recommendation.judging):,} images with its 95 % interval, sorted "
        f"by that on the {len(recommendation.choosing):,} that chose",
        {
            line.composition.name: (line.low, line.miou, line.high)
            for line in recommendation.figures
        },
        "mIoU in per cent",
        path,
    )
