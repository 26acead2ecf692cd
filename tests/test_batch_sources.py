"""Sources: every kind finds each picture once, in an order of its own, and gives its bytes back."""

from __future__ import annotations

import http.server
import io
import os
import pickle
import random
import re
import sys
import tarfile
import threading
import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resclip.batch.names import Naming, PackedTexts, safe_name
from resclip.batch.sources import Source, open_source


def folder_of(root: Path, *names: str) -> Path:
    """Files whose bytes are their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def names(source: Source) -> list[str]:
    return [item.name for item in source]


def contents(source: Source) -> dict[str, bytes]:
    return {item.name: item.read() for item in source}


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's memory, which stands for any object store."""
    files = fsspec.filesystem("memory")
    yield "memory://bucket"
    files.rm("/bucket", recursive=True) if files.exists("/bucket") else None


class Server(http.server.SimpleHTTPRequestHandler):
    """Lists folders unless told not to, and serves ranges, as stores on the web do; http.server has none."""

    lists = True
    ranges = True

    def list_directory(self, path: Any) -> Any:
        if self.lists:
            return super().list_directory(path)
        self.send_error(403)
        return None

    def send_head(self) -> Any:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not self.ranges or not wanted or not path.is_file():
            return super().send_head()
        data = path.read_bytes()
        part = data[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(data)}")
        self.end_headers()
        return io.BytesIO(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, type[Server]]]:
    """The address of a server, the folder that it serves, and its settings."""
    root = tmp_path / "web"
    root.mkdir()
    handler = type("Handler", (Server,), {})

    def serve(*arguments: Any) -> Server:
        return handler(*arguments, directory=str(root))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", root, handler
        server.shutdown()
        thread.join()


# Folders


def test_a_folder_gives_its_pictures_sorted_and_counts_the_rest(tmp_path: Path) -> None:
    kept = ["B.JPG", "a.png", "sub/deep/é.tif", "sub/z.webp"]
    other = ["notes.txt", "sub/labels.json", "a.png.bak"]
    hidden = [".a.jpg", ".git/b.jpg", "sub/.cache/c.jpg"]
    source = open_source(str(folder_of(tmp_path, *kept, *other, *hidden)))
    assert names(source) == sorted(kept)
    assert contents(source) == {name: name.encode() for name in kept}
    assert (len(source), source.skipped) == (4, 3)
    assert source.description == f"folder {tmp_path}: 4 files"
    assert [item.index for item in source] == [0, 1, 2, 3]
    assert [item.local_path for item in source] == [tmp_path / name for name in sorted(kept)]
    assert list(source) == list(source)
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    with pytest.raises(IndexError):
        source[4]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", "a.jpg", "b/c.jpg")
    folder = folder_of(tmp_path / "pictures", "d.jpg")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked.jpg").symlink_to(folder / "d.jpg")
    (tmp_path / "elsewhere" / "b" / "back").symlink_to(folder)
    expected = ["d.jpg", "linked.jpg", "linked/a.jpg", "linked/b/c.jpg"]
    assert names(open_source(str(folder))) == expected
    assert names(open_source(f"{folder}/**")) == expected


def test_outputs_of_earlier_runs_are_no_pictures(tmp_path: Path) -> None:
    """Also where they lie beside their pictures; the same names elsewhere are pictures like any other."""
    outputs = ["out/cat_labels.png", "out/manifest.parquet", "out/sub/cat_overlay.png"]
    killed = ["new/manifest.parts/000000.parquet", "new/cat_scores.tif"]
    folder_of(tmp_path, "cat.png", "cat_labels.png", "out/dog.png", *outputs, *killed)
    source = open_source(str(tmp_path))
    assert names(source) == ["cat.png", "cat_labels.png", "out/dog.png"]
    assert source.description.endswith("3 files, 5 earlier outputs left out")
    assert names(open_source(str(tmp_path / "out"))) == ["dog.png"]


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a folder with fewer pictures. Root may read everything, so the refusal is made up."""
    folder_of(tmp_path, "a.jpg", "closed/b.jpg")
    listing = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        open_source(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_unicode_is_read_and_made_safe(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"coffee")
    assert contents(open_source(str(tmp_path))) == {"caf_.jpg": b"coffee"}


def test_other_suffixes_may_be_asked_for(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.jpg", "b.heic")
    assert names(open_source(str(tmp_path), suffixes=(".heic",))) == ["b.heic"]


# Patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("[!a]*", ["b.jpg"]),  # d.txt is skipped
        ("sub/*.jpg", ["c.jpg"]),
        ("*/*.jpg", ["sub/c.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/e.jpg"]),
        ("**", ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/e.jpg"]),
        ("{b,a}.jpg", ["a.jpg", "b.jpg"]),
        ("s*/{c,deep/?}.jpg", ["sub/c.jpg", "sub/deep/e.jpg"]),
        ("**/.*.jpg", [".hidden.jpg"]),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_patterns(
    pattern: str, expected: list[str], remote: bool, tmp_path: Path, memory: str
) -> None:
    files = ("a.jpg", "b.jpg", "d.txt", ".hidden.jpg", "sub/c.jpg", "sub/deep/e.jpg")
    folder_of(tmp_path, *files)
    if remote:
        fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    source = open_source(f"{memory if remote else tmp_path}/{pattern}")
    assert names(source) == expected
    assert all(item.location.endswith(item.name) for item in source)
    assert all(item.read().decode().endswith(item.name) for item in source)


def test_braces_name_every_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *(f"{number:03d}.jpg" for number in range(8, 12)))
    assert names(open_source(f"{folder}/{{008..011}}.jpg")) == [
        "008.jpg", "009.jpg", "010.jpg", "011.jpg",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"012\.jpg"):
        open_source(f"{folder}/{{008..012}}.jpg")
    with pytest.raises(ValueError, match="1,000,000"):
        open_source(f"{folder}/{{0..1000000}}.jpg")


def test_a_path_that_looks_like_a_pattern_is_a_path(tmp_path: Path) -> None:
    folder_of(tmp_path, "data[1]/a.jpg", "data1/b.jpg")
    assert names(open_source(str(tmp_path / "data[1]"))) == ["a.jpg"]


# Lists


def test_a_list_names_paths_beside_it_anywhere_and_urls(tmp_path: Path, memory: str) -> None:
    folder_of(tmp_path, "lists/in/a.jpg", "up/b.jpg", "far/c.jpg")
    fsspec.filesystem("memory").pipe("/bucket/d e.jpg", b"remote")
    listed = tmp_path / "lists" / "train.txt"
    lines = (
        "\ufeff# made by hand\n\nin/a.jpg\r\n  ../up/b.jpg \n"
        f"{tmp_path}/far/c.jpg\n{memory}/d e.jpg\nmissing.jpg\nfile://{tmp_path}/lists/in/é.jpg"
    )
    listed.write_text(lines, encoding="utf-8")
    source = open_source(str(listed))
    assert names(source) == [
        "in/a.jpg",
        "up/b.jpg",
        f"{tmp_path}/far/c.jpg".lstrip("/"),
        "bucket/d e.jpg",
        "missing.jpg",
        "in/é.jpg",
    ]
    assert [item.read() for item in list(source)[:4]] == [
        b"lists/in/a.jpg", b"up/b.jpg", b"far/c.jpg", b"remote",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        source[4].read()
    assert source[3].local_path is None
    assert source[0].local_path == tmp_path / "lists/in/a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "empty list"),
        (b"\n# only this\n", "empty list"),
        (b"a.jpg\n\nb.jpg\n./a.jpg\n", "every picture once.*a.jpg as number 1 and 3"),
        (b"caf\xe9.jpg\n", "UTF-8"),
    ],
)
def test_lists_that_cannot_be_used(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.lst"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(str(path))
    assert "\n" not in str(caught.value)
    assert "list.lst" in str(caught.value)


# Names and stems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sub/cat.jpg", "sub/cat.jpg"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("a/./b//c/", "a/b/c"),
        ("C:\\pictures\\..\\cat.jpg", "C/pictures/cat.jpg"),
        ("a\x00b\n\x7f\x85\ud800.jpg", "a_b____.jpg"),
        (".. /x", "x"),
        ("..", ""),
        ("", ""),
        ("каф é 猫.jpg", "каф é 猫.jpg"),
    ],
)
def test_safe_names(text: str, expected: str) -> None:
    assert safe_name(text) == expected
    assert safe_name(expected) == expected


@given(st.text(st.one_of(st.sampled_from("./\\:~ a\x00é猫\ud812"), st.characters()), max_size=400))
def test_any_text_becomes_a_name_that_stays_in_its_folder(text: str) -> None:
    name = safe_name(text)
    assert safe_name(name) == name
    assert not name.startswith("/")
    assert all(part not in ("", ".", "..") for part in name.split("/") if name)
    assert all(len(part.encode()) <= 180 for part in name.split("/"))
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    assert not re.match("[A-Za-z]:", name)


@pytest.mark.parametrize(
    ("given_names", "stems"),
    [
        (["cat.jpg", "dog.jpg"], ["cat", "dog"]),
        (["cat.jpg", "cat.png"], ["cat.jpg", "cat.png"]),
        (["Cat.jpg", "cat.png"], ["Cat.jpg", "cat.png"]),
        (["a/cat.jpg", "b/cat.jpg"], ["a/cat", "b/cat"]),
        # A stem that is another one's whole name.
        (["cat.jpg", "cat.png", "cat.jpg.tif"], ["cat.jpg", "cat.png", "cat.jpg.tif"]),
        (["cat", "cat.jpg"], ["cat", "cat.jpg"]),
        # É in one character, and in two.
        (["\u00c9.jpg", "e\u0301.png"], ["\u00c9.jpg", "e\u0301.png"]),
        (["v1.2 of a cat", "x.tar"], ["v1.2 of a cat", "x"]),
    ],
)
def test_stems(given_names: list[str], stems: list[str]) -> None:
    naming = Naming(given_names)
    assert [naming.stem(naming.name(name, name)) for name in given_names] == stems


def test_names_that_differ_in_case_alone_have_marked_stems() -> None:
    naming = Naming(["Cat.jpg", "cat.jpg"])
    first, second = (naming.stem(name) for name in ("Cat.jpg", "cat.jpg"))
    assert re.fullmatch(r"Cat\.jpg~[0-9a-f]{16}", first)
    assert re.fullmatch(r"cat\.jpg~[0-9a-f]{16}", second)
    assert first.lower() != second.lower()


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


@given(st.data())
@settings(max_examples=150)
def test_no_two_items_share_a_name_or_stem_in_any_order(data: st.DataObject) -> None:
    """Of few letters, so that they clash; some already look marked, as an attacker's would."""
    part = st.sampled_from(["a", "A", "a.b", "é", "E\u0301", "a~0123456789abcdef", "ß", "ss"])
    suffix = st.sampled_from(["", ".jpg", ".JPG", ".png", ".b", "~0123456789abcdef"])
    texts = data.draw(st.lists(st.builds(lambda a, b: a + b, part, suffix), max_size=12))
    # What another pair of names is marked with.
    texts += [Naming(["a.jpg", "A.jpg"]).stem("a.jpg")] * data.draw(st.integers(0, 2))
    origins = {index: f"file {index}" for index in range(len(texts))}
    order = data.draw(st.permutations(range(len(texts))))
    found = {}
    for numbers in (range(len(texts)), order):
        naming = Naming(texts[number] for number in numbers)
        for number in numbers:
            name = naming.name(texts[number], origins[number])
            pair = name, naming.stem(name)
            assert found.setdefault(number, pair) == pair
    assert len({name for name, _ in found.values()}) == len(texts)
    assert len({folded(stem) for _, stem in found.values()}) == len(texts)


@given(st.lists(st.text(st.characters(), max_size=5), max_size=20))
def test_packed_texts_are_a_list(texts: list[str]) -> None:
    packed = PackedTexts(texts)
    assert list(packed) == texts
    assert len(packed) == len(texts)


def test_many_files_take_little_memory() -> None:
    """About 90 bytes each, so that ten million fit into a gigabyte; as Items they take over 500."""
    entries = PackedTexts()
    tracemalloc.start()
    for number in range(10_000):
        entries.append(f"folder-{number // 1000:04d}/picture-{number:08d}.jpg")
    naming = Naming(entries)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10_000 * 100
    assert naming.stem(entries[5]) == entries[5].removesuffix(".jpg")


# Parquet


def table(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [b"A", b"B"]}, {"t/000000000": b"A", "t/000000001": b"B"}),
        ({"jpg": [b"A", b"B"], "__key__": ["x/1", "2"]}, {"x/1": b"A", "2": b"B"}),
        ({"id": [7, None], "bytes": [b"A", b"B"]}, {"7": b"A", "t/000000001": b"B"}),
        (
            {
                "label": [0, 1],
                "image": pa.array([{"bytes": b"A", "path": "c.jpg"}, {"bytes": b"B"}], PICTURE),
            },
            {"c.jpg": b"A", "t/000000001": b"B"},
        ),
        (
            {"png": pa.array([b"A", b"B"], pa.large_binary()), "file_name": ["../a.png", "b.png"]},
            {"a.png": b"A", "b.png": b"B"},
        ),
        ({"path": ["p/a.jpg", "b.jpg"]}, {"p/a.jpg": b"p/a.jpg", "b.jpg": b"b.jpg"}),
        (
            {"url": pa.array(["p/a.jpg", "b.jpg"]).dictionary_encode(), "name": ["one", "two"]},
            {"one": b"p/a.jpg", "two": b"b.jpg"},
        ),
    ],
)
def test_tables(columns: dict[str, Any], expected: dict[str, bytes], tmp_path: Path) -> None:
    folder_of(tmp_path, "p/a.jpg", "b.jpg")
    source = open_source(table(tmp_path / "t.parquet", columns))
    assert list(contents(source).items()) == list(expected.items())
    assert source.description.startswith(f"Parquet {tmp_path}/t.parquet: 2 rows, column ")
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


def test_a_column_may_be_named(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"image": [b"A"], "thumbnail": [b"B"], "n": [1]})
    assert open_source(path)[0].read() == b"A"
    assert open_source(path, column="thumbnail")[0].read() == b"B"
    for column in ("absent", "n"):
        with pytest.raises(ValueError, match=rf"'{column}'.*image \(binary\).*n \(int64\)"):
            open_source(path, column=column)
    folder_of(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="leave the column out"):
        open_source(str(tmp_path / "a.jpg"), column="image")


def test_several_tables_are_one_source(tmp_path: Path) -> None:
    """In the order of their names; paths are relative to each table's own folder."""
    folder_of(tmp_path, "x/1.jpg", "y/1.jpg")
    table(tmp_path / "y" / "b.parquet", {"path": ["1.jpg"]})
    table(tmp_path / "x" / "a.parquet", {"path": ["1.jpg", str(tmp_path / "far.jpg"), None]})
    source = open_source(str(tmp_path / "*" / "*.parquet"))
    assert names(source)[::3] == ["x/1.jpg", "y/1.jpg"]
    assert source[0].read() == b"x/1.jpg"
    assert source[3].read() == b"y/1.jpg"
    with pytest.raises(ValueError, match=f"{source[2].name}.*got none"):
        source[2].read()
    assert source[2].local_path is None
    table(tmp_path / "y" / "c.parquet", {"image": [b"A"]})
    with pytest.raises(ValueError, match=r"y/c\.parquet: expected pictures in column path"):
        open_source(str(tmp_path / "*" / "*.parquet"))


def test_names_that_a_table_repeats_are_told_apart(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"image": [b"A", b"B"], "name": ["cat.jpg", "cat.jpg"]})
    found = contents(open_source(path))
    assert list(found.values()) == [b"A", b"B"]
    assert all(re.fullmatch(r"cat~[0-9a-f]{16}\.jpg", name) for name in found)


def test_rows_come_in_any_order_from_threads_and_small_row_groups(
    tmp_path: Path, seed: int
) -> None:
    """150 rows, so that batches of 16 end within row groups of 37, and these within the table."""
    data = [str(number).encode() * 9 for number in range(150)]
    path = table(tmp_path / "t.parquet", {"image": data}, row_group_size=37)
    items = list(open_source(path))
    order = random.Random(seed).sample(items, len(items))
    assert [item.read() for item in order] == [data[item.index] for item in order]
    wrong: list[int] = []

    def check(first: int) -> None:
        wrong.extend(item.index for item in items[first::3] if item.read() != data[item.index])

    threads = [threading.Thread(target=check, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_in_order_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "once.parquet", {"image": [b"A"] * 200}, row_group_size=100)
    opened: list[int] = []
    reading = pq.ParquetFile.iter_batches

    def count(self: Any, *arguments: Any, **options: Any) -> Any:
        opened.extend(options["row_groups"])
        return reading(self, *arguments, **options)

    source = open_source(path)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
    assert all(item.read() == b"A" for item in source)
    assert opened == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label": [1], "x": [1.5]}, r"label \(int64\), x \(double\)"),
        ({"image": [["a list"]]}, "image .list"),
        ({"image": pa.array([], pa.binary())}, "empty table"),
        ({"path": ["a.jpg", "b.jpg", "a.jpg"]}, "every picture once.*number 1 and 3"),
        (b"PAR1 and nothing else", "damaged"),
        (b"", "damaged"),
    ],
)
def test_tables_that_cannot_be_used(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        table(path, content)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(str(path))
    assert "t.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_cell_is_one_picture_that_fails(tmp_path: Path) -> None:
    source = open_source(table(tmp_path / "t.parquet", {"image": [b"A", None], "id": [3, 4]}))
    assert source[0].read() == b"A"
    with pytest.raises(ValueError, match="^4: .*row 1, got none"):
        source[1].read()


# Archives


def archive(path: Path, members: dict[str, bytes], **options: Any) -> str:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_pictures_of_archives_are_read_in_place(form: int, tmp_path: Path) -> None:
    members = {
        "000.json": b"{}",
        "000.jpg": b"A" * 1000,
        "000.seg.png": b"labels, not a picture",
        "001.PNG": b"",
        "sub/002.jpg": b"C" * 512,
        "sub/002.cls": b"5",
        "._001.jpg": b"hidden",
        "photo.v2.jpg": b"D",
        "x" * 90 + ".jpg": b"E",
    }
    if form != tarfile.USTAR_FORMAT:
        members["long/" + "é" * 70 + ".jpg"] = b"F"  # 140 bytes: in a header of its own
    path = archive(tmp_path / "shard-000.tar", members, format=form)
    source = open_source(path)
    assert names(source)[:4] == [
        "shard-000/000.jpg", "shard-000/001.PNG", "shard-000/sub/002.jpg", "shard-000/photo.v2.jpg",
    ]  # fmt: skip
    expected = {f"shard-000/{name}": data for name, data in members.items()}
    assert all(expected[name] == data for name, data in contents(source).items())
    assert len(source) == (6 if form != tarfile.USTAR_FORMAT else 5)
    assert source.skipped == 3
    assert source[0].local_path is None


def test_many_archives_by_braces_and_in_a_folder(tmp_path: Path) -> None:
    for shard in range(3):
        archive(tmp_path / f"s-{shard:02d}.tar", {"k.jpg": b"%d" % shard, "k.txt": b"words"})
    expected = {f"s-{shard:02d}/k.jpg": b"%d" % shard for shard in range(3)}
    by_braces = open_source(str(tmp_path / "s-{00..02}.tar"))
    assert contents(by_braces) == expected
    assert contents(open_source(str(tmp_path))) == expected
    assert by_braces.description.endswith("3 pictures in 3 archives")
    with pytest.raises(FileNotFoundError, match=r"s-03\.tar"):
        open_source(str(tmp_path / "s-{00..03}.tar"))


def test_archives_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    archive(path, {f"{number}.jpg": b"x" * 700 for number in range(5)})
    whole = path.read_bytes()
    entry = 512 + 1024  # a header and 700 bytes, in blocks of 512
    middle = bytearray(whole)
    middle[2 * entry : 2 * entry + 100] = b"\xff" * 100  # tarfile takes this for the end
    damaged = {
        "within the bytes of the last member": whole[: 4 * entry + 600],
        "within a header": whole[: 2 * entry + 100],
        "where a member ends": whole[: 3 * entry],
        "the third header": bytes(middle),
        "no archive": b"not a tar" * 200,
        "empty": b"",
    }
    for what, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged or cut short") as caught:
            open_source(str(path))
        assert str(path) in str(caught.value), what
    archive(path, {"a.txt": b"words"})
    with pytest.raises(ValueError, match="without any"):
        open_source(str(path))
    for name, mode in (("a.tar.gz", "w:gz"), ("b.tgz", "w:gz"), ("c.tar", "w:bz2")):
        with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
            tar.addfile(tarfile.TarInfo("a.jpg"))
        with pytest.raises(ValueError, match="read in place; decompress"):
            open_source(str(tmp_path / name))
    with pytest.raises(ValueError, match="decompress"):
        open_source(str(folder_of(tmp_path / "only", "x.tar.zst")))


# What is no source


def test_what_is_no_source(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    folder_of(tmp_path / "texts", "a.csv", "b.csv", "c.json", "noted")
    folder_of(tmp_path / "both", "a.tar", "b.parquet")
    cases: list[tuple[str, type[Exception], str]] = [
        ("absent", FileNotFoundError, "expected a folder"),
        ("*.nothing", FileNotFoundError, "got none"),
        ("empty", ValueError, "got no files"),
        ("texts", ValueError, r"4 other files \(2 \.csv, "),
        ("texts/a.csv", ValueError, r"ends with \.csv"),
        ("texts/noted", ValueError, "no suffix"),
        ("both", ValueError, "1 table and 1 archive"),
        ("nul\0", FileNotFoundError, "expected a folder"),
        ("a" * 300 + "*", FileNotFoundError, "got none"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            open_source(f"{tmp_path}/{name}")
        assert name.replace("\0", "") in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_picture_that_goes_missing_or_is_too_large_is_named(tmp_path: Path) -> None:
    item = open_source(str(folder_of(tmp_path, "a.jpg")))[0]
    assert item.read(limit=5) == b"a.jpg"
    with pytest.raises(ValueError, match=r"a\.jpg: expected at most 4 bytes"):
        item.read(limit=4)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        item.read()
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.jpg"):
        item.read()
    path = archive(tmp_path / "s.tar", {"a.jpg": b"x" * 100})
    member = open_source(path)[0]
    with pytest.raises(ValueError, match=r"s/a\.jpg.*at most 99 bytes"):
        member.read(limit=99)
    os.truncate(path, 550)
    with pytest.raises(OSError, match=r"expected 100 bytes from byte 512 on, got 38.*s/a\.jpg"):
        member.read()


# URLs


def test_every_kind_at_a_url(tmp_path: Path, memory: str) -> None:
    files = ("pics/a.jpg", "pics/sub/b.png", "pics/.h/c.jpg", "pics/notes.md")
    folder_of(tmp_path, *files)
    archive(tmp_path / "s-0.tar", {"k.jpg": b"tar"})
    table(tmp_path / "t.parquet", {"image": [b"P", b"Q"]})
    table(tmp_path / "paths.parquet", {"path": ["pics/a.jpg"]})
    (tmp_path / "list.txt").write_text(f"pics/a.jpg\n{tmp_path.as_uri()}/pics/sub/b.png\n")
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    folder = open_source(f"{memory}/pics")
    assert contents(folder) == {"a.jpg": b"pics/a.jpg", "sub/b.png": b"pics/sub/b.png"}
    assert folder.skipped == 1
    assert folder[0].location == "memory://bucket/pics/a.jpg"
    assert folder[0].local_path is None
    assert folder[0].read(limit=10) == b"pics/a.jpg"
    with pytest.raises(ValueError, match="at most 9"):
        folder[0].read(limit=9)
    assert contents(open_source(f"{memory}/pics/a.jpg")) == {"a.jpg": b"pics/a.jpg"}
    assert contents(open_source(f"{memory}/s-{{0..0}}.tar")) == {"s-0/k.jpg": b"tar"}
    assert contents(open_source(f"{memory}/t.parquet")) == {
        "t/000000000": b"P", "t/000000001": b"Q",
    }  # fmt: skip
    assert contents(open_source(f"{memory}/paths.parquet")) == {"pics/a.jpg": b"pics/a.jpg"}
    listed = open_source(f"{memory}/list.txt")
    assert [item.read() for item in listed] == [b"pics/a.jpg", b"pics/sub/b.png"]
    for missing in ("absent", "absent.jpg", "absent.txt", "absent.tar", "absent.parquet"):
        with pytest.raises(FileNotFoundError, match="absent"):
            open_source(f"{memory}/{missing}")
    with pytest.raises(FileNotFoundError, match="got none"):
        open_source(f"{memory}/*.jpg")
    assert contents(open_source(f"{tmp_path.as_uri()}/pics")) == contents(folder)


def test_the_web(web: tuple[str, Path, type[Server]]) -> None:
    address, root, server = web
    folder_of(root, "pics/a b.jpg", "pics/sub/c.png", "lone.jpg")
    archive(root / "s.tar", {"k.jpg": b"K" * 3000, "l.jpg": b"L"})
    table(root / "t.parquet", {"image": [b"P"]})
    (root / "list.txt").write_text(f"pics/sub/c.png\n/lone.jpg\n{address}/lone.jpg?size=2\n")
    assert contents(open_source(f"{address}/lone.jpg")) == {"lone.jpg": b"lone.jpg"}
    listed = open_source(f"{address}/list.txt")
    assert [item.read() for item in listed] == [b"pics/sub/c.png", b"lone.jpg", b"lone.jpg"]
    assert listed[0].name == "pics/sub/c.png"
    assert {item.stem.rpartition("/")[2][:4] for item in list(listed)[1:]} == {"lone"}
    assert sorted(contents(open_source(f"{address}/pics/")).values()) == [
        b"pics/a b.jpg", b"pics/sub/c.png",
    ]  # fmt: skip
    assert contents(open_source(f"{address}/s.tar")) == {"s/k.jpg": b"K" * 3000, "s/l.jpg": b"L"}
    assert contents(open_source(f"{address}/t.parquet")) == {"t/000000000": b"P"}
    item = open_source(f"{address}/s.tar")[1]
    server.ranges = False
    with pytest.raises(OSError, match="sends no parts of files"):
        item.read()
    with pytest.raises(FileNotFoundError, match="check the URL"):
        open_source(f"{address}/absent.jpg")
    server.lists = False
    with pytest.raises(ValueError, match="name a list file"):
        open_source(f"{address}/other")


def test_a_server_that_does_not_answer_is_an_error_of_the_item(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("http://127.0.0.1:9/a.jpg\n")  # The port of the discard service: closed.
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9/a\.jpg"):
        open_source(str(listed))[0].read()


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://bucket/a.jpg", "s3fs"), ("gs://bucket", "gcsfs"), ("box://x", "boxfs")],
)
def test_a_package_that_is_missing_is_named(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{url}.*{package}"):
        open_source(url)


def test_a_scheme_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nobody://x/a\.jpg: expected a path or a URL"):
        open_source("nobody://x/a.jpg")
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_a_table_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "t.parquet", {"image": [b"A"]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "resclip\[batch\]"'):
        open_source(path)
