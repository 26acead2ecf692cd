"""`resclip evaluate`: methods × datasets, as a table and as files.

What it imports from resclip.evaluation is loaded on use: `--help` must not wait for torch.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from resclip.cli.options import (
    add_dataset_options,
    add_model_options,
    add_window_options,
    check_out,
    integer,
    open_datasets,
    output_path,
    predictor_for,
    segmenter_for,
    show_tables,
)
from resclip.cli.progress import add_progress_options, evaluation_progress

if TYPE_CHECKING:
    from resclip.evaluation.report import Report


METHODS = "clip,sclip,clearclip,naclip,resclip"
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resclip evaluate`."""
    parser.add_argument(
        "--method",
        default=METHODS,
        metavar="NAMES",
        help=f"rows, separated by commas: methods and predictors, see `resclip methods`, or a predictor of your own as "
        f"MODULE:FUNCTION; paper-table: what the papers' tables have; {ALL}: every base with every module "
        f"(default: {METHODS})",
    )
    parser.add_argument(
        "--predictor-options",
        action="append",
        default=[],
        metavar="NAME,OPTION=VALUE,...",
        help="options of a predictor, such as reco,references=photos; may be repeated",
    )
    add_dataset_options(parser)
    add_model_options(parser, method=False, background=False, scenes=True)
    add_window_options(parser)
    add_progress_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--per-class", action="store_true", help="print the classes' IoU as well")
    output.add_argument(
        "--out",
        type=output_path,
        metavar="DIR",
        help="write report.json, report.csv and report.md there, and what the options below ask for. Rows that "
        "report.json has under the same conditions are not measured again, so an interrupted run goes on where it "
        "stopped",
    )
    output.add_argument(
        "--json",
        type=output_path,
        metavar="FILE",
        help="instead of DIR/report.json, or without DIR",
    )
    output.add_argument(
        "--fresh", action="store_true", help="measure every row anew, whatever the JSON file holds"
    )
    output.add_argument(
        "--plot", action="store_true", help="draw the classes' IoU: DIR/classes_DATASET.png"
    )
    output.add_argument(
        "--save-predictions",
        action="store_true",
        help="write every label map: DIR/predictions/DATASET/METHOD/IMAGE.png",
    )
    output.add_argument(
        "--qualitative",
        type=integer,
        default=0,
        metavar="N",
        help="draw image, truth and prediction of N images: DIR/sheets/DATASET/METHOD/IMAGE.png",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and store; the exit status: 0, or 1 if images had to be left out.

    Raises:
        ValueError: an option that cannot be carried out, or a JSON file with figures under other conditions.
        OSError: a file cannot be written, or another run writes to it.
        WeightsUnavailable: the model cannot be fetched.
        ImportError: --plot without matplotlib.
    """
    from resclip.evaluation.distributed import local_device, process_group, rank
    from resclip.evaluation.predictions import PredictionFiles
    from resclip.evaluation.runner import evaluate, report_lock, row_names
    from resclip.predictors.registry import is_predictor, parse_options

    check_out(arguments, "plot", "save_predictions", "qualitative")
    if arguments.qualitative < 0:
        raise ValueError(
            f"expected --qualitative of at least 0 images, got {arguments.qualitative}"
        )
    path = arguments.json or (arguments.out and arguments.out / "report.json")
    datasets = open_datasets(arguments)
    on_image = None
    if arguments.save_predictions or arguments.qualitative:
        on_image = PredictionFiles(
            arguments.out.resolve(), arguments.save_predictions, arguments.qualitative
        )
    methods = None if arguments.method == ALL else map(str.strip, arguments.method.split(","))
    rows = row_names(methods)
    options = parse_options(arguments.predictor_options)
    for name in options:
        if name not in rows or not is_predictor(name):
            raise ValueError(
                f"--predictor-options is for predictors that --method names; {name!r} is none of "
                f"{', '.join(filter(is_predictor, rows)) or 'them, for it names none'}"
            )
    # What else is written to --out needs its lock too where the JSON file, which is locked itself, lies elsewhere.
    usual = arguments.out and arguments.out / "report.json"
    other = usual if usual and path and usual.resolve() != path.resolve() else None
    with process_group(), report_lock(other):
        device = local_device(arguments.device)
        with evaluation_progress() as on_progress:
            report = evaluate(
                {
                    name: partial(
                        predictor_for, arguments, name, device=device, options=options.get(name)
                    )
                    if is_predictor(name)
                    else partial(segmenter_for, arguments, name, device=device)
                    for name in rows
                },
                datasets,
                checkpoint=path,
                fresh=arguments.fresh,
                workers=arguments.workers,
                on_progress=on_progress,
                on_image=on_image,
            )
        if rank() == 0:
            write(report, arguments)
    measured = [row for column in report.datasets.values() for row in column.rows.values()]
    return int(any(row.problems for row in measured))


def write(report: Report, arguments: argparse.Namespace) -> None:
    """Print the tables, name what was left out, and write the files that the options ask for."""
    from resclip.evaluation.tables import class_tables, report_tables

    if arguments.per_class:
        for column in report.datasets.values():
            print(class_tables(column), end="\n\n")
    show_tables(report_tables(report), report, arguments.out, "report")
    if arguments.plot:
        from resclip.evaluation.plots import plot_classes

        for name, column in report.datasets.items():
            plot_classes(column, arguments.out / f"classes_{name}.png")
