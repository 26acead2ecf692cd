"""`resclip evaluate`: every method on the drawn scenes, as a table.

Knows the options and what is printed. Measuring is `resclip.builtin.evaluate`'s, which loads on use: `--help` must not
wait for torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from resclip.builtin import PRESET

__all__ = ["add_arguments", "run"]

WINDOW, STRIDE = (PRESET["segmenter"][name] for name in ("window", "stride"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `resclip evaluate`."""
    parser.add_argument(
        "--methods",
        metavar="NAMES",
        help="rows to measure, separated by commas; see `resclip methods` (default: every base with every module)",
    )
    parser.add_argument(
        "--set",
        choices=("held-out", "validation"),
        default="held-out",
        help="which scenes (default: held-out)",
    )
    parser.add_argument(
        "--scenes", type=int, default=200, metavar="N", help="how many (default: 200)"
    )
    parser.add_argument(
        "--size", type=int, default=168, metavar="PIXELS", help="side of a scene (default: 168)"
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="PIXELS",
        help=f"side of the windows, for all methods alike; 0: the whole scene (default: {WINDOW})",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="PIXELS",
        help=f"step between windows (default: {STRIDE}, or half of --window)",
    )
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)"
    )
    parser.add_argument("--per-class", action="store_true", help="print the classes' IoU as well")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures there after each row; rows that FILE has under the same conditions (scenes, windows, "
        "device, versions) are not measured again, so an interrupted run goes on where it stopped",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="measure every row anew and replace what FILE holds"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and store; the exit status.

    Raises:
        ValueError: an option that cannot be carried out, or a FILE with figures under other conditions.
        OSError: FILE cannot be written.
    """
    from resclip.builtin.evaluate import SceneSet, evaluate
    from resclip.evaluation.tables import class_tables, mean_table

    methods = None if arguments.methods is None else arguments.methods.split(",")
    figures = evaluate(
        methods,
        SceneSet(arguments.set, arguments.scenes, arguments.size),
        window=arguments.window,
        stride=arguments.stride,
        device=arguments.device,
        path=arguments.json,
        fresh=arguments.fresh,
        progress=True,
    )
    if arguments.per_class:
        print(class_tables(figures), end="\n\n")
    print(mean_table(figures))
    return 0
