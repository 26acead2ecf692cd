"""`resclip ablate`: studies × datasets, as tables and as files.

What it imports from resclip.evaluation is loaded on use: `--help` must not wait for torch.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from resclip.cli.options import (
    SCENES,
    add_dataset_options,
    add_model_options,
    add_window_options,
    check_out,
    evaluation_progress,
    open_datasets,
    output_path,
    segmenter_for,
    show_tables,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resclip.evaluation.ablation import Ablation, Study


ALL = "all"
SCENE_COUNT = 40
"""How many of the drawn scenes are used by default: all studies then take some minutes."""

DESCRIPTION = f"""\
Varies the options of RCS and SFR one at a time and measures each setting: the ablations of arXiv 2411.15851 as tables
and plots. A study starts from the dataset's own settings, or from those that --preset, --rcs and --sfr name. On the
{SCENES} scenes it takes {SCENE_COUNT} of them unless --scenes names another number.
"""

_STUDY_HELP = f"""\
modules: the base, with RCS, with SFR, with both; layers-window: RCS with four neighbouring layers; layers-cumulative:
with all layers from the first on; rcs-weight, sfr-weight: 0 to 1; sfr-switches: SFR without one of its parts;
connectivity: which pairs path decay spares; pamr: iterations of PAMR before the feedback. Separated by commas
(default: {ALL})
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resclip ablate`."""
    parser.add_argument("--study", default=ALL, metavar="NAMES", help=_STUDY_HELP)
    parser.add_argument(
        "--base",
        default="naclip",
        metavar="NAME",
        help="what RCS and SFR are put on; see `resclip methods` (default: naclip)",
    )
    add_dataset_options(parser, scenes=SCENE_COUNT)
    add_model_options(parser, method=False, background=False)
    add_window_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=output_path,
        metavar="DIR",
        help="write ablation.json, ablation.csv and ablation.md there. Settings that ablation.json has under the same "
        "conditions are not measured again, so an interrupted run goes on where it stopped",
    )
    output.add_argument(
        "--fresh", action="store_true", help="measure every setting anew, whatever ablation.json holds"
    )  # fmt: skip
    output.add_argument(
        "--plot", action="store_true", help="draw each study: DIR/STUDY_DATASET.png"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and store; the exit status: 0, or 1 if images had to be left out.

    Raises:
        ValueError: an option that cannot be carried out, or an ablation.json with figures under other conditions.
        OSError: a file cannot be written, or another run writes to it.
        WeightsUnavailable: the model cannot be fetched.
        ImportError: --plot without matplotlib.
    """
    from resclip.evaluation.ablation import ablate
    from resclip.evaluation.distributed import local_device, process_group, rank
    from resclip.evaluation.tables import problem_lines

    check_out(arguments, "plot")
    studies = studies_of(arguments.study)
    base = base_of(arguments.base)
    options = options_of(arguments)
    if arguments.scenes is None and SCENES in arguments.dataset.split(","):
        arguments.scenes = SCENE_COUNT
    datasets = open_datasets(arguments)
    with process_group():
        device = local_device(arguments.device)
        with evaluation_progress() as on_progress:
            ablation = ablate(
                studies,
                datasets,
                lambda dataset: segmenter_for(arguments, base, dataset, device=device),
                options,
                checkpoint=arguments.out and arguments.out / "ablation.json",
                fresh=arguments.fresh,
                workers=arguments.workers,
                on_progress=on_progress,
            )
        if rank() == 0:
            write(ablation, arguments)
    return int(bool(problem_lines(ablation.report)))


def studies_of(names: str) -> Sequence[Study]:
    """The studies that --study names."""
    from resclip.evaluation.ablation import STUDIES, find_studies

    return STUDIES if names == ALL else find_studies(name.strip() for name in names.split(","))


def base_of(name: str) -> str:
    """What --base names; ValueError where that is no base."""
    from resclip.evaluation.datasets.base import cut
    from resclip.methods.catalogue import BASES

    if name not in BASES:
        raise ValueError(
            f"expected one of the bases {', '.join(BASES)} for --base, got {cut(name)!r}; the studies add RCS and SFR"
        )
    return name


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
