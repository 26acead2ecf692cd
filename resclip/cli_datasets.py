"""What the commands that measure share: data sets by options, a method's segmenter for one of them, tables as files.

Knows option names and which settings go with which set. Knows no metric and no table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resclip.class_names import DATASETS, parse_classes
from resclip.cli_options import load_from
from resclip.files import write_atomically

if TYPE_CHECKING:
    from resclip.evaluation.datasets import Dataset
    from resclip.methods import Method
    from resclip.segmenter import Segmenter


SCENES = "builtin"
"""The name of the drawn scenes as a data set."""

_DATASETS_HELP = f"""\
sets to measure on, separated by commas: {SCENES} (the model's own scenes, nothing to download),
{", ".join(DATASETS)}, or folder: images/, masks/ and classes.txt of your own
(default: {SCENES})
"""


def add_dataset_options(parser: argparse.ArgumentParser, *, scenes: int = 200) -> None:
    """Which sets, where they lie, and by which names their classes are asked for.

    Args:
        scenes: how many of the drawn ones the command takes where it is not told.
    """
    group = parser.add_argument_group("data sets")
    group.add_argument("--dataset", default=SCENES, metavar="NAMES", help=_DATASETS_HELP)
    group.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="folder that holds the data; with several sets NAME=DIR for each, or one DIR for all",
    )
    group.add_argument("--split", help="instead of the set's standard split")
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="names to ask for in place of the set's own, one class a line in the order of its labels",
    )
    group.add_argument(
        "--scenes", type=int, metavar="N", help=f"how many scenes of {SCENES} (default: {scenes})"
    )
    group.add_argument(
        "--size", type=int, metavar="PIXELS", help=f"side of the scenes of {SCENES} (default: 168)"
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode pictures (default: by the machine)",
    )


def open_datasets(arguments: argparse.Namespace) -> list[Dataset]:
    """The sets that the options name.

    Raises:
        ValueError: an unknown set, one named twice, a folder that is none, options that fit no set.
        OSError: a file that cannot be read.
    """
    names = [name.strip() for name in arguments.dataset.split(",")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected each data set once, got {twice!r} twice")
    if arguments.classes is not None and len(names) > 1:
        raise ValueError("--classes has the names of one data set; name one with --dataset")
    for option in ("scenes", "size"):
        if getattr(arguments, option) is not None and SCENES not in names:
            raise ValueError(f"--{option} is for {SCENES}; leave it out for {', '.join(names)}")
    roots = roots_of(arguments.root, names)
    return [open_one(arguments, name, roots.get(name)) for name in names]


def roots_of(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """The folder of each set that has one, from "DIR" and "NAME=DIR"."""
    roots: dict[str, Path] = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if separator and name in names:
            roots[name] = Path(folder)
        else:
            if separator and not Path(text).exists():
                raise ValueError(
                    f"expected --root DIR, or NAME=DIR with NAME one of {', '.join(names)}; got {text!r}"
                )
            roots = {**dict.fromkeys(names, Path(text)), **roots}
    return roots


def open_one(arguments: argparse.Namespace, name: str, root: Path | None) -> Dataset:
    """One set, with other names for its classes where they are given."""
    from resclip.evaluation.datasets import open_dataset

    if name == SCENES:
        from resclip.builtin.dataset import scene_dataset

        sizes = {"count": arguments.scenes, "size": arguments.size}
        given = {option: value for option, value in sizes.items() if value is not None}
        dataset = scene_dataset(arguments.split, **given)
    else:
        dataset = open_dataset(name, root, arguments.split)
    if arguments.classes is None:
        return dataset
    entries = parse_classes(arguments.classes)
    if len(entries) != len(dataset.entries):
        raise ValueError(
            f"{arguments.classes}: expected a name for each of the {len(dataset.entries)} classes of {name}, "
            f"got {len(entries)}"
        )
    return replace(dataset, entries=tuple(entries))


def segmenter_for(
    arguments: argparse.Namespace, method: str | Method, dataset: Dataset, device: str | None
) -> Segmenter:
    """A method's segmenter for a set: the set's preset and settings, and above them what the options say.

    Knobs of RCS, SFR and the proxy are for the methods that have them.

    Raises:
        ValueError, TypeError: options that cannot be carried out.
        WeightsUnavailable: the model cannot be fetched.
    """
    from resclip.methods import BASES, find_method

    chosen = find_method(method) if isinstance(method, str) else method
    has = {
        "rcs": chosen.rcs is not None,
        "sfr": chosen.sfr is not None,
        "proxy": (chosen.proxy or BASES[chosen.base].proxy) is not None,
    }
    own = argparse.Namespace(**vars(arguments))
    for knob, is_there in has.items():
        if not is_there:
            setattr(own, knob, None)
    changes: dict[str, Any] = {
        "window": arguments.window,
        "stride": arguments.stride,
        "probability_threshold": arguments.threshold,
        "batch_size": arguments.batch_size,
        "short_side": arguments.short_side,
    }
    settings = {name: value for name, value in dataset.settings.items() if changes[name] is None}
    preset = arguments.preset or preset_of(dataset.name, arguments.model)
    return load_from(
        own, dataset.entries, **{**changes, **settings}, method=method, preset=preset, device=device
    )


def preset_of(dataset: str, model: str) -> str | None:
    """A benchmark's own preset; None where the model's or the method's defaults hold."""
    from resclip.backbones import BUILTIN

    return dataset if dataset in DATASETS and model != BUILTIN else None


def check_out(arguments: argparse.Namespace, *options: str) -> None:
    """ValueError where one of `options` writes files and --out names no folder; ImportError where nothing can plot."""
    asked = [option for option in options if getattr(arguments, option)]
    if asked and arguments.out is None:
        option = f"--{asked[0].replace('_', '-')}"
        raise ValueError(f"expected --out DIR for what {option} writes, got none; name a folder")
    if arguments.plot:
        from resclip.evaluation.plots import check_matplotlib

        check_matplotlib()


def write_tables(folder: Path, stem: str, csv: str, markdown: str) -> None:
    """Write a report's tables into a folder that is made if need be: stem.csv and stem.md; OSError if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{stem}.csv", csv.encode())
    write_atomically(folder / f"{stem}.md", (markdown + "\n").encode())
