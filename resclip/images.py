"""Pictures in and out: any source becomes one plain array, and a PIL image becomes a file.

Knows Pillow and NumPy. Knows no model, no tensor and no class. Everything that can be wrong with a
picture file ends here, as one sentence.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from resclip.files import write_atomically

__all__ = [
    "MAX_PIXELS",
    "ImageError",
    "ImageSource",
    "PixelArray",
    "read_image",
    "resize",
    "resize_shape",
    "save_png",
]

PixelArray: TypeAlias = NDArray[np.uint8]
ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused: Pillow's own limit, about 0.5 GB of pixels."""

# What Pillow's decoders are seen to raise on damaged files, beside their own OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

# Image.MAX_IMAGE_PIXELS and the warning filters belong to the whole process.
_PILLOW_SETTINGS = threading.Lock()


class ImageError(ValueError):
    """A picture that cannot be read, with what was expected, what came and what to do."""


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> PixelArray:
    """Read a picture as sRGB-like bytes, (H, W, 3) uint8, C-contiguous.

    Args:
        source: a path, a PIL image, or an (H, W, 3) uint8 array.
        max_pixels: the largest H * W to decode. Raise it for a large picture you trust.

    An EXIF orientation is applied. Animated pictures give their first frame. Transparent pixels
    are composited over white. 16-bit greyscale is scaled to 8 bits; greyscale, palette and CMYK
    pictures are converted. An array is returned as it is (not copied) where it is contiguous.

    Raises:
        ImageError: the file is missing, empty, damaged, no picture or over `max_pixels`; the array
            has another shape or dtype.
        TypeError: `source` is something else altogether.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    if isinstance(source, Image.Image):
        _check_size(source, "the picture", max_pixels)
        return _decode(source, "the picture")
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), max_pixels)
    raise TypeError(
        "expected a path, a PIL image or an (H, W, 3) uint8 array, "
        f"got {type(source).__module__}.{type(source).__qualname__}; convert the picture first"
    )


def resize_shape(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """The (height, width) that keeps the ratio and fits `short_side` and `long_side`, in pixels.

    scale = min(long_side / longer side, short_side / shorter side); each side becomes
    int(side * scale + 0.5), and at least 1.

    Raises:
        ValueError: any argument is below 1.
    """
    if min(height, width, short_side, long_side) < 1:
        raise ValueError(
            "expected sizes of at least 1 pixel, got "
            f"{height} x {width} to fit short side {short_side}, long side {long_side}"
        )
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(image: PixelArray, size: tuple[int, int]) -> PixelArray:
    """Bilinear, without antialiasing, on bytes, as OpenCV's INTER_LINEAR: within one grey level.

    The interpolation weights are OpenCV's 11-bit integers and so are the shifts: most sizes agree
    with it exactly.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) wanted, in pixels.

    Returns:
        (height, width, 3) uint8; `image` itself where the size is already right.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"expected a size of at least 1 x 1 pixels, got {height} x {width}")
    if image.shape[:2] == (height, width):
        return image
    top, bottom, top_weight, bottom_weight = _bilinear_taps(image.shape[0], height)
    left, right, left_weight, right_weight = _bilinear_taps(image.shape[1], width)
    rows = image[:, left] * left_weight[:, None]  # [H, width, 3], at most 255 * 2^11
    rows += image[:, right] * right_weight[:, None]
    rows >>= 4
    upper = (rows[top] * top_weight[:, None, None]) >> 16  # [height, width, 3]
    lower = (rows[bottom] * bottom_weight[:, None, None]) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write `image` as a PNG file, whole or not at all.

    Raises:
        OSError: the directory is missing, is not writable or is full.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def _bilinear_taps(
    length: int, new_length: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
    """For each new position along one side: two old positions, and their weights out of 2048."""
    step = 1.0 / (new_length / length)  # OpenCV's own detour: the last bit decides some weights.
    position = ((np.arange(new_length) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.intp)
    fraction = position - first.astype(np.float32)
    fraction[(first < 0) | (first >= length - 1)] = 0.0
    first = first.clip(0, length - 1)
    second = np.minimum(first + 1, length - 1)
    first_weight = np.rint((1 - fraction) * 2048).astype(np.int32)
    second_weight = np.rint(fraction * 2048).astype(np.int32)
    return first, second, first_weight, second_weight


def _check_array(array: NDArray[np.uint8]) -> PixelArray:
    if array.dtype != np.uint8:
        raise ImageError(
            f"expected a picture of dtype uint8 (0 to 255), got {array.dtype}; "
            "scale it to 0..255 and convert it with .astype(numpy.uint8)"
        )
    if array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"expected a picture of shape (height, width, 3), got {array.shape}; "
            "put the three colour channels last"
        )
    if array.size == 0:
        raise ImageError(f"expected at least one pixel, got a picture of shape {array.shape}")
    return np.ascontiguousarray(array)


def _read_file(path: Path, max_pixels: int) -> PixelArray:
    try:
        is_directory, size = path.is_dir(), path.stat().st_size
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be opened ({_reason(error)}); check the path") from error
    if is_directory:
        raise ImageError(f"{path}: expected a picture file, got a directory; name its pictures")
    if size == 0:
        raise ImageError(f"{path}: expected a picture, got an empty file; get the file again")
    try:
        image = _open(path)
    except UnidentifiedImageError:
        raise ImageError(_not_a_picture(path)) from None
    except _DECODE_ERRORS as error:
        raise ImageError(_damaged(str(path), error)) from error
    with image:
        _check_size(image, str(path), max_pixels)
        return _decode(image, str(path))


def _open(path: Path) -> Image.Image:
    """Image.open, which reads the header alone, without its limit: `max_pixels` takes its place.

    Silent: what matters is raised, not warned of.
    """
    with _PILLOW_SETTINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        former = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = former


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels == 0:
        raise ImageError(f"{name}: expected at least one pixel, got {image.width} x {image.height}")
    if pixels > max_pixels:
        raise ImageError(
            f"{name}: expected at most {max_pixels:,} pixels, got {pixels:,}, which may be a file "
            "made to exhaust memory; scale it down, or raise max_pixels if you trust it"
        )


def _decode(image: Image.Image, name: str) -> PixelArray:
    """The first frame of `image`, upright, opaque, 8 bits a channel: (H, W, 3) uint8."""
    try:
        image.load()
        image = _upright(image)
        if image.mode.startswith(("I", "F")):
            image = _to_8_bits(image, name)
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            image.alpha_composite(layer)
        return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8))
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise ImageError(_damaged(name, error)) from error


def _upright(image: Image.Image) -> Image.Image:
    """`image` with its EXIF orientation applied, or as stored where the EXIF block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:
        return image


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name}: expected 8 or 16 bits a channel, got 32 ({image.mode}, from {values.min():g} "
            f"to {values.max():g}); convert the picture to 8 bits first"
        )
    # 65535 / 255 = 257 exactly; adding half of it rounds to nearest.
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    """The error's own words, in one line without a file name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _damaged(name: str, error: Exception) -> str:
    return (
        f"{name}: expected a whole picture, got one that is cut short or damaged "
        f"({_reason(error)}); get the file again or convert it to PNG"
    )


def _not_a_picture(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(16)
    return (
        f"{path}: expected a picture (PNG, JPEG, WebP, TIFF, GIF, ...), got a file that starts "
        f"with {start!r}; convert it to PNG or leave it out"
    )
