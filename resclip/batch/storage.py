"""The output folder of a batch job, on this machine or at any URL that fsspec can write to: files whole or not at all.

Knows names and bytes. Knows no image and no manifest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from resclip.batch.paths import file_system, inside, local_path, naming, plain
from resclip.io.files import (
    atomic_file,
    is_temporary,
    make_folder,
    temporary_name,
    write_atomically,
)


def open_store(out: str) -> Store:
    """The store of a folder's path or URL. Nothing is made yet: see `Store.check_writable`.

    Raises:
        ImportError, ValueError: see `resclip.batch.paths.file_system`.
    """
    path = local_path(out)
    if path is not None:
        return LocalStore(str(path.absolute()))
    file_system(out)
    return RemoteStore(plain(out))


@dataclass(frozen=True)
class Store(ABC):
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

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Replace a file: whole, or not at all."""

    @abstractmethod
    def create(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A stream whose bytes replace a file when the block ends without an error."""

    @abstractmethod
    def put_file(self, path: Path, name: str) -> None:
        """Move a local file here, whole or not at all; it may or may not still be at `path` afterwards."""

    @abstractmethod
    def sync(self, names: Iterable[str]) -> None:
        """Make sure that these files, which are written, outlive a power failure: where that costs, once for many."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A seekable stream to read a file from."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def list(self, prefix: str) -> tuple[str, ...]:
        """The names that begin with a prefix such as "manifest.parts/", sorted."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def scratch(self) -> Path:
        """A new local folder for files that are being made, from which `put_file` moves them without copying."""

    @abstractmethod
    def clean(self) -> None:
        """Remove what killed runs of this library left half-written; not while another one is at work."""

    @abstractmethod
    def local_path(self, name: str) -> Path | None:
        """Where a file is, where the store is on this machine; its folder is there then."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is none."""
        try:
            with self.open(name) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def check_writable(self) -> None:
        """Make the folder, and write and remove a file in it: OSError says before the work what would after it."""
        probe = temporary_name()
        self.write(probe, b"resclip")
        self.remove(probe)


class LocalStore(Store):
    """A folder on a disk of this machine, or on one that machines share.

    A write costs one fsync, 3 ms on ext4 and a virtual disk.
    """

    def write(self, name: str, data: bytes) -> None:
        """See `Store`."""
        write_atomically(self._target(name), data)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`."""
        with atomic_file(self._target(name)) as stream:
            yield stream

    def put_file(self, path: Path, name: str) -> None:
        """See `Store`."""
        target = self._target(name)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            try:
                path.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise OSError(error.errno, error.strerror, str(target)) from error
                with atomic_file(target) as copy:  # From another disk.
                    shutil.copyfileobj(stream, copy, 1 << 20)

    def sync(self, names: Iterable[str]) -> None:
        """See `Store`. The bytes are on the disk already; a journalling file system keeps the names."""

    def open(self, name: str) -> BinaryIO:
        """See `Store`."""
        return Path(self.location(name)).open("rb")

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return Path(self.location(name)).is_file()

    def list(self, prefix: str) -> tuple[str, ...]:
        """See `Store`."""
        top = Path(self.root, prefix.rpartition("/")[0])
        found = []
        for folder, _, files in os.walk(top, onerror=_raise_unless_missing):
            beside = Path(folder).relative_to(self.root).as_posix()
            before = "" if beside == "." else f"{beside}/"
            found += [before + file for file in files if not is_temporary(file)]
        return tuple(sorted(name for name in found if name.startswith(prefix)))

    def remove(self, name: str) -> None:
        """See `Store`."""
        Path(self.location(name)).unlink(missing_ok=True)

    def scratch(self) -> Path:
        """See `Store`."""
        folder = Path(self.root, temporary_name())
        make_folder(folder)
        return folder

    def clean(self) -> None:
        """See `Store`."""
        for folder, folders, files in os.walk(self.root, onerror=_raise_unless_missing):
            for name in filter(is_temporary, files):
                Path(folder, name).unlink(missing_ok=True)
            for name in filter(is_temporary, folders):
                shutil.rmtree(Path(folder, name))
            folders[:] = [name for name in folders if not is_temporary(name)]

    def local_path(self, name: str) -> Path | None:
        """See `Store`."""
        return self._target(name)

    def _target(self, name: str) -> Path:
        target = Path(self.location(name))
        make_folder(target.parent)
        return target


class RemoteStore(Store):
    """A folder at a URL. A file is put there in one call, whole, by object stores; others may show a part of it."""

    def write(self, name: str, data: bytes) -> None:
        """See `Store`."""
        location = self.location(name)
        opened, inner = file_system(location)
        with naming(location):
            opened.pipe_file(inner, data)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`."""
        folder = self.scratch()
        try:
            with (folder / "file").open("xb") as stream:
                yield stream
            self.put_file(folder / "file", name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_file(self, path: Path, name: str) -> None:
        """See `Store`."""
        location = self.location(name)
        opened, inner = file_system(location)
        with naming(location):
            opened.put_file(str(path), inner)

    def sync(self, names: Iterable[str]) -> None:
        """What a server has taken it keeps."""

    def open(self, name: str) -> BinaryIO:
        """See `Store`."""
        location = self.location(name)
        opened, inner = file_system(location)
        with naming(location):
            stream: BinaryIO = opened.open(inner, "rb")
        return stream

    def exists(self, name: str) -> bool:
        """See `Store`."""
        location = self.location(name)
        opened, inner = file_system(location)
        with naming(location):
            return bool(opened.isfile(inner))

    def list(self, prefix: str) -> tuple[str, ...]:
        """See `Store`."""
        opened, root = file_system(self.root)
        folder, slash, _ = prefix.rpartition("/")
        with naming(self.root):
            opened.invalidate_cache()  # Other machines write here too.
            found = opened.find(f"{root}{slash}{folder}")
        names = (inside(root, str(path)) for path in found)
        return tuple(sorted(name for name in names if name.startswith(prefix)))

    def remove(self, name: str) -> None:
        """See `Store`."""
        location = self.location(name)
        opened, inner = file_system(location)
        with contextlib.suppress(FileNotFoundError), naming(location):
            opened.rm_file(inner)

    def scratch(self) -> Path:
        """See `Store`."""
        return Path(tempfile.mkdtemp(prefix="resclip-"))

    def clean(self) -> None:
        """See `Store`."""
        for name in self.list(""):
            if is_temporary(name.rpartition("/")[2]):
                self.remove(name)

    def local_path(self, name: str) -> Path | None:
        """See `Store`."""
        return None


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
