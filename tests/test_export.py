"""Encoders for other programs: what is written out equals the encoder, at other sizes, and what cannot be is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import run
from method_support import colours, small_tower, text
from torch import Tensor

from resclip import RCS, DenseEncoder
from resclip.export import export_onnx, export_program, exportable
from resclip.methods.catalogue import BASES, Overview, find_method
from resclip.methods.pieces import KeyAlignment, Pieces
from resclip.models.proxy_models import find_proxy
from resclip.models.tower import POSITIONS, resize_position_embedding
from resclip_kernels import feedback_matrix, patch_labels, residual_attention, semantic_feedback

SIZES = ((2, (64, 96)), (3, (112, 128)), (1, (16, 80)))
"""Images and their size in pixels: grids of 4 × 6, of 7 × 8, which has more patches than a method's neighbours, and of
one line."""


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What torch.export would write out, computed at once: tracing takes most of a minute."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    return monkeypatch


def encoder(name: str, **changes: object) -> DenseEncoder:
    method = find_method(name)
    proxy = None
    if method.base == "proxyclip":
        proxy = find_proxy("colour:8", mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))
    settings = {"sfr": method.sfr, "proxy": proxy, **changes}
    return DenseEncoder(small_tower(layers=3), method.base, method.rcs, **settings)


def inputs(seed: int, images: int, size: tuple[int, int], takes_text: bool) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    pixels = torch.randn(images, 3, *size)
    return (pixels, text(7, 32)) if takes_text else (pixels,)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.filterwarnings("ignore::resclip.errors.UnknownChannelsWarning")
def test_what_is_written_out_is_what_the_encoder_computes(
    base: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = exportable(encoder(base + ("+rcs+sfr" if BASES[base].has_score else "+rcs")))
    for images, size in SIZES:
        given = inputs(seed, images, size, module.takes_text)
        with torch.no_grad():
            expected = module(*given)
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_exporting", lambda: True)
                came = module(*given)
        assert len(came) == len(module.outputs)
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("connectivity", ["prefix", "line", "component", None])
@pytest.mark.parametrize("grid", [(1, 1), (2, 9), (11, 7)])
def test_feedback_is_the_references(
    connectivity: str, grid: tuple[int, int], seed: int, exporting: pytest.MonkeyPatch
) -> None:
    """A single patch, fewer patches than the Gaussian has taps, and winding regions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (2, *grid), generator=generator)
    states = [semantic_feedback(labels, connectivity=connectivity)]
    exporting.undo()
    states.append(semantic_feedback(labels, connectivity=connectivity, implementation="reference"))
    came, expected = map(feedback_matrix, states)
    torch.testing.assert_close(came, expected, rtol=1e-3, atol=1e-6)  # Rounded to float16.


@pytest.mark.parametrize(
    "options",
    [
        {"correlation": "none", "neighbourhood_std": 2.0},
        {"correlation": "none", "window": 3},
        {"correlation": "qq+kk", "window": 3, "neighbourhood_std": 5.0},
        {"correlation": "none"},
        {"correlation": "identity"},
    ],
)
def test_attention_is_the_references(
    options: dict[str, object], seed: int, exporting: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed)
    heads = torch.randn(3, 2, 2, 13, 8)
    came = residual_attention(*heads, grid=(3, 4), **options).output
    exporting.undo()
    expected = residual_attention(*heads, grid=(3, 4), implementation="reference", **options).output
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)


def test_labels_are_the_references(seed: int, exporting: pytest.MonkeyPatch) -> None:
    """With ties, on an image with a rest past its last patch."""
    torch.manual_seed(seed)
    logits, image = torch.randn(2, 5, 3, 4).round(), torch.randn(2, 3, 26, 35)
    options = {"patch_size": (8, 8), "refine_iterations": 2, "logit_scale": 4.0, "threshold": 0.4}
    came = patch_labels(logits, image, **options)
    exporting.undo()
    assert torch.equal(came, patch_labels(logits, image, implementation="reference", **options))


@pytest.mark.parametrize("position", POSITIONS)
def test_position_embeddings_are_resized_alike(
    position: str, seed: int, exporting: pytest.MonkeyPatch
) -> None:
    """Larger, smaller, one way each, and not at all."""
    torch.manual_seed(seed)
    embedding = torch.randn(1 + 7 * 7, 5)
    grids = ((7, 7), (14, 20), (3, 4), (9, 2), (7, 8), (1, 1))
    came = [resize_position_embedding(embedding, (7, 7), grid, position=position) for grid in grids]
    exporting.undo()
    for grid, one in zip(grids, came, strict=True):
        expected = resize_position_embedding(embedding, (7, 7), grid, position=position)
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


def test_a_program_takes_any_size(seed: int) -> None:
    dense = DenseEncoder(small_tower(layers=2), "naclip", RCS())
    module, program = exportable(dense), export_program(dense)
    assert not [node for node in program.graph.nodes if "resclip" in str(node.target)]
    for images, size in ((2, (64, 96)), (1, (64, 96)), (2, (160, 112)), (1, (64, 64))):
        given = inputs(seed, images, size, module.takes_text)
        with torch.no_grad():
            expected = module(*given)
            torch.testing.assert_close(program.module()(*given), expected, rtol=0, atol=1e-4)


# To write one takes most of a minute, with SFR two.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["naclip+rcs", "resclip"])
def test_files_take_any_size(name: str, seed: int, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    dense = encoder(name)
    module = exportable(dense)
    program = export_program(dense)
    export_onnx(dense, tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(
        str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"]
    )
    for images, size in ((2, (64, 96)), (1, (64, 96)), (2, (160, 112)), (1, (64, 64))):
        given = inputs(seed, images, size, module.takes_text)
        with torch.no_grad():
            expected = module(*given)
            torch.testing.assert_close(program.module()(*given), expected, rtol=0, atol=1e-4)
        feed = {name: one.numpy() for name, one in zip(module.inputs, given, strict=True)}
        came = session.run(list(module.outputs), feed)
        for one, other in zip(came, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-4)


def test_text_may_be_part_of_the_module(seed: int) -> None:
    queries = text(4, 32)
    for name in ("naclip", "resclip"):
        dense = encoder(name)
        module = exportable(dense, queries)
        assert module.inputs == ("pixels",)
        results = dict(zip(module.outputs, module(torch.randn(2, 3, 64, 64)), strict=True))
        assert results["logits"].shape == (2, 4, 4, 4)
        expected = dense.final.logits(results["patches"], results["cls"], queries)
        torch.testing.assert_close(results["logits"], expected)
    assert exportable(encoder("naclip")).outputs == ("patches", "cls")


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    import timm

    file = tmp_path / "encoder.onnx"
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    rotary = timm.models.eva.Eva(num_classes=16, use_rot_pos_emb=True, **size)

    def read_values(pixels: Tensor) -> Tensor:
        return colours(pixels if pixels.max() > 0 else -pixels)

    svd = Pieces(alignment=KeyAlignment(solver="svd"))
    cases = [
        (DenseEncoder(small_tower(), overview=Overview()), "its overview takes a coarse pass"),
        (DenseEncoder(rotary), "a table of rotary positions, which timm makes for one size"),
        (
            DenseEncoder(small_tower(), "pearl", pieces=svd),
            "use 'newton-schulz', or export_program",
        ),
        (
            DenseEncoder(small_tower(layers=1), "proxyclip", proxy=read_values),
            "cannot be exported: ",
        ),
    ]
    for dense, message in cases:
        with pytest.raises(ValueError, match=message):
            export_onnx(dense, file)
    with pytest.raises(
        TypeError, match="encoder must be a DenseEncoder, such as Segmenter.encoder"
    ):
        exportable(small_tower())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="opset must be at least 18; got 9"):
        export_onnx(encoder("clip"), file, opset=9)
    with pytest.raises(ValueError, match=r"text must be \(Q, 32\)"):
        exportable(encoder("clip"), text(3, 5))
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_other_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--method", "naclip", "--out", "encoder.txt") == 2
    assert "expected --out FILE.onnx or FILE.pt2; got 'encoder.txt'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "encoder.pt2"
    assert run("export", "--method", "naclip", "--classes", "sky; tree", "--out", str(file)) == 0
    assert (
        "pixels → patches, cls, logits; pixels (B, 3, H, W) in multiples" in capsys.readouterr().out
    )
    program = torch.export.load(file).module()
    patches, cls, logits = program(torch.randn(1, 3, 48, 32))
    assert (patches.shape[:3], len(cls), logits.shape[2:]) == ((1, 6, 4), 1, (6, 4))
