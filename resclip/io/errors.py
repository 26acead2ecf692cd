"""What is said of an image that cannot be read: what was expected, what came and what to do."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resclip.errors import reason
from resclip.io.files import check_regular
from resclip.io.limits import BYTES_PER_PIXEL, Limits
from resclip.io.signatures import kind_of_image

MAX_PIXELS = 178_956_970
"""Images with more pixels are not decoded whole: Pillow's own limit, about 0.5 GB of pixels."""

READ_KINDS = "PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF, JPEG 2000, PNM"
"""The kinds of images that are always read, for messages."""

# Held while warning filters are changed, since they belong to the whole process.
_WARNING_FILTERS = threading.Lock()


class ImageError(ValueError):
    """An image that cannot be read; the message says what was expected, what came and what to do."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppresses warnings, in one thread at a time: what matters is raised as an error."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever a decoder raises in the block becomes an `ImageError`: hostile files make it raise anything.

    Args:
        name: what the error calls the image.
    """
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(damaged(name, error)) from error


def check_file(path: Path, name: str) -> int:
    """The size in bytes of a regular, non-empty file; errors call it `name`.

    What is no regular file, a named pipe as it may be, is never opened: it could be waited for without end.

    Raises:
        ImageError: it is missing, a folder, a special file, empty or out of reach.
    """
    try:
        check_regular(path)
        size = path.stat().st_size
    except OSError as error:
        why = reason(error)
        if isinstance(error, IsADirectoryError):
            why = "expected an image file, got a directory; name its images"
        elif not why.startswith("expected "):  # The system's words.
            if not isinstance(error, FileNotFoundError):
                raise ImageError(unreachable(name, error)) from error
            why = "no such file; check the path"
            if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
                why = "expected a file of this machine, got a URL; download it, or use `resclip segment`"
        raise ImageError(f"{name}: {why}") from None
    if size == 0:
        raise ImageError(f"{name}: expected an image, got an empty file; get the file again")
    return size


def check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    """ImageError for an image without pixels, or with more than `max_pixels`."""
    pixels = width * height
    if pixels == 0:
        raise ImageError(f"{name}: expected at least one pixel, got {width} x {height}")
    if pixels > max_pixels:
        raise ImageError(too_large(name, f"{pixels:,}", max_pixels))


def check_whole(width: int, height: int, name: str, limits: Limits) -> None:
    """ImageError for an image without pixels, or with more than may be decoded whole."""
    check_size(width, height, name, limits.max_pixels or MAX_PIXELS)
    if limits.max_memory is not None and width * height > limits.max_memory // BYTES_PER_PIXEL:
        raise ImageError(
            f"{name}: expected at most {limits.max_memory // BYTES_PER_PIXEL:,} pixels, for which the memory suffices "
            f"that may be used, got {width * height:,}; raise max_memory=, or scale it down"
        )


def check_bytes(size: int, name: str, max_bytes: int) -> None:
    """ImageError for an encoded image of more than `max_bytes`."""
    if size > max_bytes:
        raise ImageError(
            f"{name}: expected at most {max_bytes:,} bytes, got {size:,}; check that it is an image, or raise "
            "max_bytes= if you trust it"
        )


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
    why = reason(error)
    # What a decoder raises by mistake, such as "list index out of range", tells a person nothing.
    known = isinstance(error, (OSError, SyntaxError, EOFError)) and not isinstance(
        error, UnicodeError
    )
    return (
        f"{name}: expected a whole image, got one that is cut short or damaged"
        f"{f' ({why[:120]})' if known and why else ''}; get the file again or convert it to PNG"
    )


def unknown_format(name: str, start: bytes) -> str:
    """The message for a file that is no image of a kind that is read, by its first bytes."""
    kind = kind_of_image(start)
    if kind is None:
        return (
            f"{name}: expected an image ({READ_KINDS}, ...), got a file that starts with {start[:12]!r}; "
            "convert it to PNG or leave it out"
        )
    if kind == "HEIC":
        return (
            f'{name}: expected a package that reads HEIC, found none; pip install "resclip[heif]", or '
            "convert the image to JPEG"
        )
    return (
        f"{name}: expected an image of a kind that is read here ({READ_KINDS}), got {kind}; "
        "convert it to PNG"
    )
