"""`resclip ablate --study pieces`: which composition to take, and the command line that runs it.

What it imports from resclip.evaluation is loaded on use: `--help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import shlex
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from resclip.cli.options import (
    FOLDER,
    SCENES,
    parse_roots,
    preset_of,
    segmenter_for,
    whole_number,
)
from resclip.cli.patch_studies import show_problems
from resclip.cli.progress import console, evaluation_progress
from resclip.io.files import write_atomically
from resclip.text.class_names import DATASETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from resclip.evaluation.datasets import Dataset
    from resclip.evaluation.studies.piece_search import Composition
    from resclip.segmenter import Segmenter

BEST = 3
"""On how many bases the pieces are tried by default."""
VARIED = {"piece": ("outliers", "aggregation"), "step": ("laplacian",)}
"""What the study puts on and takes off, by the option that spells it."""
KEPT = {
    "pretrained": None, "correlation": None, "rcs": None, "sfr": None, "proxy": None, "templates": None,
    "precision": None, "short_side": None, "window": None, "stride": None, "overview": None, "threshold": None,
    "min_margin": None,
}  # fmt: skip
"""Options that decide labels, with their defaults: the command that runs the chosen composition repeats the others."""


def add_piece_options(group: Any) -> None:
    """The options of the study alone."""
    group.add_argument(
        "--best",
        type=whole_number,
        metavar="K",
        help=f"pieces tries its pieces on the K best bases, each with its best modules (default: {BEST})",
    )
    group.add_argument(
        "--full",
        action="store_true",
        help="pieces tries its pieces on every base with all modules",
    )


def check_pieces(arguments: argparse.Namespace, is_asked: bool) -> None:
    """ValueError for options that do not fit the study, or that are given without it."""
    for option in ("best", "full"):
        if getattr(arguments, option) and not is_asked:
            raise ValueError(f"--{option} is for the study pieces; leave it out")
    if not is_asked:
        return
    if arguments.best and arguments.full:
        raise ValueError("--full tries the pieces on every base; leave --best out")
    if arguments.refine == 0:
        raise ValueError(
            "the study pieces tries PAMR itself, with the iterations that --refine names; got 0: leave it out"
        )
    for option, names in VARIED.items():
        for name, text in split_texts(getattr(arguments, option), names)[0].items():
            if text.partition(":")[2].strip().lower() == "none":
                raise ValueError(
                    f"the study pieces tries {name} with and without; got --{option} {text}: leave it out"
                )


def split_texts(texts: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What these texts say of what is varied, by name, and the other texts."""
    varied, others = {}, []
    for text in texts:
        name = text.partition(":")[0].strip()
        if name in names and name not in varied:
            varied[name] = text
        else:
            others.append(text)
    return varied, others


def with_composition(arguments: argparse.Namespace, composition: Composition) -> argparse.Namespace:
    """The options that make a composition, the user's own for all else."""
    wanted: dict[str, str] = {}
    others = {}
    for option, names in VARIED.items():
        varied, others[option] = split_texts(getattr(arguments, option), names)
        wanted |= varied
    if arguments.refine is not None:
        wanted["refine"] = str(arguments.refine)
    changes = composition.changes(wanted)
    return argparse.Namespace(
        **{
            **vars(arguments),
            "method": composition.method,
            "piece": [*others["piece"], *changes.pieces],
            "step": [*others["step"], *changes.steps],
            "refine": changes.refine,
        }
    )


def make_segmenter(
    arguments: argparse.Namespace,
    dataset: Dataset,
    device: str | None,
    warned: set[str],
    composition: Composition,
) -> Segmenter:
    """The segmenter of a composition; raises as `segmenter_for`. What is in `warned` is not warned of again."""
    given = with_composition(arguments, composition)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        segmenter = segmenter_for(given, composition.method, dataset, device=device)
    for warning in caught:
        if str(warning.message) not in warned:
            warned.add(str(warning.message))
            warnings.warn(warning.message, warning.category, stacklevel=2)
    return segmenter


def command_of(arguments: argparse.Namespace, dataset: Dataset, composition: Composition) -> str:
    """The command line that segments an image as a composition was measured."""
    given = with_composition(arguments, composition)
    if not composition.rcs:
        given.rcs = None
    if not composition.sfr:
        given.sfr = None
    from resclip.methods.catalogue import BASES

    if BASES[composition.base].proxy is None:
        given.proxy = None
    for name, value in dataset.settings.items():
        if getattr(given, name, value) is None:
            setattr(given, name, value)
    words = ["resclip", "segment", "IMAGE.jpg", "--classes", classes_of(arguments, dataset)]
    words += ["--model", arguments.model]
    preset = arguments.preset or preset_of(dataset.name, arguments.model)
    if preset is not None:
        words += ["--preset", preset]
    words += ["--method", composition.method]
    words += [*repeated("piece", given.piece), *repeated("step", given.step)]
    if given.refine is not None:
        words += ["--refine", str(given.refine)]
    words += kept_options(vars(given))
    return shlex.join([*words, "--out", "segmented"])


def repeated(option: str, texts: Sequence[str]) -> list[str]:
    """The option with each of the texts."""
    return [word for text in texts for word in (f"--{option}", text)]


def kept_options(given: Mapping[str, Any]) -> Iterator[str]:
    """The words of those options of `KEPT` that are not at their defaults."""
    for name, default in KEPT.items():
        value = given[name]
        if value != default:
            option = f"--{name.replace('_', '-')}"
            # An empty value, as --overview has without options, may be no word of its own.
            yield from (option,) if value == "" else (option, str(value))


def classes_of(arguments: argparse.Namespace, dataset: Dataset) -> str:
    """A dataset's classes, as --classes of `resclip segment` takes them."""
    if arguments.classes is not None:
        return str(arguments.classes)
    if dataset.name in DATASETS:
        return f"@{dataset.name}"
    if dataset.name == FOLDER:
        names = [name.strip() for name in arguments.dataset.split(",")]
        return str(parse_roots(arguments.root, names)[FOLDER] / "classes.txt")
    return "; ".join(dataset.entries)


def honest_sentence(dataset: Dataset) -> str:
    """What the result says, and of what it says nothing."""
    if dataset.name == SCENES:
        return (
            "It says which composition suits drawn scenes and a small model, and nothing of photographs: measure on "
            "images of your own with --dataset folder."
        )
    return (
        "It says which composition suits this model on images like these, and nothing of other images, classes or "
        "models."
    )


def run_pieces(
    arguments: argparse.Namespace, datasets: Sequence[Dataset], device: str | None
) -> int:
    """Measure, print and store the study on each dataset; the exit status."""
    from resclip.evaluation.distributed import rank
    from resclip.evaluation.runner import report_lock
    from resclip.evaluation.studies.piece_search import BASES, Search, budget, recommend

    bases = [name.strip() for name in arguments.base.split(",")] if arguments.base else list(BASES)
    bases = list(dict.fromkeys(bases))
    best, full, folder = arguments.best or BEST, arguments.full, arguments.out
    status, warned = 0, set[str]()
    for dataset in datasets:
        if rank() == 0:
            plan = budget(len(bases), len(dataset), best, full)
            console().note(f"{dataset.name}: {plan}")
        stem = f"pieces_{dataset.name}"
        with report_lock(folder and folder / f"{stem}.json"), evaluation_progress() as on_progress:
            search = Search(
                dataset,
                partial(make_segmenter, arguments, dataset, device, warned),
                folder and folder / stem,
                arguments.fresh,
                arguments.workers,
                on_progress,
            )
            found = recommend(search, bases, best, full)
            status |= int(bool(found.problems))
            if rank() != 0:
                continue
            command = command_of(arguments, dataset, found.best.composition)
            finding = found.finding(command, [honest_sentence(dataset)], arguments.plot)
            print(finding.text(), end="\n\n")
            if folder is not None:
                paths = [*finding.write(folder), folder / f"{stem}.md"]
                write_atomically(paths[-1], finding.markdown().encode(errors="backslashreplace"))
                print(f"{', '.join(map(str, paths))}\n")
        show_problems([f"{dataset.name}, {one.name}: {one.reason}" for one in found.problems])
    return status
