"""Names of images and of their output files: they stay in their folder, and no two are the same.

The names depend on the set of images alone, in whatever order it was listed.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

MAX_PART_BYTES = 180
"""A part of a name has at most so many bytes: file systems take 255, and outputs add an ending ("_labels.png")."""

_DRIVE = re.compile(r"^([A-Za-z]):")
_MARKED = re.compile(r"~[0-9a-f]{16}$", re.IGNORECASE)


def name_of(location: str) -> str:
    """An image's name from its location: of a path the path, of a URL host or bucket and path."""
    scheme, separator, rest = location.partition("://")
    if not separator:
        return contained_name(location)
    if scheme.lower() in ("http", "https"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return contained_name(host.rpartition("@")[2].replace(":", "_") + slash + path)


def contained_name(text: str) -> str:
    """Any text as a relative path that stays in its folder on every system: "sub/cat.jpg".

    Empty parts, "." and ".." are left out, a drive's colon too, backslashes separate; control characters and what is
    no Unicode become "_"; a part of more than 180 bytes is cut, and ends with its digest.

    Returns:
        "" if nothing is left.
    """
    # Nearly all names need no change; this test is ten times faster than making one.
    if (
        text.isascii()
        and text.isprintable()
        and len(text) <= MAX_PART_BYTES
        and not text.startswith(("/", ".", " "))
        and not text.endswith("/")
        and not any(unsafe in text for unsafe in ("\\", "//", "/.", "/ ", ":"))
    ):
        return text
    text = "".join(
        "_" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text
    )
    text = _DRIVE.sub(r"\1", text.replace("\\", "/"))
    parts = [part for part in text.split("/") if part.strip() not in ("", ".", "..")]
    return "/".join(map(_cut, parts))


def unique_names(names: Sequence[str], origins: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A name and a stem for every image, which no other image has.

    An image's stem is its name without suffix: "cat.jpg" → "cat". If several images would share a stem, or one's stem
    is another's whole name, each has its whole name as stem; case and the forms of Unicode do not count as differences
    there, since a disk may ignore them. If whole names differ by no more than that, the stem is marked with the name's
    digest; if names are equal, name and stem are marked with the digest of the image's origin.

    Args:
        names: of all images, each by `contained_name`; equal ones may occur.
        origins: a text for each image that no other one has: where its bytes are.

    Yields:
        Name and stem, in the order of `names`.
    """
    whole = [_folded(name) for name in names]
    shorter = (_folded(without_suffix(name)) for name in names if without_suffix(name) != name)
    same_name = _repeated(names)
    same_folded = _repeated(whole)
    same_stem = _repeated(chain(shorter, set(whole)))
    for text, origin in zip(names, origins, strict=True):
        name = text
        stem, suffix = _split(name)
        # A name that already looks marked could be another image's marked name.
        if _MARKED.search(stem) or name in same_name:
            stem = f"{stem}~{_digest(origin)}"
            name = stem + suffix
        elif _folded(name) in same_folded:
            stem = f"{name}~{_digest(name)}"
        elif _folded(stem) in same_stem:
            stem = name
        yield name, stem


def without_suffix(name: str) -> str:
    """A name less its suffix: "sub/cat.jpg" → "sub/cat"; ".jpg" has none."""
    return _split(name)[0]


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix; a suffix is at most 9 letters long, so that "v1.2 of a name" has none."""
    stem, suffix = posixpath.splitext(name)
    return (stem, suffix) if len(suffix) <= 10 and suffix[1:].isalnum() else (name, "")


def _cut(part: str) -> str:
    if len(part.encode()) <= MAX_PART_BYTES:
        return part
    stem, suffix = _split(part)
    kept = stem.encode()[: MAX_PART_BYTES - 40].decode(errors="ignore")
    return f"{kept}-{_digest(part)}{suffix}"


def _digest(text: str) -> str:
    """16 hexadecimal digits that stand for a text, the same in every process."""
    data = text.encode("utf-8", "surrogatepass")
    return f"{int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little'):016x}"


def _folded(name: str) -> str:
    """Equal for names that a disk may take as the same."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _repeated(texts: Iterable[str]) -> set[str]:
    """The texts that occur more than once."""
    seen: set[str] = set()
    repeated: set[str] = set()
    for text in texts:
        (repeated if text in seen else seen).add(text)
    return repeated
