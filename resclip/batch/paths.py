"""Paths of this machine and URLs of every file system that fsspec opens, read and listed by the same calls."""

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

import fsspec
from fsspec.core import url_to_fs

from resclip.errors import reason

# Which package opens the URLs of a scheme; fsspec's own message names the others.
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

MAX_NAMES = 1_000_000
"""Braces may stand for at most so many names: a longer range has a digit too many."""

_UNTIDY = re.compile(r"(^|/)\.?(/|$)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_url(location: str) -> bool:
    """Whether a location is a URL, `file://` included."""
    return _SCHEME.match(location) is not None


def is_web(location: str) -> bool:
    """Whether a location is a web address."""
    return location.lower().startswith(("http://", "https://"))


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
    """The last suffix of a location's name, in lower case: ".jpg"; of a web address without its query."""
    if is_web(location):
        location = urlsplit(location).path
    return posixpath.splitext(location.replace(os.sep, "/"))[1].lower()


def parent(location: str) -> str:
    """The folder that a location lies in."""
    location = plain(location)
    if is_url(location):
        return location.rpartition("/")[0]
    return str(Path(location).parent)


def join(folder: str, location: str) -> str:
    """`location` as seen from `folder`: unchanged if it is a URL or absolute, else relative to the folder."""
    if is_url(location):
        return plain(location)
    if not is_url(folder):
        # pathlib takes 10 microseconds longer, which counts for a million images.
        if os.sep == "/" and not location.startswith("/") and not _UNTIDY.search(location):
            return location if folder == "." else f"{folder.rstrip('/')}/{location}"
        return str(Path(folder, location))
    if is_web(folder):
        return urljoin(f"{folder}/", location)
    scheme, _, path = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, location))}"


def inside(folder: str, location: str) -> str:
    """`location` relative to `folder` with "/" between names, if it lies below it; else `location` unchanged."""
    if os.sep != "/" and not is_url(location):
        folder, location = (text.replace(os.sep, "/") for text in (folder, location))
    beginning = "" if folder == "." else folder.rstrip("/") + "/"
    return location.removeprefix(beginning)


def file_system(location: str) -> tuple[Any, str]:
    """fsspec's file system of a path or URL, and the path in it.

    Raises:
        ImportError: it needs a package that is not installed; the message names it.
        ValueError: no package is known for such URLs.
    """
    path = local_path(location)
    if path is not None:
        return fsspec.filesystem("file"), str(path.absolute())
    scheme = location.partition("://")[0].lower()
    try:
        opened, inner = url_to_fs(location)
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
    return opened, str(inner)


def open_binary(location: str) -> BinaryIO:
    """A seekable stream to read from; of a URL it fetches what is asked for.

    Raises:
        OSError: it cannot be opened.
        ImportError, ValueError: see `file_system`.
    """
    opened, inner = file_system(location)
    with naming(location):
        return cast("BinaryIO", opened.open(inner, "rb"))


def read_range(location: str, start: int = 0, length: int | None = None) -> bytes:
    """A whole file, or `length` of its bytes from `start` on.

    Raises:
        OSError: they cannot be read, or the file ends before.
        ImportError, ValueError: see `file_system`.
    """
    opened, inner = file_system(location)
    with naming(location):
        if length is None:
            return bytes(opened.cat_file(inner))
        data = opened.cat_file(inner, start=start, end=start + length)
    if len(data) != length:
        raise OSError(
            errno.EIO,
            f"expected {length} bytes from byte {start} on, got {len(data)}; the file has changed, "
            "or its server sends no parts of files",
            location,
        )
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


def files_below(folder: str) -> Iterator[str]:
    """Relative names, with "/", of all files in a folder and the folders in it; no hidden ones.

    Links are followed, but not in circles. In no particular order.

    Raises:
        OSError: some folder cannot be listed.
        ImportError, ValueError: see `file_system`.
    """
    # fsspec's own listing of local folders leaves out those that it may not read, and goes round in circles of links.
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
    """Whether a location has `*`, `?`, `[` or braces in it; `?` in a web address begins its query."""
    signs = "*[{" if is_web(location) else "*?[{"
    return any(sign in location for sign in signs)


def pattern_root(pattern: str) -> str:
    """The folder that all files of a pattern lie in: what stands before its first sign."""
    first = next((index for index, sign in enumerate(pattern) if sign in "*?[{"), len(pattern))
    before, slash, _ = pattern[:first].replace(os.sep, "/").rpartition("/")
    return plain(before or slash or ".")


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` → a-000.tar, a-001.tar, a-002.tar; `{cat,dog}.jpg` → cat.jpg, dog.jpg; as a shell does.

    Raises:
        ValueError: that would be more than a million names.
    """
    pieces = _BRACES.split(pattern)  # Texts and the contents of braces alternate.
    choices: list[list[str]] = []
    count = 1
    for number, piece in enumerate(pieces):
        ends = _RANGE.fullmatch(piece) if number % 2 else None
        size = abs(int(ends[2]) - int(ends[1])) + 1 if ends else piece.count(",") + 1
        count *= size if number % 2 else 1
        if count > MAX_NAMES:
            raise ValueError(
                f"{pattern}: expected braces for at most {MAX_NAMES:,} names, got more; "
                "shorten the range, or write `*` for every file"
            )
        if ends:
            first, last = int(ends[1]), int(ends[2])
            digits = len(ends[1]) if "0" in (ends[1][0], ends[2][0]) else 1
            step = 1 if first <= last else -1
            choices.append([f"{value:0{digits}d}" for value in range(first, last + step, step)])
        elif number % 2:
            choices.append(piece.split(",") if "," in piece else [f"{{{piece}}}"])
        else:
            choices.append([piece])
    return ["".join(chosen) for chosen in itertools.product(*choices)]


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
    """Names in `folder`, each after `prefix`, that fit the parts of a pattern; `above` are the folders on the way."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        # "**" as no folder at all; the loop below takes it as one folder or more.
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


def shown(location: str) -> str:
    """A location as it may be stored and shown: of a URL without user, password, query and fragment."""
    if not is_url(location):
        return location
    scheme, _, rest = location.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
