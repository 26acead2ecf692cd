"""Embeddings: one pass of the model, any words; the labels are those of a direct run, in memory and from a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import random_image, toy_clip, toy_segmenter, toy_tokenizer

from resclip import RCS, SFR, Embedding, Segmenter, load
from resclip.errors import EmbeddingError
from resclip.inference.embedding import pack_tensor, unpack_tensor
from resclip.io.images import ImageError
from resclip.methods.catalogue import BASES, Overview
from resclip.text.vocabulary import NameEncoder

IMAGE = random_image(60, 90)
STEPS = ("clearclip+gla", "clearclip+freecp", "naclip+lposs", "naclip+tlp", "naclip+pamr")


def make(method: str = "naclip+rcs", **arguments: Any) -> Segmenter:
    options: dict[str, Any] = {"proxy": "colour"} if method.startswith("proxyclip") else {}
    if "+rcs" in method:
        options["rcs"] = {"layers": (1, 2)}
    if "+sfr" in method:
        options["sfr"] = {"refine_iterations": 1}
    return load(
        toy_clip(), classes="cat; dog; grass", method=method, tokenizer=toy_tokenizer, templates=["{}"], cache=False,
        **{"window": 32, "stride": 16, "short_side": 48, **options, **arguments},
    )  # fmt: skip


def assert_same(one: Any, other: Any) -> None:
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


METHODS = [
    name
    for base in BASES
    if base
    not in (
        "cliptrase",
        "rf-clip",
    )  # Windows of their own, and blocks that the toy does not have: below.
    for name in (base, f"{base}+rcs+sfr" if BASES[base].has_score else base)
    if name != "dih-clip+rcs+sfr"
]


@pytest.mark.parametrize("method", dict.fromkeys([*METHODS, *STEPS]))
def test_labels_are_those_of_a_direct_run(method: str, tmp_path: Path) -> None:
    """Bit for bit in memory, whatever the method, and so from a file that keeps all bits."""
    own = make(method)
    direct = own.segment(IMAGE)
    embedding = own.embed(IMAGE)
    assert_same(own.classify(embedding), direct)
    embedding.save(tmp_path / "one.safetensors", precision="float32", image=True)
    assert_same(own.classify(Embedding.load(tmp_path / "one.safetensors")), direct)
    other = own.classify(embedding, "sun; sky")
    assert_same(other, own.with_classes("sun; sky").segment(IMAGE))


@pytest.mark.parametrize("precision", ("int16", "int8"))
@pytest.mark.parametrize("method", ("naclip+rcs", "resclip"))
def test_files_of_fewer_bits(method: str, precision: str, tmp_path: Path) -> None:
    own = make(method)
    path = own.embed(IMAGE).save(tmp_path / "one.safetensors", precision=precision, image=True)
    result = own.classify(Embedding.load(path))
    agreement = (result.labels == own.segment(IMAGE).labels).mean()
    assert agreement >= (0.999 if precision == "int16" else 0.98)


@pytest.mark.parametrize(("precision", "bits", "levels"), [("int16", 17, 131_072), ("int8", 8.5, 362)])  # fmt: skip
@pytest.mark.parametrize("scale", (1e-3, 1.0, 1e6))
def test_numbers_in_few_bits(
    precision: str, bits: float, levels: int, scale: float, seed: int
) -> None:
    """Each is off by at most half a step between its channel's least and largest, which are rounded outwards."""
    torch.manual_seed(seed)
    tensor = scale * (torch.randn(5, 40, 33) + 10 * torch.randn(33))
    tensors: dict[str, torch.Tensor] = {}
    layout = json.loads(json.dumps(pack_tensor(tensor, "x", tensors, precision)))
    found = unpack_tensor(layout, tensors)
    assert found.shape == tensor.shape
    assert found.dtype == tensor.dtype
    rows = tensor.flatten(0, 1)
    span = rows.amax(0) - rows.amin(0) + rows.abs().amax(0) / 500
    assert (
        (found - tensor).abs() <= 1.02 * span / (levels - 1) / 2 + 1e-6 * rows.abs().amax(0)
    ).all()
    size = sum(one.nbytes for name, one in tensors.items() if name in ("x:low", "x:high"))
    assert size * 8 <= bits * (tensor.numel() + 2 * rows.shape[0]) + 16
    with pytest.raises(ValueError, match="NaN or infinity"):
        pack_tensor(tensor.log(), "x", {}, precision)


def test_several_images_share_batches() -> None:
    own = make()
    images = [random_image(40 + 7 * number, 60, number) for number in range(3)]
    for image, embedding in zip(images, own.embed(tuple(images)), strict=True):
        assert (own.classify(embedding).labels == own.segment(image).labels).mean() > 0.999
    overview = make(overview=Overview())
    assert_same(overview.classify(overview.embed(IMAGE)), overview.segment(IMAGE))
    padded = make(pad_batches=True, batch_size=4)
    assert (
        padded.classify(padded.embed(IMAGE)).areas().keys() == padded.segment(IMAGE).areas().keys()
    )


def test_without_the_image_its_place_is_grey(tmp_path: Path) -> None:
    own = make()
    path = own.embed(IMAGE, keep_image=False).save(tmp_path / "one.safetensors")
    result = own.classify(Embedding.load(path), keep="scores")
    assert len(np.unique(result.image.reshape(-1, 3), axis=0)) == 1
    assert "drawn grey" in result.record["image"]
    assert result.scores["cat"].shape == (60, 90)
    with_image = own.classify(Embedding.load(path, image=IMAGE))
    np.testing.assert_array_equal(with_image.image, IMAGE)
    with pytest.raises(EmbeddingError, match="of 90 × 60 pixels, got one of 90 × 61"):
        Embedding.load(path, image=random_image(61, 90))
    with pytest.raises(ImageError):
        Embedding.load(path, image=tmp_path / "none.png")
    for method in ("naclip+pamr", "resclip"):
        needs = make(method)
        with pytest.raises(EmbeddingError, match="looks at the image's pixels again"):
            needs.classify(needs.embed(IMAGE, keep_image=False))


def test_absent_pixels_stay_unlabelled(tmp_path: Path) -> None:
    pixels = np.dstack([IMAGE, np.full((60, 90), 255, np.uint8)])
    pixels[:20, :, 3] = 0
    own = make()
    path = own.embed(pixels).save(tmp_path / "one.safetensors", precision="float32")
    np.testing.assert_array_equal(
        own.classify(Embedding.load(path)).labels, own.segment(pixels).labels
    )
    assert own.segment(pixels).unlabelled == pytest.approx(1 / 3)


def test_a_place_on_the_earth_is_kept(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="reads and writes GeoTIFFs")
    profile = {"driver": "GTiff", "height": 60, "width": 90, "count": 3, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 5e6, 2, 2)}
    with rasterio.open(tmp_path / "map.tif", "w", **profile, **place) as dataset:
        dataset.write(np.moveaxis(IMAGE, 2, 0))
    own = make()
    embedding = own.embed(tmp_path / "map.tif")
    path = embedding.save(tmp_path / "one.safetensors", precision="float32")
    found = own.classify(Embedding.load(path)).to_geojson()
    assert found == own.segment(tmp_path / "map.tif").to_geojson()


def test_an_embedding_says_what_it_is() -> None:
    embedding = make().embed(IMAGE)
    assert repr(embedding).startswith("Embedding(90 x 60 pixels, 8 windows, 0.0 MB, naclip+rcs)")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"method": "sclip+rcs"}, "other base, 'naclip' instead of 'sclip'"),
        ({"rcs": {"layers": (1, 2), "weight": 0.1}}, "other rcs"),
        ({"method": "naclip"}, "other method, 'naclip\\+rcs' instead of 'naclip'"),
        ({"stride": 8}, "other stride, 16 instead of 8"),
        ({"short_side": 64}, "at 96 × 64 pixels, got one at 72 × 48"),
        ({"method": "naclip+rcs+gla"}, "other"),
    ],
)
def test_embeddings_of_another_method(other: dict[str, Any], message: str) -> None:
    embedding = make().embed(IMAGE)
    if other.get("method") == "naclip+rcs+gla":
        other = {"method": "clearclip+gla"}
    segmenter = make(**other)
    with pytest.raises(EmbeddingError, match=message):
        segmenter.classify(embedding)


def test_embeddings_of_another_model() -> None:
    embedding = make().embed(IMAGE)
    changed = replace(embedding, made_by={**embedding.made_by, "weights": "0" * 16})
    with pytest.raises(EmbeddingError, match="other weights"):
        make().classify(changed)
    with pytest.raises(TypeError, match="embedding must be an Embedding"):
        make().classify(IMAGE)  # type: ignore[arg-type]
    # Weights are told apart whatever they are called, and not by their precision.
    half = toy_segmenter({"rcs": RCS(layers=(1, 2))}, name_encoder=None)
    assert half.embed(IMAGE).made_by["weights"] == embedding.made_by["weights"]
    again = NameEncoder(toy_clip(), toy_tokenizer, templates=["{}"])
    assert toy_segmenter({"sfr": SFR()}, name_encoder=again).embed(IMAGE).windows


def test_a_method_that_cannot_be_kept_says_so() -> None:
    with pytest.raises(EmbeddingError, match="chooses heads by their maps"):
        make("dih-clip+rcs+sfr").embed(IMAGE)


def test_files_that_are_no_embedding(tmp_path: Path) -> None:
    own = make()
    embedding = own.embed(IMAGE)
    with pytest.raises(ValueError, match=r"path of a \.safetensors file"):
        embedding.save(tmp_path / "one.npz")
    with pytest.raises(ValueError, match="precision must be"):
        embedding.save(tmp_path / "one.safetensors", precision="int4")
    with pytest.raises(ValueError, match="this embedding has none"):
        embedding.without_image().save(tmp_path / "one.safetensors", image=True)
    path = embedding.save(tmp_path / "one.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(EmbeddingError, match="got other tensors"):
        Embedding.load(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(EmbeddingError, match="got a damaged file"):
        Embedding.load(tmp_path / "text.safetensors")
    cut = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(EmbeddingError, match="got a damaged file"):
        Embedding.load(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError):
        Embedding.load(tmp_path / "none.safetensors")
    header = {"format": 99, "resclip": "9.9"}
    save_file(load_file(path), path, {"resclip embedding": json.dumps(header)})
    with pytest.raises(EmbeddingError, match="expected an embedding of format 1, got 99"):
        Embedding.load(path)
    header = {
        "format": 1,
        "size": [60, 90],
        "groups": [{"layout": {"kind": "Popen", "fields": {}}}],
    }
    save_file(load_file(path), path, {"resclip embedding": json.dumps(header)})
    with pytest.raises(EmbeddingError, match="got a damaged file"):
        Embedding.load(path)
