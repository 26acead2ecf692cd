"""Files are written whole or not at all, and folders as they are needed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resclip.io.files import atomic_file, is_temporary, make_folder, sync_folder, write_atomically


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to the disk, in order: "file" or "folder", and "rename" between them."""
    events: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("folder" if is_folder else "file")
        real_sync(descriptor)

    def replace(self: Path, target: Any) -> Path:
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    return events


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, synced: list[str]) -> None:
    write_atomically(tmp_path / "a", b"data")
    assert synced == ["file", "rename"]
    sync_folder(tmp_path)
    assert synced == ["file", "rename", "folder"]


def test_nothing_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_file(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
        (other,) = set(tmp_path.iterdir()) - {path}
        assert is_temporary(other.name)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_files() -> Iterator[int]:
    """A process that may write files of at most so many bytes, so that a write truly fails."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_takes_no_more(tmp_path: Path, small_files: int) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    with pytest.raises(OSError, match="File too large.*/a'") as caught:
        write_atomically(path, b"x" * (small_files + 1))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_disk_that_is_full_at_the_last_moment(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems tell only when the bytes are brought to the disk."""

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)) as caught:
        write_atomically(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []
    if isinstance(caught.value, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / "a")


def test_folders_are_made_with_those_above_them(tmp_path: Path, synced: list[str]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == ["folder", "folder"]
    make_folder(tmp_path / "a" / "b")
    assert synced == ["folder", "folder"]
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="file"):
            make_folder(folder)


def test_a_file_system_without_sync_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> Any:
        def sync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        return sync

    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_folder(tmp_path)
