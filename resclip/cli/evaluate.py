"""`resclip evaluate`: methods × datasets, as a table and as files.

Knows the options, what is printed and where files go. Measuring is resclip.evaluation's, which loads on use: `--help`
must not wait for torch.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from resclip.cli.options import (
    add_dataset_options,
    add_model_options,
    add_window_options,
    check_out,
    open_datasets,
    segmenter_for,
    write_tables,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resclip.evaluation.datasets import Dataset
    from resclip.evaluation.report import Report
    from resclip.evaluation.runner import Candidate, Watch, Watcher


METHODS = "clip,sclip,clearclip,naclip,resclip"
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resclip evaluate`."""
    parser.add_argument(
        "--method",
        default=METHODS,
        metavar="NAMES",
        help=f"rows, separated by commas; see `resclip methods`; {ALL}: every base with every module "
        f"(default: {METHODS})",
    )
    add_dataset_options(parser)
    add_model_options(parser, method=False, background=False)
    add_window_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--per-class", action="store_true", help="print the classes' IoU as well")
    output.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write report.json, report.csv and report.md there, and what the options below ask for. Rows that "
        "report.json has under the same conditions are not measured again, so an interrupted run goes on where it "
        "stopped",
    )
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="instead of DIR/report.json, or without DIR"
    )
    output.add_argument(
        "--fresh", action="store_true", help="measure every row anew, whatever the JSON file holds"
    )
    output.add_argument(
        "--plot", action="store_true", help="draw the classes' IoU: DIR/classes_SET.png"
    )
    output.add_argument(
        "--save-predictions",
        action="store_true",
        help="write every label map: DIR/predictions/SET/METHOD/IMAGE.png",
    )
    output.add_argument(
        "--qualitative",
        type=int,
        default=0,
        metavar="N",
        help="draw image, truth and prediction of N images: DIR/sheets/SET/METHOD/IMAGE.png",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and store; the exit status: 0, or 1 where images had to be left out.

    Raises:
        ValueError: an option that cannot be carried out, or a JSON file with figures under other conditions.
        OSError: a file cannot be written.
        WeightsUnavailable: the model cannot be fetched.
        ImportError: --plot without matplotlib.
    """
    from resclip.evaluation.distributed import join, local_device
    from resclip.evaluation.runner import evaluate

    check_out(arguments, "plot", "save_predictions", "qualitative")
    if arguments.qualitative < 0:
        raise ValueError(
            f"expected --qualitative of at least 0 images, got {arguments.qualitative}"
        )
    path = arguments.json or (arguments.out and arguments.out / "report.json")
    datasets = open_datasets(arguments)
    with join() as world:
        report = evaluate(
            candidates(arguments, local_device(arguments.device)),
            datasets,
            path=path,
            fresh=arguments.fresh,
            workers=arguments.workers,
            world=world,
            watch=watch_of(arguments),
            progress=True,
        )
        if world.is_first:
            write(report, arguments)
    rows = [row for figures in report.sets.values() for row in figures.rows.values()]
    return int(any(row.problems for row in rows))


def candidates(arguments: argparse.Namespace, device: str | None) -> list[Candidate]:
    """The rows that --method names."""
    from resclip.evaluation.runner import Candidate, row_names

    asked = (
        None if arguments.method == ALL else [name.strip() for name in arguments.method.split(",")]
    )
    return [
        Candidate(name, partial(segmenter_for, arguments, name, device=device))
        for name in row_names(asked)
    ]


def watch_of(arguments: argparse.Namespace) -> Watch | None:
    """Who looks on and writes files; None where none is asked for."""
    count, predictions = arguments.qualitative, arguments.save_predictions
    if not count and not predictions:
        return None
    from resclip.evaluation.predictions import SavePredictions, Sheets
    from resclip.evaluation.runner import Watch

    def make(row: str, dataset: Dataset) -> Sequence[Watcher]:
        watchers: list[Watcher] = []
        if predictions:
            watchers.append(SavePredictions(arguments.out / "predictions", dataset, row))
        if count:
            watchers.append(Sheets(arguments.out / "sheets", dataset, row, count))
        return watchers

    folder = str(arguments.out.resolve())
    return Watch(make, {"folder": folder, "predictions": predictions, "sheets": count})


def write(report: Report, arguments: argparse.Namespace) -> None:
    """Print the tables, name what was left out, and write the files that are asked for."""
    from resclip.evaluation.tables import (
        class_tables,
        csv_table,
        markdown_table,
        problem_lines,
        report_table,
    )

    if arguments.per_class:
        for figures in report.sets.values():
            print(class_tables(figures), end="\n\n")
    print(report_table(report))
    for line in problem_lines(report):
        print(f"resclip: left out: {line}", file=sys.stderr)
    if arguments.out is None:
        return
    write_tables(arguments.out, "report", csv_table(report), markdown_table(report))
    if arguments.plot:
        from resclip.evaluation.plots import plot_classes

        for name, figures in report.sets.items():
            plot_classes(figures, arguments.out / f"classes_{name}.png")
