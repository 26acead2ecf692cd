"""Ablations as values: which knob a study turns, through which settings, and what it compares them with.

Knows RCS, SFR and their knobs. Knows no model beyond its depth, no data set and no figure.

A study puts on the base only the modules that it is about, at the settings that it starts from, and changes one knob
of theirs at a time.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args

from resclip.methods import MODULES, Connectivity, Method


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
    """One knob, turned through its settings."""

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


def with_rcs(method: Method, **knobs: Any) -> Method:
    """The method with other knobs of RCS."""
    return replace(method, rcs=method.rcs and replace(method.rcs, **knobs))


def with_sfr(method: Method, **knobs: Any) -> Method:
    """The method with other knobs of SFR."""
    return replace(method, sfr=method.sfr and replace(method.sfr, **knobs))


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
    return [Variation(label, label, with_sfr(method, **knobs)) for label, knobs in parts.items()]


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
    """What a report calls a method: base and modules, with the knobs that differ from those of `start`.

    Equal settings have equal names, so that studies share them: "naclip+rcs(layers=3-6)", and "naclip+rcs" for RCS as
    in `start`.
    """
    parts = [method.base]
    for module in MODULES:
        knobs, usual = getattr(method, module), getattr(start, module)
        if knobs is not None:
            changes = [
                f"{field.name}={spell(getattr(knobs, field.name))}"
                for field in fields(knobs)
                if getattr(knobs, field.name) != getattr(usual, field.name)
            ]
            parts.append(f"{module}({','.join(changes)})" if changes else module)
    return "+".join(parts)


def spell(value: Any) -> str:
    """A knob's value as the command line takes it; a range of blocks by its ends."""
    if isinstance(value, tuple):
        first, last = value[0], value[-1]
        if value == tuple(range(first, last + 1)):
            return f"{first}-{last}" if last > first else str(first)
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
