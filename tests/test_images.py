"""Reading and writing images: values where they can be known, one sentence where not."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resclip.io.images import ImageError, read_image, save_png

RED, WHITE, GREY, BLACK = (255, 0, 0), (255, 255, 255), (127, 127, 127), (0, 0, 0)


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    channels = (rows * 255 // max(1, height - 1), columns * 255 // max(1, width - 1), rows * 0 + 77)
    return np.stack(channels, axis=2).astype(np.uint8)


def assert_plain(pixels: np.ndarray, shape: tuple[int, int]) -> None:
    assert pixels.shape == (*shape, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_path_string_bytes_image_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = gradient()
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    for source in (path, str(path), path.read_bytes(), Image.open(path), pixels):
        came = read_image(source)
        assert_plain(came, (20, 30))
        np.testing.assert_array_equal(came, pixels)


def test_a_contiguous_array_is_not_copied_and_a_flipped_one_is_made_contiguous() -> None:
    pixels = gradient()
    assert np.shares_memory(read_image(pixels), pixels)
    flipped = read_image(pixels[:, ::-1])
    assert_plain(flipped, (20, 30))
    np.testing.assert_array_equal(flipped, pixels[:, ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :4] = RED  # Top left tells all eight orientations apart on an oblong image.
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(undo(upright))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(gradient()).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95)
    assert_plain(read_image(path), (20, 30))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def of_mode(mode: str, *pixels: Any) -> Image.Image:
    """One row of pixels."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def paletted(*pixels: int) -> Image.Image:
    image = of_mode("P", *pixels)
    image.putpalette([*BLACK, *RED])
    return image


def png(
    size: tuple[int, int], depth: int, colour: int, row: bytes, transparent: bytes = b""
) -> bytes:
    """A PNG by its chunks, with one row of pixels, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """(bands, H, W) as GDAL writes it, with a place on the earth, without which rasterio warns."""
    bands, height, width = values.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    options["transform"] = rasterio.Affine(2.0, 0.0, 0.0, 0.0, -2.0, 0.0)
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", **shape, **options) as dataset:
            dataset.write(values)
        return bytes(memory.getbuffer())


def without_adobe(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + struct.unpack(">H", jpeg[start + 2 : start + 4])[0] :]


CMYK = Image.new("CMYK", (16, 1), (0, 255, 255, 0))
HALF = (255, 127, 127)  # Red at an opacity of 128 of 255.
DEEP = np.array([[[0, 128, 129, 257, 32768, 65535]]], np.uint16)
DEEP_AS_8 = [(v, v, v) for v in (0, 0, 1, 1, 128, 255)]  # Nearest: 128 / 257 is 0.498.
COLOUR_16 = np.array([[[0x12FF]], [[0x34FF]], [[0x5600]]], np.uint16)
KINDS: dict[str, tuple[bytes, list[tuple[int, int, int]], int]] = {  # file, pixels, tolerance
    "1 bit": (encoded(of_mode("1", 0, 255), "PNG"), [BLACK, WHITE], 0),
    "grey": (encoded(of_mode("L", 0, 127, 255), "PNG"), [BLACK, GREY, WHITE], 0),
    "grey, one value transparent": (
        encoded(of_mode("L", 5, 0), "PNG", transparency=5), [WHITE, BLACK], 0,
    ),
    "grey with alpha": (
        encoded(of_mode("LA", (0, 255), (0, 128), (0, 0)), "PNG"), [BLACK, GREY, WHITE], 0,
    ),
    "palette": (encoded(paletted(0, 1), "PNG"), [BLACK, RED], 0),
    "palette, one colour transparent": (
        encoded(paletted(0, 1), "PNG", transparency=0), [WHITE, RED], 0,
    ),
    "palette, opacities": (
        encoded(paletted(0, 1), "PNG", transparency=b"\xff\x80"), [BLACK, HALF], 0,
    ),
    "GIF, transparent": (encoded(paletted(0, 1), "GIF", transparency=0), [WHITE, RED], 0),
    "RGBA": (
        encoded(of_mode("RGBA", (*RED, 255), (*RED, 128), (0, 0, 0, 0)), "PNG"), [RED, HALF, WHITE], 0,
    ),
    "RGBA, WebP": (
        encoded(of_mode("RGBA", (*RED, 255), (*RED, 128), (0, 0, 0, 0)), "WEBP", lossless=True),
        [RED, HALF, WHITE], 0,
    ),
    "YCbCr": (encoded(Image.new("YCbCr", (16, 1), (76, 85, 255)), "JPEG"), [(254, 0, 0)] * 16, 1),
    "CMYK": (encoded(CMYK, "TIFF"), [RED] * 16, 0),
    "CMYK, inverted": (encoded(CMYK, "JPEG", quality=100), [RED] * 16, 1),
    "CMYK, inverted, nameless": (without_adobe(encoded(CMYK, "JPEG", quality=100)), [RED] * 16, 1),
    "16-bit grey": (encoded(Image.fromarray(DEEP[0]), "PNG"), DEEP_AS_8, 0),
    "16-bit grey, TIFF": (encoded(Image.fromarray(DEEP[0]), "TIFF"), DEEP_AS_8, 0),
    "16-bit grey, white is 0": (tiff(65535 - DEEP, photometric="miniswhite"), DEEP_AS_8, 0),
    "16-bit grey, one value transparent": (
        png((2, 1), 16, 0, b"\x12\x34\x12\x35", b"\x12\x34"), [WHITE, (18, 18, 18)], 0,
    ),
    "16-bit grey with alpha": (png((1, 1), 16, 4, b"\0\0\x80\0"), [GREY], 0),
    "16-bit colour": (png((1, 1), 16, 2, b"\x12\xff\x34\xff\x56\0"), [(0x12, 0x34, 0x56)], 0),
    "16-bit colour, TIFF": (tiff(COLOUR_16, photometric="RGB"), [(0x12, 0x34, 0x56)], 0),
    "16-bit colour, TIFF, planes": (
        tiff(COLOUR_16, photometric="RGB", interleave="band", compress="deflate"),
        [(0x12, 0x34, 0x56)], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel(kind: str) -> None:
    data, pixels, tolerance = KINDS[kind]
    came = read_image(data)
    assert_plain(came, (1, len(pixels)))
    assert np.abs(came[0].astype(int) - pixels).max() <= tolerance


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp"])
def test_animated_gives_its_first_frame(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, (0, 0, 255), WHITE)]
    frames[0].save(
        tmp_path / name, save_all=True, append_images=frames[1:], duration=50, lossless=True
    )
    came = read_image(tmp_path / name).astype(int)
    assert np.abs(came - RED).max() <= 2


def test_one_pixel(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), RED).save(path)
    np.testing.assert_array_equal(read_image(path), [[RED]])


def message_of(source: object, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "name", ["cut.png", "cut.jpg", "cut.webp", "cut.bmp", "cut.tif", "cut.gif"]
)
def test_cut_short(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for kept in (0.4, 0.9):
        path.write_bytes(data[: int(len(data) * kept)])
        text = message_of(path)
        assert str(path) in text
        # A TIFF has its directory at the end: without it, it is no image at all.
        assert "cut short or damaged" in text or "expected an image" in text


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_is_an_image_error_or_an_image(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same one from the file and from its bytes."""
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"image.{data.draw(st.sampled_from(['png', 'jpg', 'gif', 'webp', 'tif']))}"
    Image.fromarray(gradient(9, 12)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    came: list[Any] = []
    for source in (path, bytes(content)):
        try:
            pixels = read_image(source, max_pixels=10**6, name=str(path))
            assert_plain(pixels, pixels.shape[:2])
            came.append(pixels.tolist())
        except ImageError as error:
            came.append(str(error))
    assert came[0] == came[1]
    assert isinstance(came[0], list) or came[0].startswith(f"{path}: ")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "nothing.png"
    path.touch()
    assert "empty file" in message_of(path)


def test_no_bytes_and_other_bytes() -> None:
    assert "got no bytes" in message_of(b"")
    assert "starts with b'dear diary'" in message_of(b"dear diary")


def test_errors_go_by_the_name_that_is_given(tmp_path: Path) -> None:
    missing = tmp_path / "absent.png"
    for source in (missing, b"", b"dear diary", Image.new("F", (2, 2)), np.zeros((2, 2), np.uint8)):
        text = message_of(source, name="shard-000/cat.jpg")
        assert text.startswith("shard-000/cat.jpg: ")
        assert str(missing) not in text


def test_a_header_that_says_no_row(tmp_path: Path) -> None:
    assert "whose header is damaged" in message_of(png((5, 0), 8, 2, b""))


def test_planes_that_pillow_misreads_are_refused() -> None:
    data = tiff(COLOUR_16, photometric="RGB", interleave="band")
    assert "one plane after the other" in message_of(data)


def test_text_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("dear diary")
    text = message_of(path)
    assert "expected an image" in text
    assert "dear diary" in text


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "absent.png")
    assert "got a directory" in message_of(tmp_path)


def test_impossible_paths(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be opened" in message_of(tmp_path / "file" / "image.png")
    assert "cannot be opened" in message_of("image\0.png")
    assert "cannot be opened" in message_of("x" * 5000)


def test_pixel_limit_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (400, 300)).save(path)
    text = message_of(path, max_pixels=100_000)
    assert "120,000" in text
    assert "max_pixels" in text
    assert "120,000" in message_of(Image.open(path), max_pixels=100_000)
    assert read_image(path, max_pixels=120_000).shape == (300, 400, 3)


def bomb(kind: str) -> bytes:
    """A small file whose header says 60,000 x 60,000 pixels, which are 10.8 GB."""
    if kind == "PNG":
        return png((60000, 60000), 8, 2, b"")
    if kind == "ICO":  # Its directory says 16 x 16, and the image in it what it wants.
        inner = bomb("PNG")
        return struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    data = bytearray(encoded(Image.new("RGB", (16, 16)), kind))
    side = struct.pack({"JPEG": ">H", "GIF": "<H", "BMP": "<i"}[kind], 60000)
    at = {"JPEG": data.find(b"\xff\xc0") + 5, "GIF": 6, "BMP": 18}[kind]
    data[at : at + 2 * len(side)] = 2 * side
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "ICO"])
def test_a_decompression_bomb_is_refused_before_it_takes_memory(kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "expected at most 178,956,970 pixels" in message_of(bomb(kind))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_pillow_s_own_limit_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (400, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).shape == (300, 400, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), "uint8"),
        (np.zeros((4, 5, 3), np.uint16), "uint8"),
        (np.zeros((4, 5), np.uint8), r"(height, width, 3)"),
        (np.zeros((3, 4, 5), np.uint8), r"(height, width, 3)"),
        (np.zeros((4, 5, 4), np.uint8), r"(height, width, 3)"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
    ],
)
def test_wrong_arrays(array: np.ndarray, words: str) -> None:
    assert words in message_of(array)


def test_wrong_images() -> None:
    assert "at least one pixel" in message_of(Image.new("RGB", (0, 3)))
    assert "8 or 16 bits" in message_of(Image.new("F", (2, 2), 0.5))
    assert "8 or 16 bits" in message_of(Image.new("I", (2, 2), 70000))


@pytest.mark.parametrize("source", [None, 3, bytearray(b"bytes"), [[0]]])
def test_wrong_kind(source: object) -> None:
    with pytest.raises(TypeError, match="expected a path, bytes, a PIL image or an"):
        read_image(source)  # type: ignore[arg-type]


def test_save_png_round_trip_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_text("older")
    save_png(Image.fromarray(gradient()), path)
    np.testing.assert_array_equal(read_image(path), gradient())
    assert os.listdir(tmp_path) == ["image.png"]  # noqa: PTH208


def test_writing_where_no_directory_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.png", tmp_path / "absent" / "x.png"):
        with pytest.raises(OSError, match="directory"):
            save_png(Image.new("RGB", (1, 1)), path)


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.png"  # 255 bytes: what common file systems allow.
    save_png(Image.new("RGB", (1, 1)), path)
    assert path.exists()
