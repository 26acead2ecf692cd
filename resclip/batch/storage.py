"""The output folder of a batch job, on this machine or at a URL: every file is there whole or not at all.

fsspec lists, opens and removes files wherever the folder is. Writing differs: on a local disk a file gets its name when
it is complete, by renaming it; an object store shows a file only once its upload has ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from resclip.batch.paths import file_system, inside, local_path, naming, open_binary, plain
from resclip.io.files import atomic_file, is_temporary, make_folder, temporary_name


def open_store(out: str) -> Store:
    """The store of a folder's path or URL. Nothing is made yet: see `Store.check_writable`.

    Raises:
        ImportError, ValueError: see `resclip.batch.paths.file_system`.
    """
    path = local_path(out)
    root = plain(out) if path is None else str(path.absolute())
    file_system(root)
    return Store(root)


@dataclass(frozen=True)
class Store:
    """Files by name, with "/" between parts, in a folder that is made as needed. Small and picklable.

    Every method raises OSError, which names the file and the reason, where the disk or server fails, and ValueError
    for a name that would leave the folder.

    Args:
        root: the folder: an absolute path, or a URL.
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
        path = local_path(self.location(name))
        if path is not None:
            make_folder(path.parent)
        return path

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
        return open_binary(self.location(name))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        location = self.location(name)
        files, inner = file_system(location)
        # Not fsspec's `isfile`, which takes any error, such as a server's that is busy, for a missing file.
        try:
            with naming(location):
                return bool(files.info(inner)["type"] == "file")
        except FileNotFoundError:
            return False

    def list(self, folder: str = "") -> list[str]:
        """Names of the files in a folder, without those in folders below it, sorted; none where it is missing."""
        location = self.location(folder) if folder else self.root
        files, inner = file_system(location)
        with naming(location), contextlib.suppress(FileNotFoundError):
            files.invalidate_cache()  # Other machines write here too.
            found = files.ls(inner, detail=True)
            names = (inside(inner, about["name"]) for about in found if about["type"] == "file")
            return sorted(f"{folder}/{name}" if folder else name for name in names)
        return []

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        location = self.location(name)
        files, inner = file_system(location)
        with contextlib.suppress(FileNotFoundError), naming(location):
            files.rm_file(inner)

    def scratch(self) -> Path:
        """A new local folder for files that are being made, from which `put_file` moves them without copying."""
        if local_path(self.root) is None:
            return Path(tempfile.mkdtemp(prefix="resclip-"))
        folder = Path(self.root, temporary_name())
        make_folder(folder)
        return folder

    def clean(self) -> None:
        """Remove what killed runs of this library left half-written; not while another one is at work."""
        if local_path(self.root) is None:
            for name in filter(is_temporary, self.list()):  # Of `check_writable`.
                self.remove(name)
            return
        for folder, folders, files in os.walk(self.root, onerror=_raise_unless_missing):
            for name in filter(is_temporary, files):
                Path(folder, name).unlink(missing_ok=True)
            for name in filter(is_temporary, folders):
                shutil.rmtree(Path(folder, name))
            folders[:] = [name for name in folders if not is_temporary(name)]

    def check_writable(self) -> None:
        """Make the folder, and write and remove a file in it: OSError says before the work what would after it."""
        probe = temporary_name()
        self.write(probe, b"resclip")
        self.remove(probe)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
