"""Reading text files, and writing files so that they are complete or not there at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Self

# What Windows, the strictest system, does not allow in the name of a file or folder: letters, ends and devices.
_UNSAFE = re.compile(r'[<>:"\\|?*\x00-\x1f\x7f]|[. ]\Z')
_DEVICES = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE
)


TEXT_BYTES = 1 << 24
"""Most bytes of a file that is read as text, 16 MiB: lists of names are a thousandth of it."""


def is_file(text: str) -> bool:
    """Whether a text, of whatever content, is the path of a file, or of a pipe as a shell's `<(...)` is."""
    try:
        path = Path(text)
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # Too long for a path, or with a null character in it.
        return False


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no file and no link to one: reading a pipe, a socket or a device may wait for ever.

    Raises:
        OSError: it is something else, or missing; names the path.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - a third of the time of pathlib's.
    except OSError as error:
        if Path(path).is_symlink():
            end = "itself" if error.errno == errno.ELOOP else "a file that is missing"
            text = f"expected a file, got a link to {end}; remove it"
            raise OSError(error.errno, text, str(path)) from error
        raise
    except ValueError:
        text = "expected a path, got one with a null character in it; check it"
        raise OSError(errno.EINVAL, text, str(path)) from None
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "expected a file, got a folder", str(path))
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    text = f"expected a file, got {kind}; write what comes from it to a file, or leave it out"
    raise OSError(errno.EINVAL, text, str(path))


def read_text(path: str | os.PathLike[str], expected: str) -> str:
    """The text of a UTF-8 file, without its byte-order mark.

    Args:
        path: of a file or a pipe.
        expected: the expected content, for the error: "class names, one per line".

    Raises:
        ValueError: the file is not UTF-8, or has more than `TEXT_BYTES`.
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as stream:
        data = stream.read(TEXT_BYTES + 1)
    if len(data) > TEXT_BYTES:
        raise ValueError(
            f"{path}: expected {expected}, in at most {TEXT_BYTES >> 20} MiB, got a larger file; is it another one?"
        )
    try:
        with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig") as text:
            return text.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected {expected}, in UTF-8, got other bytes at position {error.start}; "
            "save the file as UTF-8"
        ) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OSError: it cannot be made, or a file has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(
            errno.ENOTDIR, "expected a folder, got a file of that name", str(folder)
        ) from None


def portable_part(part: str) -> str:
    """A part of a path, between two slashes, as every system allows it.

    What some system does not allow becomes its code, as in a web address: "a:b" is "a%3Ab", and "CON.txt", which is a
    device of Windows, "%43ON.txt".
    """
    safe = _UNSAFE.sub(lambda match: code_of(match[0]), part)
    return code_of(safe[0]) + safe[1:] if _DEVICES.fullmatch(safe) else safe


def code_of(letter: str) -> str:
    """An ASCII letter as in a web address: ":" is "%3A"."""
    return f"%{ord(letter):02X}"


def temporary_name() -> str:
    """A new name for a file that is being written: short, as the target's may be as long as the file system allows."""
    return f".resclip-{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a name is one by `temporary_name`."""
    return name.startswith(".resclip-") and name.endswith(".tmp")


class NewFile:
    """An empty file under a temporary name beside `target`, which it replaces when it is published.

    As a context manager it removes the temporary file unless it was published, and errors of its block name the target.

    Attributes:
        target: the final path.
        path: the temporary path, to write to until then.

    Raises:
        OSError: the directory is missing, is not a directory or is not writable.
    """

    def __init__(self, target: str | os.PathLike[str]) -> None:
        self.target = Path(target)
        self.path = self.target.with_name(temporary_name())
        self._published = False
        try:
            self.path.open("xb").close()
        except OSError as error:
            raise self.failure(error) from error

    def publish(self) -> None:
        """Replace the target in one step, after the bytes are on the disk: a power failure leaves the old or the new.

        Raises:
            OSError: the disk is full or fails.
        """
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.path.replace(self.target)
        self._published = True

    def discard(self) -> None:
        """Remove the temporary file, unless it was published."""
        if not self._published:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def failure(self, error: OSError) -> OSError:
        """The same error with the target's name; errors of GDAL, which have no number, become EIO."""
        if error.errno is None:
            return OSError(errno.EIO, f"not written ({error})", str(self.target))
        return OSError(error.errno, error.strerror or str(error), str(self.target))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()
        if isinstance(error, OSError):
            raise self.failure(error) from error


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file `path` when the block ends, or leave `path` as it was; see `NewFile`.

    Raises:
        OSError: the directory is missing, is not a directory, is not writable or is full.
    """
    with NewFile(path) as file:
        with file.path.open("rb+") as stream:
            yield stream
        file.publish()


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, or leave `path` as it was; raises as `atomic_file`."""
    with atomic_file(path) as stream:
        stream.write(data)
