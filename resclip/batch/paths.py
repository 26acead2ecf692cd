"""Paths of this machine and URLs of every file system that fsspec opens, read and listed by the same calls."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import urljoin, urlsplit

import fsspec
from fsspec.core import url_to_fs

from resclip.batch import web
from resclip.errors import reason
from resclip.io.files import check_regular
from resclip.io.limits import DEFAULT_LIMITS, Limits

# Which package opens the URLs of a scheme; fsspec's own message names the others.
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "adl": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "oss": "ossfs",
    "oci": "ocifs",
    "gdrive": "gdrive_fsspec",
    "dropbox": "dropboxdrivefs",
    "box": "boxfs",
    "webdav": "webdav4",
}

REMOTE = frozenset({*PACKAGES, "ftp", "hdfs", "webhdfs", "smb"})
"""Schemes of other machines: what a list or table that comes from another machine may name."""

MAX_NAMES = 1_000_000
"""Braces may stand for at most so many names: a longer range has a digit too many."""

_UNTIDY = re.compile(r"(^|/)\.?(/|$)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# URLs within URLs, as of a file in an archive: "zip://a.jpg::https://host/a.zip". An address may be [::1].
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*:(?://|:))")
_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+")

MOST_SHOWN = 200
"""So many characters of a location, or of a file system's own words, stand in a message."""

MAX_LOCATION = 8192
"""What is longer than any path or URL is data that was taken for one, such as an image as text."""


class Listing(NamedTuple):
    """What lies below a folder."""

    names: list[str]
    """Of files, relative, with "/" between parts, sorted."""
    problems: dict[str, str]
    """Names of what is no file, and of folders that cannot be listed, with a slash behind, and why, in one line."""


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


def shown(location: str) -> str:
    """A location as it may be shown and stored: of a URL no user, password, query or fragment, and all printable."""
    if "://" in location:
        location = "::".join(map(_without_secrets, _CHAIN.split(location)))
    return printable(location)


def title(location: str) -> str:
    """A location for a message: as it is `shown`, and cut."""
    return _cut(shown(location))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _without_secrets(url: str) -> str:
    if not is_url(url):
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    _, at, host = host.rpartition("@")
    # What stands for a port and is none may be the beginning of a password with a slash in it.
    if not at and "@" in rest and re.search(r":\D|:\d+\D", host):
        return f"{scheme}://…"
    return f"{scheme}://{host}{slash}{path}"


def printable(text: str) -> str:
    """A text with what cannot be printed or stored as its code: a byte of a name that is not UTF-8 as "%E9"."""
    # Nearly all texts need no change.
    if text.isprintable():
        return text
    return "".join(map(_printable_letter, text))


def _printable_letter(letter: str) -> str:
    # Control characters, lone surrogates, line and paragraph separators, and what turns the direction of a line.
    if unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp", "Cf"):
        return letter
    if "\udc80" <= letter <= "\udcff":
        return f"%{ord(letter) - 0xDC00:02X}"
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass"))


def suffix(location: str) -> str:
    """The last suffix of a location's name, in lower case: ".jpg"; of a web address without its query."""
    if is_web(location):
        location = shown(location)
    return posixpath.splitext(location.replace(os.sep, "/"))[1].lower()


def parent(location: str) -> str:
    """The folder that a location lies in."""
    location = plain(location)
    if is_web(location):
        location = re.split(r"[?#]", location, maxsplit=1)[0]
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
        if location.startswith("//"):
            return f"{folder.partition('://')[0]}:{location}"
        # Else a name such as "a:b.png" would be a URL of its own, and "file:/a.png" a path of this machine.
        return urljoin(f"{folder}/", location if location.startswith("/") else f"./{location}")
    scheme, _, path = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, location))}"


def inside(folder: str, location: str) -> str:
    """`location` relative to `folder` with "/" between names, if it lies below it; else `location` unchanged."""
    if os.sep != "/" and not is_url(location):
        folder, location = (text.replace(os.sep, "/") for text in (folder, location))
    beginning = "" if folder == "." else folder.rstrip("/") + "/"
    return location.removeprefix(beginning)


def obstacle(folder: str, location: str) -> str | None:
    """Why a location, which a list or table in `folder` names, is not to be opened; None if nothing stands against it.

    A list that comes from another machine must not make this one read its own files, or those of other programs:
    what is named there has to be on other machines too.

    Args:
        folder: of the list or table: a path or URL.
        location: what it names, as `join` makes it of the folder and its text.
    """
    if len(location) > MAX_LOCATION:
        return (
            f"expected a path or URL, got a text of {len(location):,} characters; "
            "if these are images as texts, store their bytes"
        )
    if not is_url(location):
        if not is_url(folder):
            return None
        return "a list or table at a URL may only name URLs, got a path of this machine; make the list here"
    scheme = location.partition("://")[0].lower()
    own = folder.partition("://")[0].lower()
    if is_url(folder) and (scheme not in (*REMOTE, own) or _CHAIN.search(location)):
        return (
            "a list or table at a URL may only name URLs of other machines, "
            f"got {title(location)}; make the list here"
        )
    if printable(location) != location or (is_web(location) and not _has_host(location)):
        return "expected a URL, got a malformed one; check its host and its letters"
    return _missing(scheme)


def _has_host(address: str) -> bool:
    try:
        parts = urlsplit(address)
        # A wrong port is found when it is asked for.
        return parts.port != 0 and bool(parts.hostname)
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _missing(scheme: str) -> str | None:
    """What is missing to open the URLs of a scheme."""
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else _scrubbed(reason(error))
        return f"expected a package that opens {scheme}:// URLs, found none; {remedy}"
    except ValueError:
        return (
            "expected a path or a URL such as s3://, gs:// or https://, "
            f"got one that cannot be opened ({scheme}:// is not known); check the address"
        )
    return None


def file_system(location: str) -> tuple[Any, str]:
    """fsspec's file system of a path or URL, and the path in it.

    Raises:
        ImportError: it needs a package that is not installed; the message names it.
        ValueError: no package is known for such URLs, or it is malformed.
    """
    path = local_path(location)
    if path is not None:
        return fsspec.filesystem("file"), str(path.absolute())
    scheme, name = location.partition("://")[0].lower(), title(location)
    missing = _missing(scheme)
    try:
        if missing is not None:
            # Says whether it is a package or an unknown scheme.
            fsspec.get_filesystem_class(scheme)
        if is_web(location):
            # fsspec would take the colons of an address such as [::1] for the sign of URLs within URLs.
            return fsspec.filesystem(scheme), location
        with naming(location):
            opened, inner = url_to_fs(location)
    except ImportError as error:
        raise ImportError(f"{name}: {missing or _scrubbed(reason(error))}") from None
    except ValueError as error:
        text = missing or f"expected a URL, got one that cannot be opened ({_words(error)})"
        raise ValueError(f"{name}: {text}") from None
    return opened, str(inner)


def open_binary(location: str, limits: Limits = DEFAULT_LIMITS) -> BinaryIO:
    """A seekable stream to read from; of a URL it fetches what is asked for.

    Args:
        location: path or URL of a file.
        limits: how long a web server may take, and how much of a file is held that it sends in one piece alone.

    Raises:
        OSError: it cannot be opened, or is no file.
        ImportError, ValueError: see `file_system`.
    """
    opened, inner = file_system(location)
    with naming(location):
        if is_web(location):
            return cast("BinaryIO", web.open_stream(opened, location, limits))
        if local_path(location) is not None:
            check_regular(inner)
        return cast("BinaryIO", opened.open(inner, "rb"))


def read_range(
    location: str,
    start: int = 0,
    length: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """A whole file, or `length` of its bytes from `start` on.

    Args:
        location: path or URL of a file.
        start, length: which bytes.
        limits: the most bytes, and how long a web server may take.

    Raises:
        OSError: they cannot be read, there are too many, or the file ends before.
        ImportError, ValueError: see `file_system`.
    """
    data = _bytes(location, start, length, limits)
    if length is not None and len(data) != length:
        raise OSError(
            errno.EIO,
            f"expected {length} bytes from byte {start} on, got {len(data)}; the file has changed, "
            "or its server sends no parts of files",
            title(location),
        )
    return data


def read_start(location: str, length: int, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The first `length` bytes of a file, or all of one that has fewer; raises as `read_range`."""
    if not is_url(location):
        # Without buffers and paths it takes a third of the time, which counts for many files beside images.
        with naming(location):
            check_regular(location)
            with open(location, "rb", buffering=0) as stream:  # noqa: PTH123
                return stream.read(length)
    return _bytes(location, 0, length, limits)


def _bytes(location: str, start: int, length: int | None, limits: Limits) -> bytes:
    """At most `length` bytes."""
    path = local_path(location)
    if path is not None:
        with naming(location):
            check_regular(path)
            web.check_length(length, limits)
            with path.open("rb") as stream:
                if length is None:
                    web.check_length(os.fstat(stream.fileno()).st_size, limits)
                stream.seek(start)
                return stream.read(length)
    opened, inner = file_system(location)
    with naming(location):
        if is_web(location):
            return web.fetch(opened, location, limits, start, length).data
        if length is not None:
            web.check_length(length, limits)
            return bytes(opened.cat_file(inner, start=start, end=start + length))
        size = opened.info(inner).get("size")
        web.check_length(size if isinstance(size, int) else None, limits)
        return bytes(opened.cat_file(inner))


def about(location: str, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """What a file system says of a remote file, by its own names: its `size` in bytes, its ETag and the like.

    Raises:
        OSError: it cannot be asked.
        ImportError, ValueError: see `file_system`.
    """
    opened, inner = file_system(location)
    with naming(location):
        return web.about(opened, location, limits) if is_web(location) else dict(opened.info(inner))


@contextlib.contextmanager
def naming(location: str) -> Iterator[None]:
    """Whatever a file system raises in the block becomes an OSError that names the location by its `title`.

    Sentences of this library that name it already stay as they are.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        name = title(location)
        if isinstance(error, OSError) and error.errno is not None and error.filename == name:
            raise
        if isinstance(error, ValueError) and str(error).startswith(f"{name}: "):
            raise
        number = getattr(error, "errno", None)
        if not isinstance(number, int):  # Object stores give none.
            kinds = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}
            number = next((kinds[kind] for kind in kinds if isinstance(error, kind)), errno.EIO)
        # What came before may hold what must not be shown.
        raise OSError(number, _words(error), name) from None


def _words(error: Exception) -> str:
    """What a file system says went wrong, without URLs in full."""
    if isinstance(error, FileNotFoundError):
        return _scrubbed(error.strerror or os.strerror(errno.ENOENT))
    if isinstance(error, OSError) and error.strerror:
        return _scrubbed(error.strerror)
    if isinstance(error, (TypeError, AttributeError, LookupError)):
        # Its own words would be about a program, not about the location.
        return f"cannot be opened so: the package for such addresses fails with {type(error).__name__}; check the URL"
    return f"cannot be read ({_scrubbed(reason(error))})"


def _scrubbed(text: str) -> str:
    """A text of another library, short and without what its URLs must not show."""
    return _cut(printable(" ".join(_ANY_URL.sub(lambda url: shown(url[0]), text).split())))


def files_below(folder: str, limits: Limits = DEFAULT_LIMITS) -> Listing:
    """All files in a folder and the folders in it; no hidden ones.

    Links are followed, but not in circles.

    Raises:
        OSError: the folder itself cannot be listed.
        ImportError, ValueError: see `file_system`.
    """
    # fsspec's own listing of local folders leaves out those that it may not read, and goes round in circles of links.
    return matching(folder, "**", limits)


def is_there(location: str) -> bool:
    """Whether a file or folder has exactly this name; no web address is asked for.

    Raises:
        OSError, ImportError, ValueError: see `files_below`.
    """
    path = local_path(location)
    if path is not None:
        return os.path.lexists(path)
    if is_web(location):
        return False
    opened, inner = file_system(location)
    with naming(location):
        return bool(opened.exists(inner))


def is_folder(location: str, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether a URL is a folder's; raises as `files_below`."""
    opened, inner = file_system(location)
    with naming(location):
        if is_web(location):
            with contextlib.suppress(FileNotFoundError):
                return bool(web.entries(opened, location, limits))
            return False
        return bool(opened.isdir(inner))


def is_pattern(location: str) -> bool:
    """Whether a location has `*`, `?`, `[` or braces in it; of a web address only its path counts."""
    if is_web(location):
        # The host may be [::1], and a query have anything in it.
        location = shown(location).partition("://")[2].partition("/")[2]
        return any(sign in location for sign in "*[{")
    return any(sign in location for sign in _signs(location))


def _signs(location: str) -> str:
    return "*[{" if is_web(location) else "*?[{"


def split_pattern(pattern: str) -> tuple[str, str]:
    """A pattern's folder, which all its files lie in, and the rest: "set [a]/*.png" → "set [a]", "*.png".

    A part that exists, such as "set [a]", stands for itself, whatever signs it has.

    Raises:
        OSError, ImportError, ValueError: see `files_below`.
    """
    text = pattern.replace(os.sep, "/") if not is_url(pattern) else pattern
    signs = _signs(pattern)
    scheme, separator, path = text.rpartition("://") if is_url(text) else ("", "", text)
    parts = path.split("/")
    count = 1 if is_web(pattern) else 0
    while count < len(parts) - 1:
        before = f"{scheme}{separator}{'/'.join(parts[: count + 1])}"
        if any(sign in parts[count] for sign in signs) and not is_there(before):
            break
        count += 1
    root = f"{scheme}{separator}{'/'.join(parts[:count])}"
    if not count:
        return ("." if not separator else root), path
    return plain(root or "/"), "/".join(parts[count:])


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
                f"{title(pattern)}: expected braces for at most {MAX_NAMES:,} names, got more; "
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


def matching(root: str, rest: str, limits: Limits = DEFAULT_LIMITS) -> Listing:
    """The files of a pattern without braces, relative to `root`; hidden ones only where it says so.

    `*` and `?` stop at "/", `[a-c]` is one letter of these, `**` is any number of folders; a name that is the same as
    its part of the pattern fits too.

    Args:
        root, rest: as of `split_pattern`.

    Raises:
        OSError, ImportError, ValueError: see `files_below`.
    """
    problems: dict[str, str] = {}
    parts = rest.strip("/").split("/")
    if not is_url(root):
        # The folder itself must be there; what is wrong below it is a problem of its own.
        with naming(root):
            identity = _identity(root)
            os.scandir(root).close()
        return Listing(sorted(set(_matching(root, "", parts, (identity,), problems))), problems)
    opened, inner = file_system(root)
    depth = None if "**" in parts else len(parts)
    with naming(root):
        if is_web(root):
            names, problems = web.files_below(opened, root, limits)
        else:
            found = opened.find(inner, maxdepth=depth)
            names = [inside(inner, str(path)) for path in found if str(path) != inner]
    return Listing(sorted(name for name in names if _fits(name.split("/"), parts)), problems)


def _fits(names: list[str], parts: list[str]) -> bool:
    """Whether the parts of a path fit those of a pattern."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        if _fits(names, rest or ["*"]):
            return True
        part, rest = "*", parts
    if not names or not _is_match(names[0], part):
        return False
    return _fits(names[1:], rest) if rest else len(names) == 1


def _is_match(name: str, part: str) -> bool:
    """Whether a name fits a part of a pattern: hidden ones only where it says so."""
    if name.startswith(".") and not part.startswith("."):
        return False
    return name == part or fnmatchcase(name, part)


def _matching(
    folder: str,
    prefix: str,
    parts: list[str],
    above: tuple[tuple[int, int], ...],
    problems: dict[str, str],
) -> Iterator[str]:
    """Names in `folder`, each after `prefix`, that fit the parts of a pattern; `above` are the folders on the way."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        # "**" as no folder at all; the loop below takes it as one folder or more.
        yield from _matching(folder, prefix, rest or ["*"], above, problems)
        part, rest = "*", parts
    try:
        entries = os.scandir(folder)
    except OSError as error:
        problems[prefix] = f"expected a folder that can be listed ({reason(error)})"
        return
    with entries:
        for entry in entries:
            if not _is_match(entry.name, part):
                continue
            name = prefix + entry.name
            # The folder itself says what its entries are: of links alone the file is looked at.
            if not _is_folder(entry):
                if not rest and _is_file(entry):
                    yield name
                elif not rest:
                    try:
                        check_regular(entry.path)
                    except OSError as error:
                        problems[name] = reason(error)
            elif rest:
                try:
                    identity = _identity(entry.path)
                except OSError as error:
                    problems[f"{name}/"] = f"expected a folder that can be listed ({reason(error)})"
                    continue
                if identity not in above:
                    below = (*above, identity)
                    yield from _matching(entry.path, f"{name}/", rest, below, problems)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _identity(folder: str) -> tuple[int, int]:
    """The same for all paths of a folder."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino
