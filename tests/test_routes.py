"""One image is one result, whatever the way it comes and goes.

Images that need care (hidden, deep, turned, swapped, profiled) go through every route; every label map must be that of
`segment` on the file.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from batch_support import CLASSES, rows_of, toy_segmenter
from cli_support import run
from numpy.typing import NDArray
from PIL import Image, ImageCms

from resclip.evaluation.datasets import open_dataset
from resclip.evaluation.runner import evaluate_dataset
from resclip.io.images import read_picture

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

HEIGHT, WIDTH = 40, 56
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(1.0, 0.0, 500.0, 0.0, -1.0, 900.0)}

Labels = NDArray[np.int64]


def picture() -> np.ndarray:
    """(H, W, 3) uint8: blocks of colours."""
    blocks = np.random.default_rng(8).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def save_tiff(path: Path, pixels: np.ndarray, **options: object) -> None:
    planes = np.moveaxis(pixels, 2, 0)
    shape = {"count": len(planes), "height": HEIGHT, "width": WIDTH, "dtype": planes.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **PLACE, **options) as dataset:
        dataset.write(planes)


def save_images(folder: Path) -> None:
    """An image of each kind that needs care."""
    folder.mkdir()
    pixels = picture()
    hidden = np.zeros((HEIGHT, WIDTH), bool)
    hidden[:, :20] = True
    save_tiff(folder / "nodata.tif", np.where(hidden[..., None], 0, pixels | 1), nodata=0)
    save_tiff(folder / "deep.tif", pixels.astype(np.uint16) * 12, photometric="RGB")
    alpha = np.dstack([pixels, np.where(hidden, 0, 255).astype(np.uint8)])
    Image.fromarray(alpha).save(folder / "alpha.png")
    Image.fromarray(pixels).save(folder / "turned.tif", tiffinfo={274: 6})
    exif = Image.Exif()
    exif[274] = 8
    Image.fromarray(pixels).save(folder / "phone.webp", exif=exif, lossless=True)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = lab.replace(b"\0s\0R\0G\0B", b"\0T\0e\0s\0t")
    swapped = named.replace(b"rXYZ", b"tmpX", 1).replace(b"gXYZ", b"rXYZ", 1)
    Image.fromarray(pixels).save(
        folder / "profile.png", icc_profile=swapped.replace(b"tmpX", b"gXYZ", 1)
    )
    Image.fromarray(pixels).save(folder / "no-suffix", format="PNG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("routes")
    save_images(root / "in")
    return root


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, Labels]:
    """The labels of `segment` on each file, by name."""
    segmenter = toy_segmenter()
    return {path.name: segmenter.segment(path).labels for path in (folder / "in").iterdir()}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the built-in model: a smaller one."""
    monkeypatch.setattr("resclip.loading.load", lambda *_, **__: toy_segmenter())


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The images at a URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder / "in"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_the_images_need_care(wanted: dict[str, Labels], folder: Path) -> None:
    """Else all routes could agree by doing nothing."""
    plain = read_picture(folder / "in" / "no-suffix")
    assert set(wanted) == {
        "nodata.tif", "deep.tif", "alpha.png", "turned.tif", "phone.webp", "profile.png", "no-suffix",
    }  # fmt: skip
    for name in ("nodata.tif", "alpha.png"):
        assert (wanted[name][:, :20] == -1).all()
        assert (wanted[name][:, 20:] >= 0).all()
    for name in ("turned.tif", "phone.webp"):
        assert wanted[name].shape == (WIDTH, HEIGHT)
    profile = read_picture(folder / "in" / "profile.png")
    assert (profile.pixels != plain.pixels).any()
    deep = read_picture(folder / "in" / "deep.tif")
    assert np.abs(deep.pixels.astype(int) - plain.pixels).max() <= 3


def sources(folder: Path, server: str) -> dict[str, str]:
    """The same images as every kind of source."""
    images = sorted((folder / "in").iterdir())
    (folder / "list.txt").write_text("\n".join(f"in/{path.name}" for path in images))
    (folder / "urls.txt").write_text("\n".join(f"{server}/{path.name}" for path in images))
    data = [path.read_bytes() for path in images]
    names = [path.name for path in images]
    pq.write_table(pa.table({"image": data, "name": names}), folder / "bytes.parquet")
    paths = [f"in/{name}" for name in names]
    pq.write_table(pa.table({"path": paths}), folder / "paths.parquet")
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for path, content in zip(images, data, strict=True):
            # In a shard the suffix says which member is the image.
            member = tarfile.TarInfo(path.name if path.suffix else f"{path.name}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    kinds = ("list.txt", "urls.txt", "bytes.parquet", "paths.parquet", "shard.tar")
    return {"folder": str(folder / "in"), **{kind: str(folder / kind) for kind in kinds}}


def unlabelled_as_minus_one(path: Path) -> Labels:
    values = np.asarray(Image.open(path)).astype(np.int64)
    values[values == 255] = -1
    return values


ROUTES = ("folder", "list.txt", "urls.txt", "bytes.parquet", "paths.parquet", "shard.tar")


@pytest.mark.parametrize(
    ("kind", "command", "form"),
    # Every kind of source with each command, every command with each form of output.
    [
        *((kind, "batch", ("png", "tif")[number % 2]) for number, kind in enumerate(ROUTES)),
        *((kind, "segment", "png") for kind in ROUTES),
    ],
)
def test_every_route_gives_one_result(
    folder: Path,
    wanted: dict[str, Labels],
    server: str,
    tmp_path: Path,
    kind: str,
    command: str,
    form: str,
) -> None:
    out = tmp_path / "out"
    source = sources(folder, server)[kind]
    options = ["--format", form] if command == "batch" else ["--no-overlay"]
    assert run(command, source, "--out", out, "--classes", "; ".join(CLASSES), *options) == 0
    came = {path.name: path for path in out.rglob(f"*_labels.{form}")}
    assert len(came) == len(wanted)
    for name, labels in wanted.items():
        stem = name.rpartition(".")[0] or name
        (path,) = (
            path
            for title, path in came.items()
            if title in (f"{stem}_labels.{form}", f"{name}_labels.{form}")
        )
        np.testing.assert_array_equal(unlabelled_as_minus_one(path), labels, err_msg=name)
        if form == "tif":
            with rasterio.open(path) as dataset:
                assert dataset.nodata == 255
                is_map = name in ("nodata.tif", "deep.tif")
                assert (dataset.crs is not None) == is_map
    if command == "batch":
        rows = {row["name"].rpartition("/")[2]: row for row in rows_of(out)}
        record = json.loads(rows["nodata.tif"]["input"])
        assert record["absent"] == pytest.approx(20 / WIDTH, abs=1e-5)
        assert ("not written" in record.get("georeference", "")) == (form == "png")
        areas = sum(entry["area"] for entry in rows["nodata.tif"]["classes"])
        assert areas == pytest.approx(1.0)


def test_python_gives_it_too(folder: Path, wanted: dict[str, Labels]) -> None:
    segmenter = toy_segmenter()
    paths = [folder / "in" / name for name in wanted]
    for sources_in_python in (paths, [path.read_bytes() for path in paths]):
        for result, (name, labels) in zip(
            segmenter.segment_many(sources_in_python), wanted.items(), strict=True
        ):
            np.testing.assert_array_equal(result.labels, labels, err_msg=name)
            assert (result.probabilities[labels < 0] == 0).all()


def test_evaluation_gives_it_too(folder: Path, wanted: dict[str, Labels], tmp_path: Path) -> None:
    """And counts what has no pixels as wrong."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").symlink_to(folder / "in")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    names = [name for name in wanted if "." in name]
    for name in names:
        mask = Image.fromarray(np.zeros(wanted[name].shape, np.uint8))
        mask.save(tmp_path / "masks" / f"{name.rpartition('.')[0]}.png")
    seen: dict[str, Labels] = {}

    def note(_: str, __: object, sample: object, *arrays: np.ndarray) -> None:
        seen[sample.name] = arrays[-1]  # type: ignore[attr-defined]

    dataset = open_dataset("folder", tmp_path)
    result = evaluate_dataset("naclip", toy_segmenter(), dataset, workers=0, on_image=note)
    for name in names:
        if name.rpartition(".")[0] in seen:
            np.testing.assert_array_equal(seen[name.rpartition(".")[0]], wanted[name])
    assert {"nodata", "alpha", "deep"} <= set(seen)
    hidden = sum(int((labels < 0).sum()) for labels in seen.values())
    assert hidden == 2 * HEIGHT * 20
    assert int(result.confusion[:, -1].sum()) == hidden
