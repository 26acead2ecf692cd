"""How far exported encoders are from eager ones: `torch.export` and ONNX Runtime, two sizes, two batches."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.transformer import VisionTransformer
from tabulate import tabulate
from torch import Tensor

from resclip import DenseEncoder
from resclip.export import export_onnx, export_program, exportable
from resclip.methods.catalogue import BASES, find_method
from resclip.models.proxy_models import find_proxy

CASES = ((2, (64, 96)), (1, (64, 96)), (2, (160, 112)), (1, (160, 112)))
"""(images, (height, width) in pixels): oblong grids of 4 × 6 and 10 × 7 patches of 16."""
LIMIT = 1e-4
"""The greatest absolute error of any output, of features of order 1."""


def methods() -> list[str]:
    """Every base with the modules that it takes."""
    return [name + ("+rcs+sfr" if base.has_score else "+rcs") for name, base in BASES.items()]


def encoder_of(name: str) -> DenseEncoder:
    """A method on a tower of three blocks with random weights."""
    torch.manual_seed(0)
    visual = VisionTransformer(64, 16, 64, 3, 2, 2.0, output_dim=32).eval()
    method = find_method(name)
    proxy = None
    if method.base == "proxyclip":
        proxy = find_proxy("colour:16", mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))
    return DenseEncoder(visual, method.base, method.rcs, method.sfr, proxy=proxy)


def errors(name: str, folder: str) -> tuple[float, float]:
    """The greatest error of torch.export's program and of ONNX Runtime over all cases and outputs."""
    import onnxruntime

    encoder = encoder_of(name)
    module, program = exportable(encoder), export_program(encoder).module()
    file = str(Path(folder) / "encoder.onnx")
    export_onnx(encoder, file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    worst = [0.0, 0.0]
    for number, (images, size) in enumerate(CASES):
        torch.manual_seed(number)
        inputs: tuple[Tensor, ...] = (torch.randn(images, 3, *size),)
        if module.takes_text:
            inputs += (torch.nn.functional.normalize(torch.randn(7, 32), dim=1),)
        feed = {key: value.numpy() for key, value in zip(module.inputs, inputs, strict=True)}
        with torch.no_grad():
            expected, came = module(*inputs), program(*inputs)
        others = (came, map(torch.from_numpy, session.run(list(module.outputs), feed)))
        for way, results in enumerate(others):
            for one, other in zip(expected, results, strict=True):
                worst[way] = max(worst[way], (one.double() - other.double()).abs().max().item())
    return worst[0], worst[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if an error is above the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks export", description=__doc__)
    parser.add_argument("methods", nargs="*", help="default: every base with RCS and SFR")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.methods or methods():
            rows.append([name, *errors(name, folder)])
            print(*rows[-1], flush=True)
    headers = ["method", "torch.export", "ONNX Runtime"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".1e"))
    return int(any(error > LIMIT for row in rows for error in row[1:]))
