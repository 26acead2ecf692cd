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

from resclip.batch.storage import Store, concerns_one_file, open_store
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


def test_every_file_is_listed_by_its_name(store: Store) -> None:
    assert store.names() == set()
    names = {"a.png", "sub/b é.png", "sub/deep/c.png"}
    for name in names:
        store.write(name, b"")
    if is_local(store):
        Path(store.root, "link.png").symlink_to("a.png")
        Path(store.root, "folder").symlink_to("sub")
    assert store.names() == names


@pytest.mark.parametrize("out", ["", "  ", "file://", "s3://", "memory:///"])
def test_no_folder_at_all(out: str) -> None:
    """As an unset variable in a shell's script: else it would be "/"."""
    with pytest.raises(ValueError, match=r"expected a folder or URL to write to, got .*; name one"):
        open_store(out)


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(b"kept")
    root = tmp_path / "link to out"
    (tmp_path / "out").mkdir()
    root.symlink_to("out")
    store = open_store(str(root))
    (root / "sub").symlink_to(other)
    (root / "a.png").symlink_to(other / "a.png")
    (root / "b.png").hardlink_to(other / "a.png")
    for name in ("a.png", "b.png"):
        store.write(name, b"new")
        assert read(store, name) == b"new"
    folder = store.scratch()
    (folder / "made").write_bytes(b"new")

    def create() -> None:
        with store.create("sub/a.png"):
            raise AssertionError

    for call in (
        lambda: store.write("sub/a.png", b"new"),
        create,
        lambda: store.put_file(folder / "made", "sub/a.png"),
        lambda: store.remove("sub/a.png"),
        lambda: store.write("sub/deep/a.png", b"new"),
        lambda: store.open("sub/a.png"),
        lambda: store.exists("sub/a.png"),
        lambda: store.list("sub"),
    ):
        with pytest.raises(
            OSError, match="symbolic link, which is not followed; remove it"
        ) as caught:
            call()
        assert caught.value.filename == str(root / "sub")
        assert concerns_one_file(caught.value)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {"a.png": b"kept"}


def test_what_other_runs_within_are_making_is_left_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    name = temporary_name()
    mine, theirs = [name, f"own/{name}"], []
    for folder, file in (
        ("a", "manifest.lock"),
        ("b/c", "manifest.parquet"),
        ("d", "manifest.parts/0"),
    ):
        store.write(f"{folder}/{file}", b"")
        theirs += [f"{folder}/{name}", f"{folder}/deep/{name}"]
    for one in (*mine, *theirs):
        store.write(one, b"half")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name).touch()
    Path(store.root, "link").symlink_to(elsewhere)
    Path(store.root, temporary_name()).symlink_to(elsewhere)
    inner = open_store(f"{store.root}/own")
    store.write("manifest.lock", b"")
    inner.clean()  # A run may be at work in the folder above.
    assert inner.exists(name)
    store.clean()
    assert not any(map(store.exists, mine))
    assert all(map(store.exists, theirs))
    assert [path.name for path in elsewhere.iterdir()] == [name]


@pytest.mark.parametrize(
    ("number", "alone"),
    [
        (errno.ENAMETOOLONG, True),
        (errno.EISDIR, True),
        (errno.ENOSPC, False),
        (errno.EACCES, False),
    ],
)
def test_which_errors_are_of_one_file(number: int, alone: bool) -> None:
    assert concerns_one_file(OSError(number, "text")) is alone
    assert concerns_one_file(MemoryError())
    assert not concerns_one_file(OSError("no number"))


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
