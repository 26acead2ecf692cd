"""`resclip export`: an encoder as an ONNX file or a torch.export program."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from resclip.cli.options import add_model_options, load_from
from resclip.io.files import atomic_file
from resclip.text.class_names import parse_classes

DESCRIPTION = (
    "Writes the encoder of a method for other programs: FILE.onnx for ONNX, FILE.pt2 for torch.export. It takes any "
    "number of normalised images, of any size in whole patches."
)
# A segmenter needs two classes, of which nothing is kept here. The built-in model knows these words.
NO_CLASSES = ["picture", "car"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, .onnx or .pt2")
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="classes whose embeddings become part of the file, which then gives logits; without, SFR takes "
        "embeddings as second input",
    )
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and print what it takes and gives.

    Raises:
        ValueError: the options cannot be used, or the method cannot be exported.
        OSError: the file cannot be written.
        WeightsUnavailable: the model cannot be fetched.
    """
    path = Path(arguments.out)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"expected --out FILE.onnx or FILE.pt2; got {arguments.out!r}")
    if not path.parent.is_dir():
        raise ValueError(
            f"expected a folder to write {path.name} to, {path.parent} is none: make it first"
        )
    classes = NO_CLASSES if arguments.classes is None else parse_classes(arguments.classes)
    segmenter = load_from(arguments, classes)
    import torch

    from resclip.export import export_onnx, export_program, exportable

    text = None if arguments.classes is None else segmenter.vocabulary.embeddings
    encoder = segmenter.encoder
    if path.suffix == ".onnx":
        export_onnx(encoder, path, text)
    else:
        program = export_program(encoder, text)
        with atomic_file(path) as stream:
            torch.export.save(program, stream)
    module = exportable(encoder, text)
    height, width = encoder.tower.patch_size
    statistics = segmenter.preparation
    print(
        f"{path}: {', '.join(module.inputs)} → {', '.join(module.outputs)}; pixels (B, 3, H, W) in multiples of "
        f"{height} × {width}, normalised by mean {rounded(statistics.mean)} and std {rounded(statistics.std)}"
    )
    return 0


def rounded(numbers: Sequence[float]) -> str:
    """Numbers, one a channel, for reading."""
    return ", ".join(f"{number:.5g}" for number in numbers)
