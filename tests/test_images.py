"""Reading and writing images: values where they can be known, one sentence where not."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from cli_support import names_in
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from resclip.io.images import ImageError, is_one_image, read_image, read_picture, save_png
from resclip.io.limits import Limits
from resclip.io.picture import FILLING, ReadOptions

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


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


class OneWay(io.RawIOBase):
    """A file that cannot go back and gives a few bytes at a time, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        part, self.rest = self.rest[: min(size, 7)], self.rest[min(size, 7) :]
        return part


def test_whatever_gives_an_encoded_image_s_bytes(tmp_path: Path) -> None:
    pixels = gradient()
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    behind = io.BytesIO(b"header" + data)
    behind.seek(6)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("image.png", data)
    with (
        path.open("rb") as file,
        path.open("rb", buffering=0) as raw,
        zipfile.ZipFile(archive).open("image.png") as member,
    ):
        sources = [
            bytearray(data), memoryview(data), io.BytesIO(data), behind, file, raw, OneWay(data),
            member,
        ]  # fmt: skip
        for source in sources:
            np.testing.assert_array_equal(read_image(source), pixels)
            assert is_one_image(source)


def test_files_that_give_no_image(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"GIF89a")
    with path.open("rb") as file:
        assert message_of(file).startswith(f"{path}: ")
    assert "closed file" in message_of(file)
    with pytest.raises(ImageError, match="at most 5 bytes"):
        read_picture(io.BytesIO(bytes(9)), ReadOptions(limits=Limits(max_bytes=5)))

    class Upload:
        async def read(self, size: int) -> bytes:
            return b""

    assert "got coroutine; pass its bytes" in message_of(Upload())


GREY = gradient()[..., 1]
COLOURS = gradient()
CLEAR_CORNER = np.full((20, 30), 255, np.uint8)
CLEAR_CORNER[:3, :4] = 0
WITH_OPACITY = np.dstack([COLOURS, CLEAR_CORNER])
FORMS = {
    "grey": GREY,
    "one channel": GREY[..., None],
    "colours": COLOURS,
    "with opacity": WITH_OPACITY,
}


def tensor_of(values: np.ndarray) -> torch.Tensor:
    """Channels first, as torchvision gives them."""
    tensor = torch.tensor(values)
    return tensor if tensor.ndim == 2 else tensor.permute(2, 0, 1)


# Each gives the same bytes again: the levels of 16-bit floats lie 8 times as close as 255 levels.
TYPES: dict[str, Callable[[np.ndarray], Any]] = {
    "uint8": lambda values: values,
    "uint16": lambda values: values.astype(np.uint16) * 257,
    "big-endian": lambda values: (values.astype(np.uint16) * 257).astype(">u2"),
    "float16": lambda values: (values / 255).astype(np.float16),
    "float32": lambda values: (values / 255).astype(np.float32),
    "float64": lambda values: values / 255,
    "a little off": lambda values: values / 255 * 1.0005 - 0.0002,
    "read-only, flipped": lambda values: np.broadcast_to(values, values.shape)[::-1][::-1],
    "tensor": tensor_of,
    "float tensor": lambda values: tensor_of(values) / 255,
    "half tensor": lambda values: (tensor_of(values) / 255).half(),
    "tensor with a gradient": lambda values: (tensor_of(values) / 255).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TYPES)
def test_an_array_of_any_kind_is_the_same_image(form: str, kind: str) -> None:
    source = TYPES[kind](FORMS[form])
    picture = read_picture(source)
    assert is_one_image(source)
    assert_plain(picture.pixels, (20, 30))
    values = FORMS[form].reshape(20, 30, -1)
    wanted = np.broadcast_to(values[..., :3], (20, 30, 3)).copy()
    if form == "with opacity":
        clear = CLEAR_CORNER == 0
        wanted[clear] = FILLING
        np.testing.assert_array_equal(picture.absent, clear)
    else:
        assert picture.absent is None
    np.testing.assert_array_equal(picture.pixels, wanted)


def test_bfloat16_is_taken_as_it_is() -> None:
    tensor = (tensor_of(COLOURS) / 255).bfloat16()
    np.testing.assert_array_equal(read_image(tensor), read_image(tensor.float()))
    assert np.abs(read_image(tensor).astype(int) - COLOURS).max() <= 1  # It has 8 bits.


def test_opacity_between_shows_the_filling_through() -> None:
    values = WITH_OPACITY.copy()
    values[..., 3] = 128
    halfway = (COLOURS.astype(int) * 128 + np.array(FILLING) * 127 + 127) // 255
    for source in (values, Image.fromarray(values), tensor_of(values)):
        picture = read_picture(source)
        assert picture.absent is None
        np.testing.assert_array_equal(picture.pixels, halfway)


def test_a_value_range_says_what_any_numbers_mean() -> None:
    options = ReadOptions(value_range=(-100, 155))
    numbers = COLOURS.astype(np.int32) - 100
    for source in (numbers, numbers.astype(np.float32), tensor_of(numbers), numbers.astype(">i8")):
        picture = read_picture(source, options)
        np.testing.assert_array_equal(picture.pixels, COLOURS)
        assert picture.record["levels"] == [-100, 155]
    with_nothing = numbers.astype(np.float64)
    with_nothing[2:4] = np.nan
    with_nothing[9, 9, 0] = np.nan  # One colour of three.
    absent = read_picture(with_nothing, options).absent
    np.testing.assert_array_equal(absent, np.isnan(with_nothing).all(axis=2))


def test_deep_arrays_are_taken_as_files_are(tmp_path: Path) -> None:
    """Values that do not use the range of their type."""
    deep = (GREY.astype(np.uint16) * 3 + 500).astype(np.uint16)
    path = tmp_path / "deep.png"
    Image.fromarray(deep).save(path)
    wanted = read_picture(path)
    for source in (deep, deep[..., None], torch.tensor(deep)[None], Image.fromarray(deep)):
        picture = read_picture(source)
        np.testing.assert_array_equal(picture.pixels, wanted.pixels)
        assert picture.record["levels"] == wanted.record["levels"]


def test_bands_of_an_array_with_many() -> None:
    many = np.dstack([GREY, *np.moveaxis(COLOURS, 2, 0), CLEAR_CORNER])
    np.testing.assert_array_equal(read_image_with(many, bands=(2, 3, 4)), COLOURS)
    np.testing.assert_array_equal(read_image_with(many / 255.0, bands=(2, 3, 4)), COLOURS)
    np.testing.assert_array_equal(read_image_with(many, bands=(1,))[..., 2], GREY)
    # What is not asked for may hold anything.
    many = many / 255.0
    many[..., 4] = np.nan
    np.testing.assert_array_equal(read_image_with(many, bands=(2, 3, 4)), COLOURS)
    picture = read_picture(WITH_OPACITY, ReadOptions(bands=(3, 2, 1)))
    np.testing.assert_array_equal(picture.absent, CLEAR_CORNER == 0)
    assert read_picture(WITH_OPACITY, ReadOptions(bands=(4, 2, 1))).absent is None


def read_image_with(source: Any, **options: Any) -> np.ndarray:
    return read_picture(source, ReadOptions(**options)).pixels


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "La", "PA", "RGBA", "RGBa", "I", "F",
             "I;16", "I;16L", "I;16B"],
)  # fmt: skip
def test_every_mode_of_pillow_in_memory(mode: str) -> None:
    black = np.where(np.arange(30) < 15, 0, 255).astype(np.uint8) + np.zeros((20, 1), np.uint8)
    image = Image.fromarray(black)
    if mode.startswith("I;16"):
        data = (black.astype(np.uint16) * 257).astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        image = Image.frombytes(mode, (30, 20), data)
    elif mode == "LAB":
        image = Image.merge("LAB", [image, *[Image.new("L", image.size, 128)] * 2])
    else:
        way = {"La": "LA", "RGBa": "RGBA", "PA": "P", "HSV": "RGB", "LAB": "RGB"}
        image = image.convert(way.get(mode, mode)).convert(mode)
    pixels = read_image(image)
    assert_plain(pixels, (20, 30))
    assert np.abs(pixels.astype(int) - black[..., None]).max() <= 3


def test_an_array_is_copied_and_a_flipped_one_is_made_contiguous() -> None:
    """A camera's buffer holds the next frame soon."""
    pixels = gradient()
    assert not np.shares_memory(read_image(pixels), pixels)
    flipped = read_image(pixels[:, ::-1])
    assert_plain(flipped, (20, 30))
    np.testing.assert_array_equal(flipped, pixels[:, ::-1])


@pytest.mark.parametrize(
    ("orientation", "undo"),
    # Pillow knows all eight; that it is asked shows in a turn and in a turn of a mirror image.
    [(6, np.rot90), (7, lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2))],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, undo: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(undo(gradient()))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), gradient())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(gradient()).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95)
    assert_plain(read_image(path), (20, 30))


def test_damaged_tags_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Pillow warns of each of them: a hostile file could print any number of lines."""
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 300)
    block += b"".join(struct.pack("<HHII", 700 + tag, 1, 1 << 30, 8) for tag in range(300))
    data = encoded(Image.fromarray(gradient()), "PNG", exif=block + b"\0" * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_plain(read_image(data), (20, 30))
    assert capsys.readouterr() == ("", "")


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
CLEAR = FILLING
HALF = (189, 58, 52)  # Red at an opacity of 128 of 255 over the filling.
DIM = (61, 58, 52)  # Black.
DEEP = np.array([[[0, 128, 129, 257, 32768, 65535]]], np.uint16)
DEEP_AS_8 = [(v, v, v) for v in (0, 0, 1, 1, 128, 255)]  # Nearest: 128 / 257 is 0.498.
COLOUR_16 = np.array([[[0x12FF]], [[0x34FF]], [[0xF600]]], np.uint16)
AS_8 = [(0x13, 0x35, 0xF5)]  # The nearest levels: 0x12ff / 257 is 18.9.
KINDS: dict[str, tuple[bytes, list[tuple[int, int, int]], int]] = {  # file, pixels, tolerance
    "1 bit": (encoded(of_mode("1", 0, 255), "PNG"), [BLACK, WHITE], 0),
    "grey, one value transparent": (
        encoded(of_mode("L", 5, 0), "PNG", transparency=5), [CLEAR, BLACK], 0,
    ),
    "grey with alpha": (
        encoded(of_mode("LA", (0, 255), (0, 128), (0, 0)), "PNG"), [BLACK, DIM, CLEAR], 0,
    ),
    "palette, one colour transparent": (
        encoded(paletted(0, 1), "PNG", transparency=0), [CLEAR, RED], 0,
    ),
    "palette, opacities": (
        encoded(paletted(0, 1), "PNG", transparency=b"\xff\x80"), [BLACK, HALF], 0,
    ),
    "RGBA": (
        encoded(of_mode("RGBA", (*RED, 255), (*RED, 128), (0, 0, 0, 0)), "PNG"), [RED, HALF, CLEAR], 0,
    ),
    "YCbCr": (encoded(Image.new("YCbCr", (16, 1), (76, 85, 255)), "JPEG"), [(254, 0, 0)] * 16, 1),
    "CMYK": (encoded(CMYK, "TIFF"), [RED] * 16, 0),
    "CMYK, inverted": (encoded(CMYK, "JPEG", quality=100), [RED] * 16, 1),
    "CMYK, inverted, nameless": (without_adobe(encoded(CMYK, "JPEG", quality=100)), [RED] * 16, 1),
    "16-bit grey": (encoded(Image.fromarray(DEEP[0]), "PNG"), DEEP_AS_8, 0),
    "16-bit grey, white is 0": (tiff(65535 - DEEP, photometric="miniswhite"), DEEP_AS_8, 0),
    "16-bit grey, one value transparent": (
        png((2, 1), 16, 0, b"\x92\x34\x92\x35", b"\x92\x34"), [CLEAR, (146, 146, 146)], 0,
    ),
    "2-bit grey, one value transparent": (
        png((4, 1), 2, 0, b"\x1b", b"\0\1"), [BLACK, CLEAR, (170, 170, 170), WHITE], 0,
    ),
    "4-bit grey, one value transparent": (
        png((2, 1), 4, 0, b"\x3f", b"\0\x0f"), [(51, 51, 51), CLEAR], 0,
    ),
    "16-bit grey with alpha": (png((2, 1), 16, 4, b"\0\0\x80\0\xff\xff\xff\xff"), [DIM, WHITE], 1),
    "16-bit colour": (png((1, 1), 16, 2, b"\x12\xff\x34\xff\xf6\0"), AS_8, 0),
    "16-bit colour, TIFF": (tiff(COLOUR_16, photometric="RGB"), AS_8, 0),
    "16-bit colour, TIFF, planes": (
        tiff(COLOUR_16, photometric="RGB", interleave="band", compress="deflate"), AS_8, 0,
    ),
    "16-bit colour, TIFF, bare planes": (
        tiff(COLOUR_16, photometric="RGB", interleave="band"), AS_8, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel(kind: str) -> None:
    data, pixels, tolerance = KINDS[kind]
    came = read_image(data)
    assert_plain(came, (1, len(pixels)))
    assert np.abs(came[0].astype(int) - pixels).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La"])
def test_images_in_memory_with_opacity(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (90, 90, 90, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image = image.convert("LA" if "L" in mode else "RGBA").convert(mode)
    picture = read_picture(image)
    np.testing.assert_array_equal(picture.pixels, [[CLEAR, (90, 90, 90)]])
    np.testing.assert_array_equal(picture.absent, [[True, False]])


def test_a_masked_array_s_mask_hides_pixels() -> None:
    array = np.ma.MaskedArray(gradient(), np.zeros((20, 30, 3), bool))
    assert read_picture(array).absent is None
    array[:, :5] = np.ma.masked
    array[3, 9, 0] = np.ma.masked  # One colour of three.
    picture = read_picture(array)
    assert picture.absent is not None
    np.testing.assert_array_equal(picture.absent, np.arange(30) < np.full((20, 1), 5))
    assert (picture.pixels[picture.absent] == FILLING).all()
    np.testing.assert_array_equal(picture.pixels[:, 5:], gradient()[:, 5:])
    assert picture.record == {"absent": round(5 / 30, 6)}


def test_transparency_counts_whatever_bands_are_asked_for() -> None:
    opacity = np.where(np.arange(30) < 5, 0, 255).astype(np.uint8) + np.zeros((20, 1), np.uint8)
    image = Image.fromarray(np.dstack([gradient(), opacity]))
    picture = read_picture(image, ReadOptions(bands=(3, 2, 1)))
    np.testing.assert_array_equal(picture.absent, opacity == 0)
    np.testing.assert_array_equal(picture.pixels[:, 5:], gradient()[:, 5:, ::-1])
    # A fourth band that is a colour, because somebody says so or by its many levels, is no opacity.
    assert read_picture(image, ReadOptions(bands=(4, 2, 1))).absent is None
    image.putalpha(Image.fromarray(gradient()[..., 0]))
    assert read_picture(image, ReadOptions(bands=(3, 2, 1))).absent is None


def profile(title: str, space: bytes, gamma: float) -> bytes:
    """An ICC profile of sRGB's primaries, or of grey, with another gamma."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    text = title.encode("utf-16-be")
    name = b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, len(text), 28) + text
    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(gamma * 256), 0)
    primaries = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
    white = (0.9642, 1.0, 0.8249)
    tags = {b"desc": name, b"cprt": name, b"wtpt": b"XYZ \0\0\0\0" + fixed(*white)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for letter, primary in zip("rgb", primaries, strict=True):
            tags[f"{letter}XYZ".encode()] = b"XYZ \0\0\0\0" + fixed(*primary)
            tags[f"{letter}TRC".encode()] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = b"\0" * 4 + struct.pack(">I4s4s4s12x4s28x", 0x04300000, b"mntr", space, b"XYZ ", b"acsp")
    data = head + fixed(*white) + b"\0" * 48 + table + body
    return struct.pack(">I", len(data) + 4) + data


def test_profiles_are_known_by_what_they_do_and_not_by_their_names() -> None:
    image = Image.new("RGB", (4, 4), (60, 60, 60))
    linear = profile("sRGB, linear", b"RGB ", 1.0)
    picture = read_picture(encoded(image, "PNG", icc_profile=linear))
    assert picture.pixels[0, 0, 0] == pytest.approx(133, abs=2)
    assert picture.record["profile"] == "sRGB, linear: converted to sRGB"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert "profile" not in read_picture(encoded(image, "PNG", icc_profile=srgb)).record
    chosen = read_picture(encoded(image, "PNG", icc_profile=linear), ReadOptions(bands=(1, 2, 3)))
    assert chosen.record["profile"] == "not applied, since bands were chosen"
    # A profile of grey is one for grey with opacity, too.
    data = encoded(image.convert("LA"), "PNG", icc_profile=profile("grey", b"GRAY", 1.0))
    assert read_picture(data).pixels[0, 0, 0] == pytest.approx(133, abs=2)


def test_animated_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "moving.webp"
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, (0, 0, 255), WHITE)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(RED, (4, 6, 3)))


def message_of(source: object, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "gif"])
def test_cut_short(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for kept in (0.4, 0.9):
        path.write_bytes(data[: int(len(data) * kept)])
        text = message_of(path)
        assert str(path) in text
        # A TIFF has its directory at the end: without it, it is no image at all.
        assert "cut short or damaged" in text or (kind == "tif" and "expected an image" in text)


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


def test_files_and_bytes_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.jpg").write_text("dear diary")
    for source, words in (
        (tmp_path / "absent.png", "no such file"),
        (tmp_path, "got a directory"),
        (tmp_path / "empty.png", "empty file"),
        (tmp_path / "notes.jpg", "starts with b'dear diary'"),
        (tmp_path / "empty.png" / "image.png", "cannot be opened"),
        ("image\0.png", "null character"),
        ("x" * 5000, "cannot be opened"),
        (b"", "got no bytes"),
        (png((5, 0), 8, 2, b""), "whose header is damaged"),
    ):
        text = message_of(source)
        assert words in text
        assert isinstance(source, bytes) or text.startswith(f"{source}: ")


def test_errors_go_by_the_name_that_is_given(tmp_path: Path) -> None:
    missing = tmp_path / "absent.png"
    for source in (missing, b"", b"dear diary", Image.new("L", (0, 2)), np.zeros((2, 2), bool)):
        text = message_of(source, name="shard-000/cat.jpg")
        assert text.startswith("shard-000/cat.jpg: ")
        assert str(missing) not in text


def test_pixel_limit_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (400, 300)).save(path)
    text = message_of(path, max_pixels=100_000)
    assert "120,000" in text
    assert "max_pixels" in text
    assert "120,000" in message_of(Image.open(path), max_pixels=100_000)
    assert read_image(path, max_pixels=120_000).shape == (300, 400, 3)


def test_a_decompression_bomb_is_refused_before_it_takes_memory() -> None:
    """60,000 x 60,000 pixels, which are 10.8 GB, by a PNG's header, of 8 and of 16 bits."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for depth in (8, 16):
        assert "expected at most 178,956,970 pixels" in message_of(
            png((60000, 60000), depth, 2, b"")
        )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_pillow_s_own_limit_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (400, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).shape == (300, 400, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((4, 5, 3), bool), "truth values"),
        (np.zeros((4, 5, 3), np.int64), ".astype(numpy.uint8)"),
        (np.zeros((4, 5, 3), np.complex64), "complex64"),
        (np.zeros((4, 5, 3), object), "object"),
        (np.zeros(5, np.uint8), "(height, width, 3)"),
        (np.zeros((6, 5, 2), np.uint8), "bands="),
        (np.zeros((3, 4, 5), np.uint8), ".transpose(1, 2, 0)"),
        (np.zeros((1, 4, 5, 3), np.uint8), "list(images)"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
        (np.full((4, 5, 3), 255.0), "value_range=(0, 255)"),
        (np.full((4, 5, 3), 3000.0), "3000; scale it, or give value_range="),
        (np.full((4, 5, 3), -1.5), "normalisation"),
        (np.full((4, 5), np.nan), "numpy.ma.masked_invalid"),
        (np.full((4, 5), np.inf), "to inf"),
        (np.dstack([gradient() / 255, np.full((20, 30), 2.0)]), "opacity"),
        (torch.zeros((5, 4, 3), dtype=torch.uint8), ".permute(2, 0, 1)"),
        (torch.zeros((1, 3, 4, 5), dtype=torch.uint8), "images[0]"),
        (torch.zeros((2, 4, 5), dtype=torch.uint8), "channels first"),
        (torch.zeros((3, 4, 5), dtype=torch.bool), "truth values"),
        (torch.zeros((3, 0, 5)), "at least one pixel"),
        (torch.zeros((3, 4, 5), device="meta"), "no values"),
        (torch.zeros((4, 5)).to_sparse(), "sparse"),
        (io.BytesIO(b""), ".seek(0)"),
        (io.StringIO("text"), '"rb"'),
        (Image.new("RGB", (0, 3)), "at least one pixel"),
    ],
)
def test_wrong_arrays_and_images(source: object, words: str) -> None:
    assert words in message_of(source)


@pytest.mark.parametrize("source", [None, 5, ["a.png"], {"a": 1}, gradient().tolist()])
def test_another_type_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a path, bytes, .* got builtins\."):
        read_image(source)
    assert not is_one_image(source)


def test_save_png_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_text("older")
    save_png(Image.fromarray(gradient()), path)
    np.testing.assert_array_equal(read_image(path), gradient())
    assert names_in(tmp_path) == ["image.png"]


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.png"  # 255 bytes: what common file systems allow.
    save_png(Image.new("RGB", (1, 1)), path)
    with pytest.raises(OSError, match="directory: '.*/deeper'"):
        save_png(Image.new("RGB", (1, 1)), path / "deeper")


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    for name, words in (("pipe", "a named pipe"), ("loop", "itself"), ("gone", "that is missing")):
        path = tmp_path / f"{name}.png"
        text = message_of(path)
        assert words in text
        assert text.startswith(f"{path}: ")


def test_heic_where_its_package_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(gradient())).save(stream, quality=100)
    assert np.abs(read_image(stream.getvalue()).astype(int) - gradient()).max() < 16


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # Pillow hands this to Ghostscript.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "starts with b'%!PS-Adobe"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), 'pip install "resclip[heif]"'),
        (b"8BPS\0\x01" + bytes(200), "got PSD"),
        (png((1, 1), 8, 3, b"\0"), "palette"),
    ],
)
def test_kinds_that_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "image.png").write_bytes(data)
    assert words in message_of(tmp_path / "image.png")
    assert words in message_of(data)


def test_more_memory_than_may_be_taken(tmp_path: Path) -> None:
    """A small file may stand for many pixels."""
    path = tmp_path / "image.png"
    Image.new("1", (400, 300)).save(path)
    deep = tmp_path / "deep.tif"
    deep.write_bytes(tiff(np.zeros((1, 300, 400), np.uint16)))
    for source in (
        path,
        path.read_bytes(),
        Image.open(path),
        deep,
        np.zeros((300, 400, 3), np.uint8),
    ):
        options = ReadOptions(limits=Limits(max_memory=16 * 119_999))
        with pytest.raises(
            ImageError, match=r"at most 119,999 pixels, .* got 120,000; raise max_memory="
        ):
            read_picture(source, options)
        enough = ReadOptions(limits=Limits(max_memory=16 * 120_000))
        assert read_picture(source, enough).pixels.shape == (300, 400, 3)


def test_more_bytes_than_may_be_held(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(gradient()).save(path)
    options = ReadOptions(limits=Limits(max_bytes=50))
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match=r"at most 50 bytes, got .* raise max_bytes="):
            read_picture(source, options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"bands": (1, 2)}, ValueError, "three, for red, green and blue"),
        ({"bands": (0,)}, ValueError, "numbers from 1"),
        ({"bands": (" ",)}, ValueError, "empty name"),
        ({"bands": "321"}, TypeError, r"as in bands=\(4, 3, 2\)"),
        ({"bands": (1.5,)}, TypeError, "whole numbers or names"),
        ({"value_range": (5, 5)}, ValueError, "low < high"),
        ({"value_range": (0, float("nan"))}, ValueError, "low < high"),
        ({"value_range": (0, 1, 2)}, ValueError, "3 values"),
        ({"value_range": 255}, TypeError, r"\(low, high\)"),
        ({"value_range": (0, "9")}, TypeError, "two numbers"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ReadOptions(**options)


@pytest.mark.parametrize(
    ("limits", "error", "words"),
    [
        ({"max_pixels": 0}, ValueError, "max_pixels must be at least 1"),
        ({"max_bytes": None}, TypeError, "max_bytes must be an integer"),
        ({"timeout": float("inf")}, ValueError, "timeout must be a positive"),
        ({"timeout": "60"}, TypeError, "number of seconds"),
    ],
)
def test_wrong_limits(limits: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Limits(**limits)


@pytest.mark.parametrize("dtype", ("int16", "uint16", "int32", "int64", "float32"))
def test_opacity_of_bytes_in_a_wider_type(dtype: str) -> None:
    """Opaque is opaque, whatever the type holds."""
    opacity = np.where(np.arange(30) < 5, 0, 255) + np.zeros((20, 1), int)
    image = np.dstack([gradient(), opacity])
    wanted = read_picture(image.astype(np.uint8))
    picture = read_picture(image.astype(dtype), ReadOptions(value_range=(0, 255)))
    np.testing.assert_array_equal(picture.absent, wanted.absent)
    np.testing.assert_array_equal(picture.pixels, wanted.pixels)
    with pytest.raises(ImageError, match="opacity, the fourth channel, from 0 to 1, 255 or 65,535"):
        read_picture(image.astype(np.int32) * 4000, ReadOptions(value_range=(0, 255)))
