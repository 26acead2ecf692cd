"""Which images a batch job is about: folders, patterns, lists, Parquet tables and WebDataset archives.

The kind of a source follows from its name; of a folder or pattern from its files: images, else tables, else archives.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from resclip.batch.items import Item
from resclip.batch.lists import STDIN, WITH_COLUMNS, Line, read_list
from resclip.batch.output_names import (
    SUMMARY,
    contained_name,
    name_of,
    unique_names,
    without_suffix,
)
from resclip.batch.output_names import is_output as is_output_name
from resclip.batch.parquet import Cell, open_tables
from resclip.batch.paths import (
    MAX_LOCATION,
    Listing,
    expand_braces,
    files_below,
    inside,
    is_folder,
    is_pattern,
    is_there,
    is_url,
    is_web,
    join,
    local_path,
    matching,
    obstacle,
    parent,
    plain,
    printable,
    read_start,
    shown,
    split_pattern,
    suffix,
    title,
)
from resclip.batch.webdataset import census, check_compression, images_in
from resclip.errors import describe, reason
from resclip.io.limits import DEFAULT_LIMITS, Limits
from resclip.io.signatures import looks_like_image
from resclip.io.video import VIDEO_SUFFIXES, Every, find_frames

# Suffixes of pictures, in upper case too, the likeliest to be a photograph first. What cannot be decoded, or only with
# another package, is a row that says so.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif",
    ".jpe", ".jfif", ".apng", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm", ".dib", ".ico", ".tga",
    ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", ".jxr", ".hdp", ".wdp",
    ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jph", ".jpm", ".psd", ".psb", ".xcf", ".qoi", ".exr", ".dds", ".flif",
    ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".orf", ".rw2", ".raf", ".pef", ".x3f",
    ".raw", ".3fr", ".iiq", ".rwl", ".mrw", ".erf", ".dcr", ".kdc",
)  # fmt: skip

# What belongs to an image and begins like one, or like anything: overviews and masks of GDAL.
PARTS_OF_IMAGES = (".ovr", ".msk")

# Suffixes of what is no picture. At a URL such files are not looked into, which would take a request for each.
OTHER_SUFFIXES = (
    *PARTS_OF_IMAGES,
    ".txt", ".lst", ".json", ".jsonl", ".ndjson", ".geojson", ".xml", ".csv", ".tsv", ".md", ".rst", ".html", ".htm",
    ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".log", ".py", ".ipynb", ".sh", ".c", ".h", ".js", ".css",
    ".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".h5", ".hdf5", ".mat", ".nc",
    ".arrow", ".feather", ".orc", ".avro", ".db", ".sqlite", ".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar",
    ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".svg", ".eps", ".ps", ".ai",
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mp3", ".wav", ".flac", ".ogg",
    ".wld", ".jgw", ".pgw", ".tfw", ".jpgw", ".pngw", ".tifw", ".j2w", ".prj", ".cpg", ".dbf", ".shp", ".shx", ".qix",
    ".hdr", ".aux", ".cls", ".caption", ".idx", ".index", ".crc", ".md5", ".sha256", ".sock", ".pipe", ".lock",
)  # fmt: skip

LISTS = (".txt", ".lst", *WITH_COLUMNS)
TABLES = (".parquet",)
ARCHIVES = (".tar",)

Kind: TypeAlias = Literal["image", "table", "archive", "list", "video"]
KINDS: dict[str, Kind] = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(TABLES, "table"),
    **dict.fromkeys(ARCHIVES, "archive"),
    **dict.fromkeys(LISTS, "list"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
}

START_BYTES = 512
"""So many first bytes tell what a file is: the header of a tar archive is as long."""

LOOKERS = 16
"""Threads that ask a server for the beginnings of files."""

MANIFESTS = ("manifest.parquet", "manifest.parts", "manifest.lock")
"""A folder with one of these is one that a job writes to, or did."""

_MANIFEST = re.compile(r"((?:.*/)?)manifest\.(?:parquet$|parts/|lock$)")


@dataclass(frozen=True, eq=False)
class Source:
    """The images of a batch job, in an order that does not depend on the machine.

    Args:
        description: one line: "folder images: 200 files, 3 other files left out (2 .txt, 1 .json)".
        items: the images; about 400 bytes each. One that cannot be read, for whatever reason, says so when it is.
        skipped: files that were left out because they are no images, or not the image of their key.
        rate: of a video, its taken frames a second; else None.
    """

    description: str
    items: Sequence[Item]
    skipped: int
    rate: Fraction | None = None


class _Entry(NamedTuple):
    """An image of a source before it has a name that no other has; the rest as of `Item`."""

    name: str
    location: str
    start: int = 0
    length: int | None = None
    cell: Cell | None = None
    error: str | None = None
    frame: int | None = None


def open_source(
    source: str,
    *,
    column: str | None = None,
    member: str | None = None,
    every: Every | None = None,
    out: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Source:
    """Find the images of a source.

    An image is what has an image's suffix or begins like one, whatever its name; the rest is counted. What is wrong
    with one image, folder, table or archive among others, such as a malformed URL or a named pipe, is said when that
    item is read. A list or table at a URL may name files of other machines only: not those of this one.

    Args:
        source: a path or any URL that fsspec knows, of
            a folder: its images and those of the folders in it, sorted by name, no hidden files or earlier outputs;
                without images, its Parquet tables or its .tar archives;
            a pattern with `*`, `?`, `[a-z]`, `**`, `{000..099}` or `{a,b}`: the same of the files that fit;
            a list, .txt or .lst: a path, relative to the list's folder, or a URL a line; `#` begins a comment; "-" is
                such a list from the standard input, with paths relative to the working folder;
            a list with columns, .jsonl, .csv or .tsv, of which one has such paths or URLs;
            a .parquet table with a column of bytes or of paths and URLs;
            a WebDataset archive, .tar, of which one image a key is taken;
            a video on this machine, whose frames are images: .mp4, .mov, .mkv, .webm, .avi, ...; none in a folder;
            an image.
        column: of tables and lists with columns, the one with the images; None to find it by name and type.
        member: of archives, the members with the images: "jpg", "input.png"; None to find them by their names.
        every: of a video, which frames are taken; None for all.
        out: the folder that the job will write to: nothing in it is an image, if it lies in the source's folder.
        limits: how long a web server may take, and how large a list may be.

    Raises:
        ValueError: the source has no image, or something in it cannot be used; one line with what to do.
        OSError: the source does not exist, or cannot be read.
        ImportError: it needs a package that is not installed; the message names it.
    """
    location = plain(source)
    path = local_path(location)
    opening = _Opening(title(source), column, member, every, out, limits)
    if source == STDIN:
        return opening.standard_input()
    if path is not None and _exists(path):
        return opening.folder(location) if path.is_dir() else opening.file(location)
    if is_pattern(location) and not (path is None and is_there(location)):
        return opening.pattern(location)
    if path is None:
        return opening.url(location)
    raise FileNotFoundError(
        errno.ENOENT,
        "expected a folder, a pattern, a list (.txt, .csv, .jsonl), a .parquet table, a .tar, a video or an image, "
        "found nothing; check the path",
        title(source),
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except ValueError:  # It has a null character.
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # A pattern may be longer than any name.
            return False
        raise


@dataclass(frozen=True)
class _Opening:
    """The way from a source's name to its images."""

    shown: str
    column: str | None
    member: str | None
    every: Every | None
    out: str | None
    limits: Limits

    def url(self, location: str) -> Source:
        """Of a URL without signs of a pattern."""
        # A folder of an object store may be called x.parquet; any web page with links in it looks like a folder.
        if not is_web(location) and is_folder(location, self.limits):
            return self.folder(location)
        check_compression(location)
        if KINDS.get(suffix(location)) == "video":
            return self.video(location)  # Which says that it is elsewhere.
        try:
            start = read_start(location, START_BYTES, self.limits)
        except FileNotFoundError as error:
            if is_web(location):
                raise
            text = "found nothing; check the URL"
            raise FileNotFoundError(errno.ENOENT, text, self.shown) from error
        kind = _kind(location, start)
        if kind is None and is_web(location):
            if is_folder(location, self.limits):
                return self.folder(location)
            raise ValueError(
                f"{self.shown}: expected a list, a table, an archive or an image, or a folder whose server lists its "
                "files, got none of these; name a list file (.txt) with a URL a line"
            )
        return self.single(location, kind)

    def file(self, location: str) -> Source:
        """Of one file on this machine."""
        check_compression(location)
        start = b""
        # What the name says need not be looked up.
        if _kind(location, start) is None:
            start = read_start(location, START_BYTES, self.limits)
        return self.single(location, _kind(location, start))

    def single(self, location: str, kind: Kind | None) -> Source:
        """Of one file of a kind."""
        base = parent(location)
        name = inside(base, location)
        if kind != "table" and suffix(location) not in WITH_COLUMNS:
            self.refuse_column(f"{'an' if kind in ('image', 'archive') else 'a'} {kind or 'file'}")
        if kind != "archive":
            self.refuse_member(f"{'an' if kind == 'image' else 'a'} {kind or 'file'}")
        if kind == "video":
            return self.video(location)
        self.refuse_every(f"{'an' if kind in ('image', 'archive') else 'a'} {kind or 'file'}")
        if kind == "list":
            return self.listed(location)
        if kind == "table":
            return self.tables(base, [name], Counter())
        if kind == "archive":
            return self.archives(base, [name], Counter())
        if kind == "image":
            entry = _Entry(_name_in(base, location), location)
            return self.source(f"file {self.shown}: 1 file", [entry], 0)
        raise ValueError(
            f"{self.shown}: expected a folder, a list (.txt, .lst), a table (.parquet), an archive (.tar) or an image, "
            f"got a file that ends with {suffix(location) or 'no suffix'} and begins like none of them; convert it"
        )

    def refuse_column(self, got: str) -> None:
        """Raise ValueError where a column was named and there is no table."""
        if self.column is not None:
            raise ValueError(
                f"{self.shown}: expected a table for the column {self.column!r}, got {got}; leave the column out"
            )

    def refuse_member(self, got: str) -> None:
        """Raise ValueError where a member was named and there is no archive."""
        if self.member is not None:
            raise ValueError(
                f"{self.shown}: expected .tar archives for the member {self.member!r}, got {got}; leave the member out"
            )

    def refuse_every(self, got: str) -> None:
        """Raise ValueError where frames were asked for and there is no video."""
        if self.every is not None:
            raise ValueError(
                f"{self.shown}: expected a video for every=, got {got}; leave every= out"
            )

    def video(self, location: str) -> Source:
        """Of the frames of a video."""
        path = local_path(location)
        if path is None:
            raise ValueError(
                f"{self.shown}: expected a video on this machine, got a URL; download it first"
            )
        found = find_frames(path, self.shown, self.every or Every())
        folder = without_suffix(_name_in(parent(location), location))
        entries = [
            _Entry(f"{folder}/{number:06d}", str(path), frame=number) for number in found.numbers
        ]
        description = f"video {self.shown}: {_count(entries, 'frame')}"
        if len(entries) < found.total:
            description += f" of {found.total:,}"
        return replace(self.source(description, entries, 0), rate=found.rate)

    def folder(self, location: str) -> Source:
        """Of all files below a folder."""
        return self.files(location, files_below(location, self.limits), "folder")

    def pattern(self, location: str) -> Source:
        """Of all files that fit a pattern."""
        base, rest = split_pattern(location)
        names: set[str] = set()
        problems: dict[str, str] = {}
        for chosen in expand_braces(rest):
            pattern = join(base, chosen)
            if not is_pattern(pattern) or is_there(pattern):
                path = local_path(pattern)
                if path is not None and not path.exists():
                    raise FileNotFoundError(
                        errno.ENOENT,
                        f"expected all files of {self.shown}, one is missing",
                        title(pattern),
                    )
                names.add(chosen)
                continue
            found = matching(base, chosen, self.limits)
            names.update(found.names)
            problems.update(found.problems)
        if not names and not problems:
            raise FileNotFoundError(
                errno.ENOENT,
                "expected files that fit the pattern, got none; `**/*` looks in folders too",
                self.shown,
            )
        return self.files(base, Listing(sorted(names), problems), "pattern")

    def files(self, base: str, found: Listing, kind: str) -> Source:
        """Of files and problems below a folder."""
        self.refuse_every("several files")
        names, problems, remark = self.without_outputs(base, found, complete=kind == "folder")
        groups: dict[Kind, list[str]] = {"image": [], "table": [], "archive": []}
        others: list[str] = []
        for name in names:
            group = groups.get(KINDS.get(suffix(name), "list"))
            (others if group is None else group).append(name)
        tables, archives = groups["table"], groups["archive"]
        if not tables:
            self.refuse_column(_files(others + groups["image"] + archives))
        if not archives:
            self.refuse_member(_files(others + groups["image"] + tables))
        if self.column is None and self.member is None:
            begins, unread = self.look_into(base, others)
            problems |= unread
            if begins:
                groups["image"] = sorted([*groups["image"], *begins])
                others = [name for name in others if name not in begins]
        images = groups["image"] if self.column is None and self.member is None else []
        # A pipe named x.txt would be no image as a file either.
        others += [name for name in problems if suffix(name) in OTHER_SUFFIXES]
        wrong = {
            name: _Entry(_name(name), join(base, name), error=_error(join(base, name), why))
            for name, why in problems.items()
            if suffix(name) not in OTHER_SUFFIXES
        }
        if images or (wrong and not tables and not archives):
            rest = [*others, *tables, *archives]
            left = Counter(suffix(name) or "without suffix" for name in rest)
            entries = [
                wrong.get(name) or _Entry(_name(name), join(base, name))
                for name in sorted([*images, *wrong])
            ]
            description = f"{kind} {self.shown}: {_count(entries, 'file')}{remark}"
            return self.source(f"{description}{_left(left)}", entries, len(rest))
        left = Counter(suffix(name) or "without suffix" for name in others)
        if tables and (self.column is not None or not archives):
            left.update({".tar": len(archives)} if archives else {})
            return self.tables(base, tables, left, remark, wrong.values())
        if archives and (self.member is not None or not tables):
            left.update({".parquet": len(tables)} if tables else {})
            return self.archives(base, archives, left, remark, wrong.values())
        for name in names:
            check_compression(name)
        if tables:
            raise ValueError(
                f"{self.shown}: expected images, tables or archives, got {_count(tables, 'table')} and "
                f"{_count(archives, 'archive')}; name one kind by a pattern, as in *.parquet"
            )
        raise ValueError(
            f"{self.shown}: expected images ({', '.join(IMAGE_SUFFIXES[:8])}, ...), .parquet tables or .tar archives, "
            f"got {_files(names)}{remark}; check the path"
        )

    def look_into(self, base: str, names: Sequence[str]) -> tuple[set[str], dict[str, str]]:
        """Which files begin like images, and which cannot be read and why; the others are no images."""
        remote = is_url(base)
        closed = OTHER_SUFFIXES if remote else PARTS_OF_IMAGES
        asked = [name for name in names if suffix(name) not in closed]

        def begins(name: str) -> bool | str:
            try:
                return looks_like_image(read_start(join(base, name), START_BYTES, self.limits))
            except (OSError, ValueError) as error:
                return reason(error)

        if remote and asked:
            with ThreadPoolExecutor(min(LOOKERS, len(asked))) as pool:
                answers = list(pool.map(begins, asked))
        else:
            answers = [begins(name) for name in asked]
        pairs = list(zip(asked, answers, strict=True))
        images = {name for name, answer in pairs if answer is True}
        return images, {name: answer for name, answer in pairs if isinstance(answer, str)}

    def without_outputs(
        self, base: str, found: Listing, *, complete: bool
    ) -> tuple[list[str], dict[str, str], str]:
        """Files and problems without what a job wrote or will write, and how many files these are, in words.

        Args:
            base: the folder.
            found: what is below it.
            complete: whether all files below it were found, and not only those of a pattern.
        """
        remark = ""
        names, problems = found.names, found.problems
        own = None if self.out is None else _inside(base, self.out)
        if own is not None:
            names = [name for name in names if not name.startswith(own)]
            problems = {name: why for name, why in problems.items() if not name.startswith(own)}
            if count := len(found.names) - len(names):
                remark = f", {_count(range(count), 'file')} in the output folder left out"
        known: dict[str, bool] = {}
        if complete:
            known = {match[1]: True for match in map(_MANIFEST.match, names) if match}
        if self.out is not None and _inside(self.out, join(base, "x")) is not None:
            known[""] = known.get("", False) or _has_manifest(self.out)

        def is_out(folder: str) -> bool:
            if folder not in known:
                known[folder] = not complete and _has_manifest(join(base, folder or "."))
            return known[folder]

        def is_output(name: str) -> bool:
            if _MANIFEST.match(name):
                return True
            if not (is_output_name(name) or name.endswith(SUMMARY)):
                return False
            ends = [0, *(match.end() for match in re.finditer("/", name))]
            return any(is_out(name[:end]) for end in ends)

        kept = [name for name in names if not is_output(name)]
        if count := len(names) - len(kept):
            remark += f", {count:,} earlier outputs left out"
        return kept, problems, remark

    def tables(
        self,
        base: str,
        tables: list[str],
        left: Counter[str],
        remark: str = "",
        wrong: Iterable[_Entry] = (),
    ) -> Source:
        """Of Parquet tables."""
        entries: list[_Entry] = []
        broken: list[_Entry] = []
        first = None
        for table in tables:
            location = join(base, table)
            try:
                images, columns = open_tables(base, [table], self.column, self.limits)
            except (ValueError, OSError) as error:
                if len(tables) == 1:
                    raise
                broken.append(_Entry(_name(table), location, error=describe(error)))
                continue
            first = first or columns
            if columns[:2] != first[:2]:
                raise ValueError(
                    f"{title(location)}: expected images in column {first.images}, as in the table before, "
                    f"got them in {columns.images}; name one kind of table"
                )
            entries += [
                _Entry(image.name, image.location, cell=image.cell)
                if image.cell is not None or not image.location
                else _checked(base, image.location, image.name)
                for image in images
            ]
        if first is None:
            raise ValueError(f"{self.shown}: expected Parquet tables; {broken[0].error}")
        if not entries:
            raise ValueError(
                f"{self.shown}: expected rows, got an empty table; check what it was made of"
            )
        entries, twice = self.once(entries)
        description = f"Parquet {self.shown}: {len(entries):,} rows, column {first.images}"
        if len(tables) > 1:
            description += f", {len(tables):,} tables"
        description += f"{twice}{remark}{_left(left)}"
        return self.source(description, [*entries, *broken, *wrong], left.total())

    def archives(
        self,
        base: str,
        archives: list[str],
        left: Counter[str],
        remark: str = "",
        wrong: Iterable[_Entry] = (),
    ) -> Source:
        """Of tar archives, one image a key."""
        entries: list[_Entry] = []
        broken: list[_Entry] = []
        members: Counter[str] = Counter()
        for archive in archives:
            location = join(base, archive)
            try:
                found = images_in(location, IMAGE_SUFFIXES, self.member, self.limits)
            except (ValueError, OSError) as error:
                if len(archives) == 1:
                    raise
                broken.append(_Entry(_name(archive), location, error=describe(error)))
                continue
            folder = without_suffix(_name(inside(shown(base), shown(location))))
            entries += [
                _Entry(contained_name(printable(f"{folder}/{image.name}")), location, *image[1:])
                for image in found.images
            ]
            members += found.left_out
        if not entries:
            raise ValueError(f"{self.shown}: expected .tar archives; {broken[0].error}")
        counts = f"{_count(entries, 'image')} in {_count(archives, 'archive')}"
        if members:
            counts += f", left out: {census(members)}"
        description = f"WebDataset {self.shown}: {counts}{remark}{_left(left)}"
        skipped = members.total() + left.total()
        return self.source(description, [*entries, *broken, *wrong], skipped)

    def listed(self, location: str) -> Source:
        """Of the files that a text file names."""
        return self.named(parent(location), read_list(location, self.column, self.limits))

    def standard_input(self) -> Source:
        """Of the files that the standard input names."""
        self.refuse_column("the standard input")
        self.refuse_member("the standard input")
        self.refuse_every("the standard input")
        return self.named(".", read_list(STDIN, None, self.limits))

    def named(self, base: str, lines: Iterable[Line]) -> Source:
        """Of the files that lines of a list in a folder name."""
        entries = []
        for line in lines:
            location = join(base, line.text)
            if line.error is not None:
                entries.append(_Entry(f"line {line.number}", "", error=line.error))
            else:
                entries.append(_checked(base, location, _name_in(base, location)))
        if not entries:
            raise ValueError(
                f"{self.shown}: expected a path or URL a line, got an empty list; add some"
            )
        entries, twice = self.once(entries)
        return self.source(f"list {self.shown}: {_count(entries, 'file')}{twice}", entries, 0)

    def once(self, entries: Sequence[_Entry]) -> tuple[list[_Entry], str]:
        """Entries without those of a file that is there already or that the job wrote, and how many these are."""
        seen: set[str] = set()
        kept = []
        outputs = 0
        for entry in entries:
            if entry.location and entry.cell is None:
                if entry.location in seen:
                    continue
                seen.add(entry.location)
                if self.is_own(entry.location):
                    outputs += 1
                    continue
            kept.append(entry)
        twice = len(entries) - len(kept) - outputs
        remark = f", {twice:,} named twice left out" if twice else ""
        return kept, f"{remark}, {outputs:,} earlier outputs left out" if outputs else remark

    def is_own(self, location: str) -> bool:
        """Whether a file was written by the job in its earlier runs."""
        if self.out is None or not is_output_name(location):
            return False
        return _inside(self.out, location) is not None and _has_manifest(self.out)

    def source(self, description: str, entries: Sequence[_Entry], skipped: int) -> Source:
        """With names that no two images share."""
        names = [entry.name or f"{index:09d}" for index, entry in enumerate(entries)]
        # No two entries are of the same bytes; this text is digested where names alone would clash.
        origins = [
            f"{entry.location or index}\n{entry.start}\n{entry.frame}\n{entry.cell}"
            for index, entry in enumerate(entries)
        ]
        items = [
            # A frame's number, so that frames of several runs are in order.
            Item(entry.frame or index, name, stem, *entry[1:6], frame=entry.frame)
            for index, ((name, stem), entry) in enumerate(
                zip(unique_names(names, origins), entries, strict=True)
            )
        ]
        return Source(description, items, skipped)


def _kind(location: str, start: bytes) -> Kind | None:
    """What a file is: its suffix says so, or, if that says nothing, its first bytes."""
    kind = KINDS.get(suffix(location))
    if kind is not None:
        return kind
    if looks_like_image(start):
        return "image"
    if start.startswith(b"PAR1"):
        return "table"
    return "archive" if start[257:262] == b"ustar" else None


def _checked(base: str, location: str, name: str) -> _Entry:
    """A whole file that a list or table in the folder or at the URL `base` names."""
    why = obstacle(base, location)
    if why is None:
        return _Entry(name, location)
    # Its number names what is no location at all.
    return _Entry(
        name if len(location) <= MAX_LOCATION else "", location, error=_error(location, why)
    )


def _name(text: str) -> str:
    """The name of an image from its path or URL, whatever it is."""
    return name_of(shown(text))


def _name_in(base: str, location: str) -> str:
    """The name of an image in a folder, or of one that lies elsewhere."""
    # What stands behind "?" is left out while it can still be told from a name.
    return name_of(inside(shown(base), shown(location)))


def _error(location: str, why: str) -> str:
    return f"{title(location)}: {why}"


def _inside(folder: str, location: str) -> str | None:
    """Where a location lies strictly inside a folder, its name there with a slash behind it; else None."""
    folder, location = plain(folder), plain(location)
    if is_url(folder) != is_url(location):
        return None
    if not is_url(folder):
        folder, location = os.path.realpath(folder), os.path.realpath(location)
    name = inside(folder, location)
    return None if name == location else f"{name}/"


def _has_manifest(folder: str) -> bool:
    """Whether a job writes to a folder, or did."""
    return any(is_there(join(plain(folder), name)) for name in MANIFESTS)


def _files(names: Iterable[str]) -> str:
    """Files by suffix: "3 files (2 .csv, 1 .json)"."""
    counts = Counter(suffix(name) or "without suffix" for name in names)
    if not counts:
        return "no files"
    total = counts.total()
    return f"{total:,} file{'' if total == 1 else 's'} ({census(counts)})"


def _left(counts: Counter[str]) -> str:
    """What was left out, for a description; "" if nothing was."""
    total = counts.total()
    if not total:
        return ""
    return f", {total:,} other file{'' if total == 1 else 's'} left out ({census(counts)})"


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"
