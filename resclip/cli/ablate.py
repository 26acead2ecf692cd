"""`resclip ablate`: studies × datasets, as tables, files and pictures.

What it imports from resclip.evaluation is loaded on use: `--help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resclip.cli.options import (
    SCENES,
    add_dataset_options,
    add_model_options,
    add_window_options,
    check_out,
    integer,
    open_datasets,
    output_path,
    segmenter_for,
    show_tables,
    whole_number,
)
from resclip.cli.patch_studies import NAMED_IMAGE, OTHERS, run_other, show_problems
from resclip.cli.piece_study import add_piece_options, check_pieces, run_pieces
from resclip.cli.progress import add_progress_options, evaluation_progress
from resclip.evaluation.studies.catalogue import STUDIES, check_names, listing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resclip.evaluation.ablation import Ablation, Study
    from resclip.evaluation.datasets import Dataset
    from resclip.segmenter import Segmenter


ALL = "all"
LIST = "list"
SCENE_COUNT = 40
"""How many of the drawn scenes are used by default: all studies then take some minutes."""
IMAGES = 100
"""Images that a study of patches looks at by default."""
LEARN_IMAGES = 64
"""Images that a projection is learned from by default, as in SCLIP's paper."""
METHOD_OPTIONS = ("piece", "step", "refine", "rcs", "sfr")
"""Options of a method, which studies of patches and of the model's own attention do not read."""
SEVERAL_BASES = ("gain", "pieces")
"""The studies that --base names several bases for, and that draw with --plot alone."""

DESCRIPTION = f"""\
The papers' own studies: options varied one at a time, each setting measured, and what attention and similarities look
like. A study starts from the dataset's own settings, or from those that --preset, --rcs and --sfr name. On the {SCENES}
scenes it takes {SCENE_COUNT} of them unless --scenes names another number. --study {LIST} says what there is.
"""

_STUDY_HELP = f"""\
{"; ".join(f"{name}: {entry.summary}" for name, entry in STUDIES.items())}. Separated by commas. {ALL}: the options of
RCS and SFR, {", ".join(name for name, entry in STUDIES.items() if entry.in_all)}; {LIST}: print what there is
(default: {ALL})
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resclip ablate`."""
    parser.add_argument(
        "--study", default=ALL, metavar="NAMES", help=_STUDY_HELP.replace("%", "%%")
    )
    parser.add_argument(
        "--base",
        metavar="NAME",
        help="what a study is put on; see `resclip methods`. gain and pieces take several, separated by commas "
        "(default: naclip; SCLIP's studies: sclip; ProxyCLIP's: proxyclip; gain: sclip,clearclip,naclip; pieces: "
        "clearclip,naclip,sclip,sc-clip,pearl,rf-clip)",
    )
    of_some = parser.add_argument_group("options of some studies")
    of_some.add_argument(
        "--images",
        type=whole_number,
        default=IMAGES,
        metavar="N",
        help="images that patch-similarity, spatial-invariance and proxy-similarity look at, evenly spread over the "
        f"dataset (default: {IMAGES})",
    )
    of_some.add_argument(
        "--others",
        metavar="NAMES",
        help="models that patch-similarity and maps compare CLIP with, as --proxy takes them, separated by commas "
        "(default: colour for builtin; else DINO, for maps DINO and SAM)",
    )
    of_some.add_argument(
        "--image",
        metavar="FILE",
        help="the image of attention-by-layer and maps (default: the dataset's first)",
    )
    of_some.add_argument(
        "--query",
        metavar="X,Y",
        help="the point whose patch they look at, in pixels from the image's top left corner (default: in the middle "
        "of the image's rarest class; without labels of the image)",
    )
    of_some.add_argument(
        "--learn-images",
        type=integer,
        default=LEARN_IMAGES,
        metavar="N",
        help="labelled images that sclip-projection learns from, of the dataset's training part, or of the dataset "
        f"itself and then not measured on; 0: it learns none (default: {LEARN_IMAGES})",
    )
    add_piece_options(of_some)
    add_dataset_options(parser, scenes=SCENE_COUNT)
    add_model_options(parser, method=False, background=False, scenes=True)
    add_window_options(parser)
    add_progress_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=output_path,
        metavar="DIR",
        help="write ablation.json, ablation.csv and ablation.md there, for gain gain_MODEL.json, gain.csv and gain.md, "
        "and for studies that are no sweeps STUDY_DATASET.json, .csv and .png, for pieces .md and each image's "
        "counts as well. Settings that a JSON file has under the same "
        " conditions are not measured again, so an interrupted run goes on where it stopped",
    )
    output.add_argument(
        "--fresh", action="store_true", help="measure every setting anew, whatever ablation.json holds"
    )  # fmt: skip
    output.add_argument(
        "--plot",
        action="store_true",
        help="draw each sweep and pieces, DIR/STUDY_DATASET.png, and gain",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and store; the exit status: 0, or 1 if images had to be left out.

    Raises:
        ValueError: an option that cannot be carried out, or an ablation.json with figures under other conditions.
        OSError: a file cannot be written, or another run writes to it.
        WeightsUnavailable: the model cannot be fetched.
        ImportError: a picture without matplotlib.
    """
    if arguments.study.strip() == LIST:
        print(listing())
        return 0
    from resclip.evaluation.distributed import local_device, process_group

    check_out(arguments, "plot")
    names = names_of(arguments.study)
    sweeps = studies_of(arguments.study)
    others = [name for name in names if not STUDIES[name].is_sweep]
    check_others(arguments, others)
    check_pieces(arguments, "pieces" in names)
    base = base_of(arguments.base, sweeps, others)
    if arguments.scenes is None and SCENES in arguments.dataset.split(","):
        arguments.scenes = SCENE_COUNT
    datasets = open_datasets(arguments)
    status = 0
    with process_group():
        device = local_device(arguments.device)
        if sweeps:
            status |= run_sweeps(arguments, sweeps, base, datasets, device)
        for name in others:
            if name == "gain":
                status |= run_gain(arguments, datasets, device)
            elif name == "pieces":
                status |= run_pieces(arguments, datasets, device)
            else:
                status |= run_other(name, arguments, datasets, device)
    return status


def names_of(text: str) -> list[str]:
    """The studies that --study names, by name."""
    if text.strip() == ALL:
        return [name for name, entry in STUDIES.items() if entry.in_all]
    return check_names(name.strip() for name in text.split(","))


def studies_of(names: str) -> Sequence[Study]:
    """The sweeps among what --study names."""
    from resclip.evaluation import ablation
    from resclip.evaluation.studies.sweeps import PAPER_STUDIES

    if names.strip() == ALL:
        return ablation.STUDIES
    wanted = [name for name in names_of(names) if STUDIES[name].is_sweep]
    known = [*ablation.STUDIES, *PAPER_STUDIES]
    return ablation.find_studies(wanted, known) if wanted else []


def check_others(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """ValueError for options that do not fit the studies that are no sweeps; ImportError if one lacks matplotlib."""
    pictures = [name for name in names if name in NAMED_IMAGE]
    if pictures and arguments.out is None:
        raise ValueError(
            f"expected --out DIR for the picture that study {pictures[0]!r} draws, got none; name a folder"
        )
    for option in ("image", "query"):
        if getattr(arguments, option) is not None and not pictures:
            raise ValueError(
                f"--{option} is for the studies {', '.join(NAMED_IMAGE)}; leave it out"
            )
    looking = [name for name in names if name in OTHERS]
    if looking:
        unread = [option for option in METHOD_OPTIONS if getattr(arguments, option)]
        if arguments.others and "patch-similarity" not in names and "maps" not in names:
            unread.append("others")
        if unread:
            raise ValueError(
                f"study {looking[0]!r} looks at the model itself and does not read --{unread[0]}: leave it out, or run "
                "the study on its own"
            )
    if arguments.learn_images < 0:
        raise ValueError(f"expected --learn-images of at least 0, got {arguments.learn_images}")
    if arguments.out is not None and any(
        name not in (*NAMED_IMAGE, *SEVERAL_BASES) for name in names
    ):
        from resclip.evaluation.plots import check_matplotlib

        check_matplotlib()


def base_of(name: str | None, sweeps: Sequence[Study], others: Sequence[str]) -> str:
    """The base of the sweeps: what --base names, or their own.

    Raises:
        ValueError: no such base, or sweeps that start from different ones.
    """
    from resclip.evaluation.datasets.base import cut
    from resclip.methods.catalogue import BASES

    if name is not None:
        # Some take several; they say by themselves what is wrong with one.
        several = bool(others) and set(others) <= set(SEVERAL_BASES) and not sweeps
        chosen = name.split(",") if several else [name]
        for one in map(str.strip, chosen):
            if one not in BASES:
                raise ValueError(
                    f"expected one of the bases {', '.join(BASES)} for --base, got {cut(one)!r}; the studies add RCS "
                    "and SFR"
                )
        return name
    own: dict[str, str] = {}
    for study in sweeps:
        own.setdefault(study.base, study.name)
    if len(own) > 1:
        (base, first), (other, second) = list(own.items())[:2]
        raise ValueError(
            f"study {first!r} starts from base {base!r} and {second!r} from {other!r}: run one after the other, or "
            "name one --base for both"
        )
    return next(iter(own), "naclip")


def run_sweeps(
    arguments: argparse.Namespace,
    studies: Sequence[Study],
    base: str,
    datasets: Sequence[Dataset],
    device: str | None,
) -> int:
    """Measure, print and store the sweeps; the exit status."""
    from resclip.evaluation.ablation import ablate
    from resclip.evaluation.distributed import rank
    from resclip.evaluation.tables import problem_lines

    options = options_of(arguments)
    with ExitStack() as stack:
        on_dataset: dict[str, Any] = {}
        if any(study.name in ("sclip-projection", "proxy-size") for study in studies):
            folder = arguments.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            is_learning = any(study.name == "sclip-projection" for study in studies)
            datasets, learning = learning_datasets(arguments, datasets, is_learning)
            on_dataset["on_dataset"] = partial(study_on, arguments, learning, folder)
        on_progress = stack.enter_context(evaluation_progress())
        ablation = ablate(
            studies,
            datasets,
            lambda dataset: segmenter_for(arguments, base, dataset, device=device),
            options,
            **on_dataset,
            checkpoint=arguments.out and arguments.out / "ablation.json",
            fresh=arguments.fresh,
            workers=arguments.workers,
            on_progress=on_progress,
        )
    if rank() == 0:
        write(ablation, arguments)
    return int(bool(problem_lines(ablation.report)))


def learning_datasets(
    arguments: argparse.Namespace, datasets: Sequence[Dataset], is_learning: bool
) -> tuple[list[Dataset], dict[str, Dataset]]:
    """What is measured on, and by the dataset's name what a projection is learned from."""
    from resclip.evaluation.studies.learning import learning_part

    if not is_learning or not arguments.learn_images:
        return list(datasets), {}

    def open_split(name: str, split: str) -> Dataset:
        values = {**vars(arguments), "dataset": name, "split": split}
        if name == SCENES:
            values["scenes"] = arguments.learn_images
        others = ("scenes", "size") if name != SCENES else ()
        values |= dict.fromkeys((*others, "ignore_index", "label_offset"))
        # Folders of the other datasets.
        foreign = tuple(f"{dataset.name}=" for dataset in datasets if dataset.name != name)
        values["root"] = [text for text in arguments.root if not text.startswith(foreign)]
        return open_datasets(argparse.Namespace(**values))[0]

    measured, learning = [], {}
    for dataset in datasets:
        part, learning[dataset.name] = learning_part(
            dataset, arguments.learn_images, partial(open_split, dataset.name)
        )
        measured.append(part)
    return measured, learning


def study_on(
    arguments: argparse.Namespace,
    learning: Mapping[str, Dataset],
    folder: Path,
    study: Study,
    dataset: Dataset,
    segmenter: Segmenter,
) -> Study:
    """A sweep as it is on one dataset: with the projection that is learned there, or sizes of its windows."""
    from resclip.evaluation.distributed import gather, rank
    from resclip.evaluation.studies import sweeps
    from resclip.evaluation.studies.learning import LearningOptions, learned_file

    if study.name == "proxy-size":
        side = segmenter.pipeline.window or sweeps.PROXY_WINDOW
        return replace(study, vary=partial(sweeps.proxy_sizes, side))
    if study.name != "sclip-projection" or dataset.name not in learning:
        return study
    found = ""
    if rank() == 0:
        options = LearningOptions(images=arguments.learn_images)
        path, sentence = learned_file(folder, segmenter, learning[dataset.name], options)
        found = str(path)
        print(f"{sentence}\n")
    # The first process has written it for all, on a disk that they share.
    return replace(study, vary=partial(sweeps.projections, Path(gather(found)[0])))


def run_gain(arguments: argparse.Namespace, datasets: Sequence[Dataset], device: str | None) -> int:
    """Measure, print and store what the modules add to each base on each model; the exit status."""
    from resclip.evaluation.distributed import rank
    from resclip.evaluation.runner import evaluate
    from resclip.evaluation.studies.gain import BASES, draw_gains, gain_tables, rows_of
    from resclip.evaluation.tables import problem_lines

    bases = [name.strip() for name in arguments.base.split(",")] if arguments.base else list(BASES)
    reports = {}
    for model, pretrained in models_of(arguments):
        own = argparse.Namespace(**{**vars(arguments), "model": model, "pretrained": pretrained})
        label = model if pretrained is None else f"{model} ({pretrained})"
        name = re.sub(r"[^\w.-]+", "-", f"{model} {pretrained or ''}".strip())
        with evaluation_progress() as on_progress:
            reports[label] = evaluate(
                {row: partial(segmenter_for, own, row, device=device) for row in rows_of(bases)},
                datasets,
                checkpoint=arguments.out and arguments.out / f"gain_{name}.json",
                fresh=arguments.fresh,
                workers=arguments.workers,
                on_progress=on_progress,
            )
    if rank() == 0:
        tables = gain_tables(reports, bases)
        first, *rest = reports.values()
        show_tables(tables, first, arguments.out, "gain")
        for report in rest:
            show_problems(problem_lines(report))
        if arguments.plot:
            draw_gains(reports, bases, arguments.out / "gain.png")
    return int(any(problem_lines(report) for report in reports.values()))


def models_of(arguments: argparse.Namespace) -> list[tuple[str, str | None]]:
    """The models of gain with their weights: several are separated by commas, and so are their tags, or one is for all.

    Raises:
        ValueError: another number of tags.
    """
    models = [name.strip() for name in arguments.model.split(",")]
    tags: list[str | None] = [None]
    if arguments.pretrained is not None:
        tags = [tag.strip() or None for tag in arguments.pretrained.split(",")]
    if len(tags) == 1:
        tags *= len(models)
    if len(tags) != len(models):
        raise ValueError(
            f"expected one --pretrained for all of the {len(models)} models, or one for each (none between two commas "
            f"for a model that brings its weights); got {len(tags)}"
        )
    return list(zip(models, tags, strict=True))


def options_of(arguments: argparse.Namespace) -> Mapping[str, Mapping[str, Any]]:
    """What --rcs and --sfr name, by module."""
    from resclip.methods.catalogue import RCS, SFR
    from resclip.methods.options_text import split_options

    texts = {"rcs": (RCS, arguments.rcs), "sfr": (SFR, arguments.sfr)}
    return {
        module: split_options(kind, text) for module, (kind, text) in texts.items() if text is not None
    }  # fmt: skip


def write(ablation: Ablation, arguments: argparse.Namespace) -> None:
    """Print the tables, name what was left out, and write the files that the options ask for."""
    from resclip.evaluation.tables import ablation_tables

    show_tables(ablation_tables(ablation), ablation.report, arguments.out, "ablation")
    if arguments.plot:
        from resclip.evaluation.plots import plot_study

        for findings in ablation.findings:
            for name, column in ablation.report.datasets.items():
                plot_study(findings, column, arguments.out / f"{findings.study.name}_{name}.png")
