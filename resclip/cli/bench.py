"""`resclip bench`: how fast this machine runs a method."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Times a method's encoder on this machine's CPU or GPU, beside the plain tower: the lean implementation ("torch"), the
Triton kernels on a GPU, the plain formulas ("reference"), and gem_torch where it is installed. Weights are random, so
that nothing is downloaded.
"""


def numbers(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers of at least 1, separated by commas, such as 224,448; got {text!r}"
        )
    return [int(part) for part in parts]


def words(text: str) -> list[str]:
    """Words separated by commas."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected words separated by commas, got {text!r}")
    return found


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "--model", default="ViT-B-16", help="a model of open_clip (default: ViT-B-16)"
    )
    parser.add_argument(
        "--method", default="resclip", help="see `resclip methods` (default: resclip)"
    )
    parser.add_argument(
        "--sizes",
        type=numbers,
        default=[224],
        metavar="N,N",
        help="sides of the images (default: 224)",
    )
    parser.add_argument(
        "--names", type=numbers, default=[20], metavar="N,N", help="numbers of names (default: 20)"
    )
    parser.add_argument(
        "--batches", type=numbers, default=[1], metavar="N,N", help="images in a call (default: 1)"
    )
    parser.add_argument(
        "--precision",
        type=words,
        default=None,
        metavar="P,P",
        help="fp32, fp16, bf16 (default: fp16 on a GPU, fp32 elsewhere)",
    )
    parser.add_argument(
        "--implementation",
        type=words,
        default=None,
        metavar="I,I",
        help="torch, triton, library, reference (default: torch, and triton on a GPU)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--seconds", type=positive, default=5.0, help="for each setting, about (default: 5)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write times and conditions there"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="an earlier --json, shown beside the times"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, and write it.

    Raises:
        ValueError: an option that does not fit, or an earlier file that is none.
        OSError: a file cannot be read or written.
    """
    from resclip.loading import choose_device
    from resclip.speed import Setting, Speed, measure

    before = None if arguments.compare is None else Speed.read(arguments.compare)
    if before is not None:
        before.check_comparable(arguments.model, arguments.method)
    if arguments.json is not None:  # Before the work, what cannot be written.
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        if arguments.json.is_dir():
            raise IsADirectoryError(f"--json names a folder, not a file: {arguments.json}")
    device = choose_device(arguments.device)
    default = "fp16" if device.type == "cuda" else "fp32"

    def show(setting: Setting) -> None:
        if sys.stderr.isatty():
            print(
                f"{setting.size} pixels, {setting.names} names, {setting.batch} in a call, "
                f"{setting.precision} ...",
                file=sys.stderr,
            )

    speed = measure(
        arguments.model,
        arguments.method,
        sizes=arguments.sizes,
        names=arguments.names,
        batches=arguments.batches,
        precisions=arguments.precision or [default],
        implementations=arguments.implementation,
        device=device,
        seconds=arguments.seconds,
        progress=show,
    )
    print(speed.table(before))
    for note in speed.notes():
        print(note)
    print(f"\nWhere the time goes, in ms:\n{speed.stage_table()}")
    print(f"\n{speed.conditions()}")
    if before is not None:
        print(f"before: {before.conditions()}")
    if arguments.json is not None:
        speed.store(arguments.json)
        print(f"Written to {arguments.json}")
    return 0
