"""Which images a batch job is about: folders, patterns, lists, Parquet tables and WebDataset archives.

Knows the kinds of sources and what each calls its images. Reads no pixels. What a source is follows from its name;
for a folder or pattern from what is there: images, else tables, else archives.
"""

from __future__ import annotations

import errno
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from resclip.batch.items import Cell, Entries, Files
from resclip.batch.output_names import Naming, PackedTexts, digest, repeated
from resclip.batch.parquet import open_tables, read_cell
from resclip.batch.paths import (
    expand_braces,
    file_system,
    files_below,
    inside,
    is_folder,
    is_pattern,
    join,
    local_path,
    matching,
    naming,
    open_binary,
    parent,
    pattern_root,
    plain,
    read_range,
    reason,
    suffix,
)
from resclip.batch.webdataset import Members, check_compression

__all__ = ["IMAGE_SUFFIXES", "OUTPUT_ENDINGS", "Item", "Source", "open_source"]

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif",
    ".jpe", ".jfif", ".apng", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Of the files that are taken from a folder; in capitals too."""

OUTPUT_ENDINGS = ("_labels.png", "_labels.tif", "_scores.png", "_scores.tif", "_overlay.png")
"""Of the files that a batch job writes: below a folder with a manifest these are no images to be segmented."""

LISTS = (".txt", ".lst")
TABLES = (".parquet",)
ARCHIVES = (".tar",)

Suffixes: TypeAlias = Collection[str]

_MANIFEST = re.compile(r"((?:.*/)?)manifest\.(?:parquet$|parts/)")


@dataclass(frozen=True)
class Item:
    """An image to be segmented: small, and the same in any process.

    Args:
        index: in the source's order, from 0.
        name: relative, with "/" between parts, and no other item's: "sub/cat.jpg".
        stem: of the output files, and no other item's on any disk: "sub/cat".
        location: path or URL of the file that holds the bytes.
        start, length: which bytes of it, where not all.
        cell: which cell of it, where it is a Parquet file.
    """

    index: int
    name: str
    stem: str
    location: str
    start: int = 0
    length: int | None = None
    cell: Cell | None = None

    def read(self, limit: int | None = None) -> bytes:
        """The encoded image.

        Args:
            limit: bytes that it may have.

        Raises:
            OSError: the file is missing or cannot be read; names the item.
            ValueError: it has more bytes than `limit`, its table names no file or is damaged; names the item.
            ImportError: the file system, or Parquet, needs a package that is not there.
        """
        if not self.location:
            raise ValueError(f"{self.name}: expected a path or URL in the table's row, got none")
        try:
            with naming(self.location):
                if self.cell is None:
                    return read_range(self.location, self.start, self.length, limit)
                return read_cell(self.location, self.cell.column, self.cell.row, limit)
        except OSError as error:
            raise OSError(error.errno, reason(error), self._title) from error
        except ValueError as error:
            shown = "" if self._title == self.location else f"{self.name}: "
            raise ValueError(f"{shown}{reason(error)}") from error

    @property
    def local_path(self) -> Path | None:
        """The file, where the image is the whole of one on this machine."""
        if self.cell is not None or self.length is not None or not self.location:
            return None
        return local_path(self.location)

    @property
    def _title(self) -> str:
        named = self.location.endswith(self.name)
        return self.location if named else f"{self.name} ({self.location})"


@dataclass(frozen=True, eq=False)
class Source:
    """The images of a batch job, in an order that does not depend on the machine. Can be pickled.

    Args:
        description: one line: "folder images: 200 files".
        entries: what its kind knows of them.
        skipped: files that were left out because their suffix is no image's.
    """

    description: str
    entries: Entries
    skipped: int
    naming: Naming

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index from 0 to {len(self) - 1}, got {index}")
        entry = self.entries[index]
        name = self.naming.name(entry.name, entry.origin)
        stem = self.naming.stem(name)
        return Item(index, name, stem, entry.location, entry.start, entry.length, entry.cell)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


def open_source(
    source: str, *, suffixes: Suffixes = IMAGE_SUFFIXES, column: str | None = None
) -> Source:
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
        suffixes: of images, with their dots, in small letters.
        column: of tables, the one with the images; None to find it by name and type.

    Raises:
        ValueError: there is no image, or something there cannot be used; one line with what to do.
        OSError: there is nothing, or it cannot be read.
        ImportError: it needs a package that is not there; the message names it.
    """
    location = plain(source)
    path = local_path(location)
    opening = _Opening(source, suffixes, column)
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
    suffixes: Suffixes
    column: str | None

    def url(self, location: str) -> Source:
        """Of a URL without signs of a pattern."""
        is_web = location.startswith(("http://", "https://"))
        known = (*self.suffixes, *LISTS, *TABLES, *ARCHIVES)
        # Any web page with links in it looks like a folder; a folder elsewhere may be called x.parquet.
        if not (is_web and suffix(location) in known) and is_folder(location):
            return self.folder(location)
        check_compression(location)
        if is_web and suffix(location) not in known:
            raise ValueError(
                f"{self.shown}: expected a list, a table, an archive or an image, or a folder whose server lists its "
                "files, got none of these; name a list file (.txt) with a URL a line"
            )
        opened, inner = file_system(location)
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
        if kind not in (*self.suffixes, *TABLES, *ARCHIVES):
            raise ValueError(
                f"{self.shown}: expected a folder, a list (.txt, .lst), a table (.parquet), an archive (.tar) or a "
                f"image ({', '.join(self.suffixes)}), got a file that ends with {kind or 'no suffix'}; convert it"
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
        kinds = dict.fromkeys(self.suffixes, "images")
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
            entries: Entries = Files(base, PackedTexts(images))
            skipped = len(found) - len(images)
            return self.source(
                f"{kind} {self.shown}: {_count(images, 'file')}{remark}", entries, skipped
            )
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
            f"{self.shown}: expected images ({', '.join(self.suffixes)}), .parquet tables or .tar archives, "
            f"got {_census(found)}{remark}; check the path"
        )

    def tables(self, base: str, tables: list[str], skipped: int) -> Source:
        """Of Parquet tables."""
        entries, column = open_tables(base, tables, self.column)
        if not len(entries):
            raise ValueError(
                f"{self.shown}: expected rows, got an empty table; check what it was made of"
            )
        if isinstance(entries, Files):
            self.check_once(entries, "the table")
        what = f"Parquet {self.shown}: {len(entries):,} rows, column {column}"
        if len(tables) > 1:
            what += f", {len(tables):,} tables"
        return self.source(what, entries, skipped)

    def archives(self, base: str, archives: list[str], skipped: int) -> Source:
        """Of tar archives; what else is in them is counted as skipped, labels and texts as a rule."""
        members = Members(base, archives, self.suffixes)
        what = (
            f"WebDataset {self.shown}: {_count(members, 'image')} in {_count(archives, 'archive')}"
        )
        return self.source(what, members, skipped + members.skipped)

    def list(self, location: str) -> Source:
        """Of the files that a text file names."""
        if self.column is not None:
            raise ValueError(
                f"{self.shown}: expected a Parquet table for the column {self.column!r}, got a list; leave it out"
            )
        texts = PackedTexts(_lines(location))
        if not len(texts):
            raise ValueError(
                f"{self.shown}: expected a path or URL a line, got an empty list; add some"
            )
        entries = Files(parent(location), texts)
        self.check_once(entries, "the list, without empty lines and comments,")
        return self.source(f"list {self.shown}: {_count(texts, 'file')}", entries, 0)

    def check_once(self, entries: Files, where: str) -> None:
        """Raise ValueError if two entries are of the same file."""
        locations = np.fromiter(map(digest, entries.locations()), np.uint64, len(entries))
        twice = set(repeated(locations).tolist())
        seen: dict[str, int] = {}
        for index in np.flatnonzero(np.isin(locations, list(twice))).tolist() if twice else ():
            location = entries[index].location
            if location in seen:
                raise ValueError(
                    f"{self.shown}: expected every image once, got {location} as number "
                    f"{seen[location] + 1} and {index + 1} of {where}; remove one"
                )
            if location:
                seen[location] = index

    def source(self, description: str, entries: Entries, skipped: int) -> Source:
        """With names for all."""
        return Source(description, entries, skipped, Naming(entry.name for entry in entries))


def _lines(location: str) -> Iterator[str]:
    """What a list names, line by line."""
    here = local_path(location) is not None
    binary = open_binary(location) if here else io.BytesIO(read_range(location))
    with io.TextIOWrapper(binary, encoding="utf-8-sig") as stream:
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
    """What there is, by suffix: "3 other files (2 .csv, 1 .json)"."""
    counts = Counter(suffix(name) or "no suffix" for name in names)
    if not counts:
        return "no files"
    shown = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(4))
    return f"{sum(counts.values()):,} other files ({shown})"


def _count(things: Entries | PackedTexts | list[str], name: str) -> str:
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"
