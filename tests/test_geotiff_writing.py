"""Label maps written strip by strip: the same bytes however they were cut, whole or not at all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from disk_support import files_of_at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resclip.io.geotiff import Layout, RasterWriter, encode_geotiff, raster_to_png
from resclip.io.picture import Georeference

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

# Two rows of tiles of 512 and some, and a column and some: tiles are cut at both edges.
LABELS = np.random.default_rng(3).integers(0, 7, (1100, 600))
PALETTE = np.random.default_rng(4).integers(0, 256, (7, 3), dtype=np.uint8)
TRANSFORM = rasterio.Affine(0.5, 0.0, 500.0, 0.0, -0.5, 900.0)
PLACE: dict[str, Any] = {"georeference": Georeference("EPSG:32632", TRANSFORM), "nodata": 255}


def layout(shape: tuple[int, ...] = LABELS.shape, **options: Any) -> Layout:
    return Layout(*shape, **{"classes": 7, "palette": PALETTE, **options})


def writer(path: Path, **options: Any) -> RasterWriter:
    return RasterWriter(path, layout(**options))


def write(path: Path, cuts: list[int], **options: Any) -> bytes:
    with writer(path, **options) as file:
        for first, last in itertools.pairwise([0, *sorted(cuts), len(LABELS)]):
            file.write(first, LABELS[first:last])
        file.commit()
    return path.read_bytes()


@pytest.fixture(scope="module")
def encoded() -> bytes:
    return encode_geotiff(LABELS, layout(**PLACE))


@given(cuts=st.lists(st.integers(0, 1100), max_size=8))
@settings(max_examples=12, deadline=None)
def test_any_strips_give_the_bytes_of_the_whole(
    cuts: list[int], encoded: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert write(tmp_path_factory.mktemp("maps") / "map.tif", cuts, **PLACE) == encoded


def test_what_is_in_the_file(tmp_path: Path, encoded: bytes) -> None:
    (tmp_path / "map.tif").write_bytes(encoded)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), LABELS)
        assert dataset.dtypes == ("uint8",)
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.compression.name == "deflate"
        assert dataset.crs.to_epsg() == 32632
        assert dataset.transform == TRANSFORM
        assert dataset.nodata == 255
        colours = dataset.colormap(1)
        assert [colours[label][:3] for label in range(7)] == [tuple(c) for c in PALETTE.tolist()]
    raster_to_png(tmp_path / "map.tif", tmp_path / "map.png")
    for form in ("tif", "png"):
        with Image.open(tmp_path / f"map.{form}") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), LABELS)
            assert image.getpalette()[:21] == PALETTE.ravel().tolist()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["map.png", "map.tif"]


def test_scores_have_16_bits_and_no_palette(tmp_path: Path) -> None:
    scores = LABELS * 9000
    with writer(tmp_path / "s.tif", classes=65536, palette=None, dtype="uint16") as file:
        file.write(0, scores)
        file.commit()
    data = encode_geotiff(scores, layout(classes=65536, palette=None, dtype="uint16"))
    assert (tmp_path / "s.tif").read_bytes() == data
    raster_to_png(tmp_path / "s.tif", tmp_path / "s.png")
    for form in ("tif", "png"):
        with Image.open(tmp_path / f"s.{form}") as image:
            np.testing.assert_array_equal(np.asarray(image), scores)


def test_class_names_are_in_the_metadata(tmp_path: Path) -> None:
    """Whatever is in them: a TIFF keeps its metadata as XML."""
    names = ("sky", "a, b", "猫", '<"&>', "line\nbreak\x01", "", "x" * 5000)
    (tmp_path / "map.tif").write_bytes(encode_geotiff(LABELS, layout(names=names)))
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert json.loads(dataset.tags()["CLASS_NAMES"]) == list(names)
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_overviews_go_down_to_one_tile(tmp_path: Path, encoded: bytes) -> None:
    path = tmp_path / "map.tif"
    path.write_bytes(encoded)
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == [2, 4]
    for level, (height, width) in enumerate([(550, 300), (275, 150)]):
        with rasterio.open(path, OVERVIEW_LEVEL=level) as smaller:
            assert smaller.shape == (height, width)
            assert smaller.block_shapes == [(512, 512)]
            step = 2 << level
            np.testing.assert_array_equal(smaller.read(1), LABELS[::step, ::step])
    scores = np.arange(600 * 600).reshape(600, 600) % 50_000
    path.write_bytes(
        encode_geotiff(
            scores,
            Layout(600, 600, 65536, "uint16", resampling="average"),
        )
    )
    with rasterio.open(path, OVERVIEW_LEVEL=0) as smaller:
        means = scores.reshape(300, 2, 300, 2).mean(axis=(1, 3))
        assert np.abs(smaller.read(1) - means).max() <= 1
    path.write_bytes(encode_geotiff(LABELS[:512, :512], layout((512, 512))))
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (512, 512)])
def test_one_pixel_one_line_and_one_tile(tmp_path: Path, shape: tuple[int, int]) -> None:
    labels = np.resize(LABELS, shape)
    (tmp_path / "map.tif").write_bytes(encode_geotiff(labels, layout(shape)))
    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)


def test_the_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_bytes(b"older")
    with writer(path) as file:
        file.write(0, LABELS[:800])
        assert path.read_bytes() == b"older"
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert temporary.name.startswith(".resclip-")
        assert temporary.name.endswith(".tmp")
        with pytest.raises(ValueError, match="expected 1100 rows .* got 800"):
            file.commit()
        file.write(800, LABELS[800:])
        file.commit()
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size > 5


@pytest.mark.parametrize("rows", [0, 1100])
def test_an_early_end_or_an_abort_leaves_the_old_file_and_no_other(
    tmp_path: Path, rows: int
) -> None:
    path = tmp_path / "map.tif"
    path.write_bytes(b"older")
    with writer(path) as file:
        file.write(0, LABELS[:rows])
    file = writer(path)
    file.write(0, LABELS[:rows])
    file.abort()
    file.abort()
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]
    for call in (file.commit, lambda: file.write(rows, LABELS[rows:])):
        with pytest.raises(ValueError, match="got one that is finished"):
            call()


@pytest.mark.parametrize(
    ("first", "rows", "error", "words"),
    [
        (1, LABELS[:5], ValueError, "rows from 0 on, got 1"),
        (0, LABELS[:5, :-1], ValueError, "rows of shape"),
        (0, LABELS[:5] + 1, ValueError, "numbers from 0 to 6, got 1 to 7"),
        (0, LABELS[:5] - 1, ValueError, "numbers from 0 to 6, got -1 to 5"),
        (0, LABELS[:5].astype(np.float32), TypeError, "integers, got float32"),
    ],
)
def test_wrong_rows(
    tmp_path: Path, first: int, rows: np.ndarray, error: type[Exception], words: str
) -> None:
    with writer(tmp_path / "map.tif") as file, pytest.raises(error, match=words):
        file.write(first, rows)
    with writer(tmp_path / "map.tif") as file:
        file.write(0, LABELS[:1000])
        with pytest.raises(ValueError, match="1100 rows in all, got 1101"):
            file.write(1000, LABELS[:101])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int32"}, 'dtype "uint8" or "uint16"'),
        ({"classes": 257}, "1 to 256 classes in uint8, got 257"),
        ({"classes": 0}, "1 to 256 classes"),
        ({"classes": 65537, "dtype": "uint16", "palette": None}, "1 to 65,536 classes"),
        ({"dtype": "uint16"}, "no palette for uint16"),
        ({"palette": PALETTE.astype(int)}, "palette of shape"),
        ({"palette": np.zeros((257, 3), np.uint8)}, "palette of shape"),
    ],
)
def test_wrong_layouts(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        writer(tmp_path / "map.tif", **options)
    assert not list(tmp_path.iterdir())


def test_no_pixels() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        layout((0, 5))
    with pytest.raises(ValueError, match=r"shape \(H, W\)"):
        encode_geotiff(np.zeros((2, 2, 1), int), layout((2, 2)))


def test_unlabelled_pixels_and_control_points(tmp_path: Path) -> None:
    labels = np.where(LABELS == 3, 255, LABELS)
    point = rasterio.control.GroundControlPoint(0, 0, 14.0, 45.0)
    crs = rasterio.crs.CRS.from_epsg(4326)
    place = Georeference(gcps=(point,) * 4, gcps_crs=crs)
    data = encode_geotiff(labels, layout(nodata=255, georeference=place))
    (tmp_path / "map.tif").write_bytes(data)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), labels)
        np.testing.assert_array_equal(dataset.read_masks(1) == 0, LABELS == 3)
        assert len(dataset.gcps[0]) == 4
        assert dataset.gcps[1] == crs
    raster_to_png(tmp_path / "map.tif", tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        np.testing.assert_array_equal(alpha == 0, LABELS == 3)


def test_where_no_directory_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="absent"):
        writer(tmp_path / "absent" / "map.tif")
    with pytest.raises(NotADirectoryError, match="map.tif"):
        writer(tmp_path / "file" / "map.tif")


@pytest.mark.parametrize(("share", "missing"), [(0.0, 0), (0.5, 0), (1.0, 1)])
def test_a_full_disk(tmp_path: Path, share: float, missing: int) -> None:
    """GDAL is silent where the last few bytes are lost as it closes the file."""
    path = tmp_path / "map.tif"
    write(path, [])
    raster_to_png(path, tmp_path / "map.png")
    for form, again in (
        ("tif", lambda: write(tmp_path / "other.tif", [])),
        ("png", lambda: raster_to_png(path, tmp_path / "other.png")),
    ):
        size = (tmp_path / f"map.{form}").stat().st_size
        with (
            files_of_at_most(int(size * share) - missing),
            pytest.raises(OSError, match=rf"not written .*other\.{form}"),
        ):
            again()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["map.png", "map.tif"]


def test_png_of_what_is_no_map(tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_bytes(b"dear diary")
    with pytest.raises(OSError, match="map.png"):
        raster_to_png(tmp_path / "map.tif", tmp_path / "map.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]
