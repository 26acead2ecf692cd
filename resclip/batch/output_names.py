"""Names of images and of their output files: they stay in their folder, no two are the same, in any order of listing.

Knows texts. Knows no file and no folder. Made for ten million names: texts are packed into one run of bytes, and what
must be unique is compared by 64-bit digests; should two digests ever agree by chance, a stem is longer than it need be.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

LONGEST_PART = 180
"""Bytes of a part of a name: file systems take 255, and outputs add an ending such as "_labels.png"."""

_DRIVE = re.compile(r"^([A-Za-z]):")
_MARKED = re.compile(r"~[0-9a-f]{16}$", re.IGNORECASE)


class PackedTexts:
    """A list of texts that takes their UTF-8 and 8 bytes each."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add one at the end."""
        # Names of files need not be UTF-8: Python then has lone surrogates in them.
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(f"expected a number from 0 to {len(self) - 1}, got {number}")
        start, end = self._ends[number], self._ends[number + 1]
        return self._bytes[start:end].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))


def name_of(location: str) -> str:
    """An image's name from where it lies: of a path the path, of a URL host or bucket and path."""
    scheme, found, rest = location.partition("://")
    if not found:
        return safe_name(location)
    if scheme.lower() in ("http", "https"):
        parts = urlsplit(location)
        rest = f"{parts.netloc}{parts.path}"
    host, slash, path = rest.partition("/")
    return safe_name(host.rpartition("@")[2].replace(":", "_") + slash + path)


def safe_name(text: str) -> str:
    """Any text as a relative path that stays in its folder on every system: "sub/cat.jpg".

    Empty parts, "." and ".." are left out, a drive's colon too, backslashes separate; control characters and what is
    no Unicode become "_"; a part of more than 180 bytes is cut, and ends with its digest.

    Returns:
        "" where nothing is left.
    """
    if text.isascii() and text.isprintable() and _plain(text):
        return text
    text = "".join(
        "_" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text
    )
    text = _DRIVE.sub(r"\1", text.replace("\\", "/"))
    parts = [part for part in text.split("/") if part.strip() not in ("", ".", "..")]
    return "/".join(_cut(part) for part in parts)


def _plain(text: str) -> bool:
    """Whether a printable text needs no change; nearly all do not."""
    return (
        len(text) <= LONGEST_PART
        and not text.startswith(("/", ".", " "))
        and not text.endswith("/")
        and not any(unsafe in text for unsafe in ("\\", "//", "/.", "/ ", ":"))
    )


def _cut(part: str) -> str:
    if len(part.encode()) <= LONGEST_PART:
        return part
    stem, suffix = _split(part)
    kept = stem.encode()[: LONGEST_PART - 40].decode(errors="ignore")
    return f"{kept}-{digest(part):016x}{suffix}"


def digest(text: str) -> int:
    """64 bits that stand for a text, the same in every process."""
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def marked(text: str, origin: str) -> str:
    """`text` with the digest of `origin`; nothing unmarked is ever let to look like this."""
    return f"{text}~{digest(origin):016x}"


def repeated(digests: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Those that occur more than once, sorted."""
    values, counts = np.unique(digests, return_counts=True)
    return values[counts > 1]


class Naming:
    """Gives every item of a source a name and a stem of its own.

    An image's stem is its name without suffix: "cat.jpg" → "cat". All of those that would share it, or whose it is to
    be called as another's whole name, have their whole name for a stem; letters' case and Unicode's forms do not count
    as differences there. Where whole names differ by no more than that, the stem is marked with the name's digest;
    where names are the very same, name and stem with that of the item's origin. What is decided depends on the set of
    names alone.

    Args:
        names: of all items, safe.
    """

    def __init__(self, names: Iterable[str]) -> None:
        exact, short, whole = array("Q"), array("Q"), array("Q")
        for name in names:
            exact.append(digest(name))
            whole.append(digest(_folded(name)))
            stem = without_suffix(name)
            if stem != name:
                short.append(digest(_folded(stem)))
        stems = np.concatenate([np.array(short, np.uint64), np.unique(whole)])
        # Arrays, in which bisect is five times as quick as numpy for one value.
        self._names = array("Q", repeated(np.array(exact, np.uint64)).tolist())
        self._whole = array("Q", repeated(np.array(whole, np.uint64)).tolist())
        self._stems = array("Q", repeated(stems).tolist())

    def name(self, name: str, origin: str) -> str:
        """`name`, or what stands for it where others have it too.

        Args:
            name: one of those given.
            origin: a text that no other item has: where its bytes lie.
        """
        stem, suffix = _split(name)
        if _MARKED.search(stem) or _is_in(self._names, digest(name)):
            return marked(stem, origin) + suffix
        return name

    def stem(self, name: str) -> str:
        """What the output files of an item are called.

        Args:
            name: what `Naming.name` gave.
        """
        stem = without_suffix(name)
        if _MARKED.search(stem):
            return stem
        if _is_in(self._whole, digest(_folded(name))):
            return marked(name, name)
        return name if _is_in(self._stems, digest(_folded(stem))) else stem


def without_suffix(name: str) -> str:
    """A name less its suffix: "sub/cat.jpg" → "sub/cat"; ".jpg" has none."""
    return _split(name)[0]


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix; a suffix is at most 9 letters long, so that "v1.2 of a name" has none."""
    stem, suffix = posixpath.splitext(name)
    return (stem, suffix) if len(suffix) <= 10 and suffix[1:].isalnum() else (name, "")


def _folded(name: str) -> str:
    """The same for names that a disk may hold for the same."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _is_in(sorted_values: array[int], value: int) -> bool:
    place = bisect_left(sorted_values, value)
    return place < len(sorted_values) and sorted_values[place] == value
