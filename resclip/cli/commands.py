"""The command line: a table of its commands, and one clear line on stderr if one cannot be carried out.

Exit statuses: 0 done, 1 something failed, 2 the request itself was wrong, 130 interrupted. The code of a command is
imported when it runs: `resclip --help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from resclip.cli import ablate, batch, bench, evaluate, export
from resclip.cli.formats import FORMAT_HELP, add_shape_options, format_names
from resclip.cli.options import (
    CLASSES_HELP,
    EVERY_HELP,
    add_model_options,
    add_reading_options,
    add_window_options,
    every_frame,
    explain,
    name_weights,
    output_folder,
)
from resclip.cli.progress import INTERRUPTED, Mode, add_progress_options, console, speaking
from resclip.version import __version__


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as are all errors of this program."""

    def error(self, message: str) -> NoReturn:
        console().error(f"{message}; see `{self.prog} --help`")
        self.exit(2)


def wait_briefly() -> None:
    """Before torch starts: let its threads spin for a moment only while they wait for each other, and then sleep.

    By default they spin for so long that an image takes many times as long where other programs keep the cores busy.
    Where they sleep at once, small operations take several times as long. What the environment says already stays. The
    names are those of GNU's and of Intel's library of threads.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")
        os.environ.setdefault("KMP_BLOCKTIME", "1")


def open_streams() -> None:
    """Open the standard streams that the shell has closed, as by `>&-`, so that what is printed there is lost.

    Each keeps its number: else the next file that is opened would have it, and what libraries print would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def exit_status(error: Exception) -> int:
    """2 for a request that cannot be carried out as it is, 1 for what failed on the way.

    What is asked for is looked up before anything is done, so a file that is not there, or is a folder, belongs to the
    request, as does a package that it needs.
    """
    wrong = (ValueError, TypeError, ImportError, FileNotFoundError, IsADirectoryError)
    return 2 if isinstance(error, wrong) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, None for the process's own.

    Returns:
        The exit status. Errors are one line on stderr, never a traceback (unless --debug).
    """
    wait_briefly()
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        # A terminal whose encoding lacks a letter of a class name prints it as an escape, not as an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    with speaking("json" if "--log-json" in words else "text"):
        try:
            arguments = build_parser().parse_args(argv)
        except SystemExit as leaving:  # --help, --version, or an error already reported.
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                return _forget_output()
            return int(leaving.code or 0)
    with speaking(_mode(arguments)) as said:
        said.start(arguments.name)
        status = 1
        try:
            status = _carry_out(arguments)
        finally:
            said.end(status)
    return status


def _mode(arguments: argparse.Namespace) -> Mode:
    if getattr(arguments, "log_json", False):
        # Processes that work together write one log.
        return "json" if os.environ.get("RANK", "0") == "0" else "quiet"
    return "quiet" if getattr(arguments, "quiet", False) else "text"


def _carry_out(arguments: argparse.Namespace) -> int:
    """The status of the command that was asked for."""
    try:
        with _quiet_dependencies():
            name_weights(arguments)
            module, _, function = arguments.command.partition(":")
            status: int = getattr(importlib.import_module(module), function)(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        console().error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return _forget_output()
    except Exception as error:  # A mistake of this program too: --debug shows where it is.
        if arguments.debug:
            raise
        console().error(explain(error))
        return exit_status(error)
    return status


def _forget_output() -> int:
    """The status where the reader of our output has left, as in `resclip models | head`.

    The interpreter would complain when it flushes stdout on leaving.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def add_segment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help='image files, folders, patterns such as "photos/*.jpg", URLs, "-" to read names from the standard input, '
        "and whatever `resclip batch` takes",
    )
    parser.add_argument("--classes", required=True, metavar="NAMES", help=CLASSES_HELP)
    parser.add_argument(
        "--out", type=output_folder, metavar="DIR", help="directory to write to, made if missing"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object per image; --out may be left out (default: a line of text)",
    )
    parser.add_argument(
        "--overlay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write NAME_overlay.png (default: yes)",
    )
    reading = parser.add_argument_group("how images are read")
    reading.add_argument("--every", type=every_frame, metavar="N", help=EVERY_HELP)
    reading.add_argument("--column", metavar="NAME", help="of a table: where its images are")
    add_reading_options(reading)
    formats = parser.add_argument_group("formats of other programs")
    formats.add_argument(
        "--format",
        action="extend",
        type=format_names,
        default=[],
        metavar="NAMES",
        help=f"{FORMAT_HELP}, sheet (NAME_sheet.png: image, overlay and legend)",
    )
    add_shape_options(formats)
    formats.add_argument(
        "--heatmaps",
        action="store_true",
        help="write NAME_heatmaps/CLASS.png too: where each class is probable",
    )
    add_model_options(parser)
    add_window_options(parser)
    add_progress_options(parser)


def add_embed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="images, as `resclip segment` takes them"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="directory to write NAME.safetensors to, made if missing",
    )
    parser.add_argument(
        "--keep",
        choices=("int16", "int8", "float32"),
        default="int16",
        help="how exactly: int16 has 1,100 bytes a patch of ViT-B/16, int8 half as many, float32 all bits (default: "
        "int16)",
    )
    parser.add_argument(
        "--image",
        action=argparse.BooleanOptionalAction,
        help="keep the image in the file too (default: where the method looks at its pixels again)",
    )
    reading = parser.add_argument_group("how images are read")
    reading.add_argument("--every", type=every_frame, metavar="N", help=EVERY_HELP)
    reading.add_argument("--column", metavar="NAME", help="of a table: where its images are")
    add_reading_options(reading)
    add_model_options(parser)
    add_window_options(parser)
    add_progress_options(parser)


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=output_folder,
        default="demo",
        metavar="DIR",
        help="directory (default: demo)",
    )


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("--classes", required=True, metavar="NAMES", help=CLASSES_HELP)
    parser.add_argument("--out", required=True, metavar="FILE", help="PNG file to write")
    parser.add_argument(
        "--methods",
        default="clip,naclip,resclip",
        metavar="NAMES",
        help="see `resclip methods` (default: clip,naclip,resclip)",
    )
    add_model_options(parser, method=False)


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument(
        "--at",
        action="append",
        required=True,
        metavar="X,Y",
        help="a point of the image, in pixels from its top left corner; may be repeated",
    )
    parser.add_argument("--classes", metavar="NAMES", help=f"needed by SFR: {CLASSES_HELP}")
    parser.add_argument("--out", required=True, metavar="FILE", help="PNG file to write")
    parser.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="the model's own attention in its block N, counted from 1, in place of the method's maps",
    )
    parser.add_argument(
        "--head",
        type=int,
        metavar="N",
        help="of one head, counted from 1 (default: the mean of all)",
    )
    parser.add_argument(
        "--scale",
        choices=("root", "percentile", "linear"),
        default="root",
        help="of the colours: by the root or by percentiles, faint structures are seen (default: root)",
    )
    add_model_options(parser)


class Command(NamedTuple):
    """A command: the function that carries it out, as "module:function", its help, and its options."""

    function: str
    summary: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


COMMANDS = {
    "segment": Command(
        "resclip.cli.segment:segment",
        "segment images by the classes you name",
        "Segments images by the classes you name. For each image NAME.EXT, DIR gets NAME_labels.png (pixel values are "
        "class indices), NAME_overlay.png and NAME.json; a second image of the same NAME gets NAME-2, and so on. "
        "DIR/classes.json names the classes. An image that cannot be read is reported, the others are done.",
        add_segment_options,
    ),
    "batch": Command(
        "resclip.cli.batch:run",
        "segment a folder, a list, shards, or a gigapixel image",
        batch.DESCRIPTION,
        batch.add_arguments,
    ),
    "embed": Command(
        "resclip.cli.embed:embed",
        "keep what the model makes of images, for any classes later",
        "Runs images through the model once and writes DIR/NAME.safetensors for each. `resclip segment "
        "DIR/*.safetensors --classes …` with the same model and method options then gives labels in a fraction of the "
        "time, for as many lists of classes as are asked for.",
        add_embed_options,
    ),
    "demo": Command(
        "resclip.cli.show:show_demo",
        "segment the packaged scene",
        "Segments the packaged scene with the built-in model and writes DIR/demo.png.",
        add_demo_options,
    ),
    "compare": Command(
        "resclip.cli.show:show_comparison",
        "draw several methods side by side",
        "Segments an image by several methods and draws them side by side.",
        add_compare_options,
    ),
    "attention": Command(
        "resclip.cli.attention:show_attention",
        "draw what a patch attends to",
        "Draws the attention maps of patches beside the image: base, cross-layer, feedback, final.",
        add_attention_options,
    ),
    "evaluate": Command(
        "resclip.cli.evaluate:run",
        "measure methods on datasets",
        "Mean intersection over union of methods on datasets, beside the published figures.",
        evaluate.add_arguments,
    ),
    "ablate": Command(
        "resclip.cli.ablate:run",
        "measure what each option does",
        ablate.DESCRIPTION,
        ablate.add_arguments,
    ),
    "bench": Command(
        "resclip.cli.bench:run",
        "time a method on this machine",
        bench.DESCRIPTION,
        bench.add_arguments,
    ),
    "export": Command(
        "resclip.cli.export:run",
        "write an encoder for other programs",
        export.DESCRIPTION,
        export.add_arguments,
    ),
    "doctor": Command(
        "resclip.cli.doctor:show_doctor",
        "show what this machine has and uses",
        "Shows versions, devices, and which implementation each op takes on them and why, as text to paste into a "
        "report. On a GPU it compares the Triton kernels with PyTorch where that is still due.",
    ),
    "models": Command(
        "resclip.cli.show:show_models",
        "list the models",
        "Lists the models that --model takes, each with its --pretrained tags.",
    ),
    "methods": Command(
        "resclip.cli.show:show_methods",
        "list the methods and presets",
        "Lists what --method and --preset take, with the papers.",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; it leaves the chosen one's "module:function" in `command`."""
    parser = _Parser(
        prog="resclip", description="Training-free open-vocabulary segmentation from CLIP."
    )
    parser.add_argument("--version", action="version", version=f"resclip {__version__}")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        one = parsers.add_parser(name, help=command.summary, description=command.description)
        command.add_options(one)
        one.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        one.set_defaults(command=command.function, name=name)
    return parser


@contextlib.contextmanager
def _quiet_dependencies() -> Iterator[None]:
    """Without the warnings and log lines of other libraries, unless Python's -W asks for them.

    Log lines of level ERROR are left out too: what went wrong comes as an exception, and that is our one line. The
    library's own warnings become one line each on stderr.
    """
    if sys.warnoptions:
        yield
        return

    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        text = explain(str(message))
        if category.__module__.startswith("resclip") and text not in shown:
            shown.add(text)
            console().note(text)

    former = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield
    finally:
        logging.disable(former)
