"""Images in and out: any source becomes one plain array, and a PIL image becomes a file.

Whatever can be wrong with an image file is reported as an `ImageError` of one sentence.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TiffImageFile,
)

from resclip.errors import reason
from resclip.io.files import write_atomically
from resclip.io.resize import PixelArray as PixelArray  # noqa: PLC0414 - exported from here too

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"

MAX_PIXELS = 178_956_970
"""Images with more pixels are refused: Pillow's own limit, about 0.5 GB of pixels."""

# First bytes of the commonest formats: a file that starts so and cannot be read is damaged or of a rare kind.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,  # A frame or a tile far larger than its header says.
)
"""Errors that Pillow's decoders have been seen to raise on damaged files."""

# Held while warning filters are changed, since they belong to the whole process.
_WARNING_FILTERS = threading.Lock()


class ImageError(ValueError):
    """An image that cannot be read; the message says what was expected, what came and what to do."""


def check_file(path: Path, name: str) -> None:
    """Refuse a path that is no readable, non-empty file; errors call it `name`.

    Raises:
        ImageError: it is missing, a directory, empty or out of reach.
    """
    try:
        is_directory, size = path.is_dir(), path.stat().st_size
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ImageError(unreachable(name, error)) from error
    if is_directory:
        raise ImageError(f"{name}: expected an image file, got a directory; name its images")
    if size == 0:
        raise ImageError(f"{name}: expected an image, got an empty file; get the file again")


def check_size(width: int, height: int, name: str, max_pixels: int | None) -> None:
    """ImageError for an image without pixels, or with more than `max_pixels` (None: any number)."""
    pixels = width * height
    if pixels == 0:
        raise ImageError(f"{name}: expected at least one pixel, got {width} x {height}")
    if max_pixels is not None and pixels > max_pixels:
        raise ImageError(too_large(name, f"{pixels:,}", max_pixels))


def too_large(name: str, came: str, max_pixels: int) -> str:
    """The message for an image with more than `max_pixels`; `came` says how many."""
    return (
        f"{name}: expected at most {max_pixels:,} pixels, got {came}, which may be a file "
        "made to exhaust memory; scale it down, or raise max_pixels= if you trust it"
    )


def unreachable(name: str, error: Exception) -> str:
    """The message for a file that the system does not open, with its reason."""
    return f"{name}: cannot be opened ({reason(error)}); check the path"


def damaged(name: str, error: BaseException) -> str:
    """The message for an image that a decoder gave up on, with its reason."""
    return (
        f"{name}: expected a whole image, got one that is cut short or damaged "
        f"({reason(error)}); get the file again or convert it to PNG"
    )


def unknown_format(name: str, start: bytes) -> str:
    """The message for a file that no decoder recognises, by its first 16 bytes."""
    if start.startswith(_SIGNATURES):
        return (
            f"{name}: expected an image of a common kind, got one whose header is damaged or names "
            "a rare kind; get the file again or convert it to 8-bit PNG"
        )
    return (
        f"{name}: expected an image (PNG, JPEG, WebP, TIFF, GIF, ...), got a file that starts "
        f"with {start!r}; convert it to PNG or leave it out"
    )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppresses warnings, in one thread at a time: what matters is raised as an error."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> PixelArray:
    """Read an image as sRGB-like bytes, (H, W, 3) uint8, C-contiguous.

    Args:
        source: a path, an encoded image's bytes, a PIL image, or an (H, W, 3) uint8 array.
        max_pixels: the largest H * W to decode. Raise it for a large image you trust.
        name: what errors call the image; by default its path.

    An EXIF orientation is applied. Animated images give their first frame. Transparent pixels
    are composited over white. 16-bit greyscale is scaled to the nearest of 8 bits, 16-bit colour
    keeps each channel's high byte; greyscale, palette and CMYK images are converted. A CMYK JPEG
    is taken as inverted, as Adobe and browsers do, whether it says so or not. An array is returned
    as it is (not copied) if it is contiguous.

    Raises:
        ImageError: the file is missing, empty, damaged, no image or over `max_pixels`; the array
            has another shape or dtype.
        TypeError: `source` is something else altogether.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source, name)
    if isinstance(source, Image.Image):
        name = name or "the image"
        check_size(source.width, source.height, name, max_pixels)
        return _decode(source, name)
    if isinstance(source, bytes):
        name = name or "the image"
        if not source:
            raise ImageError(f"{name}: expected an image, got no bytes; get the file again")
        return _read_encoded(io.BytesIO(source), name, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), name or str(source), max_pixels)
    raise TypeError(
        "expected a path, bytes, a PIL image or an (H, W, 3) uint8 array, "
        f"got {type(source).__module__}.{type(source).__qualname__}; convert the image first"
    )


def to_8_bits(values: NDArray[np.uint16]) -> PixelArray:
    """16 bits to the nearest of 8, as 65535 / 255 = 257 exactly: (v + 128) // 257, any shape."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def over_white(layer: Image.Image) -> Image.Image:
    """An image of mode RGBA composited over white: mode RGBA, opaque."""
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    white.alpha_composite(layer)
    return white


def encode_png(image: Image.Image) -> bytes:
    """`image` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write `image` as a PNG file, whole or not at all.

    Raises:
        OSError: the directory is missing, is not writable or is full.
    """
    write_atomically(path, encode_png(image))


def _check_array(array: NDArray[np.uint8], name: str | None) -> PixelArray:
    prefix = f"{name}: " if name else ""
    if array.dtype != np.uint8:
        raise ImageError(
            f"{prefix}expected an image of dtype uint8 (0 to 255), got {array.dtype}; "
            "scale it to 0..255 and convert it with .astype(numpy.uint8)"
        )
    if array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"{prefix}expected an image of shape (height, width, 3), got {array.shape}; "
            "put the three colour channels last"
        )
    if array.size == 0:
        raise ImageError(
            f"{prefix}expected at least one pixel, got an image of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _read_file(path: Path, name: str, max_pixels: int) -> PixelArray:
    check_file(path, name)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ImageError(unreachable(name, error)) from error
    with stream:
        return _read_encoded(stream, name, max_pixels)


def _read_encoded(stream: BinaryIO, name: str, max_pixels: int) -> PixelArray:
    try:
        image = _open(stream, max_pixels)
    except Image.DecompressionBombError as error:
        raise ImageError(too_large(name, "more than twice as many", max_pixels)) from error
    except UnidentifiedImageError:
        stream.seek(0)
        raise ImageError(unknown_format(name, stream.read(16))) from None
    except DECODE_ERRORS as error:
        raise ImageError(damaged(name, error)) from error
    with image:
        check_size(image.width, image.height, name, max_pixels)
        return _decode(image, name)


def _open(stream: BinaryIO, max_pixels: int) -> Image.Image:
    """Image.open, with `max_pixels` in place of its own limit; it stops at twice that many.

    It reads the header alone, but for WebP, whose canvas it makes, and ICO, which it decodes.
    """
    with without_warnings():
        former = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            return Image.open(stream)
        finally:
            Image.MAX_IMAGE_PIXELS = former


def _decode(image: Image.Image, name: str) -> PixelArray:
    """The first frame of `image`, upright, opaque, 8 bits per channel: (H, W, 3) uint8."""
    try:
        image.load()
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        if _are_planes_misread(image, tags):
            raise ImageError(
                f"{name}: expected 16-bit channels pixel by pixel, got one plane after the other, "
                "which Pillow misreads unless they are compressed; convert it to 8 bits"
            )
        image = _upright(image)
        if image.mode.startswith(("I", "F")):
            image = _narrow(image, name, white_is_zero=tags.get(PHOTOMETRIC_INTERPRETATION) == 0)
        if image.has_transparency_data:
            image = over_white(image.convert("RGBA"))
        return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8))
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        raise ImageError(damaged(name, error)) from error


def _are_planes_misread(image: Image.Image, tags: Mapping[int, Any]) -> bool:
    planes = tags.get(PLANAR_CONFIGURATION) == 2 and image.info.get("compression") == "raw"
    return planes and max(tags.get(BITSPERSAMPLE, (1,))) > 8


def _upright(image: Image.Image) -> Image.Image:
    """`image` with its EXIF orientation applied, or as stored if the EXIF block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image


def _narrow(image: Image.Image, name: str, *, white_is_zero: bool) -> Image.Image:
    """Deep greyscale in 8 bits, with the one value that a PNG calls transparent as white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name}: expected 8 or 16 bits per channel, got 32 ({image.mode}, from {values.min():g} "
            f"to {values.max():g}); convert the image to 8 bits first"
        )
    grey = to_8_bits(values.astype(np.uint16))
    if white_is_zero:  # Pillow inverts shallower images itself, and these not.
        grey = 255 - grey
    grey[values == image.info.get("transparency", -1)] = 255
    return Image.fromarray(grey)
