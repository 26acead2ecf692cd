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

from resclip.io.files import code_of, portable_part

MAX_PART_BYTES = 180
"""A part of a name has at most so many bytes: file systems take 255, and outputs add an ending ("_labels.png")."""

# The files and the folder by which the manifest is kept in an output folder; see `resclip.batch.manifest`.
MANIFEST = "manifest.parquet"
PARTS = "manifest.parts"
LOCK = "manifest.lock"

SUMMARY = "run-summary.json"
"""The file that says what a run was; see `resclip.cli.run_summary`. No image's JSON has its name."""

OUTPUT_ENDINGS = (
    "_labels.png", "_labels.tif", "_scores.png", "_scores.tif", "_overlay.png", "_overlay.mp4",
)  # fmt: skip
"""What a batch job writes for an image, or a video, is its stem and one of these."""

# Folders that an image's name must not make: the manifest's files, temporary ones, and what another image's files are.
_TAKEN = re.compile(
    rf"manifest\.(?:parquet|parts|lock)|{re.escape(SUMMARY)}|\.resclip-.*\.tmp|"
    rf".*(?:{'|'.join(map(re.escape, OUTPUT_ENDINGS))})|.*_sheet\.png|.*\.(?:json|geojson|txt|yaml)",
    re.IGNORECASE,
)
_CLASS_MASK = re.compile(r"_masks/[^/]+\.png\Z")
# A quick test: what does not match needs no change to be the same on every system.
_QUESTIONABLE = re.compile(
    r'[<>:"\\|?*\x00-\x1f\x7f]|[. ](?:/|\Z)|(?:\A|/)(?:con|prn|aux|nul|com|lpt|manifest\.|run-summary|\.resclip-)'
    r"|_(?:labels|scores|overlay|sheet)\.\w+/|\.(?:json|geojson|txt|yaml)/",
    re.IGNORECASE,
)
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
    digest; if names are equal, name and stem are marked with the digest of the image's origin. In a stem, what some
    system does not allow in names has become its code, and so have names of folders that the output folder has a use
    for itself: see `portable_stem`.

    Args:
        names: of all images, each by `contained_name`; equal ones may occur.
        origins: a text for each image that no other one has: where its bytes are.

    Yields:
        Name and stem, in the order of `names`.
    """
    portable = [portable_stem(name) for name in names]
    whole = [folded(text) for text in portable]
    shorter = (folded(without_suffix(text)) for text in portable if without_suffix(text) != text)
    same_name = _repeated(names)
    same_folded = _repeated(whole)
    same_stem = _repeated(chain(shorter, set(whole)))
    for name, text, origin in zip(names, portable, origins, strict=True):
        stem = without_suffix(text)
        # A name that already looks marked could be another image's marked name.
        if _MARKED.search(stem) or name in same_name:
            mark = f"~{_digest(origin)}"
            beginning, suffix = _split(name)
            yield f"{beginning}{mark}{suffix}", stem + mark
        elif folded(text) in same_folded:
            yield name, f"{text}~{_digest(name)}"
        else:
            yield name, text if folded(stem) in same_stem else stem


def portable_stem(name: str) -> str:
    """A name by `contained_name` as one that output files can have on every system, in a job's folder.

    "12:30/aux.jpg" → "12%3A30/%61ux.jpg"; "manifest.parquet/x" → "manifest%2Eparquet/x". Different
    names may give the same.
    """
    if not _QUESTIONABLE.search(name):
        return name
    *folders, last = map(portable_part, name.split("/"))
    return "/".join(_cut(part) for part in [*map(_free, folders), last])


def _free(folder: str) -> str:
    """A folder's name that the output folder has no other use for."""
    if not _TAKEN.fullmatch(folder):
        return folder
    beginning, dot, end = folder.rpartition(".")
    return beginning + code_of(dot) + end


def stem_of(outputs: Iterable[str]) -> str:
    """The stem of the image that files were written for, by its label map: "sub/cat_labels.png" → "sub/cat"."""
    for output in outputs:
        stem, found, form = output.rpartition("_labels.")
        if found and form in ("png", "tif"):
            return stem
    return ""


def is_output(name: str) -> bool:
    """Whether a file's name is one that a batch job gives to an image which it writes."""
    return name.endswith(OUTPUT_ENDINGS) or _CLASS_MASK.search(name) is not None


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


def folded(name: str) -> str:
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
