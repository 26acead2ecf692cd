"""Which images a batch job is about: folders, patterns, lists, Parquet tables and WebDataset archives.

The kind of a source follows from its name; of a folder or pattern from its files: images, else tables, else archives.
"""

from __future__ import annotations

import errno
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resclip.batch.items import Item
from resclip.batch.output_names import (
    OUTPUT_ENDINGS,
    contained_name,
    name_of,
    unique_names,
    without_suffix,
)
from resclip.batch.parquet import Cell, open_tables
from resclip.batch.paths import (
    expand_braces,
    file_system,
    files_below,
    inside,
    is_pattern,
    is_web,
    join,
    local_path,
    matching,
    naming,
    parent,
    pattern_root,
    plain,
    read_range,
    suffix,
)
from resclip.batch.webdataset import check_compression, images_in
from resclip.errors import reason

# Suffixes of the files that are taken from a folder, in upper case too.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif",
    ".jpe", ".jfif", ".apng", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip

LISTS = (".txt", ".lst")
TABLES = (".parquet",)
ARCHIVES = (".tar",)

_MANIFEST = re.compile(r"((?:.*/)?)manifest\.(?:parquet$|parts/)")


@dataclass(frozen=True, eq=False)
class Source:
    """The images of a batch job, in an order that does not depend on the machine.

    Args:
        description: one line: "folder images: 200 files".
        items: the images; about 400 bytes each.
        skipped: files that were left out because their suffix is no image's.
    """

    description: str
    items: Sequence[Item]
    skipped: int


class _Entry(NamedTuple):
    """An image of a source before it has a name that no other has; the rest as of `Item`."""

    name: str
    location: str
    start: int = 0
    length: int | None = None
    cell: Cell | None = None


def open_source(source: str, *, column: str | None = None) -> Source:
    """Find the images of a source.

    Args:
        source: a path or any URL that fsspec knows, of
            a folder: its images and those of the folders in it, sorted by name, no hidden files or earlier outputs;
                without images, its Parquet tables or its .tar archives;
            a pattern with `*`, `?`, `[a-z]`, `**`, `{000..099}` or `{a,b}`: the same of the files that fit;
            a list, .txt or .lst: a path, relative to the list's folder, or a URL a line; `#` begins a comment;
            a .parquet table with a column of bytes or of paths and URLs;
            a WebDataset archive, .tar;
            an image.
        column: of tables, the one with the images; None to find it by name and type.

    Raises:
        ValueError: the source has no image, or something in it cannot be used; one line with what to do.
        OSError: the source does not exist, or cannot be read.
        ImportError: it needs a package that is not installed; the message names it.
    """
    location = plain(source)
    path = local_path(location)
    opening = _Opening(source, column)
    if path is not None and _exists(path):
        return opening.folder(location) if path.is_dir() else opening.file(location)
    if is_pattern(location):
        return opening.pattern(location)
    if path is None:
        return opening.url(location)
    raise FileNotFoundError(
        errno.ENOENT,
        "expected a folder, a pattern, a list (.txt), a .parquet table, a .tar or an image, "
        "found nothing; check the path",
        source,
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

    def url(self, location: str) -> Source:
        """Of a URL without signs of a pattern."""
        web = is_web(location)
        is_known = suffix(location) in (*IMAGE_SUFFIXES, *LISTS, *TABLES, *ARCHIVES)
        opened, inner = file_system(location)
        # Any web page with links in it looks like a folder; a folder elsewhere may be called x.parquet.
        with naming(location):
            is_folder = not (web and is_known) and opened.isdir(inner)
        if is_folder:
            return self.folder(location)
        check_compression(location)
        if web and not is_known:
            raise ValueError(
                f"{self.shown}: expected a list, a table, an archive or an image, or a folder whose server lists its "
                "files, got none of these; name a list file (.txt) with a URL a line"
            )
        with naming(location):
            try:
                opened.info(inner)
            except FileNotFoundError as error:
                # A server that cannot be reached looks to fsspec like a missing file, with the reason behind it.
                why = "" if error.__cause__ is None else f" ({reason(error.__cause__)})"
                text = f"found nothing{why}; check the URL"
                raise FileNotFoundError(errno.ENOENT, text, location) from None
        return self.file(location)

    def file(self, location: str) -> Source:
        """Of one file, by its suffix."""
        check_compression(location)
        kind = suffix(location)
        if kind in LISTS:
            return self.list(location)
        if kind not in (*IMAGE_SUFFIXES, *TABLES, *ARCHIVES):
            raise ValueError(
                f"{self.shown}: expected a folder, a list (.txt, .lst), a table (.parquet), an archive (.tar) or a "
                f"image ({', '.join(IMAGE_SUFFIXES)}), got a file that ends with {kind or 'no suffix'}; convert it"
            )
        base = parent(location)
        return self.files(base, [inside(base, location)], "file")

    def folder(self, location: str) -> Source:
        """Of all files below a folder."""
        found = sorted(files_below(location))
        manifests = (_MANIFEST.match(name) for name in found)
        roots = {match[1] for match in manifests if match}
        kept = [name for name in found if not _is_output(name, roots)]
        left = len(found) - len(kept)
        return self.files(
            location, kept, "folder", f", {left:,} earlier outputs left out" if left else ""
        )

    def pattern(self, location: str) -> Source:
        """Of all files that fit a pattern."""
        base = pattern_root(location)
        found: set[str] = set()
        for pattern in expand_braces(location):
            if is_pattern(pattern):
                root = pattern_root(pattern)
                found.update(inside(base, join(root, name)) for name in matching(pattern))
                continue
            path = local_path(pattern)
            if path is not None and not path.exists():
                raise FileNotFoundError(
                    errno.ENOENT, f"expected all files of {self.shown}, one is missing", pattern
                )
            found.add(inside(base, pattern))
        if not found:
            raise FileNotFoundError(
                errno.ENOENT,
                "expected files that fit the pattern, got none; `**/*` looks in folders too",
                self.shown,
            )
        return self.files(base, sorted(found), "pattern")

    def files(self, base: str, found: list[str], kind: str, remark: str = "") -> Source:
        """Of files, which are sorted by name and relative to `base`."""
        groups: dict[str, list[str]] = {"images": [], "tables": [], "archives": []}
        kinds = dict.fromkeys(IMAGE_SUFFIXES, "images")
        kinds |= dict.fromkeys(TABLES, "tables") | dict.fromkeys(ARCHIVES, "archives")
        for name in found:
            if (group := kinds.get(suffix(name))) is not None:
                groups[group].append(name)
        images, tables, archives = groups.values()
        if self.column is not None and not tables:
            raise ValueError(
                f"{self.shown}: expected Parquet tables for the column {self.column!r}, "
                f"got {_census(found)}; leave the column out"
            )
        if images and self.column is None:
            description = f"{kind} {self.shown}: {_count(images, 'file')}{remark}"
            return self.source(description, _files(base, images), skipped=len(found) - len(images))
        if tables and (self.column is not None or not archives):
            return self.tables(base, tables, len(found) - len(tables))
        if archives and not tables:
            return self.archives(base, archives, len(found) - len(archives))
        for name in found:
            check_compression(name)
        if tables:
            raise ValueError(
                f"{self.shown}: expected images, tables or archives, got {_count(tables, 'table')} and "
                f"{_count(archives, 'archive')}; name one kind by a pattern, as in *.parquet"
            )
        raise ValueError(
            f"{self.shown}: expected images ({', '.join(IMAGE_SUFFIXES)}), .parquet tables or .tar archives, "
            f"got {_census(found)}{remark}; check the path"
        )

    def tables(self, base: str, tables: list[str], skipped: int) -> Source:
        """Of Parquet tables."""
        images, columns = open_tables(base, tables, self.column)
        if not images:
            raise ValueError(
                f"{self.shown}: expected rows, got an empty table; check what it was made of"
            )
        entries = [_Entry(image.name, image.location, cell=image.cell) for image in images]
        if not columns.are_bytes:
            self.check_once(entries, "the table")
        description = f"Parquet {self.shown}: {len(entries):,} rows, column {columns.images}"
        if len(tables) > 1:
            description += f", {len(tables):,} tables"
        return self.source(description, entries, skipped)

    def archives(self, base: str, archives: list[str], skipped: int) -> Source:
        """Of tar archives; other files in them are counted as skipped, labels and texts as a rule."""
        entries = []
        for archive in archives:
            location = join(base, archive)
            members, others = images_in(location, IMAGE_SUFFIXES)
            folder = without_suffix(archive)
            entries += [
                _Entry(contained_name(f"{folder}/{member.name}"), location, *member[1:])
                for member in members
            ]
            skipped += others
        counts = f"{_count(entries, 'image')} in {_count(archives, 'archive')}"
        return self.source(f"WebDataset {self.shown}: {counts}", entries, skipped)

    def list(self, location: str) -> Source:
        """Of the files that a text file names."""
        if self.column is not None:
            raise ValueError(
                f"{self.shown}: expected a Parquet table for the column {self.column!r}, got a list; leave it out"
            )
        entries = _files(parent(location), _lines(location))
        if not entries:
            raise ValueError(
                f"{self.shown}: expected a path or URL a line, got an empty list; add some"
            )
        self.check_once(entries, "the list, without empty lines and comments,")
        return self.source(f"list {self.shown}: {_count(entries, 'file')}", entries, 0)

    def check_once(self, entries: Sequence[_Entry], where: str) -> None:
        """Raise ValueError if two entries are of the same file."""
        first: dict[tuple[str, Cell | None], int] = {}
        for index, entry in enumerate(entries):
            bytes_of = entry.location, entry.cell
            if first.setdefault(bytes_of, index) != index and entry.location:
                raise ValueError(
                    f"{self.shown}: expected every image once, got {entry.location} as number "
                    f"{first[bytes_of] + 1} and {index + 1} of {where}; remove one"
                )

    def source(self, description: str, entries: Sequence[_Entry], skipped: int) -> Source:
        """With names that no two images share."""
        names = [entry.name or f"{index:09d}" for index, entry in enumerate(entries)]
        # No two entries are of the same bytes; this text is digested where names alone would clash.
        origins = [f"{entry.location}\n{entry.start}\n{entry.cell}" for entry in entries]
        items = [
            Item(index, name, stem, *entry[1:])
            for index, ((name, stem), entry) in enumerate(
                zip(unique_names(names, origins), entries, strict=True)
            )
        ]
        return Source(description, items, skipped)


def _files(base: str, texts: Iterable[str]) -> list[_Entry]:
    """Whole files, relative to the folder or URL `base`, or absolute, or URLs."""
    return [_Entry(name_of(inside(base, plain(text))), join(base, text)) for text in texts]


def _lines(location: str) -> Iterator[str]:
    """What a list names, line by line."""
    with io.TextIOWrapper(io.BytesIO(read_range(location)), encoding="utf-8-sig") as stream:
        try:
            for line in stream:
                text = line.strip()
                if text and not text.startswith("#"):
                    yield text
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{location}: expected paths or URLs, one a line, in UTF-8, got other bytes; "
                "save the file as UTF-8"
            ) from error


def _is_output(name: str, roots: Collection[str]) -> bool:
    """Whether a file was written by a batch job to one of the folders `roots`, which end with a slash."""
    if _MANIFEST.match(name):
        return True
    return name.endswith(OUTPUT_ENDINGS) and any(name.startswith(root) for root in roots)


def _census(names: Iterable[str]) -> str:
    """Counts of files by suffix: "3 other files (2 .csv, 1 .json)"."""
    counts = Counter(suffix(name) or "no suffix" for name in names)
    if not counts:
        return "no files"
    shown = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(4))
    return f"{sum(counts.values()):,} other files ({shown})"


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"
