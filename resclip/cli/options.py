"""Options that several commands share, the segmenter that they describe, and errors in the options' words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resclip.builtin import BUILTIN, warn_of_drawn_scenes
from resclip.cli.progress import console
from resclip.errors import describe
from resclip.io.files import make_folder, write_atomically
from resclip.models.recommended import DEFAULT_MODEL, DEFAULT_TAG
from resclip.text.class_names import DATASETS, parse_classes

if TYPE_CHECKING:
    from resclip.evaluation.datasets import Dataset
    from resclip.evaluation.report import Report
    from resclip.evaluation.tables import Tables
    from resclip.io.picture import ReadOptions
    from resclip.io.video import Every
    from resclip.methods.catalogue import Method
    from resclip.predictors.segmenter import PredictorSegmenter
    from resclip.segmenter import Segmenter


CLASSES_HELP = """\
the classes, separated by commas: "sky, tree, house". With a ";" anywhere, ";" separates classes and "," synonyms:
"cat, kitten; dog" is two classes, and "pet: cat, dog; grass" names the first one "pet". Or the classes of a dataset:
@ade20k, @voc21, ... Or a file: text with one class per line, JSON or YAML
"""

# Parameters of the library whose option has the same name, with hyphens for underscores.
OPTIONS = (
    "actors", "address", "background", "bands", "batch_size", "cache", "classes", "column", "correlation", "dataset",
    "device", "engine", "every", "format", "fresh", "ignore_index", "implementation", "label_offset", "max_bytes",
    "max_memory", "max_pixels", "max_windows", "member", "method", "min_area",
    "model", "out", "overlay", "overview", "overwrite", "precision", "preset", "pretrained", "proxy", "rcs", "root",
    "scores", "sfr", "short_side", "split", "stride", "templates", "timeout", "tolerance",
    "value_range", "window", "workers",
)  # fmt: skip
OPTION_OF = {
    **{name: f"--{name.replace('_', '-')}" for name in OPTIONS},
    "probability_threshold": "--threshold",
    "threshold": "--threshold",
    "min_margin": "--min-margin",
}
# A name alone, "window=", or with a value that can stand on a command line: 'precision="fp16"', "overwrite=True".
# Other values belong to what the user wrote, such as "weight=0.4" in the text of an option.
_PARAMETER = re.compile(
    rf"(?<![\w-])({'|'.join(OPTION_OF)})=(?:True\b|\"([\w.:-]+)\"|(?![\w\"'\[({{+-]|\.\d))"
)
_ABSENT = re.compile(rf"(?<![\w-])({'|'.join(OPTION_OF)})=None\b")
_SUBJECT = re.compile(rf"^({'|'.join(OPTION_OF)})(?= must\b)")


def explain(problem: BaseException | str) -> str:
    """One line about an error, or a message of `resclip.errors.describe`, with options in place of parameters."""
    text = problem if isinstance(problem, str) else describe(problem)
    text = _PARAMETER.sub(
        lambda found: " ".join(filter(None, (OPTION_OF[found[1]], found[2]))), text
    )
    text = _ABSENT.sub(lambda found: f"no {OPTION_OF[found[1]]}", text)
    text = _SUBJECT.sub(lambda found: OPTION_OF[found[1]], text)
    if text.startswith("unexpected error: "):
        text += " (--debug shows where)"
    return text


def add_model_options(
    parser: argparse.ArgumentParser,
    *,
    method: bool = True,
    background: bool = True,
    scenes: bool = False,
) -> None:
    """Which model and method, with which options, and how they run.

    Args:
        method: False for a command with its own option for methods.
        background: False for a command whose classes are a dataset's.
        scenes: True for a command that takes the drawn scenes where no dataset is named.
    """
    for_scenes = "; builtin for --dataset builtin" if scenes else ""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        help="name of a CLIP model; see `resclip models`; builtin is the small one for drawn scenes, which needs no "
        f"download (default: {DEFAULT_MODEL} with --pretrained {DEFAULT_TAG}{for_scenes})",
    )
    model.add_argument(
        "--pretrained",
        metavar="TAG",
        help="name of the model's weights, or the path of a local checkpoint; builtin takes none",
    )
    group = parser.add_argument_group("method")
    if method:
        group.add_argument(
            "--method", default="resclip", help="see `resclip methods` (default: resclip)"
        )
    group.add_argument(
        "--preset",
        help="options of a paper or a dataset; see `resclip methods` (default: the method's own)",
    )
    group.add_argument(
        "--correlation",
        metavar="SCORES",
        help='what the final block compares, such as "qq", "xx" or "random,projections=8" (default: the method\'s)',
    )
    group.add_argument(
        "--rcs",
        metavar="OPTIONS",
        help='add RCS, or change its options, such as "layers=6-9,weight=0.4" (default: the method\'s)',
    )
    group.add_argument(
        "--sfr",
        metavar="OPTIONS",
        help='add SFR, or change its options, such as "rounds=2,connectivity=line" (default: the method\'s)',
    )
    group.add_argument(
        "--proxy",
        metavar="OPTIONS",
        help='ProxyCLIP\'s vision model: "colour", a timm name, or options such as "model=NAME,beta=1.2" '
        "(default: colour for builtin, else vit_base_patch8_224.dino)",
    )
    group.add_argument(
        "--piece",
        action="append",
        default=[],
        metavar="NAME[:OPTIONS]",
        help="add, change or (NAME:none) leave out a piece of the method, such as outliers:detector=norm,count=10; see "
        "`resclip methods`; may be given several times (default: the method's own)",
    )
    group.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="NAME[:OPTIONS]",
        help="the same for what is done behind the tokens, such as laplacian:grid=224 (default: the method's own)",
    )
    group.add_argument(
        "--refine",
        type=integer,
        metavar="N",
        help="iterations of PAMR on the result's logits (default: 0; a method with +pamr: 10)",
    )
    names = parser.add_argument_group("class names")
    if background:
        names.add_argument(
            "--background",
            metavar="LIST",
            help='put a class "background" first, which stands for what voc21 or coco-object list as background '
            "(default: no such class)",
        )
    names.add_argument(
        "--templates",
        metavar="SET",
        help="prompts that a class name is put into: imagenet, short, plain, name, or a file with one per line "
        "(default: imagenet; builtin has its own)",
    )
    names.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep text features on disk, in $RESCLIP_CACHE or ~/.cache/resclip (default: yes)",
    )
    run = parser.add_argument_group("how it runs")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    run.add_argument(
        "--precision",
        help="fp32, fp16 or bf16 (default: fp16 on a GPU, else fp32; bf16 is faster on CPUs with AVX512-BF16 or AMX)",
    )
    run.add_argument(
        "--implementation",
        default="auto",
        help="code that computes attention and labels: triton (fused GPU kernels), library (PyTorch's fused "
        "kernels), torch, reference (plain formulas, slow), or auto (triton on a GPU that supports it, else torch; "
        "default: auto)",
    )
    run.add_argument(
        "--short-side",
        type=integer,
        metavar="PIXELS",
        help="resize images so that their shorter side has this many pixels; 0 keeps their size "
        "(default: 336; builtin: 224; cityscapes: 560)",
    )


def name_weights(arguments: argparse.Namespace) -> None:
    """Put the model's name into options that name none: the default, or the built-in model for its own scenes."""
    if getattr(arguments, "model", "") is None:
        if arguments.pretrained is None and is_drawn(arguments):
            arguments.model = BUILTIN
        else:
            arguments.model = DEFAULT_MODEL
            arguments.pretrained = arguments.pretrained or DEFAULT_TAG


def is_drawn(arguments: argparse.Namespace) -> bool:
    """Whether a command measures on the drawn scenes alone."""
    datasets = getattr(arguments, "dataset", "").split(",")
    return all(name.strip() == SCENES for name in datasets)


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """How an image is cut into windows, and when a pixel counts as background."""
    windows = parser.add_argument_group("windows")
    windows.add_argument(
        "--window",
        type=integer,
        metavar="PIXELS",
        help="segment images by overlapping square windows of this side; 0 segments them whole "
        "(default: 224; builtin: 112; proxyclip: 336; voc20 and voc21: 0)",
    )
    windows.add_argument(
        "--overview",
        metavar="OPTIONS",
        nargs="?",
        const="",
        help="let windows also see the whole image at a low resolution; with options such as "
        '"weight=0.3,side=448" (default: windows see themselves alone)',
    )
    windows.add_argument(
        "--stride",
        type=integer,
        metavar="PIXELS",
        help="distance between neighbouring windows (default: half of --window if that is given; "
        "else 112; builtin: 56)",
    )
    windows.add_argument(
        "--batch-size",
        type=integer,
        metavar="N",
        help="windows that run together (default: 16 on a GPU, else 8)",
    )
    windows.add_argument(
        "--max-windows",
        type=whole_number,
        metavar="N",
        help="refuse an image that takes more windows, times the rounds of SFR (default: 1,000,000)",
    )
    windows.add_argument(
        "--threshold",
        type=probability,
        metavar="P",
        help="leave a pixel unlabelled where its best class has a probability below P; with --preset voc21, context60 "
        "or coco-object, whose first class is the background: give it that one (default: 0, never; these presets: 0.1)",
    )
    windows.add_argument(
        "--min-margin",
        type=probability,
        metavar="P",
        help="leave a pixel unlabelled where its two best classes have probabilities that differ by less than P "
        "(default: 0, never)",
    )


def window_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `resclip.load` that the options of `add_window_options` name, but for the overview."""
    return {
        "window": arguments.window,
        "stride": arguments.stride,
        "threshold": arguments.threshold,
        "min_margin": arguments.min_margin,
        "batch_size": arguments.batch_size,
        "max_windows": arguments.max_windows,
    }


def number(text: str, kind: type[int | float], what: str) -> Any:
    """The number that a text is; argparse by itself would name the function that reads it, not what it expects."""
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {what}, got {text[:80]!r}") from None


def probability(text: str) -> float:
    value: float = number(text, float, "a number from 0 to 1")
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def integer(text: str) -> int:
    value: int = number(text, int, "a whole number")
    return value


def whole_number(text: str) -> int:
    value: int = number(text, int, "a whole number of at least 1")
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def positive_number(text: str) -> float:
    value: float = number(text, float, "a number above 0")
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def output_folder(text: str) -> str:
    """The folder or URL that --out names; an error for none, as an unset variable of a shell's script makes."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder to write to, got nothing; name one")
    return text


def output_path(text: str) -> Path:
    """`output_folder`, of this machine."""
    return Path(output_folder(text))


def every_frame(text: str) -> Every:
    """Which frames of a video: "5" or "2s"."""
    from resclip.io.video import parse_every

    try:
        return parse_every(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


EVERY_HELP = """\
of a video: take every N-th frame, or with an s behind it, as in 2s, the first frame in each N seconds (default: 1, all)
"""


def byte_count(text: str) -> int:
    """Bytes, such as "500MB" or "1GiB"."""
    from resclip.inference.memory import parse_memory

    try:
        return int(text) if text.isascii() and text.isdigit() and int(text) else parse_memory(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number of bytes such as '500MB' or '1GiB', got {text[:80]!r}"
        ) from None


def add_reading_options(parser: Any) -> None:
    """How image files are read, and what one may take at most; `parser` may be a group of one."""
    parser.add_argument(
        "--bands",
        metavar="LIST",
        help="which bands of a file are red, green and blue, or the one that is grey: numbers or names, such as 4,3,2 "
        "(default: as the file says)",
    )
    parser.add_argument(
        "--value-range",
        metavar="LOW,HIGH",
        help="values that become black and white in files of more than 8 bits (default: by the file's percentiles)",
    )
    parser.add_argument(
        "--max-pixels",
        type=whole_number,
        metavar="N",
        help="largest image to decode (default: 178,956,970 pixels; TIFFs that are read by block: more)",
    )
    parser.add_argument(
        "--max-bytes",
        type=byte_count,
        metavar="SIZE",
        help='largest file at a URL, or part of a table or archive, to hold in memory, such as "500MB" (default: 1GiB)',
    )
    parser.add_argument(
        "--timeout",
        type=positive_number,
        metavar="SECONDS",
        help="how long a server may be silent before its file counts as unreadable (default: 60)",
    )


def reading_from(arguments: argparse.Namespace) -> ReadOptions:
    """What the options of `add_reading_options` say.

    Raises:
        ValueError, TypeError: bands or a range that are none.
    """
    from resclip.io.limits import Limits
    from resclip.io.picture import ReadOptions

    names = ("max_pixels", "max_bytes", "timeout")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    bands = value_range = None
    if arguments.bands is not None:
        texts = [text.strip() for text in arguments.bands.split(",")]
        bands = tuple(int(text) if text.isdecimal() else text for text in texts)
    if arguments.value_range is not None:
        try:
            low, high = map(float, arguments.value_range.split(","))
        except ValueError:
            raise ValueError(
                f"--value-range must be LOW,HIGH, as in 0,3000; got {arguments.value_range[:80]!r}"
            ) from None
        value_range = low, high
    return ReadOptions(bands, value_range, Limits(**given))


def png_path(text: str) -> Path:
    """The file that --out names; ValueError for one that is no PNG."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected --out to name a .png file, got {text!r}")
    return path


def memory_size(text: str) -> int:
    from resclip.inference.memory import parse_memory

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
    from resclip.loading import load
    from resclip.methods.catalogue import RCS, SFR, Overview, ProxyAttention
    from resclip.methods.composition import parse_changes
    from resclip.methods.options_text import parse_options, split_options
    from resclip.methods.pieces import Pieces
    from resclip.methods.steps import Steps

    proxy = arguments.proxy
    if proxy is not None and "=" in proxy:
        proxy = parse_options(ProxyAttention, proxy)
    overview = getattr(arguments, "overview", None)
    if overview is not None:
        overview = parse_options(Overview, overview) if overview else Overview()
    options = {
        "method": getattr(arguments, "method", None),
        "preset": arguments.preset,
        "correlation": arguments.correlation,
        "rcs": None if arguments.rcs is None else split_options(RCS, arguments.rcs),
        "sfr": None if arguments.sfr is None else split_options(SFR, arguments.sfr),
        "proxy": proxy,
        "overview": overview,
        "pieces": parse_changes(Pieces, arguments.piece) or None,
        "steps": parse_changes(Steps, arguments.step) or None,
        "refine_iterations": arguments.refine,
        "device": arguments.device,
        "precision": arguments.precision,
        "implementation": arguments.implementation,
        "short_side": arguments.short_side,
        "templates": arguments.templates,
        "cache": bool(arguments.cache),
        "progress": console().draws,
        "background": getattr(arguments, "background", None),
        **changes,
    }
    return partial(load, arguments.model, arguments.pretrained, classes=classes, **options)


SCENES = "builtin"
"""The name of the drawn scenes as a dataset."""

FOLDER = "folder"
"""The name of a folder of the user's own as a dataset."""

_DATASET_OPTIONS = {
    "scenes": (SCENES, "count"),
    "size": (SCENES, "size"),
    "ignore_index": (FOLDER, "ignore_index"),
    "label_offset": (FOLDER, "label_offset"),
}
"""By the option's name: the one dataset that it is for, and what its reader calls it."""

_DATASETS_HELP = f"""\
datasets to measure on, separated by commas: {SCENES} (the model's own scenes, nothing to download),
{", ".join(DATASETS)}, or {FOLDER}: images/, masks/ and classes.txt of your own
(default: {SCENES})
"""


def add_dataset_options(parser: argparse.ArgumentParser, *, scenes: int = 200) -> None:
    """Which datasets, where they lie, and what their classes are called.

    Args:
        scenes: how many of the drawn scenes the command takes by default.
    """
    group = parser.add_argument_group("datasets")
    group.add_argument("--dataset", default=SCENES, metavar="NAMES", help=_DATASETS_HELP)
    group.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="DIR",
        help="folder that holds the data; with several datasets NAME=DIR for each, or one DIR for all",
    )
    group.add_argument("--split", help="instead of the dataset's standard split")
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="class names to use in place of the dataset's own, one class per line in the order of its labels",
    )
    group.add_argument(
        "--scenes",
        type=integer,
        metavar="N",
        help=f"how many scenes of {SCENES} (default: {scenes})",
    )
    group.add_argument(
        "--size",
        type=integer,
        metavar="PIXELS",
        help=f"side of the scenes of {SCENES} (default: 168)",
    )
    group.add_argument(
        "--ignore-index",
        type=integer,
        metavar="N",
        help=f"value in the masks of {FOLDER} that does not count (default: 255)",
    )
    group.add_argument(
        "--label-offset",
        type=integer,
        metavar="K",
        help=f"a value in the masks of {FOLDER} less K is the class, and values below K do not count: 1 for masks that "
        "count from 1 (default: 0)",
    )
    group.add_argument(
        "--workers",
        type=integer,
        metavar="N",
        help="processes that decode images (default: by the machine)",
    )


def open_datasets(arguments: argparse.Namespace) -> list[Dataset]:
    """The datasets that the options name, with other names for the classes if --classes gives some.

    Raises:
        ValueError: an unknown dataset, one named twice, a folder that does not exist, options that fit no dataset.
        OSError: a file that cannot be read.
    """
    from resclip.evaluation.datasets import open_dataset

    names = [name.strip() for name in arguments.dataset.split(",")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected each dataset once, got {twice!r} twice")
    if arguments.classes is not None and len(names) > 1:
        raise ValueError("--classes has the names of one dataset; name one with --dataset")
    options: dict[str, dict[str, int]] = {name: {} for name in names}
    for option, (dataset, parameter) in _DATASET_OPTIONS.items():
        value = getattr(arguments, option)
        if value is None:
            continue
        if dataset not in names:
            raise ValueError(
                f"--{option.replace('_', '-')} is for {dataset}; leave it out for {', '.join(names)}"
            )
        options[dataset][parameter] = value
    roots = parse_roots(arguments.root, names)
    datasets = [
        open_dataset(name, roots.get(name), arguments.split, **options[name]) for name in names
    ]
    if arguments.classes is not None:
        entries = tuple(parse_classes(arguments.classes))
        if len(entries) != len(datasets[0].entries):
            raise ValueError(
                f"{arguments.classes}: expected a name for each of the {len(datasets[0].entries)} classes of "
                f"{names[0]}, got {len(entries)}"
            )
        datasets[0] = replace(datasets[0], entries=entries)
    return datasets


def parse_roots(texts: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """The folder of each dataset that has one, from "DIR" and "NAME=DIR"."""
    roots: dict[str, Path] = {}
    # By the dataset's name; None: for all that have none of their own.
    named: set[str | None] = set()
    for text in texts:
        name, separator, folder = text.partition("=")
        of_one = name if separator and name in names else None
        if of_one in named:
            raise ValueError(
                f"expected one --root for {of_one or 'all datasets'}, got several; leave out all but one"
            )
        named.add(of_one)
        if of_one is not None:
            roots[name] = Path(folder)
        else:
            if separator and not Path(text).exists():
                raise ValueError(
                    f"expected --root DIR, or NAME=DIR with NAME one of {', '.join(names)}; got {text!r}"
                )
            roots = {**dict.fromkeys(names, Path(text)), **roots}
    return roots


def segmenter_for(
    arguments: argparse.Namespace, method: str | Method, dataset: Dataset, device: str | None
) -> Segmenter:
    """A method's segmenter for a dataset: the dataset's preset and settings, and above them the options.

    Options of RCS, SFR and the proxy are for the methods that have them.

    Raises:
        ValueError, TypeError: options that cannot be carried out.
        WeightsUnavailable: the model cannot be fetched.
    """
    from resclip.evaluation.distributed import rank
    from resclip.methods.catalogue import BASES, find_method

    chosen = find_method(method)
    of_method = argparse.Namespace(**vars(arguments))
    for option, has_it in (
        ("rcs", chosen.rcs is not None),
        ("sfr", chosen.sfr is not None),
        ("proxy", (chosen.proxy or BASES[chosen.base].proxy) is not None),
    ):
        if not has_it:
            setattr(of_method, option, None)
    changes = {**window_arguments(arguments), "short_side": arguments.short_side}
    changes |= {name: value for name, value in dataset.settings.items() if changes[name] is None}
    if rank() != 0:
        changes["progress"] = False  # One bar is enough.
    preset = arguments.preset or preset_of(dataset.name, arguments.model)
    return load_from(
        of_method, dataset.entries, **changes, method=method, preset=preset, device=device
    )


def predictor_for(
    arguments: argparse.Namespace,
    name: str,
    dataset: Dataset,
    device: str | None,
    options: Mapping[str, Any] | None = None,
) -> PredictorSegmenter:
    """A predictor's segmenter for a dataset: its own settings, and above them those of the options that fit any model.

    Args:
        options: of the predictor itself.

    Raises:
        ValueError, TypeError: no such predictor, or options that cannot be carried out.
        WeightsUnavailable: its model cannot be fetched.
    """
    from resclip.loading import choose_device
    from resclip.predictors.registry import device_of, make_predictor
    from resclip.predictors.segmenter import PredictorSegmenter

    chosen = choose_device(device)
    predictor = make_predictor(name, device=chosen, dataset=dataset.name, options=options)
    return PredictorSegmenter(
        predictor,
        dataset.entries,
        device=device_of(name, predictor, chosen),
        short_side=arguments.short_side,
        window=arguments.window,
        stride=arguments.stride,
        batch_size=arguments.batch_size,
        max_windows=arguments.max_windows,
    )


def preset_of(dataset: str, model: str) -> str | None:
    """A benchmark's own preset; None where the model's or the method's defaults hold."""
    return dataset if dataset in DATASETS and model != BUILTIN else None


def check_out(arguments: argparse.Namespace, *options: str) -> None:
    """ValueError if one of `options` writes files and --out names no folder; ImportError if --plot lacks matplotlib."""
    used = [option for option in options if getattr(arguments, option)]
    if used and arguments.out is None:
        option = f"--{used[0].replace('_', '-')}"
        raise ValueError(f"expected --out DIR for what {option} writes, got none; name a folder")
    if arguments.plot:
        from resclip.evaluation.plots import check_matplotlib

        check_matplotlib()


def show_tables(tables: Tables, report: Report, folder: Path | None, stem: str) -> None:
    """Print the tables, name what was left out, and write stem.csv and stem.md into the folder, if one is named.

    Raises:
        OSError: the folder or a file cannot be made.
    """
    from resclip.evaluation.tables import hint_notes, problem_lines

    print(tables.text)
    columns = report.datasets.values()
    if any(one.dataset != SCENES and one.settings.get("model") == BUILTIN for one in columns):
        warn_of_drawn_scenes()
    for line in hint_notes(report):
        console().note(line)
    for line in problem_lines(report):
        console().error(f"left out: {explain(line)}")
    if folder is None:
        return
    make_folder(folder)
    for ending, text in (("csv", tables.csv), ("md", tables.markdown + "\n")):
        # Names of files may hold bytes that are no UTF-8.
        write_atomically(folder / f"{stem}.{ending}", text.encode(errors="backslashreplace"))
