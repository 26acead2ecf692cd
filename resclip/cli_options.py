"""Options that several commands share, and the segmenter that they describe.

Knows option names and how their texts become values. Knows no command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resclip.segmenter import Segmenter

CLASSES_HELP = """\
"sky, tree, house" is three classes; with a ";" anywhere, ";" separates classes and "," separates
synonyms: "cat, kitten; dog" is two, "pet: cat, dog; grass" names the first. Or @ade20k, @voc21, ...
for a data set's classes, or a file: text with one class a line, JSON or YAML
"""


def add_model_options(
    parser: argparse.ArgumentParser, *, method: bool = True, background: bool = True
) -> None:
    """Which model, and what is made of it.

    Args:
        method: False where a command names its methods itself.
        background: False where the classes are a data set's.
    """
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", default="builtin", help="see `resclip models` (default: builtin, no download)"
    )
    model.add_argument("--pretrained", metavar="TAG", help="tag, or path of a local checkpoint")
    group = parser.add_argument_group("method")
    if method:
        group.add_argument("--method", default="resclip", help="see `resclip methods`")
    group.add_argument("--preset", help="a method's knobs; see `resclip methods`")
    group.add_argument(
        "--correlation",
        metavar="SCORES",
        help='what the final block compares, such as "qq", "xx" or "random,projections=8"',
    )
    group.add_argument(
        "--rcs", metavar="KNOBS", help='RCS with these knobs, such as "layers=6-9,weight=0.4"'
    )
    group.add_argument(
        "--sfr", metavar="KNOBS", help='SFR with these knobs, such as "rounds=2,connectivity=line"'
    )
    group.add_argument(
        "--proxy",
        metavar="KNOBS",
        help='ProxyCLIP\'s vision model: "colour", a timm name, or knobs such as "model=NAME,beta=1.2"',
    )
    names = parser.add_argument_group("class names")
    if background:
        names.add_argument(
            "--background",
            metavar="LIST",
            help='put a class "background" in front, with the names that voc21 or coco-object have for it',
        )
    names.add_argument(
        "--templates",
        metavar="SET",
        help="prompts: imagenet, short, plain, name, or a file with one a line",
    )
    names.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep text features on disk, in $RESCLIP_CACHE or ~/.cache/resclip (default: yes)",
    )
    run = parser.add_argument_group("how it runs")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    run.add_argument("--precision", help="fp32, fp16 or bf16 (default: fp16 on a GPU, else fp32)")
    run.add_argument(
        "--implementation", default="auto", help="of the ops: auto, triton, torch or reference"
    )
    run.add_argument(
        "--short-side", type=int, metavar="PIXELS", help="size the picture's short side is given"
    )


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """How a picture is cut, and when a pixel counts as background."""
    windows = parser.add_argument_group("windows")
    windows.add_argument(
        "--window", type=int, metavar="PIXELS", help="window's side; 0: no windows"
    )
    windows.add_argument(
        "--overview",
        metavar="KNOBS",
        nargs="?",
        const="",
        help='windows also see the whole picture, coarsely; knobs such as "weight=0.3,side=448"',
    )
    windows.add_argument("--stride", type=int, metavar="PIXELS", help="step between windows")
    windows.add_argument(
        "--batch-size", type=int, metavar="N", help="windows at once (default: 16 on a GPU, else 8)"
    )
    windows.add_argument(
        "--threshold",
        type=probability,
        metavar="P",
        help="pixels whose best class has a smaller probability get the first class",
    )


def probability(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def whole_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def memory_size(text: str) -> int:
    from resclip.memory import parse_memory

    try:
        return parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def load_from(arguments: argparse.Namespace, classes: Sequence[str], **changes: Any) -> Segmenter:
    """The segmenter that the shared options describe; `changes` are further arguments of `resclip.load`.

    Raises:
        ValueError, TypeError: options that cannot be carried out.
        WeightsUnavailable: the model cannot be fetched.
    """
    return request_from(arguments, classes, **changes)()


def request_from(
    arguments: argparse.Namespace, classes: Sequence[str], **changes: Any
) -> partial[Segmenter]:
    """The call of `resclip.load` that `load_from` makes; other processes can make it too.

    Raises:
        ValueError, TypeError: options that cannot be carried out.
    """
    from resclip.class_names import with_background
    from resclip.knobs import parse_knobs, split_knobs
    from resclip.loading import load
    from resclip.methods import RCS, SFR, Overview, ProxyAttention
    from resclip.text_cache import TextCache

    if getattr(arguments, "background", None) is not None:
        classes = with_background(classes, arguments.background)
    proxy = arguments.proxy
    if proxy is not None and "=" in proxy:
        proxy = parse_knobs(ProxyAttention, proxy)
    overview = getattr(arguments, "overview", None)
    if overview is not None:
        overview = parse_knobs(Overview, overview) if overview else Overview()
    given = {
        "method": getattr(arguments, "method", None),
        "preset": arguments.preset,
        "correlation": arguments.correlation,
        "rcs": None if arguments.rcs is None else split_knobs(RCS, arguments.rcs),
        "sfr": None if arguments.sfr is None else split_knobs(SFR, arguments.sfr),
        "proxy": proxy,
        "overview": overview,
        "device": arguments.device,
        "precision": arguments.precision,
        "implementation": arguments.implementation,
        "short_side": arguments.short_side,
        "templates": arguments.templates,
        "cache": TextCache() if arguments.cache else None,
    }
    options = {**given, **changes}
    return partial(load, arguments.model, arguments.pretrained, classes=classes, **options)
