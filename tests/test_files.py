"""Files are written whole or not at all, and folders as they are needed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from disk_support import files_of_at_most

from resclip.io.files import NewFile, atomic_file, is_temporary, make_folder, write_atomically


def test_bytes_are_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure could leave an empty file of the new name."""
    events: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("bytes"), sync(number)))
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (events.append("name"), replace(self, target))
    )
    write_atomically(tmp_path / "a", b"data")
    assert events == ["bytes", "name"]


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


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    with (
        files_of_at_most(4096),
        pytest.raises(OSError, match="File too large.*/a'") as caught,
    ):
        write_atomically(path, b"x" * 4097)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems tell only when the bytes are brought to the disk."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomically(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


@pytest.mark.parametrize("error", [OSError("GDAL gave up"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_old_file_and_no_other(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write() -> None:
        with NewFile(path) as file:
            file.path.write_bytes(b"new")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(caught.value, OSError):  # Whoever asked for "a" need not know of another name.
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
        assert "GDAL gave up" in str(caught.value)


def test_folders_are_made_with_those_above_them(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="file"):
            make_folder(folder)
