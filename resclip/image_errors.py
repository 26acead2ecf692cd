"""Everything that can be wrong with a picture file, each as one sentence.

Knows paths, sizes and the words; knows neither a decoder nor a pixel.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# How files of the commonest formats begin: one of these that cannot be read is damaged or rare.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# The warning filters belong to the whole process.
_WARNING_FILTERS = threading.Lock()


class ImageError(ValueError):
    """A picture that cannot be read, with what was expected, what came and what to do."""


def check_file(path: Path, name: str) -> None:
    """Refuse what is no file with something in it; `name` is what errors call it.

    Raises:
        ImageError: nothing is there, or it is a directory, empty or out of reach.
    """
    try:
        is_directory, size = path.is_dir(), path.stat().st_size
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ImageError(unreachable(name, error)) from error
    if is_directory:
        raise ImageError(f"{name}: expected a picture file, got a directory; name its pictures")
    if size == 0:
        raise ImageError(f"{name}: expected a picture, got an empty file; get the file again")


def check_size(width: int, height: int, name: str, max_pixels: int | None) -> None:
    """Refuse no pixels at all, and more than `max_pixels` (None: any number).

    Raises:
        ImageError: it is one of these.
    """
    pixels = width * height
    if pixels == 0:
        raise ImageError(f"{name}: expected at least one pixel, got {width} x {height}")
    if max_pixels is not None and pixels > max_pixels:
        raise ImageError(too_large(name, f"{pixels:,}", max_pixels))


def too_large(name: str, came: str, max_pixels: int) -> str:
    """The sentence for a picture with more than `max_pixels`; `came` says how many."""
    return (
        f"{name}: expected at most {max_pixels:,} pixels, got {came}, which may be a file "
        "made to exhaust memory; scale it down, or raise max_pixels if you trust it"
    )


def unreachable(name: str, error: Exception) -> str:
    """The sentence for a file that the system does not open, with its reason."""
    return f"{name}: cannot be opened ({_reason(error)}); check the path"


def damaged(name: str, error: BaseException) -> str:
    """The sentence for a picture that a decoder gave up on, with its reason."""
    return (
        f"{name}: expected a whole picture, got one that is cut short or damaged "
        f"({_reason(error)}); get the file again or convert it to PNG"
    )


def unknown_format(name: str, start: bytes) -> str:
    """The sentence for a file that no decoder knows, from its first 16 bytes."""
    if start.startswith(_SIGNATURES):
        return (
            f"{name}: expected a picture of a common kind, got one whose header is damaged or names "
            "a rare kind; get the file again or convert it to 8-bit PNG"
        )
    return (
        f"{name}: expected a picture (PNG, JPEG, WebP, TIFF, GIF, ...), got a file that starts "
        f"with {start!r}; convert it to PNG or leave it out"
    )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence, for one thread at a time: what matters is raised, not warned of."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: BaseException) -> str:
    """The error's own words, in one line without a file name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
