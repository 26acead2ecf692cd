"""The output folder of a batch job, on this machine or at a URL: every file is there whole or not at all.

fsspec lists, opens and removes files wherever the folder is. Writing differs: on a local disk a file gets its name when
it is complete, by renaming it; an object store shows a file only once its upload has ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from resclip.batch.output_names import LOCK, MANIFEST, PARTS
from resclip.batch.paths import file_system, inside, local_path, naming, open_binary, plain
from resclip.io.files import atomic_file, is_temporary, make_folder, temporary_name

# Errors about the name of one file: another can be written all the same.
_OF_ONE_NAME = (
    errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ELOOP,
)  # fmt: skip

_NOWHERE = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*://[/\s]*)?")


def check_folder(out: str) -> str:
    """The path or URL of an output folder unchanged; ValueError where it names none, as an unset variable does."""
    if _NOWHERE.fullmatch(out):
        got = f"{out.strip()!r} alone" if out.strip() else "nothing"
        raise ValueError(
            f"expected a folder or URL to write to, got {got}; name one, such as 'out'"
        )
    return out


def concerns_one_file(error: BaseException) -> bool:
    """Whether an error while a file is written says nothing about the next one; a full disk does."""
    if isinstance(error, OSError):
        return error.errno in _OF_ONE_NAME
    return isinstance(error, MemoryError)


def open_store(out: str) -> Store:
    """The store of a folder's path or URL. Nothing is made yet: see `Store.check_writable`.

    Raises:
        ImportError, ValueError: see `check_folder` and `resclip.batch.paths.file_system`.
    """
    check_folder(out)
    path = local_path(out)
    root = plain(out) if path is None else str(path.absolute())
    file_system(root)
    return Store(root)


@dataclass(frozen=True)
class Store:
    """Files by name, with "/" between parts, in a folder that is made as needed. Small and picklable.

    Every method raises OSError, which names the file and the reason, where the disk or server fails, and ValueError
    for a name that would leave the folder. Symbolic links in the folder are not followed: a file that is one is
    replaced, and one on the way to a file is refused by an OSError.

    Args:
        root: the folder: an absolute path, or a URL; it may be a link itself.
    """

    root: str

    def location(self, name: str) -> str:
        """Path or URL of a file."""
        parts = name.split("/")
        if not name or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(
                f"expected a relative name such as 'sub/cat.png', got {name!r}; leave out dots and slashes"
            )
        return f"{self.root.rstrip('/')}/{name}"

    def local_path(self, name: str) -> Path | None:
        """Where a file is, with its folder made, if the store is on this machine; else None."""
        path = local_path(self._way_to(name))
        if path is not None:
            make_folder(path.parent)
        return path

    def _way_to(self, name: str, *, to_itself: bool = False) -> str:
        """Path or URL of a file, once no folder on the way there is a link, nor, if `to_itself`, the file."""
        location = self.location(name)
        if local_path(self.root) is not None:
            parts = name.split("/")
            for count in range(1, len(parts) + to_itself):
                path = self.location("/".join(parts[:count]))
                if Path(path).is_symlink():
                    raise OSError(
                        errno.ELOOP,
                        "expected a folder or file of the output, got a symbolic link, which is not followed; "
                        "remove it",
                        path,
                    )
        return location

    def write(self, name: str, data: bytes) -> None:
        """Replace a file: whole, or not at all."""
        location, path = self.location(name), self.local_path(name)
        if path is not None:
            with atomic_file(path) as stream:
                stream.write(data)
            return
        files, inner = file_system(location)
        with naming(location):
            files.pipe_file(inner, data)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A stream whose bytes replace a file when the block ends without an error."""
        path = self.local_path(name)
        if path is not None:
            with atomic_file(path) as stream:
                yield stream
            return
        folder = self.scratch()
        try:
            with (folder / "file").open("xb") as stream:
                yield stream
            self.put_file(folder / "file", name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_file(self, path: Path, name: str) -> None:
        """Move a local file here, whole or not at all; it may or may not still be at `path` afterwards."""
        location, target = self.location(name), self.local_path(name)
        if target is None:
            files, inner = file_system(location)
            with naming(location):
                files.put_file(str(path), inner)
            return
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            try:
                path.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise OSError(error.errno, error.strerror, str(target)) from error
                with atomic_file(target) as copy:  # From another disk.
                    shutil.copyfileobj(stream, copy, 1 << 20)

    def open(self, name: str) -> BinaryIO:
        """A seekable stream to read a file from."""
        return open_binary(self._way_to(name, to_itself=True))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        location = self._way_to(name, to_itself=True)
        files, inner = file_system(location)
        # Not fsspec's `isfile`, which takes any error, such as a server's that is busy, for a missing file.
        try:
            with naming(location):
                return bool(files.info(inner)["type"] == "file")
        except FileNotFoundError:
            return False

    def list(self, folder: str = "") -> list[str]:
        """Names of the files in a folder, without those in folders below it, sorted; none where it is missing."""
        location = self._way_to(folder, to_itself=True) if folder else self.root
        files, inner = file_system(location)
        with naming(location), contextlib.suppress(FileNotFoundError):
            files.invalidate_cache()  # Other machines write here too.
            found = files.ls(inner, detail=True)
            names = (inside(inner, about["name"]) for about in found if about["type"] == "file")
            return sorted(f"{folder}/{name}" if folder else name for name in names)
        return []

    def names(self) -> set[str]:
        """Names of all files, also in the folders below; links are none."""
        if local_path(self.root) is not None:
            return set(_names_below(self.root, ""))
        files, inner = file_system(self.root)
        with naming(self.root), contextlib.suppress(FileNotFoundError):
            files.invalidate_cache()
            return {inside(inner, str(path)) for path in files.find(inner)}
        return set()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        location = self._way_to(name)
        files, inner = file_system(location)
        with contextlib.suppress(FileNotFoundError), naming(location):
            files.rm_file(inner)

    def scratch(self) -> Path:
        """A new local folder for files that are being made, from which `put_file` moves them without copying."""
        if local_path(self.root) is None:
            return Path(tempfile.mkdtemp(prefix="resclip-"))
        folder = Path(self.root, temporary_name())
        make_folder(folder.parent)
        folder.mkdir()
        return folder

    def clean(self) -> None:
        """Remove what killed runs of this library left half-written here; not while another one is at work here.

        What lies in another output folder within this one is its own, and nothing is removed while this folder may
        itself lie in one that a run is writing to. Links are not followed.
        """
        root = local_path(self.root)
        if root is None:
            for name in filter(is_temporary, self.list()):  # Of `check_writable`.
                self.remove(name)
            return
        if any((above / LOCK).exists() for above in root.parents):
            return
        for folder, folders, files in os.walk(root, onerror=_raise_unless_missing):
            if folder != str(root) and {LOCK, MANIFEST, PARTS} & {*files, *folders}:
                folders.clear()
                continue
            for name in filter(is_temporary, files):
                Path(folder, name).unlink(missing_ok=True)
            for path in (Path(folder, name) for name in filter(is_temporary, folders)):
                path.unlink() if path.is_symlink() else shutil.rmtree(path)
            folders[:] = [name for name in folders if not is_temporary(name)]

    def check_writable(self) -> None:
        """Make the folder, and write and remove a file in it: OSError says before the work what would after it."""
        probe = temporary_name()
        self.write(probe, b"resclip")
        self.remove(probe)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _names_below(folder: str, prefix: str) -> Iterator[str]:
    """Names of the files below a local folder, each after `prefix`."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _names_below(entry.path, f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name
    except FileNotFoundError:
        return
