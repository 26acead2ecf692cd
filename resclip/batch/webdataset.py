"""Images in tar archives, as WebDataset makes them: where in its archive each begins, so that it is read in place.

Only the headers of members are read to find them.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, cast

from resclip.batch.paths import naming, open_binary, printable, title
from resclip.errors import reason
from resclip.io.limits import DEFAULT_LIMITS, Limits

COMPRESSED = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

# Of several images of a key, words in the rest of their names that say which one is the picture, the surest first,
IMAGE_WORDS = ("input", "image", "img", "rgb", "photo", "picture")
# and words that say which ones are made from it: these are images for whoever names them alone.
OTHER_WORDS = frozenset(
    {
        "mask", "masks", "seg", "segmentation", "semantic", "instance", "panoptic", "label", "labels", "labelids",
        "depth", "disparity", "normal", "normals", "gt", "target", "output", "outputs", "pred", "prediction",
        "annotation", "annotations", "edge", "edges", "alpha", "matte", "trimap", "saliency", "flow", "scores",
        "overlay", "thumb", "thumbnail",
    }
)  # fmt: skip

# What tarfile raises of its own where a header says what cannot be; an OSError is the disk's or server's.
_OF_HEADERS = (ValueError, TypeError, IndexError, KeyError, OverflowError)

_WORDS = re.compile(r"[._\-]+")

MAX_HEADER = 1 << 20
"""The most bytes of what a header holds, such as a long name: more is damage, or made to exhaust memory."""

MAX_MEMBERS = 4_000_000
"""The most members of an archive, which take a gigabyte: a server can make up any number of them."""

MAX_LINKS = 40
"""A link that leads to a link that leads to …: so many times, as on a disk."""


def check_compression(location: str) -> None:
    """Raise ValueError for an archive whose name says that it is compressed."""
    if location.lower().endswith(COMPRESSED):
        raise _compressed(location, "a compressed one")


class Member(NamedTuple):
    """An image in an archive: its name there, and its bytes."""

    name: str
    start: int
    length: int


class Contents(NamedTuple):
    """What was found in an archive."""

    images: list[Member]
    """One a key, in the order in which the keys begin."""
    left_out: Counter[str]
    """How many other files there are, by the rest of their names after the key: "json", "mask.png"; or by what they
    are: "hidden file", "link"."""


def images_in(
    location: str,
    suffixes: Sequence[str],
    member: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Contents:
    """The images of an archive: one of each key, which is what members' names have in common up to the first dot.

    Of several the one is taken whose rest is a suffix alone, `a.jpg`, in the order of `suffixes`; then one with a word
    that means the picture, `a.input.png`, or with any other, `photo.v2.jpg`. What is made from a picture, `a.mask.png`,
    is taken only if `member` names it.

    Links to members are members of the same bytes.

    Args:
        location: path or URL of the archive.
        suffixes: of images, with their dots, in lower case; the likeliest to be a photograph first.
        member: the rest of the names of those to take, whatever their suffix: "jpg", "input.png".
        limits: how long a web server may take.

    Raises:
        ValueError: the archive is damaged, cut short or compressed, or holds no such image.
        OSError: the archive cannot be read.
    """
    left_out: Counter[str] = Counter()
    with naming(location), open_binary(location, limits) as stream:
        members = list(_members(stream, location, left_out))
    keys: dict[str, list[Member]] = {}
    for found in members:
        keys.setdefault(_split(found.name)[0], []).append(found)
    wanted = None if member is None else member.lower().lstrip(".")
    images = []
    for group in keys.values():
        # As of files that are unpacked, the last of the same name counts.
        ranks = [
            (rank, -number)
            for number, found in enumerate(group)
            if (rank := _rank(found.name, suffixes, wanted)) is not None
        ]
        chosen = -min(ranks)[1] if ranks else -1
        if ranks:
            images.append(group[chosen])
        left_out.update(_kind(found.name) for number, found in enumerate(group) if number != chosen)
    if not images:
        looked_for = "with the suffix of an image" if wanted is None else f"such as NAME.{wanted}"
        raise ValueError(
            f"{title(location)}: expected members {looked_for}, got an archive without any "
            f"({census(left_out)}); check what it was made of, or name those to take by member="
        )
    return Contents(images, left_out)


def census(counts: Counter[str], most: int = 5) -> str:
    """Counts by kind, the most frequent first: "3 json, 1 mask.png"; "no files" for none."""
    kinds = counts.most_common()
    texts = [f"{count:,} {kind}" for kind, count in kinds[:most]]
    if len(kinds) > most:
        texts.append(f"{sum(count for _, count in kinds[most:]):,} of other kinds")
    return ", ".join(texts) or "no files"


def _rank(name: str, suffixes: Sequence[str], wanted: str | None) -> tuple[int, int] | None:
    """How likely a member is the picture of its key, the least first; None if it is not one."""
    rest = _split(name)[1]
    if wanted is not None:
        return (0, 0) if rest == wanted else None
    beginning, _, last = rest.rpartition(".")
    suffix = f".{last}"
    if suffix not in suffixes:
        return None
    words = set(_WORDS.split(beginning))
    if words & OTHER_WORDS:
        return None
    order = suffixes.index(suffix)
    if not beginning:
        return 0, order
    known = [number for number, word in enumerate(IMAGE_WORDS) if word in words]
    return (1 + known[0] if known else 1 + len(IMAGE_WORDS)), order


def _split(name: str) -> tuple[str, str]:
    """Key and the rest, in lower case without its dot: "a/b.seg.png" → "a/b", "seg.png"."""
    folder, slash, file = name.rpartition("/")
    key, _, rest = file.partition(".")
    return folder + slash + key, rest.lower()


def _kind(name: str) -> str:
    rest = printable(_split(name)[1])
    return (rest if len(rest) <= 40 else f"{rest[:40]}…") or "without suffix"


def _members(stream: BinaryIO, location: str, left_out: Counter[str]) -> Iterator[Member]:
    """The files in an archive that are stored in one piece, and links to them; what else there is, is counted."""
    members: list[Member | str] = []  # Of a link, its name.
    files: dict[str, Member] = {}
    targets: dict[str, str] = {}
    for count, entry in enumerate(_entries(stream, location)):
        if count == MAX_MEMBERS:
            raise ValueError(
                f"{title(location)}: expected at most {MAX_MEMBERS:,} members, got more; split the archive"
            )
        if entry.isdir():
            continue
        path = posixpath.normpath(entry.name)
        if entry.name.rpartition("/")[2].startswith("."):
            left_out["hidden"] += 1
        elif entry.isreg() and not entry.issparse():
            files[path] = Member(entry.name, entry.offset_data, entry.size)
            members.append(files[path])
        elif entry.islnk() or entry.issym():
            # A hard link's target is named from the archive's root, a symbolic one's from the link's folder.
            folder = "" if entry.islnk() else posixpath.dirname(entry.name)
            targets[path] = posixpath.normpath(posixpath.join(folder, entry.linkname))
            members.append(entry.name)
        else:
            left_out["sparse file" if entry.issparse() else "special file"] += 1
    for member in members:
        if isinstance(member, Member):
            yield member
            continue
        target = targets[posixpath.normpath(member)]
        for _ in range(MAX_LINKS):
            if target in files:
                break
            target = targets.get(target, target)
        if target in files:
            yield Member(member, *files[target][1:])
        else:
            left_out["link to no member"] += 1


class _Headers:
    """What tarfile reads of an archive: headers alone, none of which is larger than `MAX_HEADER`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; tarfile.ReadError for too many."""
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


def _entries(stream: BinaryIO, location: str) -> Iterator[tarfile.TarInfo]:
    """All members of an archive."""
    start = stream.read(6)
    stream.seek(0)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            raise _compressed(location, f"one compressed by {name}")
    try:
        with tarfile.open(fileobj=cast("BinaryIO", _Headers(stream)), mode="r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # Else tarfile keeps all of them in memory.
                # A negative size would lead back to the same header again and again.
                if archive.offset <= end:
                    raise tarfile.ReadError(f"a member without an end at byte {end}")
                end = archive.offset
                yield member
            end = archive.offset
        # tarfile takes a header that it cannot read for the end, and the end of the file as well.
        stream.seek(end)
        closing = stream.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(location, reason(error)) from error
    except _OF_HEADERS as error:
        raise _damaged(location, "a header's numbers or texts are none") from error
    if len(closing) < tarfile.BLOCKSIZE or any(closing):
        raise _damaged(location, f"no header and no end at byte {end}")


def _compressed(location: str, got: str) -> ValueError:
    return ValueError(
        f"{title(location)}: expected a plain .tar, got {got}, in which no member can be read in place; "
        "decompress it first"
    )


def _damaged(location: str, why: str) -> ValueError:
    return ValueError(
        f"{title(location)}: expected a whole tar archive, got one that is damaged or cut short ({why}); "
        "get it again"
    )
