"""Reading text from files, and writing files so that nothing is ever left half-written.

Knows the file system; knows nothing of images, classes or models.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
    """Write `data` to `path`, or leave `path` as it was; see `atomic_file`.

    Raises:
        OSError: the directory is missing, is not a directory, is not writable or is full.
    """
    with atomic_file(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file `path` when the block ends, or leave `path` as it was.

    The bytes go to a temporary name in the same directory and on to the disk; the file then replaces `path` in one
    step. If anything fails on the way the temporary file is removed. After a power failure `path` is the old file or
    the new one; to be sure of the new one, `sync_folder` its directory.

    Raises:
        OSError: the directory is missing, is not a directory, is not writable or is full.
    """
    target = Path(path)
    temporary = target.with_name(temporary_name())
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # Else the new name may outlive a power failure, empty.
        temporary.replace(target)
    except OSError as error:
        _remove(temporary)
        # In the name of the file that was asked for; the class follows from the number.
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    except BaseException:  # Ctrl-C, most likely.
        _remove(temporary)
        raise


def temporary_name() -> str:
    """A new name for a file that is being written: short, as the target's may be as long as the file system allows."""
    return f".resclip-{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that was being written, by this library."""
    return name.startswith(".resclip-") and name.endswith(".tmp")


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring the names in a folder to the disk: 5 ms on ext4, however many are new.

    Raises:
        OSError: there is no such folder, or the disk fails.
    """
    if os.name == "nt":  # Folders cannot be opened there; NTFS keeps a journal of names.
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (
        PermissionError
    ):  # Names may be added to a folder, or passed through it, that may not be read.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such call for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they outlive a power failure.

    Raises:
        OSError: it cannot be made, or something else is in its place.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(
            errno.ENOTDIR, "expected a folder, got a file of that name", str(folder)
        ) from None
    sync_folder(folder.parent)


def _remove(path: Path) -> None:
    # It may never have been made; where its directory is none, unlink fails as open did.
    with contextlib.suppress(OSError):
        path.unlink()
