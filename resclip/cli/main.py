"""The command line: what can be asked, and one clear line where it cannot be done.

Knows the commands, their options and the exit statuses: 0 done, 1 something failed, 2 the request
itself was wrong, 130 interrupted. What the commands do is in cli_segment.py and cli_show.py, which
load on use: `resclip --help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from resclip.cli.ablate import DESCRIPTION as ABLATE_DESCRIPTION
from resclip.cli.ablate import add_arguments as add_ablate_arguments
from resclip.cli.batch import DESCRIPTION as BATCH_DESCRIPTION
from resclip.cli.batch import add_arguments as add_batch_arguments
from resclip.cli.evaluate import add_arguments as add_evaluate_arguments
from resclip.cli.options import CLASSES_HELP, add_model_options, add_window_options, whole_number
from resclip.errors import UnknownWordsWarning, describe
from resclip.version import __version__

_FAILURES = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)

_SEGMENT_HELP = """\
Segments images by the classes you name. For each image NAME.EXT, DIR gets NAME_labels.png
(pixel values are class indices), NAME_overlay.png and NAME.json; a second image of the same
NAME gets NAME-2, and so on. An image that cannot be read is reported, the others are done.
"""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as all errors here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"resclip: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, None for the process's own.

    Returns:
        The exit status. Errors are one line on stderr, never a traceback (unless --debug).
    """
    _tolerate_any_script()
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as leaving:  # --help, --version, or an error already reported.
        return int(leaving.code or 0)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        with _quiet_dependencies():
            status = command(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("resclip: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left, as in `resclip models | head`. The interpreter would
        # complain when it flushes stdout on leaving.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _FAILURES as error:
        if arguments.debug:
            raise
        print(f"resclip: {describe(error)}", file=sys.stderr)
        wrong_request = isinstance(error, (ValueError, TypeError))
        return 2 if wrong_request else 1
    return status


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="resclip", description="Training-free open-vocabulary segmentation from CLIP."
    )
    parser.add_argument("--version", action="version", version=f"resclip {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_segment(commands)
    batch = commands.add_parser(
        "batch",
        help="segment a folder, a list, shards, or a gigapixel image",
        description=BATCH_DESCRIPTION,
    )
    add_batch_arguments(batch)
    batch.set_defaults(command=_run_batch)
    demo = commands.add_parser(
        "demo",
        help="segment the packaged scene",
        description="Segments the packaged scene with the built-in model and writes DIR/demo.png.",
    )
    demo.add_argument("--out", default="demo", metavar="DIR", help="directory (default: demo)")
    demo.set_defaults(command=_run_demo)
    _add_compare(commands)
    _add_attention(commands)
    evaluate = commands.add_parser(
        "evaluate",
        help="measure methods on datasets",
        description="Mean intersection over union of methods on datasets, beside the published figures.",
    )
    add_evaluate_arguments(evaluate)
    evaluate.set_defaults(command=_run_evaluate)
    ablate = commands.add_parser(
        "ablate", help="measure what each option does", description=ABLATE_DESCRIPTION
    )
    add_ablate_arguments(ablate)
    ablate.set_defaults(command=_run_ablate)
    models = commands.add_parser(
        "models",
        help="list the models",
        description="Lists the models that --model takes, each with its --pretrained tags.",
    )
    models.set_defaults(command=_run_models)
    methods = commands.add_parser(
        "methods",
        help="list the methods and presets",
        description="Lists what --method and --preset take, with the papers.",
    )
    methods.set_defaults(command=_run_methods)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _add_segment(commands: argparse._SubParsersAction[_Parser]) -> None:
    segment = commands.add_parser(
        "segment",
        help="segment images by the classes you name",
        description=_SEGMENT_HELP,
    )
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    segment.add_argument("--classes", required=True, metavar="NAMES", help=CLASSES_HELP)
    segment.add_argument("--out", metavar="DIR", help="directory to write to, made if missing")
    segment.add_argument(
        "--json", action="store_true", help="print one JSON object an image; --out may be left out"
    )
    segment.add_argument(
        "--overlay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write NAME_overlay.png (default: yes)",
    )
    segment.add_argument(
        "--max-pixels",
        type=whole_number,
        metavar="N",
        help="largest image to decode (default: 178,956,970 pixels)",
    )
    add_model_options(segment)
    add_window_options(segment)
    segment.set_defaults(command=_run_segment)


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="draw several methods side by side",
        description="Segments an image by several methods and draws them side by side.",
    )
    compare.add_argument("image", metavar="IMAGE", help="image file")
    compare.add_argument("--classes", required=True, metavar="NAMES", help=CLASSES_HELP)
    compare.add_argument("--out", required=True, metavar="FILE", help="PNG file to write")
    compare.add_argument(
        "--methods",
        default="clip,naclip,resclip",
        metavar="NAMES",
        help="see `resclip methods` (default: clip,naclip,resclip)",
    )
    add_model_options(compare, method=False)
    compare.set_defaults(command=_run_compare)


def _add_attention(commands: argparse._SubParsersAction[_Parser]) -> None:
    attention = commands.add_parser(
        "attention",
        help="draw what a patch attends to",
        description="Draws the attention maps of patches beside the image: base, cross-layer, feedback, final.",
    )
    attention.add_argument("image", metavar="IMAGE", help="image file")
    attention.add_argument(
        "--at",
        action="append",
        required=True,
        metavar="X,Y",
        help="a point of the image, in pixels from its top left; may be given again",
    )
    attention.add_argument("--classes", metavar="NAMES", help=f"for SFR: {CLASSES_HELP}")
    attention.add_argument("--out", required=True, metavar="FILE", help="PNG file to write")
    add_model_options(attention)
    attention.set_defaults(command=_run_attention)


def _run_segment(arguments: argparse.Namespace) -> int:
    from resclip.cli.segment import segment

    return segment(arguments)


def _run_batch(arguments: argparse.Namespace) -> int:
    from resclip.cli.batch import run

    return run(arguments)


def _run_demo(arguments: argparse.Namespace) -> int:
    from resclip.cli.show import show_demo

    return show_demo(arguments.out)


def _run_compare(arguments: argparse.Namespace) -> int:
    from resclip.cli.show import show_comparison

    return show_comparison(arguments)


def _run_attention(arguments: argparse.Namespace) -> int:
    from resclip.cli.attention import show_attention

    return show_attention(arguments)


def _run_evaluate(arguments: argparse.Namespace) -> int:
    from resclip.cli.evaluate import run

    return run(arguments)


def _run_ablate(arguments: argparse.Namespace) -> int:
    from resclip.cli.ablate import run

    return run(arguments)


def _run_models(_: argparse.Namespace) -> int:
    from resclip.cli.show import show_models

    return show_models()


def _run_methods(_: argparse.Namespace) -> int:
    from resclip.cli.show import show_methods

    return show_methods()


def _tolerate_any_script() -> None:
    """Names that a terminal's encoding lacks are printed as escapes, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_note(message: Warning | str, *_: object, **__: object) -> None:
    print(f"resclip: note: {message}", file=sys.stderr)


@contextlib.contextmanager
def _quiet_dependencies() -> Iterator[None]:
    """Without the warnings and log lines of the libraries below, unless Python's -W asks for them.

    The library's own warning becomes one line on stderr.

    Log lines at level ERROR too: what went wrong comes as an exception, and that is our one line.
    """
    if sys.warnoptions:
        yield
        return
    former = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UnknownWordsWarning)
            warnings.showwarning = _show_note
            yield
    finally:
        logging.disable(former)
