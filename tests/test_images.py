"""Reading, resizing and writing pictures: values where they can be known, one sentence where not."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resclip.files import write_atomically
from resclip.images import ImageError, read_image, resize, resize_shape, save_png

RED, WHITE = (255, 0, 0), (255, 255, 255)


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    channels = (rows * 255 // max(1, height - 1), columns * 255 // max(1, width - 1), rows * 0 + 77)
    return np.stack(channels, axis=2).astype(np.uint8)


def assert_plain(pixels: np.ndarray, shape: tuple[int, int]) -> None:
    assert pixels.shape == (*shape, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


def test_path_string_image_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = gradient()
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    for source in (path, str(path), Image.open(path), pixels):
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
    upright[:4, :4] = RED  # Top left tells all eight orientations apart on an oblong picture.
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
def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(gradient()).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f", quality=95)
    assert_plain(read_image(path), (20, 30))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "print.tif"
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(path)
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(RED, (4, 5, 3)))


def test_16_bit_grey_is_scaled_to_the_nearest_level(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        came = read_image(tmp_path / name)
        assert_plain(came, (1, 6))
        np.testing.assert_array_equal(came[0, :, 0], np.rint(values[0] / 257))
        assert (came == came[:, :, :1]).all()


def test_16_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    deep = np.full((2, 3, 3), (0x12FF, 0x34FF, 0x5600), np.uint16)
    cv2.imwrite(str(path), deep[:, :, ::-1])
    came = read_image(path).astype(int)
    assert np.abs(came - deep / 257).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "grey.png"
    Image.new(mode, (3, 2), 255).save(path)
    np.testing.assert_array_equal(read_image(path), np.full((2, 3, 3), 255))


def test_palette_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    picture = Image.new("P", (3, 2), 1)
    picture.putpalette([0, 0, 0, *RED])
    picture.save(path)
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(RED, (2, 3, 3)))


def test_transparent_palette_shows_white(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([0, 0, 0, *RED])
    picture.save(path, transparency=0)
    np.testing.assert_array_equal(read_image(path)[0], [WHITE, RED])


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp"])
def test_alpha_is_composited_over_white(tmp_path: Path, name: str) -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 128], [0, 0, 0, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    came = read_image(tmp_path / name).astype(int)
    assert np.abs(came[0] - [RED, (255, 127, 127), WHITE]).max() <= 1


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


def message_of(source: object, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "name", ["cut.png", "cut.jpg", "cut.webp", "cut.bmp", "cut.tif", "cut.gif"]
)
@pytest.mark.parametrize("kept", [0.4, 0.9])
def test_cut_short(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    text = message_of(path)
    assert str(path) in text
    # A TIFF whose directory is gone, as it stands at the end, is no picture at all.
    assert "cut short or damaged" in text or "expected a picture" in text


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_is_an_image_error_or_a_picture(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"picture.{data.draw(st.sampled_from(['png', 'jpg', 'gif', 'webp', 'tif']))}"
    Image.fromarray(gradient(9, 12)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    message = str(path)
    try:
        pixels = read_image(path, max_pixels=10**6)
        assert_plain(pixels, pixels.shape[:2])
    except ImageError as error:
        message = str(error)
    assert str(path) in message


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "nothing.png"
    path.touch()
    assert "empty file" in message_of(path)


def test_text_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("dear diary")
    text = message_of(path)
    assert "expected a picture" in text
    assert "dear diary" in text


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "no such file" in message_of(tmp_path / "absent.png")
    assert "got a directory" in message_of(tmp_path)


def test_impossible_paths(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be opened" in message_of(tmp_path / "file" / "picture.png")
    assert "cannot be opened" in message_of("picture\0.png")
    assert "cannot be opened" in message_of("x" * 5000)


def test_pixel_limit_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (400, 300)).save(path)
    text = message_of(path, max_pixels=100_000)
    assert "120,000" in text
    assert "max_pixels" in text
    assert "120,000" in message_of(Image.open(path), max_pixels=100_000)
    assert read_image(path, max_pixels=120_000).shape == (300, 400, 3)


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


@pytest.mark.parametrize("source", [None, 3, b"bytes", [[0]]])
def test_wrong_kind(source: object) -> None:
    with pytest.raises(TypeError, match="expected a path, a PIL image or an"):
        read_image(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "short", "wanted"),
    [
        ((375, 500), 336, (336, 448)),
        ((500, 375), 336, (448, 336)),
        ((1024, 2048), 560, (560, 1120)),
        ((100, 1000), 336, (205, 2048)),  # The long side decides: 100 * 2.048 = 204.8.
        ((1, 5000), 336, (1, 2048)),  # 0.4 rounds to nothing; a picture has at least one row.
        ((1, 1), 336, (336, 336)),
    ],
)
def test_resize_shape(size: tuple[int, int], short: int, wanted: tuple[int, int]) -> None:
    assert resize_shape(*size, short, 2048) == wanted


def test_resize_shape_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        resize_shape(0, 5, 336, 2048)


@given(
    old=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    new=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_resize_is_opencv_s_within_one_level(
    old: tuple[int, int], new: tuple[int, int], seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    wanted = cv2.resize(pixels, new[::-1], interpolation=cv2.INTER_LINEAR).astype(int)
    came = resize(pixels, new)
    assert_plain(came, new)
    assert np.abs(came - wanted).max() <= 1


@pytest.mark.parametrize("old", [(375, 500), (512, 683), (1080, 1920)])
def test_resize_is_opencv_s_but_for_one_value_in_a_thousand(old: tuple[int, int]) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (*old, 3), dtype=np.uint8)
    new = resize_shape(*old, 336, 2048)
    wanted = cv2.resize(pixels, new[::-1], interpolation=cv2.INTER_LINEAR)
    assert (resize(pixels, new) != wanted).mean() < 1e-3


def test_resize_to_the_same_size_and_to_nothing() -> None:
    pixels = gradient()
    assert resize(pixels, (20, 30)) is pixels
    with pytest.raises(ValueError, match="at least 1 x 1"):
        resize(pixels, (0, 3))


def test_save_png_round_trip_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_text("older")
    save_png(Image.fromarray(gradient()), path)
    np.testing.assert_array_equal(read_image(path), gradient())
    assert os.listdir(tmp_path) == ["picture.png"]  # noqa: PTH208


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.bin"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.bin"]


def test_writing_where_no_directory_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.png", tmp_path / "absent" / "x.png"):
        with pytest.raises(OSError, match="directory"):
            save_png(Image.new("RGB", (1, 1)), path)


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.png"  # 255 bytes: what common file systems allow.
    save_png(Image.new("RGB", (1, 1)), path)
    assert path.exists()
