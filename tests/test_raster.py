"""Images by GDAL: every kind of file as it should be seen, whole or by rows, from a file or from bytes."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC

from resclip.io.images import ImageError, open_picture, read_picture
from resclip.io.limits import Limits
from resclip.io.picture import FILLING, Picture, ReadOptions
from resclip.io.raster import Raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

HEIGHT, WIDTH = 75, 110  # No multiple of a tile of 32: edges are cut.
TILES = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
PLACE = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0.0, 500.0, 0.0, -0.5, 900.0)}


def noise(bands: int, dtype: str = "uint8", *, levels: int = 0) -> np.ndarray:
    top = levels or np.iinfo(dtype).max + 1
    return np.random.default_rng(5).integers(0, top, (bands, HEIGHT, WIDTH)).astype(dtype)


def tiff(
    path: Path,
    values: np.ndarray,
    *,
    colours: dict[int, Any] | None = None,
    descriptions: tuple[str, ...] | None = None,
    meanings: tuple[ColorInterp, ...] | None = None,
    driver: str = "GTiff",
    **options: Any,
) -> Path:
    bands, height, width = values.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver=driver, **shape, **options) as dataset:
        dataset.write(values)
        if colours:
            dataset.write_colormap(1, colours)
        if descriptions:
            dataset.descriptions = descriptions
        if meanings:
            dataset.colorinterp = meanings
    return path


def by_rows(source: Path | bytes, **options: Any) -> Raster:
    raster = open_picture(source, ReadOptions(**options), block_pixels=0)
    assert isinstance(raster, Raster)
    return raster


def all_rows(source: Path | bytes, step: int = 13, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    with by_rows(source, **options) as raster:
        runs = [
            (first, min(first + step, raster.height)) for first in range(0, raster.height, step)
        ]
        pixels = [raster.rows(*run) for run in runs]
        absent = [raster.absent_rows(*run) for run in runs]
    for run in pixels:
        assert run.dtype == np.uint8
        assert run.flags.c_contiguous
    missing = [
        np.zeros(run.shape[:2], bool) if mask is None else mask
        for run, mask in zip(pixels, absent, strict=True)
    ]
    return np.concatenate(pixels), np.concatenate(missing)


SMOOTH = np.stack([np.add.outer(np.arange(HEIGHT), np.arange(WIDTH) // k) for k in (1, 2, 3)])
EVEN = np.sort(noise(3).reshape(3, -1), axis=1).reshape(3, HEIGHT, WIDTH)  # All levels alike.
COLOURS = {value: (value * 40, 255 - value * 40, 7, 255) for value in range(6)}
KINDS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "RGB, tiles": (noise(3), TILES),
    "RGB, strips": (noise(3), {"blockysize": 8}),
    "RGB, planes": (noise(3), {"interleave": "band", **TILES}),
    "RGB, JPEG": (SMOOTH.astype(np.uint8), {**TILES, "compress": "jpeg", "photometric": "YCBCR"}),
    "RGB, LERC": (noise(3), {"compress": "lerc"}),
    "grey": (noise(1), TILES),
    "grey, white is 0": (noise(1), {"photometric": "miniswhite"}),
    "grey, 1 bit": (noise(1, levels=2), {"nbits": 1}),
    "grey, 4 bits": (noise(1, levels=16), {"nbits": 4}),
    "grey with alpha": (noise(2), {"alpha": "YES"}),
    "RGBA": (noise(4), {"photometric": "RGB", "alpha": "YES", **TILES}),
    "palette": (noise(1, levels=6), {"photometric": "palette", "colours": COLOURS, **TILES}),
    "CMYK": (noise(4), {"photometric": "CMYK"}),
    "16-bit grey": (noise(1, "uint16"), TILES),
    "16-bit grey, white is 0": (noise(1, "uint16"), {"photometric": "miniswhite"}),
    "16-bit colour": (noise(3, "uint16"), {"photometric": "RGB", **TILES}),
    "float": (SMOOTH[:1].astype(np.float32), PLACE),
    "nodata": (noise(3, levels=4), {"nodata": 2, **PLACE}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_whatever_the_way(tmp_path: Path, kind: str) -> None:
    """By rows or whole, from the file or from its bytes, and as Pillow shows what both can read."""
    values, options = KINDS[kind]
    path = tiff(tmp_path / "image.tif", values, **options)
    pixels, absent = all_rows(path)
    again, _ = all_rows(path.read_bytes())
    np.testing.assert_array_equal(again, pixels)
    for source in (path, path.read_bytes()):
        picture = read_picture(source)
        whole = np.zeros_like(absent) if picture.absent is None else picture.absent
        np.testing.assert_array_equal(whole, absent)
        # Where Pillow is the reader of a small file, it rounds JPEG's and CMYK's colours otherwise.
        tolerance = 0 if picture.record.get("decoder") == "GDAL" else 4 if "JPEG" in kind else 1
        assert np.abs(picture.pixels.astype(int) - pixels).max() <= tolerance
    if kind in ("RGB, LERC", "nodata"):
        assert absent.any() == (kind == "nodata")


def test_16_bits_that_use_their_range_are_the_nearest_of_8(tmp_path: Path) -> None:
    values = noise(3, "uint16")
    path = tiff(tmp_path / "deep.tif", values, photometric="RGB")
    np.testing.assert_array_equal(all_rows(path)[0], np.rint(values / 257).transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("dtype", "factor", "offset"),
    [("uint16", 16, 0), ("uint16", 12, 0), ("int16", 12, 0), ("int32", 1, 0), ("float32", 40, 0),
     ("float64", 1e-3, -7), ("uint32", 9000, 0)],
)  # fmt: skip
def test_the_range_is_the_values_not_the_type_s(
    tmp_path: Path, dtype: str, factor: float, offset: float
) -> None:
    """12-bit cameras, reflectances, decibels: what the 8-bit file shows, within the stretch to percentiles."""
    plain = EVEN.astype(int)
    values = (plain * factor + offset).astype(dtype)
    path = tiff(tmp_path / "deep.tif", values, photometric="RGB", **PLACE)
    picture = read_picture(path)
    assert np.abs(picture.pixels.astype(int) - plain.transpose(1, 2, 0)).max() <= 4
    low, high = picture.record["levels"]
    assert low == pytest.approx(offset, abs=3 * factor)
    assert high == pytest.approx(255 * factor + offset, abs=4 * factor)
    assert "percentile" in picture.record["levels_by"]
    # Of all of the file, not of the rows that are read; of the same whole or by rows.
    np.testing.assert_array_equal(all_rows(path)[0], picture.pixels)
    stretched = read_picture(path, ReadOptions(value_range=(offset, 255 * factor + offset)))
    np.testing.assert_array_equal(stretched.pixels, plain.transpose(1, 2, 0))
    assert stretched.record["levels_by"] == "value_range"


def test_a_16_bit_png_is_read_in_all_its_bits(tmp_path: Path) -> None:
    path = tiff(tmp_path / "camera.png", EVEN.astype(np.uint16) * 16, driver="PNG")
    picture = read_picture(path.read_bytes())
    assert np.abs(picture.pixels.astype(int) - EVEN.transpose(1, 2, 0)).max() <= 4


def test_named_bands_win_over_their_order(tmp_path: Path) -> None:
    values = noise(5)
    unknown = tiff(tmp_path / "plain.tif", values, photometric="minisblack")
    np.testing.assert_array_equal(read_picture(unknown).pixels, values[:3].transpose(1, 2, 0))
    assert "guess" in read_picture(unknown).record["bands_by"]
    swapped = values[[2, 1, 0]].transpose(1, 2, 0)
    for names in (("blue", "green", "red", "nir", "x"), ("B02", "B03", "B04", "B08", "B11")):
        path = tiff(tmp_path / "named.tif", values, descriptions=names)
        np.testing.assert_array_equal(read_picture(path).pixels, swapped)
        assert read_picture(path).record["bands"] == [3, 2, 1]
    meanings = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    path = tiff(tmp_path / "marked.tif", values[:3], meanings=meanings, photometric="minisblack")
    np.testing.assert_array_equal(read_picture(path).pixels, swapped)
    np.testing.assert_array_equal(
        read_picture(path, ReadOptions(bands=(1, 2, 3))).pixels, values[:3].transpose(1, 2, 0)
    )


def test_bands_that_are_asked_for(tmp_path: Path) -> None:
    values = noise(4)
    path = tiff(tmp_path / "a.tif", values, descriptions=("VV", "VH", "ratio", "angle"))
    picture = read_picture(path, ReadOptions(bands=("vh",)))
    np.testing.assert_array_equal(picture.pixels, np.repeat(values[1][..., None], 3, axis=2))
    picture = read_picture(path, ReadOptions(bands=(4, "VV", 2)))
    np.testing.assert_array_equal(picture.pixels, values[[3, 0, 1]].transpose(1, 2, 0))
    for bands, words in (((9,), "got 4 bands"), (("nir",), "VV, VH, ratio, angle")):
        with pytest.raises(ImageError, match=words):
            read_picture(path, ReadOptions(bands=bands))
    png = tmp_path / "b.png"
    Image.fromarray(values[:3].transpose(1, 2, 0)).save(png)
    picture = read_picture(png, ReadOptions(bands=(3, 2, 1)))
    np.testing.assert_array_equal(picture.pixels, values[[2, 1, 0]].transpose(1, 2, 0))
    with pytest.raises(ImageError, match="by number"):
        read_picture(png, ReadOptions(bands=("red",)))


def test_two_bands_without_a_meaning_are_refused(tmp_path: Path) -> None:
    path = tiff(tmp_path / "sar.tif", noise(2), descriptions=("VV", "VH"), **PLACE)
    with pytest.raises(ImageError, match=r"got 2 \(VV, VH\); choose .* bands=$"):
        read_picture(path)


def test_a_fourth_band_of_many_levels_is_no_alpha(tmp_path: Path) -> None:
    """On the earth it is near infrared; clear and opaque pixels alone make an alpha band."""
    values = noise(4)
    path = tiff(tmp_path / "nir.tif", values, photometric="RGB", alpha="YES", **PLACE)
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, values[:3].transpose(1, 2, 0))
    assert picture.absent is None
    assert "other values" in picture.record["alpha"]
    values[3] = np.where(values[3] < 60, 0, 255)
    path = tiff(tmp_path / "cut.tif", values, photometric="RGB", alpha="YES", **PLACE)
    np.testing.assert_array_equal(read_picture(path).absent, values[3] == 0)


@pytest.mark.parametrize(
    "way",
    ["nodata", "mask", "mask after overviews", "mask file", "alpha", "NaN", "NaN nodata"],
)
def test_absent_pixels(tmp_path: Path, way: str) -> None:
    values = noise(3, levels=4)
    hidden = (values == 2).all(axis=0)
    assert hidden.any()
    path = tmp_path / "image.tif"
    if way == "nodata":
        tiff(path, values, nodata=2)
    elif way == "mask after overviews":
        tiff(path, values)
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2])
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(~hidden)
    elif way == "alpha":
        alpha = np.where(hidden, 0, 255).astype(np.uint8)[None]
        tiff(path, np.concatenate([values, alpha]), photometric="RGB", alpha="YES", **PLACE)
    elif way.startswith("NaN"):
        floats = np.where(hidden, np.nan, values / 255).astype(np.float32)
        tiff(path, floats, **({"nodata": np.nan} if way != "NaN" else {}), **PLACE)
    else:
        tiff(path, values)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=way == "mask"),
            rasterio.open(path, "r+") as dataset,
        ):
            dataset.write_mask(~hidden)
        assert path.with_name("image.tif.msk").exists() == (way == "mask file")
    pixels, absent = all_rows(path)
    np.testing.assert_array_equal(absent, hidden)
    assert (pixels[hidden] == FILLING).all()
    if not way.startswith("NaN"):
        np.testing.assert_array_equal(pixels[~hidden], values.transpose(1, 2, 0)[~hidden])
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.absent, hidden)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.record["absent"] == pytest.approx(hidden.mean(), abs=1e-5)


@pytest.mark.parametrize("opaque", [1, 255, 65535])
@pytest.mark.parametrize("place", [{}, PLACE])
def test_opacity_beside_deep_colours(tmp_path: Path, place: dict[str, Any], opaque: int) -> None:
    values = noise(4, "uint16")
    values[3] = opaque
    values[3, :9] = 0
    path = tiff(tmp_path / "a.tif", values, photometric="RGB", alpha="YES", **place)
    pixels, absent = all_rows(path)
    np.testing.assert_array_equal(absent, values[3] == 0)
    wanted = np.rint(values[:3, 9:] / 257).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels[9:], wanted)


def test_a_damaged_mask_is_named(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", noise(3))
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(tmp_path / "a.png")
    for image in (path, tmp_path / "a.png"):
        image.with_name(f"{image.name}.msk").write_text("no mask")
        with pytest.raises(ImageError, match=rf"{image.name}\.msk: .* remove it$"):
            read_picture(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_by_either_decoder(tmp_path: Path, orientation: int) -> None:
    """A TIFF's own tag, which GDAL passes over; pixels and places turn together."""
    path = tmp_path / "turned.tif"
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(path, tiffinfo={274: orientation})
    wanted = read_picture(path)
    assert "decoder" not in wanted.record
    np.testing.assert_array_equal(all_rows(path)[0], wanted.pixels)
    with rasterio.open(path, "r+") as dataset:
        dataset.crs, dataset.transform = PLACE["crs"], PLACE["transform"]
    with by_rows(path) as raster:
        place = raster.georeference
        row, column = 20, 7
        pixel = raster.rows(row, row + 1)[0, column]
    # The same pixel of the stored image, and the same point on the earth.
    points = np.argwhere((noise(3).transpose(1, 2, 0) == pixel).all(axis=2))
    stored = PLACE["transform"]
    there = at(place.transform, column, row)
    assert any(np.allclose(there, at(stored, x, y)) for y, x in points.tolist())


def at(transform: rasterio.Affine, column: int, row: int) -> np.ndarray:
    """The coordinates of a pixel's centre."""
    return np.array(transform).reshape(3, 3) @ (column + 0.5, row + 0.5, 1.0)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["jpg", "png", "deep png"])
def test_files_beside_any_image(tmp_path: Path, kind: str, orientation: int) -> None:
    """A world file, in whatever case, and a mask speak of the image as it is stored."""
    hidden = np.zeros((HEIGHT, WIDTH), np.bool_)
    hidden[:30, :20] = True
    pixels = np.where(hidden[..., None], 40, 200).astype(np.uint8).repeat(3, axis=2)
    path = tmp_path / f"IMAGE.{kind[-3:].upper()}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    if kind == "deep png":
        data = path.read_bytes()
        block = data.index(b"eXIf") - 4
        length = int.from_bytes(data[block : block + 4], "big") + 12
        tiff(path, pixels.transpose(2, 0, 1).astype(np.uint16) * 257, driver="PNG")
        deep = path.read_bytes()
        path.write_bytes(deep[:33] + data[block : block + length] + deep[33:])
        path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)
    world = path.with_suffix(f".{kind[-3].upper()}{kind[-1].upper()}W")
    world.write_text("2\n0\n0\n-2\n1001\n4999\n")
    mask = np.where(hidden, 0, 255).astype(np.uint8)[None]
    tiff(tmp_path / "mask.tif", mask).rename(path.with_name(f"{path.name}.msk"))
    picture = read_picture(path)
    assert picture.record.get("orientation", 1) == orientation
    upright = {1: hidden, 3: hidden[::-1, ::-1], 6: np.rot90(hidden, -1)}[orientation]
    np.testing.assert_array_equal(picture.absent, upright)
    assert (picture.pixels[upright] == FILLING).all()
    assert np.abs(picture.pixels[~upright].astype(int) - 200).max() <= (60 if kind == "jpg" else 0)
    # The corner of the stored image is where the hidden pixels' corner is.
    row, column = {1: (0, 0), 3: (HEIGHT - 1, WIDTH - 1), 6: (0, HEIGHT - 1)}[orientation]
    np.testing.assert_allclose(at(picture.georeference.transform, column, row)[:2], (1001, 4999))


def test_jpeg_in_tiff_is_the_same_for_every_size(tmp_path: Path) -> None:
    """Decoders enlarge its colours in different ways."""
    path = tiff(tmp_path / "a.tif", noise(3), photometric="YCbCr", compress="jpeg")
    np.testing.assert_array_equal(read_picture(path).pixels, all_rows(path)[0])


@given(cuts=st.lists(st.integers(0, HEIGHT), max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_rows_in_any_order(cuts: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "shared.tif"
    if not path.exists():
        tiff(path, noise(3), **TILES)
    whole = noise(3).transpose(1, 2, 0)
    with by_rows(path) as raster:
        for pair in itertools.pairwise(cuts):
            first, last = sorted(pair)
            np.testing.assert_array_equal(raster.rows(first, last), whole[first:last])


def test_another_thread_or_process_reads_what_this_one_opened(tmp_path: Path) -> None:
    path = tiff(tmp_path / "image.tif", noise(3), **TILES)
    wanted = noise(3).transpose(1, 2, 0)[3:50]
    with by_rows(path) as raster, ThreadPoolExecutor(1) as other:
        np.testing.assert_array_equal(other.submit(raster.rows, 3, 50).result(), wanted)
        raster.record["remark"] = "kept"
        with pickle.loads(pickle.dumps(raster)) as sent:
            assert sent.record == raster.record
            np.testing.assert_array_equal(sent.rows(3, 50), wanted)


def test_the_place_of_every_kind_of_file(tmp_path: Path) -> None:
    plain = tiff(tmp_path / "map.tif", noise(3), **PLACE)
    jp2 = tiff(tmp_path / "map.jp2", noise(3), driver="JP2OpenJPEG", **PLACE)
    png = tiff(tmp_path / "map.png", noise(3), driver="PNG", **PLACE)
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(tmp_path / "world.jpg")
    (tmp_path / "world.jgw").write_text("0.5\n0\n0\n-0.5\n500.25\n899.75\n")
    for source in (plain, plain.read_bytes(), jp2, jp2.read_bytes(), png, tmp_path / "world.jpg"):
        place = read_picture(source).georeference
        assert place.transform == PLACE["transform"]
        assert source == tmp_path / "world.jpg" or place.crs.to_epsg() == 32632
    for source in (
        tiff(tmp_path / "image.tif", noise(3)), tmp_path / "map.png", (tmp_path / "map.png").read_bytes(),
    ):  # fmt: skip
        (tmp_path / "map.png.aux.xml").unlink(missing_ok=True)
        assert not read_picture(source).georeference.is_known


def test_control_points_and_rational_polynomials(tmp_path: Path) -> None:
    path = tiff(tmp_path / "gcps.tif", noise(3))
    crs = rasterio.crs.CRS.from_epsg(4326)
    rpc = RPC(
        height_off=1.0, height_scale=2.0, lat_off=3.0, lat_scale=4.0, line_den_coeff=[1.0] * 20,
        line_num_coeff=[2.0] * 20, line_off=5.0, line_scale=6.0, long_off=7.0, long_scale=8.0,
        samp_den_coeff=[3.0] * 20, samp_num_coeff=[4.0] * 20, samp_off=9.0, samp_scale=10.0,
        err_bias=None, err_rand=None,
    )  # fmt: skip
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = ([GroundControlPoint(0, 0, 14.0, 45.0), GroundControlPoint(0, 9, 15.0, 45.0),
                         GroundControlPoint(9, 0, 14.0, 44.0)], crs)  # fmt: skip
    place = read_picture(path).georeference
    assert (len(place.gcps), place.gcps_crs, place.transform) == (3, crs, None)
    path = tiff(tmp_path / "rpcs.tif", noise(3))
    with rasterio.open(path, "r+") as dataset:
        dataset.rpcs = rpc
    assert read_picture(path).georeference.rpcs.line_off == 5.0


def test_a_file_under_another_name_is_not_opened_as_what_it_is(tmp_path: Path) -> None:
    """A VRT leads to other files of the machine, and to servers."""
    secret = tiff(tmp_path / "secret.tif", noise(3))
    vrt = tmp_path / "harmless.tif"
    vrt.write_text(
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(ImageError, match="starts with b'<VRTDataset"):
        read_picture(vrt)
    with pytest.raises(ImageError, match="starts with b'<VRTDataset"):
        read_picture(vrt.read_bytes())
    # Nor as a mask or an overview of a file that is what it seems.
    image = tiff(tmp_path / "image.tif", noise(3))
    for ending in (".msk", ".ovr"):
        (tmp_path / f"image.tif{ending}").write_text(vrt.read_text())
    try:
        picture = read_picture(image)
    except ImageError:
        return
    assert picture.absent is None


def test_profiles_of_deep_files(tmp_path: Path) -> None:
    """The same profile by either decoder; one that cannot be read is said."""
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = swapped.replace(b"rXYZ", b"tmpX", 1).replace(b"gXYZ", b"rXYZ", 1)
    profile = swapped.replace(b"tmpX", b"gXYZ", 1).replace(b"\0s\0R\0G\0B", b"\0T\0e\0s\0t")
    path = tmp_path / "image.tif"
    for data, words in ((profile, "converted to sRGB"), (b"no profile at all", "unreadable")):
        Image.fromarray(noise(3).transpose(1, 2, 0)).save(path, icc_profile=data)
        picture = read_picture(path)
        assert words in picture.record["profile"]
        pixels, _ = all_rows(path)
        np.testing.assert_array_equal(pixels, picture.pixels)
        changed = (pixels != noise(3).transpose(1, 2, 0)).any()
        assert changed == (data is profile)


def message_of(source: Path | bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught, by_rows(source, **options) as raster:
        raster.rows(0, raster.height)
    text = str(caught.value)
    assert text.startswith("the image: " if isinstance(source, bytes) else f"{source}: ")
    assert "\n" not in text
    return text


def test_too_many_pixels(tmp_path: Path) -> None:
    path = tiff(tmp_path / "large.tif", noise(1))
    assert "8,250" in message_of(path, limits=Limits(max_pixels=8000))
    # A few bytes that stand for 40 thousand million pixels.
    shape = {"count": 1, "height": 200_000, "width": 200_000, "dtype": "uint8"}
    options = {"tiled": True, "blockxsize": 2048, "blockysize": 2048, "sparse_ok": True}
    path = tmp_path / "sparse.tif"
    rasterio.open(path, "w", driver="GTiff", **shape, **options).close()
    assert "at most 4,294,967,296 pixels" in message_of(path)
    with pytest.raises(ImageError, match="at most 178,956,970 pixels"):
        read_picture(path)


def test_a_large_image_in_one_piece_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.tif"
    shape = {"count": 3, "height": 14000, "width": 14000, "dtype": "uint8"}
    options = {**TILES, "blockxsize": 14000, "blockysize": 14000, "sparse_ok": True}
    rasterio.open(path, "w", driver="GTiff", **shape, **options).close()
    assert "blocks of 14,000 rows that take 0.5 GiB" in message_of(path)


def test_rows_that_do_not_exist(tmp_path: Path) -> None:
    with by_rows(tiff(tmp_path / "image.tif", noise(1))) as raster:
        assert raster.rows(7, 7).shape == (0, WIDTH, 3)
        for first, last in ((-1, 3), (3, 2), (70, HEIGHT + 1)):
            with pytest.raises(ValueError, match="rows within 0 to 75"):
                raster.rows(first, last)


@pytest.mark.parametrize("kept", [0.02, 0.6])
def test_cut_short(tmp_path: Path, kept: float) -> None:
    """Of a file of which most is there the header is whole, and the damage shows when the rows are read."""
    path = tiff(tmp_path / "cut.tif", noise(3), **TILES)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    for source in (path, path.read_bytes()):
        text = message_of(source)
        assert "damaged" in text
        assert "/vsimem" not in text
    if kept > 0.3:
        with by_rows(path) as raster:
            wanted = noise(3).transpose(1, 2, 0)[:10]
            np.testing.assert_array_equal(raster.rows(0, 10), wanted)


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_damage_anywhere_is_an_image_error_or_an_image(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "image.tif"
    compress = data.draw(st.sampled_from(["none", "deflate", "jpeg", "lzw"]))
    tiff(path, noise(3), **{**TILES, "compress": compress})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.booleans())  # The header, whose damage does most.
        at = data.draw(st.integers(0, min(len(content) - 1, 400 if near else len(content))))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    options = ReadOptions(limits=Limits(max_pixels=10**6))
    try:
        opened = open_picture(path, options, block_pixels=0)
        picture = opened if isinstance(opened, Picture) else opened.picture()
        assert picture.pixels.shape == (picture.height, picture.width, 3)
        message = str(path)
    except ImageError as error:
        message = str(error)
    assert message.startswith(str(path))


def test_without_rasterio_it_is_said_what_to_install(tmp_path: Path) -> None:
    """Pillow reads what it can, and never shows what it would get wrong."""
    Image.fromarray(noise(3).transpose(1, 2, 0)).save(tmp_path / "plain.tif")
    tiff(tmp_path / "deep.tif", noise(3, "uint16"), photometric="RGB")
    tiff(tmp_path / "hidden.tif", noise(3), nodata=0)
    tiff(tmp_path / "lerc.tif", noise(3), compress="lerc")
    tiff(tmp_path / "dark.png", noise(3) * np.uint16(16), driver="PNG")
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "from resclip.io.images import read_image\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        print(read_image(path).shape)\n"
        "    except ValueError as error:\n        print(error)"
    )
    names = ["plain.tif", "deep.tif", "hidden.tif", "lerc.tif", "dark.png"]
    paths = [str(tmp_path / name) for name in names]
    out = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    first, *others = out.stdout.splitlines()
    assert first == f"({HEIGHT}, {WIDTH}, 3)"
    assert len(others) == 4
    for line, name in zip(others, names[1:], strict=True):
        assert name in line
        assert 'pip install "resclip[geo]"' in line


MEMORY = """
import sys
import numpy as np
import resclip.io.raster
from resclip.io.geotiff import Layout, RasterWriter, raster_to_png
from resclip.io.images import open_picture
source, folder = sys.argv[1:]
def peak():
    # Not ru_maxrss, which begins with what the process that started this one has taken.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
start = peak()
with open_picture(source, block_pixels=0) as raster:
    for first in range(0, 4000, 160):
        raster.rows(first, min(first + 200, 4000))
print(peak() - start)
labels = np.zeros((100, 8000), np.uint16)
with RasterWriter(f"{folder}/l.tif", Layout(4000, 8000, 8000, "uint16", nodata=65535)) as writer:
    for first in range(0, 4000, 100):
        writer.write(first, labels)
    writer.commit()
raster_to_png(f"{folder}/l.tif", f"{folder}/l.png")
print(peak() - start)
"""


def test_memory_is_that_of_the_cache_and_of_a_few_rows(tmp_path: Path) -> None:
    """4,000 × 8,000 pixels, 96 MB to be read and 64 MB to be written and turned to PNG, in 64 MB of cache and 40."""
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512}
    path = tiff(tmp_path / "large.tif", np.full((3, 4000, 8000), 7, np.uint8), **options)
    command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    read, written = (float(line) for line in out.stdout.split())
    assert read < 64 + 40
    assert written < 64 + 40
