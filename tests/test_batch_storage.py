"""The output folder: here or at a URL, every file is whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from resclip.batch.storage import Store, open_store
from resclip.io.files import temporary_name


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A folder that is not there yet, two levels down."""
    if request.param == "local":
        yield open_store(str(tmp_path / "jobs" / "out"))
        return
    yield open_store("memory://jobs/out/")
    files = fsspec.filesystem("memory")
    if files.exists("/jobs"):
        files.rm("/jobs", recursive=True)


def is_local(store: Store) -> bool:
    return "://" not in store.root


def read(store: Store, name: str) -> bytes:
    with store.open(name) as stream:
        return stream.read()


def test_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("out/") == Store(str(tmp_path / "out"))
    assert open_store(f"file://{tmp_path}/out") == Store(str(tmp_path / "out"))
    assert open_store("memory://b/out/") == Store("memory://b/out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="nobody://x"):
        open_store("nobody://x")


def test_files_are_written_read_listed_and_removed(store: Store) -> None:
    names = ["a.png", "sub/c.json", "sub/deep/b é.png", "subway.txt"]
    assert store.list() == []
    assert store.list("sub") == []
    for name in names:
        assert not store.exists(name)
        store.write(name, name.encode())
        store.write(name, name.encode() + b"!")
    other = pickle.loads(pickle.dumps(store))
    assert other == store
    assert [read(other, name) for name in names] == [name.encode() + b"!" for name in names]
    assert all(store.exists(name) for name in names)
    assert not store.exists("sub")
    assert store.list() == ["a.png", "subway.txt"]
    assert store.list("sub") == ["sub/c.json"]
    assert store.list("sub/deep") == ["sub/deep/b é.png"]
    store.remove("a.png")
    store.remove("a.png")
    assert store.list() == ["subway.txt"]


def test_large_files_are_made_elsewhere_and_moved(store: Store) -> None:
    with store.create("stream.bin") as stream:
        stream.write(b"first")
        assert not store.exists("stream.bin")
        stream.write(b" last")
    assert read(store, "stream.bin") == b"first last"
    with store.open("stream.bin") as reading:
        reading.seek(6)
        assert reading.read() == b"last"
    with contextlib.suppress(KeyError), store.create("stream.bin") as stream:
        stream.write(b"half")
        raise KeyError
    assert read(store, "stream.bin") == b"first last"
    folder = store.scratch()
    (folder / "made.tif").write_bytes(b"raster")
    store.put_file(folder / "made.tif", "sub/put.tif")
    assert read(store, "sub/put.tif") == b"raster"


def test_names_stay_in_the_folder(store: Store) -> None:
    for name in ("", "/etc/passwd", "a/../../x", "a/", "./a", "a\\..\\b"):
        with pytest.raises(ValueError, match="relative name"):
            store.write(name, b"")


def test_what_killed_runs_left_is_removed_and_nothing_else(store: Store) -> None:
    kept = ["a.png", ".hidden", "sub/.resclip-notes.txt", "sub/x.tmp"]
    for name in kept:
        store.write(name, b"kept")
    left = [temporary_name()] + [f"sub/{temporary_name()}"] * is_local(store)
    for name in left:
        store.write(name, b"half")
    if is_local(store):
        (store.scratch() / "labels.tif").touch()
    store.clean()
    assert all(map(store.exists, kept))
    assert not any(store.exists(name) for name in left)
    if is_local(store):
        assert len(list(Path(store.root).iterdir())) == 3


def test_a_folder_that_can_be_written_to_is_left_empty(store: Store) -> None:
    store.check_writable()
    assert store.list() == []


@pytest.mark.parametrize("out", ["/dev/null/out", "/proc/out"])
def test_a_folder_that_cannot_be_made(out: str) -> None:
    """Root may write anywhere, but not below a file, nor into /proc."""
    with pytest.raises(OSError, match=out.split("/")[1]) as caught:
        open_store(out).check_writable()
    assert caught.value.strerror
    assert caught.value.filename


def test_a_server_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not lost its files: else a manifest that is there would be replaced by one without its rows."""
    store = open_store("memory://jobs/out")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("503 Slow Down")

    for method in ("info", "pipe_file"):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), method, fail)
    for call in (lambda: store.write("a", b""), lambda: store.exists("a")):
        with pytest.raises(OSError, match="503 Slow Down.*memory://jobs/out/a"):
            call()


def test_a_full_disk_leaves_neither_the_file_nor_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space.*a.png"):
        store.write("a.png", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_file_from_another_disk_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "out"))
    made = tmp_path / "made.tif"
    made.write_bytes(b"raster")
    replace = Path.replace

    def across(self: Path, target: Any) -> Path:
        if self == made:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", across)
    store.put_file(made, "a.tif")
    assert store.list() == ["a.tif"]
    assert read(store, "a.tif") == b"raster"
