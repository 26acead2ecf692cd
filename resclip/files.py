"""Reading text from files, and writing files so that nothing is ever left half-written.

Knows the file system; knows nothing of pictures, classes or models.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["is_file", "read_text", "write_atomically"]


def is_file(text: str) -> bool:
    """Whether any text at all is the path of something to read: a file, or a pipe, as a shell's `<(...)` is."""
    try:
        path = Path(text)
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # Too long for a path, or with a null character in it.
        return False


def read_text(path: str | os.PathLike[str], expected: str) -> str:
    """The text of a UTF-8 file, without its byte-order mark.

    Args:
        path: of the file; a pipe will do.
        expected: what the file should hold, for the error: "class names, one a line".

    Raises:
        ValueError: the file is not UTF-8.
        OSError: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected {expected}, in UTF-8, got other bytes at position {error.start}; "
            "save the file as UTF-8"
        ) from None


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, or leave `path` as it was.

    The bytes go to a temporary name in the same directory, which then replaces `path` in one
    step; if anything fails on the way the temporary file is removed.

    Raises:
        OSError: the directory is missing, is not a directory, is not writable or is full.
    """
    target = Path(path)
    # A short name of its own: the target's name may already be as long as the file system allows.
    temporary = target.with_name(f".resclip-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
        temporary.replace(target)
    except OSError as error:
        _remove(temporary)
        # In the name of the file that was asked for; the class follows from the number.
        raise OSError(error.errno, error.strerror, str(target)) from error
    except BaseException:  # Ctrl-C, most likely.
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    # It may never have been made; where its directory is none, unlink fails as open did.
    with contextlib.suppress(OSError):
        path.unlink()
