"""Where bytes lie: paths of this machine and URLs of any file system that fsspec knows, by the same few calls.

Knows paths, URLs and ranges of bytes. Knows no image, table or archive.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import posixpath
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urljoin, urlsplit

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
"""Which package opens what; fsspec itself names the rest."""

_UNTIDY = re.compile(r"(^|/)\.?(/|$)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def is_url(location: str) -> bool:
    """Whether a location is a URL, `file://` included."""
    return _SCHEME.match(location) is not None


def plain(location: str) -> str:
    """A location without a `file://` in front, and without a slash at its end."""
    for scheme in ("file://", "local://"):
        if location.lower().startswith(scheme):
            location = location[len(scheme) :]
    return location.rstrip("/") or "/"


def local_path(location: str) -> Path | None:
    """The path, where a location is one."""
    location = plain(location)
    return None if is_url(location) else Path(location)


def suffix(location: str) -> str:
    """The last suffix of a location's name, in small letters: ".jpg"; of a web address without its query."""
    if location.lower().startswith(("http://", "https://")):
        location = urlsplit(location).path
    return posixpath.splitext(location.replace(os.sep, "/"))[1].lower()


def parent(location: str) -> str:
    """The folder that a location lies in."""
    location = plain(location)
    if is_url(location):
        return location.rpartition("/")[0]
    return str(Path(location).parent)


def join(folder: str, location: str) -> str:
    """What `location` means to a file in `folder`: itself where it is a URL or absolute, else a place beside it."""
    if is_url(location):
        return plain(location)
    if not is_url(folder):
        if os.sep == "/" and not location.startswith("/") and not _UNTIDY.search(location):
            return location if folder == "." else f"{folder.rstrip('/')}/{location}"
        return str(Path(folder, location))  # The same, and 10 microseconds slower.
    if folder.lower().startswith(("http://", "https://")):
        return urljoin(f"{folder}/", location)
    scheme, _, path = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, location))}"


def inside(folder: str, location: str) -> str:
    """`location` relative to `folder` with "/" between names, where it lies below it; else `location` as it is."""
    if os.sep != "/" and not is_url(location):
        folder, location = (text.replace(os.sep, "/") for text in (folder, location))
    beginning = "" if folder == "." else folder.rstrip("/") + "/"
    return location.removeprefix(beginning)


def file_system(location: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        ImportError: it needs a package that is not there; the message names it.
        ValueError: nobody knows such URLs.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError(
            f'{location}: URLs need fsspec; pip install "resclip[batch]", or name local files'
        ) from None
    scheme = location.partition("://")[0].lower()
    try:
        opened, path = url_to_fs(location)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else reason(error)
        raise ImportError(
            f"{location}: expected a package that opens {scheme}:// URLs, found none; {remedy}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{location}: expected a path or a URL such as s3://, gs:// or https://, "
            f"got one that cannot be opened ({reason(error)}); check the address"
        ) from error
    return opened, str(path)


def open_binary(location: str) -> BinaryIO:
    """A seekable stream to read from; of a URL it fetches what is asked for.

    Raises:
        OSError: it cannot be opened.
        ImportError, ValueError: see `file_system`.
    """
    path = local_path(location)
    if path is not None:
        return path.open("rb")
    opened, inner = file_system(location)
    with naming(location):
        return cast("BinaryIO", opened.open(inner, "rb"))


def read_range(
    location: str, start: int = 0, length: int | None = None, limit: int | None = None
) -> bytes:
    """Bytes of a file: `length` from `start`, or all from `start` on.

    Raises:
        OSError: they cannot be read, or the file ends before.
        ValueError: there are more than `limit`; no more than these have been read.
        ImportError: see `file_system`.
    """
    most = length if length is not None else None if limit is None else limit + 1
    if limit is not None and length is not None and length > limit:
        raise _too_long(location, limit)
    path = local_path(location)
    if path is not None:
        with path.open("rb") as stream:
            stream.seek(start)
            data = stream.read(-1 if most is None else most)
    else:
        opened, inner = file_system(location)
        with naming(location):
            if most is None and start == 0:
                data = opened.cat_file(inner)
            else:
                end = None if most is None else start + most
                data = opened.cat_file(inner, start=start, end=end)
    if length is not None and len(data) != length:
        raise OSError(
            errno.EIO,
            f"expected {length} bytes from byte {start} on, got {len(data)}; the file has changed, "
            "or its server sends no parts of files",
            location,
        )
    if limit is not None and len(data) > limit:
        raise _too_long(location, limit)
    return bytes(data)


@contextlib.contextmanager
def naming(location: str) -> Iterator[None]:
    """Whatever a file system raises in the block becomes an OSError that names the location, if it does not already."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if location in str(error):
            raise
        if isinstance(error, FileNotFoundError):  # Often without a number.
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), location) from error
        number = getattr(error, "errno", None)
        number = number if isinstance(number, int) else errno.EIO
        raise OSError(number, reason(error), location) from error


def reason(error: BaseException) -> str:
    """An error's own words, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _too_long(location: str, limit: int) -> ValueError:
    return ValueError(
        f"{location}: expected at most {limit} bytes, got more; raise the limit for a file you trust"
    )


MAX_NAMES = 1_000_000
"""That braces may stand for: beyond it a range has a digit too many."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_folder(location: str) -> bool:
    """Whether a location is a folder that can be listed.

    Raises:
        ImportError, ValueError, OSError: see `file_system`; the file system does not answer.
    """
    path = local_path(location)
    if path is not None:
        return path.is_dir()
    opened, inner = file_system(location)
    with naming(location):
        return bool(opened.isdir(inner))


def files_below(folder: str) -> Iterator[str]:
    """Relative names, with "/", of all files in a folder and the folders in it; no hidden ones.

    Links are followed, but not in circles. In no particular order.

    Raises:
        OSError: some folder cannot be listed.
        ImportError, ValueError: see `file_system`.
    """
    if not is_url(folder):
        yield from _matching(folder, "", ["**"], (_identity(folder),))
        return
    opened, inner = file_system(folder)
    with naming(folder):
        found = opened.find(inner)
    for path in found:
        name = inside(inner, str(path))
        if name != str(path) and not _is_hidden(name):
            yield name


def is_pattern(location: str) -> bool:
    """Whether a location has `*`, `?`, `[` or braces in it; a web address's `?` is no sign of many files."""
    signs = "*[{" if location.lower().startswith(("http://", "https://")) else "*?[{"
    return any(sign in location for sign in signs)


def pattern_root(pattern: str) -> str:
    """The folder that everything of a pattern lies in: what stands before its first sign."""
    first = next((place for place, sign in enumerate(pattern) if sign in "*?[{"), len(pattern))
    before, slash, _ = pattern[:first].replace(os.sep, "/").rpartition("/")
    return plain(before or slash or ".")


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` → a-000.tar, a-001.tar, a-002.tar; `{cat,dog}.jpg` → cat.jpg, dog.jpg; as a shell does.

    Raises:
        ValueError: that would be more than a million names.
    """
    pieces = _BRACES.split(pattern)  # Text and what is in braces take turns.
    choices = [
        [piece] if number % 2 == 0 else _alternatives(piece, pattern)
        for number, piece in enumerate(pieces)
    ]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_NAMES:
        raise _too_many(pattern)
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _alternatives(inner: str, pattern: str) -> list[str]:
    ends = _RANGE.fullmatch(inner)
    if ends:
        first, last = int(ends[1]), int(ends[2])
        if abs(last - first) >= MAX_NAMES:
            raise _too_many(pattern)
        digits = len(ends[1]) if "0" in (ends[1][0], ends[2][0]) else 1
        step = 1 if first <= last else -1
        return [f"{number:0{digits}d}" for number in range(first, last + step, step)]
    return inner.split(",") if "," in inner else [f"{{{inner}}}"]


def _too_many(pattern: str) -> ValueError:
    return ValueError(
        f"{pattern}: expected braces for at most {MAX_NAMES:,} names, got more; "
        "shorten the range, or write `*` for what is there"
    )


def matching(pattern: str) -> list[str]:
    """The files of a pattern without braces, relative to `pattern_root`, sorted; hidden ones only where it says so.

    `*` and `?` stop at "/", `[a-c]` is one letter of these, `**` is any number of folders.

    Raises:
        OSError, ImportError, ValueError: see `files_below`.
    """
    root = pattern_root(pattern)
    if not is_url(pattern):
        pattern = pattern.replace(os.sep, "/")
        rest = pattern if root == "." else pattern[len(root) :]
        return sorted(set(_matching(root, "", rest.strip("/").split("/"), (_identity(root),))))
    opened, inner = file_system(pattern)
    _, inner_root = file_system(root)
    with naming(pattern):
        found = opened.glob(inner, detail=True)
    names = (
        inside(inner_root, str(path)) for path, about in found.items() if about["type"] == "file"
    )
    return sorted(name for name in names if "/." in pattern or not _is_hidden(name))


def _matching(
    folder: str, prefix: str, parts: list[str], above: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        # No folder at all; the folders in it are gone through below.
        yield from _matching(folder, prefix, rest or ["*"], above)
        part, rest = "*", parts
    with os.scandir(folder) as entries:
        for entry in entries:
            if not fnmatchcase(entry.name, part):
                continue
            if entry.name.startswith(".") and not part.startswith("."):
                continue
            if not entry.is_dir():
                if not rest:
                    yield prefix + entry.name
            elif rest:
                identity = _identity(entry.path)
                if identity not in above:
                    below = f"{prefix}{entry.name}/"
                    yield from _matching(entry.path, below, rest, (*above, identity))


def _identity(folder: str) -> tuple[int, int]:
    """The same for all paths of a folder."""
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
