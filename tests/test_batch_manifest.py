"""The manifest: whatever happens to a run, it says what a plain dictionary would."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from resclip.batch import manifest as module
from resclip.batch.items import Identity, Item
from resclip.batch.manifest import ClassArea, Manifest, Row, newest, schema, table_of, write_rows
from resclip.batch.storage import Store, open_store
from resclip.io.files import write_atomically

SETTINGS = {
    "method": "resclip", "window": 224, "options": {"rcs": {"weight": 0.4}, "layers": [6, 7]},
}  # fmt: skip


def row(index: int, name: str | None = None, *, failed: bool = False, mark: float = 1.0) -> Row:
    """Of an image; `mark` tells versions of it apart."""
    name = name or f"sub/{index:04d}.jpg"
    if failed:
        return Row(index, name, "failed", f"{name}: damaged", mark, None, None, (), ())
    areas = (ClassArea(3, "cat, Katze, 猫", 700, 0.7), ClassArea(0, "dog", 300, 0.3))
    identity = Identity(f"/photos/{name}", 1234, str(mark))
    return Row(index, name, "done", None, mark, 20, 50, areas, (f"{name}_labels.png",), identity)


def rows_in(store: Store, name: str = "manifest.parquet") -> list[Row]:
    """The rows of a file, read back by Parquet's own reader."""
    with store.open(name) as stream:
        values = pq.read_table(stream).to_pylist()
    for value in values:
        value["classes"] = tuple(ClassArea(**area) for area in value["classes"])
        value["outputs"] = tuple(value["outputs"])
        where = Identity(*(value.pop(name) for name in ("location", "size", "version")))
        value["identity"] = where if where.location else None
        del value["source"]
    return [Row(**value) for value in values]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


@pytest.fixture(params=["local", "remote"])
def any_store(request: pytest.FixtureRequest, store: Store) -> Iterator[Store]:
    if request.param == "local":
        yield store
        return
    yield open_store("memory://jobs/out")
    files = fsspec.filesystem("memory")
    files.rm("/jobs", recursive=True)


def test_rows_come_back_as_they_were_sorted(any_store: Store) -> None:
    rows = [row(2), row(0), row(1, failed=True), row(3, "é\n'\"猫.jpg")]
    with Manifest(any_store, SETTINGS) as manifest:
        assert manifest.done() == set()
        for one in rows:
            manifest.add(one)
        manifest.flush()
        assert any_store.list("manifest.parts") == ["manifest.parts/000000.parquet"]
    with Manifest(any_store, SETTINGS) as manifest:
        assert manifest.done() == {row(0).name, row(2).name, "é\n'\"猫.jpg"}
    assert rows_in(any_store) == sorted(rows, key=lambda one: one.index)
    assert any_store.list() == ["manifest.parquet"]
    assert any_store.list("manifest.parts") == []
    with any_store.open("manifest.parquet") as stream:
        file = pq.ParquetFile(stream)
        assert file.schema_arrow.equals(schema())
        assert json.loads(file.schema_arrow.metadata[b"resclip"]) == SETTINGS
        assert file.schema_arrow.metadata[b"resclip.format"] == b"2"
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_nothing_new_leaves_the_file_alone(store: Store) -> None:
    with Manifest(store, SETTINGS) as manifest:
        manifest.add(row(0))
    path = store.local_path("manifest.parquet")
    assert path is not None
    before = path.stat()
    Manifest(store, SETTINGS).close()
    assert path.stat().st_ino == before.st_ino


operations = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 9), st.integers(0, 12), st.booleans()),
    st.sampled_from([("flush",), ("kill",), ("close",)]),
)


@given(st.lists(operations, max_size=30), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_any_history_gives_what_a_dictionary_gives(
    history: list[Any], max_unwritten: int, rows_per_part: int
) -> None:
    """Small limits, so that many parts are written; indexes change between runs."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_UNWRITTEN_ROWS", max_unwritten)
        patch.setattr(module, "ROWS_PER_PART", rows_per_part)
        patch.setattr(module, "ROWS_PER_GROUP", 3)
        patch.setattr("os.fsync", lambda _: None)
        store = open_store(folder)
        manifest: Manifest | None = Manifest(store, SETTINGS)
        kept: dict[str, Row] = {}
        unwritten: list[Row] = []
        mark = 0.0
        for operation, *arguments in [*history, ("close",)]:
            if manifest is None:
                manifest = Manifest(store, SETTINGS)
                assert manifest.done() == {
                    one.name for one in kept.values() if one.status == "done"
                }
            if operation == "add":
                name, index, failed = arguments
                mark += 1
                one = row(index, f"{name}.jpg", failed=failed, mark=mark)
                manifest.add(one)
                unwritten.append(one)
                if len(unwritten) >= max_unwritten:
                    kept |= {one.name: one for one in unwritten}
                    unwritten = []
                continue
            if operation == "flush":
                manifest.flush()
            elif operation == "close":
                manifest.close()
            if operation != "kill":
                kept |= {one.name: one for one in unwritten}
            unwritten = []
            if operation != "flush":
                manifest = None
        expected = sorted(kept.values(), key=lambda one: (one.index, one.name))
        assert rows_in(store) == expected
        assert store.list() == ["manifest.parquet"]
        assert store.list("manifest.parts") == []


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("rows_per_part", [1, 2, 9])
def test_killed_at_any_step_nothing_is_lost_or_twice(
    rows_per_part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write and removal of a file is a step: 13 for 5 rows in parts of their own, 8 if they share one."""
    monkeypatch.setattr(module, "MAX_UNWRITTEN_ROWS", 1)
    monkeypatch.setattr(module, "ROWS_PER_PART", rows_per_part)
    monkeypatch.setattr("os.fsync", lambda _: None)
    first = {row(index).name: row(index, failed=index < 3) for index in range(4)}
    create, remove = Store.create, Store.remove
    for steps in range(14):
        store = open_store(str(tmp_path / str(steps)))
        manifest: Manifest | None
        with Manifest(store, SETTINGS) as manifest:
            for one in first.values():
                manifest.add(one)
        recorded, pending, left = dict(first), {}, steps

        def step() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        def created(self: Store, name: str) -> Any:
            step()
            return create(self, name)

        def removed(self: Store, name: str) -> None:
            step()
            remove(self, name)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Store, "create", created)
            patch.setattr(Store, "remove", removed)
            manifest = Manifest(store, SETTINGS)
            for mark, index in enumerate((0, 1, 2, 0, 1), start=2):
                new = row(index, mark=mark)
                pending = {new.name: new}
                manifest.add(new)
                recorded |= pending
            manifest.close()
        manifest = None
        # A row counts as recorded once `add` came back; the one in between may be there or not.
        with Manifest(store, SETTINGS) as again:
            done = {one.name for one in recorded.values() if one.status == "done"}
            assert done <= again.done() <= done | set(pending), steps
        assert rows_in(store) in (
            sorted(recorded.values(), key=lambda one: one.index),
            sorted((recorded | pending).values(), key=lambda one: one.index),
        ), steps
    assert left >= 0, "the last of these runs was to come to its end"


def test_a_late_row_takes_all_to_the_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    manifest = Manifest(store, SETTINGS)
    manifest.add(row(0))
    now += 1.9
    manifest.add(row(1))
    assert rows_in(store, "manifest.parts/000000.parquet") == []
    now += 0.1
    manifest.add(row(2))
    assert rows_in(store, "manifest.parts/000000.parquet") == [row(0), row(1), row(2)]
    manifest.add(row(3))
    assert len(store.list("manifest.parts")) == 1
    manifest.close()


def test_a_full_disk_loses_no_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(store, SETTINGS)
    manifest.add(row(0))
    manifest.flush()
    manifest.add(row(1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left.*manifest\.parts"):
            manifest.flush()
    assert store.list("manifest.parts") == ["manifest.parts/000000.parquet"]
    manifest.close()
    assert rows_in(store) == [row(0), row(1)]


@pytest.mark.parametrize(
    (
        "killed",
        "now",
        "message",
    ),  # An earlier run that was killed has another file, not another message.
    [
        (True, {**SETTINGS, "method": "naclip"}, r"method: 'resclip' there, 'naclip' now\)"),
        (
            False,
            {**SETTINGS, "options": {"rcs": {"weight": 0.5}, "layers": [6, 7]}},
            r"options\.rcs\.weight: 0\.4 there, 0\.5 now",
        ),
        (
            False,
            {"method": "resclip", "new": None},
            r"new: nothing there, None now; options: .* there, nothing now",
        ),
        (True, {str(number): number for number in range(9)}, "; 9 more"),
    ],
)
def test_other_settings_are_refused(
    killed: bool, now: dict[str, Any], message: str, store: Store
) -> None:
    first = Manifest(store, SETTINGS)
    first.add(row(0))
    first.flush() if killed else first.close()
    del first
    with pytest.raises(ValueError, match=message) as caught:
        Manifest(store, now)
    assert "another out=, or overwrite=True" in str(caught.value)
    with Manifest(store, SETTINGS) as again:  # The lock is free, the rows are there.
        assert again.done() == {row(0).name}
    with Manifest(store, now, overwrite=True) as new:
        assert new.done() == set()
        new.add(row(5))
    assert rows_in(store) == [row(5)]


def test_settings_that_are_equal_as_json_are_the_same(store: Store) -> None:
    Manifest(store, {"layers": (6, 7), "a": 1, "b": 2}).close()
    Manifest(store, {"b": 2, "a": 1, "layers": [6, 7]}).close()
    with pytest.raises(TypeError, match="JSON"):
        Manifest(store, {"when": dt.date(2025, 1, 1)})


def test_a_file_that_is_no_manifest(store: Store) -> None:
    path = store.local_path("manifest.parts/000003.parquet")
    assert path is not None
    other = pa.table({"a": [1]})
    ours = table_of([row(0)]).drop_columns(["seconds"])
    contents: list[tuple[Any, str]] = [
        (b"nothing", "got another or a damaged file"),
        (other, "got another or a damaged file"),
        (ours.replace_schema_metadata({"resclip": "no json"}), "got another or a damaged file"),
        (
            ours.replace_schema_metadata({"resclip": "{}"}),
            "format 2, got one of format 1, as of ano",
        ),
        (
            ours.replace_schema_metadata({"resclip": "{}", "resclip.format": "3"}),
            "format 2, got one of format 3, as of another version",
        ),
        (
            ours.replace_schema_metadata({"resclip": "{}", "resclip.format": "2"}),
            "another version",
        ),
    ]
    for content, message in contents:
        if isinstance(content, bytes):
            write_atomically(path, content)
        else:
            pq.write_table(content, path)
        with pytest.raises(ValueError, match=message) as caught:
            Manifest(store, {})
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    good = store.local_path("manifest.parts/000004.parquet")
    assert good is not None
    write_rows(store, "manifest.parts/000004.parquet", [table_of([row(0)])], {})
    data = good.read_bytes()
    path.unlink()
    # The end says where everything is.
    for place in range(len(data) - 300, len(data) - 8, 7):
        good.write_bytes(data[:place] + b"\xff\xff" + data[place + 2 :])
        with contextlib.suppress(ValueError):
            Manifest(store, {}).close()
        for left in store.list("manifest.parts"):
            store.remove(left)
        store.remove("manifest.parquet")
    with Manifest(store, {}, overwrite=True) as manifest:
        assert manifest.done() == set()
    assert rows_in(store) == []


def test_a_folder_in_the_place_of_the_manifest(store: Store) -> None:
    """It would be found when all is done."""
    store.write("manifest.parquet/x_labels.png", b"")
    with pytest.raises(OSError, match="got a folder of that name; rename it"):
        Manifest(store, SETTINGS)


def test_settings_are_not_shown_at_length(store: Store) -> None:
    Manifest(store, {"names": ["class"] * 9999}).close()
    with pytest.raises(ValueError, match="names: .*… there, nothing now") as caught:
        Manifest(store, {})
    assert len(str(caught.value)) < 400


def test_two_runs_on_one_folder(store: Store) -> None:
    first = Manifest(store, SETTINGS)
    first.add(row(0))
    for overwrite in (False, True):
        with pytest.raises(OSError, match=f"process {os.getpid()} on .*wait for it") as caught:
            Manifest(store, SETTINGS, overwrite=overwrite)
        assert caught.value.errno == errno.EBUSY
    first.close()
    assert not Path(store.root, "manifest.lock").exists()
    Manifest(store, SETTINGS).close()
    assert rows_in(store) == [row(0)]


def test_links_in_the_place_of_the_lock_are_not_followed(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    lock = store.local_path("manifest.lock")
    assert lock is not None
    for link in (lock.symlink_to, lock.hardlink_to, lambda path: lock.symlink_to(f"{path}/no")):
        link(other)
        with pytest.raises(OSError, match="got a link or no file; remove it.*manifest.lock"):
            Manifest(store, SETTINGS)
        assert other.read_text() == "kept"
        lock.unlink()
    lock.mkdir()
    with pytest.raises(OSError, match="no file"):
        Manifest(store, SETTINGS)


def test_a_run_that_is_killed_at_once_leaves_an_output_folder(any_store: Store) -> None:
    Manifest(any_store, SETTINGS)
    assert any_store.list("manifest.parts") == ["manifest.parts/000000.parquet"]
    assert not any_store.exists("manifest.parquet")


@pytest.fixture
def images(tmp_path: Path) -> list[Item]:
    """Three local files."""
    items = []
    for index, name in enumerate("abc"):
        path = tmp_path / f"{name}.png"
        path.write_text(name)
        items.append(Item(index, f"{name}.png", name, str(path)))
    return items


def do(store: Store, items: list[Item], *, write: bool = True) -> list[str]:
    """What a run does with the items that are missing; their names."""
    with Manifest(store, SETTINGS, source="/photos") as manifest:
        missing = manifest.missing(items)
        for item in missing:
            looked = item.looked_at()
            output = f"{item.stem}_labels.png"
            if write:
                store.write(output, b"labels")
            manifest.add(
                Row(item.index, item.name, "done", None, 0.0, 1, 1, (), (output,), looked.seen)
            )
    return [item.name for item in missing]


def test_what_is_there_and_the_same_is_not_missing(store: Store, images: list[Item]) -> None:
    assert do(store, images) == ["a.png", "b.png", "c.png"]
    assert do(store, images) == []
    (first, *_) = rows_in(store)
    status = Path(images[0].location).stat()
    assert first.identity == Identity(images[0].location, 1, str(status.st_mtime_ns))
    # A file that was deleted, one that was replaced by a link, an image that changed, and one of another folder.
    for change in (
        lambda: Path(store.root, "a_labels.png").unlink(),
        lambda: (
            Path(store.root, "a_labels.png").unlink()
            or Path(store.root, "a_labels.png").symlink_to("b_labels.png")
        ),
        lambda: Path(images[0].location).write_text("longer"),
        lambda: os.utime(images[0].location, ns=(5, 5)),
    ):
        change()
        assert do(store, images) == ["a.png"]
        assert do(store, images) == []
    assert not Path(store.root, "a_labels.png").is_symlink()
    folder = Path(store.root).parent / "other"
    folder.mkdir()
    moved = folder / "b.png"
    moved.write_text("b")
    os.utime(moved, ns=(time.time_ns(), Path(images[1].location).stat().st_mtime_ns))
    elsewhere = [images[0], dataclasses.replace(images[1], location=str(moved)), images[2]]
    assert do(store, elsewhere) == ["b.png"]
    # What is not there can be no other; what is known to be no image is.
    moved.unlink()
    assert do(store, elsewhere) == []
    assert do(store, [dataclasses.replace(elsewhere[1], error="b.png: a pipe")]) == ["b.png"]


def test_remote_images(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """A server is asked once for a file, however many images it holds; where it cannot be asked, nothing changes."""
    files = fsspec.filesystem("memory")
    files.pipe({"/in/a.png": b"A", "/in/s.tar": b"BC"})
    items = [
        Item(0, "a.png", "a", "memory://in/a.png"),
        Item(1, "s/b.png", "s/b", "memory://in/s.tar", 0, 1),
        Item(2, "s/c.png", "s/c", "memory://in/s.tar", 1, 1),
    ]
    asked: list[str] = []
    info = type(files).info

    def ask(self: Any, path: str, **options: Any) -> Any:
        asked.append(path)
        return info(self, path, **options)

    monkeypatch.setattr(type(files), "info", ask)
    assert len(do(store, items)) == 3
    assert sorted(set(asked)) == ["/in/a.png", "/in/s.tar"]
    assert [one.identity and one.identity.size for one in rows_in(store)] == [1, 1, 1]
    assert do(store, items) == []
    files.pipe("/in/s.tar", b"DE")
    assert do(store, items) == ["s/b.png", "s/c.png"]
    files.rm("/in", recursive=True)
    assert do(store, items) == []


def test_secrets_of_a_url_are_not_stored(store: Store) -> None:
    item = Item(0, "a.png", "a", "http://user:secret@127.0.0.1:9/a.png?signature=secret#secret")
    do(store, [item])
    (one,) = rows_in(store)
    assert one.identity == Identity("http://127.0.0.1:9/a.png", None, None)


def test_an_image_that_takes_the_files_of_another(store: Store, tmp_path: Path) -> None:
    """cat.jpg, then cat.png in its place, whose label map has the same name; in the end cat.jpg again."""
    both = []
    for name in ("cat.jpg", "cat.png"):
        (tmp_path / name).write_text("x")
        both.append(Item(0, name, "cat", str(tmp_path / name)))
    for item in (*both, *both):
        assert do(store, [item]) == [item.name]
        assert [one.name for one in rows_in(store)] == [item.name]
    # Killed once the files may have been replaced, but before the new row was written.
    Manifest(store, SETTINGS).missing(both[:1])
    assert do(store, both[1:]) == ["cat.png"]
    # Under another stem it is done anew, as its old files may be replaced by others' later.
    renamed = dataclasses.replace(both[1], stem="cat.png")
    assert do(store, [renamed]) == ["cat.png"]


def test_an_image_that_is_being_done_again_is_not_done(store: Store, images: list[Item]) -> None:
    """It changed, its files were replaced, the run was killed, and it became again what it had been."""
    do(store, images)
    path = Path(images[0].location)
    before = path.stat()
    path.write_text("longer")
    assert Manifest(store, SETTINGS).missing(images) == images[:1]
    path.write_text("a")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert do(store, images) == ["a.png"]


def test_names_that_are_not_utf_8_are_stored_with_escapes(store: Store, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff.png")
    path.write_text("x")
    item = Item(0, "m_.png", "m_", str(path))
    do(store, [item])
    assert do(store, [item]) == []
    with Manifest(store, SETTINGS, source=str(path)) as manifest:
        manifest.add(Row(1, "n", "failed", f"{path}: damaged", 0.0, None, None, (), ()))
    assert rows_in(store)[1].error == f"{tmp_path}/m\\udcff.png: damaged"


def test_the_check_of_many_local_files_is_quick(store: Store, tmp_path: Path) -> None:
    items = []
    rows = []
    for index in range(3000):
        path = tmp_path / f"{index}.png"
        path.touch()
        item = Item(index, path.name, str(index), str(path))
        items.append(item)
        output = store.local_path(f"{index}_labels.png")
        assert output is not None
        output.touch()
        rows.append(
            Row(index, item.name, "done", None, 0, 1, 1, (), (output.name,), item.identity())
        )
    with Manifest(store, SETTINGS) as manifest:
        for one in rows:
            manifest.add(one)
    manifest = Manifest(store, SETTINGS)
    start = time.perf_counter()
    assert manifest.missing(items) == []
    assert time.perf_counter() - start < 1.0  # 0.05 s on two cores with nothing else to do.
    manifest.close()


HOLD = """
import sys, time
from resclip.batch.manifest import Manifest
from resclip.batch.storage import Store
manifest = Manifest(Store(sys.argv[1]), {})
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_whose_process_was_killed_is_free(store: Store) -> None:
    command = [sys.executable, "-c", HOLD, store.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=f"process {holder.pid} on {socket.gethostname()}"):
            Manifest(store, {})
        holder.kill()
    assert Path(store.root, "manifest.lock").exists()
    Manifest(store, {}).close()


def test_where_there_are_no_locks_nobody_is_kept_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    Manifest(store, SETTINGS)
    with Manifest(store, SETTINGS) as manifest:
        manifest.add(row(0))
    assert rows_in(store) == [row(0)]


@pytest.mark.slow
def test_more_than_2_gb_of_class_names_are_merged() -> None:
    """Of a million images with long names of classes: more than Arrow's ordinary texts hold in one piece."""
    areas = tuple(ClassArea(index, f"{index:03d} {'long ' * 199}", 1, 0.1) for index in range(10))
    one = table_of([Row(0, "0", "done", None, 0.0, 1, 1, areas, ())])
    names = pa.array([str(index) for index in range(4096)])
    piece = one.take(pa.array(np.zeros(4096, np.int64))).set_column(
        1, schema().field("name"), names
    )
    tables = [piece] * 53  # 2.2 GB; only the last of them counts.
    (kept,) = newest(tables)
    assert len(kept) == 4096
    assert kept.cast(schema())["classes"][0].as_py() == [vars(area) for area in areas]
