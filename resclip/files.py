"""Writing files so that nothing is ever left half-written.

Knows the file system; knows nothing of pictures, classes or models.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["write_atomically"]


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
