"""Images read by block: the same pixels as `read_image`'s, in any runs of rows, in bounded memory."""

from __future__ import annotations

import itertools
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
from PIL import Image

from resclip.io.geotiff import open_raster
from resclip.io.images import ImageError, read_image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

HEIGHT, WIDTH = 75, 110  # No multiple of a tile of 32: edges are cut.
TILES = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}


def noise(bands: int, dtype: str = "uint8", *, levels: int = 0) -> np.ndarray:
    top = levels or np.iinfo(dtype).max + 1
    return np.random.default_rng(5).integers(0, top, (bands, HEIGHT, WIDTH)).astype(dtype)


def tiff(
    path: Path, values: np.ndarray, colours: dict[int, Any] | None = None, **options: Any
) -> Path:
    bands, height, width = values.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as dataset:
        dataset.write(values)
        if colours:
            dataset.write_colormap(1, colours)
    return path


def all_rows(path: Path, step: int = 13) -> np.ndarray:
    with open_raster(path) as raster:
        assert (raster.height, raster.width) == (HEIGHT, WIDTH)
        runs = [raster.rows(y, min(y + step, HEIGHT)) for y in range(0, HEIGHT, step)]
    for run in runs:
        assert run.dtype == np.uint8
        assert run.flags.c_contiguous
    return np.concatenate(runs)


SMOOTH = np.stack([np.add.outer(np.arange(HEIGHT), np.arange(WIDTH) // k) for k in (1, 2, 3)])
COLOURS = {value: (value * 40, 255 - value * 40, 7, 255) for value in range(6)}
KINDS: dict[str, tuple[np.ndarray, dict[str, Any], int]] = {  # Values, storage, tolerance.
    "RGB, tiles": (noise(3), TILES, 0),
    "RGB, strips": (noise(3), {"blockysize": 8}, 0),
    "RGB, planes": (noise(3), {"interleave": "band", **TILES}, 0),
    "RGB, JPEG": (
        SMOOTH.astype(np.uint8), {**TILES, "compress": "jpeg", "photometric": "YCBCR"}, 4,
    ),
    "grey": (noise(1), TILES, 0),
    "grey, white is 0": (noise(1), {"photometric": "miniswhite"}, 0),
    "grey, 1 bit": (noise(1, levels=2), {"nbits": 1}, 0),
    "grey, 4 bits": (noise(1, levels=16), {"nbits": 4}, 0),
    "grey with alpha": (noise(2), {"alpha": "YES"}, 0),
    "RGBA": (noise(4), {"photometric": "RGB", "alpha": "YES", **TILES}, 0),
    "palette": (noise(1, levels=6), {"photometric": "palette", **TILES}, 0),
    "CMYK": (noise(4), {"photometric": "CMYK"}, 1),
    "16-bit grey": (noise(1, "uint16"), TILES, 0),
    "16-bit grey, white is 0": (noise(1, "uint16"), {"photometric": "miniswhite"}, 1),
    "16-bit colour": (noise(3, "uint16"), {"photometric": "RGB", **TILES}, 1),
    "16-bit CMYK": (noise(4, "uint16"), {"photometric": "CMYK"}, 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole_image(tmp_path: Path, kind: str) -> None:
    """Within a level where another decoder rounds: JPEG, CMYK, and 16-bit colour (see `open_raster`)."""
    values, options, tolerance = KINDS[kind]
    colours = COLOURS if kind == "palette" else None
    path = tiff(tmp_path / "image.tif", values, colours, **options)
    wanted = read_image(path).astype(int)
    assert np.abs(all_rows(path) - wanted).max() <= tolerance


@pytest.mark.parametrize(("suffix", "tolerance"), [("jpg", 4), ("jp2", 0)])
def test_other_formats(tmp_path: Path, suffix: str, tolerance: int) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(SMOOTH.astype(np.uint8).transpose(1, 2, 0)).save(path)
    assert np.abs(all_rows(path) - read_image(path).astype(int)).max() <= tolerance


def test_16_bit_colour_is_the_nearest_of_8_bits(tmp_path: Path) -> None:
    values = noise(3, "uint16")
    path = tiff(tmp_path / "deep.tif", values, photometric="RGB")
    np.testing.assert_array_equal(all_rows(path), np.rint(values / 257).transpose(1, 2, 0))


def test_more_bands_give_the_marked_ones_or_the_first_three(tmp_path: Path) -> None:
    values = noise(5)
    plain = tiff(tmp_path / "plain.tif", values, photometric="minisblack")
    np.testing.assert_array_equal(all_rows(plain), values[:3].transpose(1, 2, 0))
    marked = tmp_path / "marked.tif"
    shape = {"count": 5, "height": HEIGHT, "width": WIDTH, "dtype": "uint8"}
    with rasterio.open(marked, "w", driver="GTiff", photometric="minisblack", **shape) as dataset:
        dataset.write(values)
        meaning = rasterio.enums.ColorInterp
        dataset.colorinterp = [
            meaning.blue, meaning.green, meaning.red, meaning.undefined, meaning.alpha,
        ]  # fmt: skip
    alpha = values[4][..., None] / 255
    wanted = values[[2, 1, 0]].transpose(1, 2, 0) * alpha + 255 * (1 - alpha)
    assert np.abs(all_rows(marked) - wanted).max() <= 1


def test_what_a_nodata_value_or_a_mask_hides_is_white(tmp_path: Path) -> None:
    values = noise(3, levels=4)
    hidden = (values == 2).all(axis=0)
    assert hidden.any()
    wanted = np.where(hidden, 255, values).transpose(1, 2, 0)
    np.testing.assert_array_equal(all_rows(tiff(tmp_path / "a.tif", values, nodata=2)), wanted)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = tiff(tmp_path / "masked.tif", values)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(~hidden)
    np.testing.assert_array_equal(all_rows(path), wanted)


@given(cuts=st.lists(st.integers(0, HEIGHT), max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_rows_in_any_order(cuts: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "shared.tif"
    if not path.exists():
        tiff(path, noise(3), **TILES)
    whole = noise(3).transpose(1, 2, 0)
    with open_raster(path) as raster:
        for pair in itertools.pairwise(cuts):
            first, last = sorted(pair)
            np.testing.assert_array_equal(raster.rows(first, last), whole[first:last])


def test_another_thread_reads_what_this_one_opened(tmp_path: Path) -> None:
    path = tiff(tmp_path / "image.tif", noise(3), **TILES)
    with open_raster(path) as raster, ThreadPoolExecutor(1) as other:
        rows = other.submit(raster.rows, 3, 50).result()
    np.testing.assert_array_equal(rows, noise(3).transpose(1, 2, 0)[3:50])


def test_the_georeference(tmp_path: Path) -> None:
    transform = rasterio.Affine(0.5, 0.0, 500.0, 0.0, -0.5, 900.0)
    path = tiff(tmp_path / "map.tif", noise(3), crs="EPSG:32632", transform=transform)
    with open_raster(path) as raster:
        assert raster.crs.to_epsg() == 32632
        assert raster.transform == transform
    with open_raster(tiff(tmp_path / "image.tif", noise(3))) as raster:
        assert raster.crs is None
        assert raster.transform is None


def message_of(path: Path, **options: int) -> str:
    with pytest.raises(ImageError) as caught, open_raster(path, **options) as raster:
        raster.rows(0, raster.height)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_no_file_no_image_and_too_many_pixels(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "absent.tif")
    assert "got a directory" in message_of(tmp_path)
    (tmp_path / "empty.tif").touch()
    assert "empty file" in message_of(tmp_path / "empty.tif")
    (tmp_path / "notes.tif").write_text("dear diary")
    assert "dear diary" in message_of(tmp_path / "notes.tif")
    path = tiff(tmp_path / "large.tif", noise(1))
    assert "8,250" in message_of(path, max_pixels=8000)


def test_layouts_that_are_refused(tmp_path: Path) -> None:
    """Other depths, two bands that are neither grey nor colour, and a large image in one piece."""
    for dtype in ("float32", "int16"):
        path = tiff(tmp_path / "deep.tif", noise(1, "uint8").astype(dtype))
        assert f"(uint8, uint16), got {dtype}" in message_of(path)
    assert "got 2" in message_of(tiff(tmp_path / "two.tif", noise(2), photometric="minisblack"))
    path = tmp_path / "one.tif"
    shape = {"count": 3, "height": 14000, "width": 14000, "dtype": "uint8"}
    options = {**TILES, "blockxsize": 14000, "blockysize": 14000, "sparse_ok": True}
    rasterio.open(path, "w", driver="GTiff", **shape, **options).close()
    assert "blocks of 14,000 rows that take 0.5 GiB" in message_of(path)


def test_rows_that_do_not_exist(tmp_path: Path) -> None:
    with open_raster(tiff(tmp_path / "image.tif", noise(1))) as raster:
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
    text = message_of(path)
    assert "damaged" in text
    if kept > 0.3:
        with open_raster(path) as raster:
            wanted = noise(3).transpose(1, 2, 0)[:10]
            np.testing.assert_array_equal(raster.rows(0, 10), wanted)


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
    try:
        with open_raster(path, max_pixels=10**6) as raster:
            for first in range(0, raster.height, 40):
                last = min(first + 40, raster.height)
                assert raster.rows(first, last).shape == (last - first, raster.width, 3)
    except ImageError as error:
        message = str(error)
    else:
        message = str(path)
    assert str(path) in message


def test_without_rasterio_it_is_said_what_to_install() -> None:
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "try:\n    import resclip.io.geotiff\nexcept ImportError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "resclip[geo]"' in out.stdout


MEMORY = """
import sys
import numpy as np
from resclip.io.geotiff import RasterWriter, open_raster, raster_to_png
source, folder = sys.argv[1:]
def peak():
    # Not ru_maxrss, which begins with what the process that started this one has taken.
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
start = peak()
with open_raster(source) as raster:
    for first in range(0, 4000, 160):
        raster.rows(first, min(first + 200, 4000))
print(peak() - start)
labels = np.zeros((100, 8000), np.uint16)
with RasterWriter(f"{folder}/l.tif", 4000, 8000, classes=8000, dtype="uint16") as writer:
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
