"""Which files there are: below a folder, or of a pattern's names; here or at a URL.

Knows names of files. Opens none, and knows no picture.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from resclip.batch.locations import file_system, inside, is_url, local_path, naming, plain


MOST_NAMES = 1_000_000
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
    if count > MOST_NAMES:
        raise _too_many(pattern)
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _alternatives(inner: str, pattern: str) -> list[str]:
    ends = _RANGE.fullmatch(inner)
    if ends:
        first, last = int(ends[1]), int(ends[2])
        if abs(last - first) >= MOST_NAMES:
            raise _too_many(pattern)
        digits = len(ends[1]) if "0" in (ends[1][0], ends[2][0]) else 1
        step = 1 if first <= last else -1
        return [f"{number:0{digits}d}" for number in range(first, last + step, step)]
    return inner.split(",") if "," in inner else [f"{{{inner}}}"]


def _too_many(pattern: str) -> ValueError:
    return ValueError(
        f"{pattern}: expected braces for at most {MOST_NAMES:,} names, got more; "
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
