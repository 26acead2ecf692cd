"""Encoders for other programs: as a module with plain outputs, a `torch.export` program, or an ONNX file.

While `torch.export` traces an encoder, every op of `resclip_kernels` is written out in plain operators whose sizes are
symbols. So a program takes any number of images of any size, and needs nothing of this library.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resclip.encoder.dense_encoder import DenseEncoder, check_pixels, check_text
from resclip.errors import first_sentence
from resclip.io.files import NewFile
from resclip.models.timm_vit import TimmTower
from resclip_kernels import check_count, check_type

OPSETS = (18, 23)
"""Versions of ONNX's operators that may be asked for: the least and the greatest."""
ONE_FILE_BYTES = 1_900_000_000
"""Bytes of weights that an ONNX file holds itself; those of a larger model lie in a second file beside it."""


class ExportableEncoder(nn.Module):
    """An encoder with tensors in and a tuple of tensors out, in the order of `outputs`.

    - "patches", (B, h, w, E): projected into the text's space, not unit-normed.
    - "cls", (B, E): where the method has one.
    - "logits", (B, Q, h, w): where there is text; cosines, or CLIP Surgery's, not scaled.
    - "feedback_labels", (B, h, w) int64: with SFR.

    Args: see `exportable`.
    """

    text: Tensor | None

    def __init__(self, encoder: DenseEncoder, text: Tensor | None = None) -> None:
        super().__init__()
        check_type("encoder", encoder, DenseEncoder, "a DenseEncoder, such as Segmenter.encoder")
        obstacle = export_obstacle(encoder)
        if obstacle:
            raise ValueError(f"base {encoder.base.name!r} cannot be exported: {obstacle}")
        if text is not None:
            check_text(text, encoder.tower.output_dim)
            text = text.detach().to(encoder.tower.device, encoder.tower.dtype)
        self.encoder = encoder
        self.register_buffer("text", text)
        self.takes_text = text is None and encoder.sfr is not None
        """Whether `forward` takes text."""
        has_text = text is not None or self.takes_text
        has_cls = encoder.tower.has_cls and encoder.proxy is None and encoder.pieces.patches is None
        self.outputs = tuple(
            name
            for name, is_there in (
                ("patches", True),
                ("cls", has_cls and encoder.pieces.fusion is None),
                ("logits", has_text),
                ("feedback_labels", encoder.sfr is not None),
            )
            if is_there
        )
        """Names of what `forward` gives."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what `forward` takes."""
        return ("pixels", "text") if self.takes_text else ("pixels",)

    def forward(self, pixels: Tensor, text: Tensor | None = None) -> tuple[Tensor, ...]:
        """The outputs of a batch.

        Args:
            pixels: (B, 3, H, W), normalised; exported programs take whole patches.
            text: (Q, E) unit rows, where `takes_text`; else None.
        """
        encoder = self.encoder
        text = self.text if text is None else text
        if not torch.compiler.is_exporting():
            encoder.check(pixels, text)
        features = encoder.compute(pixels, text, None, ())
        results = {"patches": features.patches, "cls": features.cls}
        if "logits" in self.outputs and text is not None:
            results["logits"] = encoder.final.logits(features.patches, features.cls, text)
        results["feedback_labels"] = features.feedback_labels
        return tuple(result for name in self.outputs if (result := results[name]) is not None)


def exportable(encoder: DenseEncoder, text: Tensor | None = None) -> ExportableEncoder:
    """An encoder as a module for `torch.export`, `torch.compile` or any other program that wants tensors alone.

    Args:
        encoder: with any method and tower but those that `Raises` names; used as it is.
        text: (Q, E) unit rows, to be part of the module, which then gives logits as well; None: a method with SFR
            takes them as second argument, others give no logits.

    Raises:
        TypeError, ValueError: what stands in the way, in one sentence.
    """
    return ExportableEncoder(encoder, text)


def export_program(
    encoder: DenseEncoder, text: Tensor | None = None
) -> torch.export.ExportedProgram:
    """An encoder as a `torch.export` program, for any number of images, of any size in whole patches, two each way.

    It computes what the encoder does by "torch", up to rounding, without its checks: NaN is not looked for. Maps are
    in memory, (B, A, L, L) at most, and with SFR (B, Q, H, W) planes with their 16 neighbours, and every sample of
    every path, max(h, w) · (h·w)² numbers an image: meant for windows, up to 32 × 32 patches.

    Args:
        encoder, text: as in `exportable`.

    Returns:
        With inputs and outputs as `ExportableEncoder` has them; `torch.export.save` writes it to a file.

    Raises:
        TypeError, ValueError: what stands in the way, in one sentence.
    """
    module = exportable(encoder, text).eval()
    tower = encoder.tower
    height, width = tower.patch_size
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    # Different sizes on all axes, and none of them 0 or 1, which would be taken for constants.
    pixels = torch.zeros(2, 3, 4 * height, 6 * width, device=tower.device, dtype=tower.dtype)
    arguments: tuple[Tensor, ...] = (pixels,)
    sizes: dict[str, Any] = {
        "pixels": {0: torch.export.Dim("batch"), 2: height * rows, 3: width * columns},
        "text": None,
    }
    if module.takes_text:
        arguments += (pixels.new_zeros(5, tower.output_dim),)
        sizes["text"] = {0: torch.export.Dim("queries")}
    check_pixels(pixels, tower)
    encoder.check_model()
    shapes = {name: sizes[name] for name in module.inputs}
    try:
        with torch.no_grad():
            return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
    # Whatever a model's own layers, or a proxy, do that torch cannot trace.
    except Exception as error:
        raise ValueError(
            f"base {encoder.base.name!r} on this tower cannot be exported: {first_sentence(error)}"
        ) from error


def export_onnx(
    encoder: DenseEncoder,
    path: str | os.PathLike[str],
    text: Tensor | None = None,
    *,
    opset: int = OPSETS[0],
) -> None:
    """Write an encoder as an ONNX file, for any number and size of images; see `export_program`.

    Args:
        encoder, text: as in `exportable`.
        path: to write to. Weights of more than 1.9 GB go into a second file, named as this one with ".data" behind it.
        opset: version of ONNX's operators, 18 to 23.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError, ValueError: what stands in the way, in one sentence.
        OSError: the file cannot be written.
    """
    check_count("opset", opset, *OPSETS)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'an ONNX file is written by {" and ".join(missing)}: pip install "resclip[export]"'
        )
    alignment = encoder.pieces.alignment if isinstance(encoder, DenseEncoder) else None
    if alignment is not None and alignment.solver == "svd":
        raise ValueError(
            "ONNX has no operator for the singular value decomposition of KeyAlignment's solver 'svd': use "
            "'newton-schulz', or export_program"
        )
    program = export_program(encoder, text)
    module_inputs = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    outputs = list(exportable(encoder, text).outputs)
    parameters = [*encoder.parameters(), *encoder.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the exporter, on its own ways.
        try:
            written = torch.onnx.export(
                program,
                (),
                input_names=module_inputs,
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise ValueError(
                f"base {encoder.base.name!r} cannot be written as ONNX: {last_line(error)}"
            ) from error
    if written is None:
        raise ValueError("expected the exporter of torch to give a model; got none")
    if weights > ONE_FILE_BYTES:
        written.save(Path(path), external_data=True)
        return
    with NewFile(path) as file:
        file.path.write_bytes(written.model_proto.SerializeToString())
        file.publish()


def export_obstacle(encoder: DenseEncoder) -> str:
    """Why an encoder cannot be exported, in words; empty where nothing is known to stand in the way."""
    if encoder.overview is not None:
        return "its overview takes a coarse pass beside the pixels: use overview=None"
    tower = encoder.tower
    if isinstance(tower, TimmTower) and getattr(tower.trunk, "rope", None) is not None:
        return (
            "the tower turns queries and keys by a table of rotary positions, which timm makes for one size in Python: "
            "use a tower with a position embedding"
        )
    return ""


def last_line(error: BaseException) -> str:
    """The innermost reason of an error, in one sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_sentence(error)
