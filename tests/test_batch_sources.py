"""Sources: every kind finds each image once, in an order of its own, and gives its bytes back."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from source_support import (
    archive,
    contents,
    contents_of_readable,
    errors,
    folder_of,
    names,
    table,
)

from resclip.batch.sources import open_source
from resclip.io.limits import Limits


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's memory, which stands for any object store."""
    files = fsspec.filesystem("memory")
    yield "memory://bucket"
    files.rm("/bucket", recursive=True) if files.exists("/bucket") else None


def test_a_folder_gives_its_images_sorted_and_counts_the_rest(tmp_path: Path) -> None:
    kept = ["B.JPG", "a.png", "sub/deep/é.tif", "sub/z.webp"]
    other = ["notes.txt", "sub/labels.json", "a.png.bak"]
    hidden = [".a.jpg", ".git/b.jpg", "sub/.cache/c.jpg"]
    source = open_source(str(folder_of(tmp_path, *kept, *other, *hidden)))
    assert names(source) == sorted(kept)
    assert contents(source) == {name: name.encode() for name in kept}
    assert (len(source.items), source.skipped) == (4, 3)
    left = "3 other files left out (1 .bak, 1 .txt, 1 .json)"
    assert source.description == f"folder {tmp_path}: 4 files, {left}"
    assert [item.index for item in source.items] == [0, 1, 2, 3]
    assert [item.local_path for item in source.items] == [tmp_path / name for name in sorted(kept)]
    assert pickle.loads(pickle.dumps(source.items)) == source.items


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", "a.jpg", "b/c.jpg")
    folder = folder_of(tmp_path / "images", "d.jpg")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "linked.jpg").symlink_to(folder / "d.jpg")
    (tmp_path / "elsewhere" / "b" / "back").symlink_to(folder)
    expected = ["d.jpg", "linked.jpg", "linked/a.jpg", "linked/b/c.jpg"]
    assert names(open_source(str(folder))) == expected
    assert names(open_source(f"{folder}/**")) == expected


def test_outputs_of_earlier_runs_are_no_images(tmp_path: Path) -> None:
    """Also where they lie beside their images; the same names elsewhere are images like any other."""
    outputs = ["out/cat_labels.png", "out/manifest.parquet", "out/sub/cat_overlay.png"]
    killed = ["new/manifest.parts/000000.parquet", "new/cat_scores.tif"]
    folder_of(tmp_path, "cat.png", "cat_labels.png", "out/dog.png", *outputs, *killed)
    source = open_source(str(tmp_path))
    assert names(source) == ["cat.png", "cat_labels.png", "out/dog.png"]
    assert source.description.endswith("3 files, 5 earlier outputs left out")
    assert names(open_source(str(tmp_path / "out"))) == ["dog.png"]


def test_a_folder_that_cannot_be_listed_is_an_item_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a folder with fewer images, nor the end of all. Root may read everything, so the refusal is made up."""
    folder_of(tmp_path, "a.jpg", "closed/b.jpg")
    listing = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr("os.scandir", refuse)
    for source in (tmp_path, f"{tmp_path}/**/*.jpg"):
        opened, closed = open_source(str(source)).items
        assert (opened.name, closed.name) == ("a.jpg", "closed")
        with pytest.raises(ValueError, match=r"closed: .* can be listed \(Permission denied\)"):
            closed.read()
    monkeypatch.setattr("os.scandir", lambda path: refuse(f"{path}/closed"))
    with pytest.raises(PermissionError, match=str(tmp_path)):
        open_source(str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_unicode_is_read_and_made_safe(tmp_path: Path) -> None:
    """The name can be printed and stored; the location is exact. One that is missing says so in such words too."""
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"coffee")
    (tmp_path / os.fsdecode(b"line\nbreak.jpg")).write_bytes(b"two")
    (tmp_path / os.fsdecode(b"m\xff.png")).symlink_to("nowhere")
    source = open_source(str(tmp_path))
    assert contents_of_readable(source) == {"caf%E9.jpg": b"coffee", "line%0Abreak.jpg": b"two"}
    (error,) = [item.error for item in source.items if item.error]
    assert error.encode().endswith(
        b"m%FF.png: expected a file, got a link to a file that is missing; remove it"
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("[!a]*", ["b.jpg"]),  # d.txt is skipped
        ("sub/*.jpg", ["c.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/e.jpg"]),
        ("**", ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/e.jpg"]),
        ("s*/{c,deep/?}.jpg", ["sub/c.jpg", "sub/deep/e.jpg"]),
        ("**/.*.jpg", [".hidden.jpg"]),
    ],
)
def test_patterns(pattern: str, expected: list[str], tmp_path: Path, memory: str) -> None:
    files = ("a.jpg", "b.jpg", "d.txt", ".hidden.jpg", "sub/c.jpg", "sub/deep/e.jpg")
    folder_of(tmp_path, *files)
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    for root in (tmp_path, memory):
        source = open_source(f"{root}/{pattern}")
        assert names(source) == expected
        assert all(item.location.endswith(item.name) for item in source.items)
        assert all(item.read().decode().endswith(item.name) for item in source.items)


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
    assert [item.read() for item in source.items[:4]] == [
        b"lists/in/a.jpg", b"up/b.jpg", b"far/c.jpg", b"remote",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        source.items[4].read()
    assert source.items[3].local_path is None
    assert source.items[0].local_path == tmp_path / "lists/in/a.jpg"


def test_every_kind_at_a_url(tmp_path: Path, memory: str) -> None:
    files = ("pics/a.jpg", "pics/sub/b.png", "pics/.h/c.jpg", "pics/notes.md")
    folder_of(tmp_path, *files)
    archive(tmp_path / "s-0.tar", {"k.jpg": b"tar"})
    table(tmp_path / "t.parquet", {"image": [b"P", b"Q"]})
    table(tmp_path / "paths.parquet", {"path": ["pics/a.jpg"]})
    (tmp_path / "list.txt").write_text(f"pics/a.jpg\n{memory}/pics/sub/b.png\n")
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    folder = open_source(f"{memory}/pics")
    assert contents(folder) == {"a.jpg": b"pics/a.jpg", "sub/b.png": b"pics/sub/b.png"}
    assert folder.skipped == 1
    assert folder.items[0].location == "memory://bucket/pics/a.jpg"
    assert folder.items[0].local_path is None
    assert contents(open_source(f"{memory}/pics/a.jpg")) == {"a.jpg": b"pics/a.jpg"}
    assert contents(open_source(f"{memory}/s-{{0..0}}.tar")) == {"s-0/k.jpg": b"tar"}
    assert contents(open_source(f"{memory}/t.parquet")) == {
        "t/000000000": b"P", "t/000000001": b"Q",
    }  # fmt: skip
    assert contents(open_source(f"{memory}/paths.parquet")) == {"pics/a.jpg": b"pics/a.jpg"}
    listed = open_source(f"{memory}/list.txt")
    assert [item.read() for item in listed.items] == [b"pics/a.jpg", b"pics/sub/b.png"]
    for missing in ("absent", "absent.jpg", "absent.txt", "absent.tar", "absent.parquet"):
        with pytest.raises(FileNotFoundError, match="absent"):
            open_source(f"{memory}/{missing}")
    with pytest.raises(FileNotFoundError, match="got none"):
        open_source(f"{memory}/*.jpg")
    assert contents(open_source(f"{tmp_path.as_uri()}/pics")) == contents(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\n# only this\n", "empty list"),
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


def test_what_is_no_source(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    folder_of(tmp_path / "texts", "a.csv", "b.csv", "c.json", "noted")
    folder_of(tmp_path / "both", "a.tar", "b.parquet")
    cases: list[tuple[str, type[Exception], str]] = [
        ("absent", FileNotFoundError, "expected a folder"),
        ("*.nothing", FileNotFoundError, "got none"),
        ("empty", ValueError, "got no files"),
        ("texts", ValueError, r"4 files \(2 \.csv, "),
        ("texts/a.csv", ValueError, "a first line that names the columns"),
        ("texts/c.json", ValueError, r"ends with \.json and begins like none"),
        ("texts/noted", ValueError, "no suffix"),
        ("both", ValueError, "1 table and 1 archive"),
        ("nul\0", FileNotFoundError, "expected a folder"),
        ("a" * 300 + "*", FileNotFoundError, "got none"),
    ]
    for name, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            open_source(f"{tmp_path}/{name}")
        assert name.replace("\0", "")[:50] in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_image_that_goes_missing_or_changes_is_named(tmp_path: Path) -> None:
    item = open_source(str(folder_of(tmp_path, "a.jpg"))).items[0]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        item.read()
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(IsADirectoryError, match=r"a\.jpg"):
        item.read()
    path = archive(tmp_path / "s.tar", {"a.jpg": b"x" * 100})
    member = open_source(path).items[0]
    os.truncate(path, 550)
    with pytest.raises(OSError, match=r"expected 100 bytes from byte 512 on, got 38.*s/a\.jpg"):
        member.read()


PNG = b"\x89PNG\r\n\x1a\n and so on"


def test_images_are_known_by_their_beginnings_too(tmp_path: Path, memory: str) -> None:
    """Whatever their names; what belongs to an image and looks like one is none."""
    folder_of(tmp_path, "a.jpg", "b.txt", "c.HEIC", "d.jgw", "empty/.hidden")
    for name in ("hash", "photo.dat", "sub/0123.v1", "a.jpg.ovr"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "short").write_bytes(b"\x89P")
    expected = ["a.jpg", "c.HEIC", "hash", "photo.dat", "sub/0123.v1"]
    left = "4 other files left out (1 .ovr, 1 .txt, 1 .jgw, 1 without suffix)"
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    for root in (str(tmp_path), memory):
        for text in (root, f"{root}/**"):
            source = open_source(text)
            assert names(source) == expected
            assert source.description.endswith(f": 5 files, {left}")


def test_a_single_file_of_any_name(tmp_path: Path, memory: str) -> None:
    """Image, table and archive by content; a list has to be named so, as any text might be one."""
    (tmp_path / "image").write_bytes(PNG)
    table(tmp_path / "table", {"image": [b"A"]})
    archive(tmp_path / "archive.bin", {"k.jpg": b"K"})
    (tmp_path / "texts").write_text("a.jpg\n")
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    for root in (str(tmp_path), memory):
        assert contents(open_source(f"{root}/image")) == {"image": PNG}
        assert contents(open_source(f"{root}/table")) == {"table/000000000": b"A"}
        assert contents(open_source(f"{root}/archive.bin")) == {"archive/k.jpg": b"K"}
        with pytest.raises(ValueError, match="begins like none"):
            open_source(f"{root}/texts")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_is_no_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipes, sockets, devices and links to nowhere fail as items on every route; a pipe would wait for ever."""
    folder_of(tmp_path, "a.jpg", "z.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.txt")
    monkeypatch.chdir(tmp_path)  # A socket's path is short.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        (tmp_path / "device.jpg").symlink_to("/dev/zero")
        (tmp_path / "itself.tif").symlink_to("itself.tif")
        (tmp_path / "nowhere.tif").symlink_to("absent")
        expected = {
            "device.jpg": "a device",
            "itself.tif": "a link to itself",
            "nowhere.tif": "a link to a file that is missing",
            "pipe": "a named pipe",
            "pipe.png": "a named pipe",
            "socket.jpg": "a socket",
        }
        everything = [*names(open_source(".")), "pipe.txt"]
        (tmp_path / "list.lst").write_text("\n".join(everything))
        table(tmp_path / "t.parquet", {"path": everything})
        for source in (".", "**", str(tmp_path), "list.lst", "t.parquet"):
            opened = open_source(source)
            found = errors(opened)
            listed = source in ("list.lst", "t.parquet")
            assert sorted(found) == sorted([*expected, *(["pipe.txt"] if listed else [])])
            for name, got in expected.items():
                assert f"expected a file, got {got}; " in found[name]
                assert name in found[name]
            assert len(opened.items) == len(found) + 2
        os.mkfifo("pipe.tar")
        os.mkfifo("pipe.parquet")
        for pipe in ("pipe", "pipe.png", "pipe.txt", "pipe.tar", "pipe.parquet"):
            with pytest.raises(OSError, match="named pipe"):
                open_source(pipe).items[0].read()


def test_one_bad_line_does_not_end_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    folder_of(tmp_path, "a.jpg", "b.jpg")
    bad = {
        "http://[::1/x.png": "malformed",
        "http://host:port/x.png": "malformed",
        "http:///x.png": "malformed",
        "s3://bucket/x.png": "pip install s3fs",
        "nobody://x.png": "nobody:// is not known",
        "a\0.jpg": "null character",
        "/9j/4AAQ" * 2000: "a text of 16,000 characters",
    }
    lines = ["a.jpg", *bad, "b.jpg", "./a.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    # A table's texts may be data too; see the tests of tables.
    table(tmp_path / "t.parquet", {"path": [*lines[:6], *lines[8:], ""]})
    source = open_source(str(tmp_path / "list.txt"))
    assert source.description.endswith(": 9 files, 1 named twice left out")
    for opened in (source, open_source(str(tmp_path / "t.parquet"))):
        found = [item for item in opened.items if item.name in errors(opened)]
        expected = list(bad.items())[: None if opened is source else 5]
        for item, (text, why) in zip(found, expected, strict=False):
            error = errors(opened)[item.name]
            assert why in error, text
            assert "\n" not in error
            assert len(error) < 500
        assert len(found) == len(opened.items) - 2
        assert [item.read() for item in opened.items if item not in found] == [b"a.jpg", b"b.jpg"]


def test_one_bad_table_or_archive_does_not_end_a_folder(tmp_path: Path) -> None:
    tables, archives = tmp_path / "tables", tmp_path / "archives"
    tables.mkdir()
    archives.mkdir()
    for name in ("a", "c"):
        table(tables / f"{name}.parquet", {"image": [name.encode()]})
        archive(archives / f"{name}.tar", {"k.jpg": name.encode()})
    (tables / "b.parquet").write_bytes(b"PAR1 and nothing else")
    (archives / "b.tar").write_bytes(b"none")
    source = open_source(str(tables))
    assert contents_of_readable(source) == {"a/000000000": b"a", "c/000000000": b"c"}
    assert "damaged" in errors(source)["b.parquet"]
    source = open_source(str(archives))
    assert contents_of_readable(source) == {"a/k.jpg": b"a", "c/k.jpg": b"c"}
    assert "damaged" in errors(source)["b.tar"]


def test_what_the_job_wrote_is_no_source(tmp_path: Path, memory: str) -> None:
    """A folder for the output within the source holds no images; the source itself none that end like outputs."""
    folder_of(tmp_path, "a.png", "out/a_labels.png", "out/b.png", "out2/c.png")
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    for root in (str(tmp_path), memory):
        for text in (root, f"{root}/**/*.png"):
            source = open_source(text, out=f"{root}/out")
            assert names(source) == ["a.png", "out2/c.png"]
            assert "2 files in the output folder left out" in source.description
        assert len(open_source(root, out=root).items) == 4
    # A run that was killed leaves its lock at least.
    folder_of(tmp_path, "manifest.lock", "a_labels.png", "sub/a_scores.tif")
    for text in (str(tmp_path), f"{tmp_path}/**/*.*", f"{tmp_path}/*.png", f"{tmp_path}/s*/*"):
        source = open_source(text, out=str(tmp_path)) if "s*" not in text else None
        assert source is None or not {"a_labels.png", "sub/a_scores.tif"} & set(names(source))
        assert source is None or "earlier outputs left out" in source.description
    with pytest.raises(ValueError, match="1 earlier outputs left out"):
        open_source(f"{tmp_path}/s*/*")
    (tmp_path / "list.txt").write_text("a.png\na_labels.png\nsub/a_scores.tif\n")
    listed = open_source(str(tmp_path / "list.txt"), out=str(tmp_path))
    assert names(listed) == ["a.png"]
    assert listed.description.endswith(": 1 file, 2 earlier outputs left out")


def test_brackets_and_braces_in_names_that_exist_mean_themselves(
    tmp_path: Path, memory: str
) -> None:
    folder_of(
        tmp_path, "set [a]/x.png", "set a/no.png", "b{c,d}/in/y.png", "u/[v]/z.png", "q?/w.png"
    )
    fsspec.filesystem("memory").put(f"{tmp_path}/", "/bucket/", recursive=True)
    for root in (str(tmp_path), memory):
        for pattern, expected in {
            "set [a]/*.png": ["x.png"],
            "set [a]": ["x.png"],
            "set [a]/x.png": ["x.png"],
            "set [a]/{x,x}.png": ["x.png"],
            "b{c,d}/**": ["in/y.png"],
            "*/[v]/*": ["u/[v]/z.png"],
            "q?/*": ["w.png"],
            "set [!b]/*.png": ["set a/no.png"],
        }.items():
            assert names(open_source(f"{root}/{pattern}")) == expected, pattern
    (tmp_path / "p[1].png").write_bytes(b"")
    assert names(open_source(f"{tmp_path}/p[1].png")) == ["p[1].png"]


def as_csv(rows: list[dict[str, Any]], mark: str = ",") -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


FORMS: dict[str, Any] = {
    "t.csv": as_csv,
    "semicolons.csv": lambda rows: as_csv(rows, ";"),
    "marked.CSV": lambda rows: "\ufeff" + as_csv(rows),
    "t.tsv": lambda rows: as_csv(rows, "\t"),
    "t.jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "t.ndjson": lambda rows: "\ufeff" + "\r\n\r\n".join(map(json.dumps, rows)) + "\r\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", ["path", "File_Name", "URL", "location", "other"])
def test_lists_with_columns(form: str, column: str, tmp_path: Path, memory: str) -> None:
    wanted = ["in/a.jpg", 'b, "c"; d.jpg', "é\u202f.jpg"]
    folder_of(tmp_path, *wanted)
    fsspec.filesystem("memory").pipe("/bucket/far.jpg", b"far")
    named = [*wanted, f"{memory}/far.jpg", f"  {tmp_path}/in/a.jpg "]
    rows = [{"id": number, column: name, "note": "x;y,z"} for number, name in enumerate(named)]
    path = tmp_path / form
    path.write_text(FORMS[form](rows), encoding="utf-8", newline="")
    source = open_source(str(path), column=column if column == "other" else None)
    assert list(contents(source).values()) == [*(name.encode() for name in wanted), b"far"]
    assert source.description == f"list {path}: 4 files, 1 named twice left out"
    if column == "other":
        with pytest.raises(
            ValueError, match="in a column such as path, url, file_name, got the col"
        ):
            open_source(str(path))
    with pytest.raises(ValueError, match="in column 'nothing', got the columns 'id', "):
        open_source(str(path), column="nothing")


@pytest.mark.parametrize(
    ("form", "lines", "bad"),
    [
        (
            "t.jsonl",
            [
                b'{"path": "a.jpg"}', b"{", b"[" * 100_000, b'{"path": 5}', b'{"id": 1}', b"7", b"\xff",
                b'{"path": "\\u0000"}', b'{"path": " "}', b'"b.jpg"', b'{"n": ' + b"9" * 5000 + b"}",
            ],
            [2, 3, 4, 5, 6, 7, 8, 9, 11],
        ),
        (
            "t.csv",
            [
                b"id,path", b"1,a.jpg", b"2", b"3,", b"4,\xff.jpg", b'5,"b.jpg",more',
                b'6,"' + b"x" * 200_000 + b'"', b"7,a\x01.jpg",
            ],
            [3, 4, 5, 7, 8],
        ),
    ],
)  # fmt: skip
def test_bad_lines_of_lists_with_columns_fail_alone(
    form: str, lines: list[bytes], bad: list[int], tmp_path: Path
) -> None:
    folder_of(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / form).write_bytes(b"\n".join(lines))
    source = open_source(str(tmp_path / form))
    assert contents_of_readable(source) == {"a.jpg": b"a.jpg", "b.jpg": b"b.jpg"}
    found = errors(source)
    assert list(found) == [f"line {number}" for number in bad]
    for name, error in found.items():
        assert f"{form}, {name}: expected " in error
        assert len(error) < 500
        assert "\n" not in error


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", "", "empty list"),
        ("t.jsonl", '{"id": 1}\n{"id": 2}', "line 1: expected a path or URL in a column such as"),
        ("t.csv", "", "got no columns"),
        ("t.csv", "path\n\n", "empty list"),
        ("t.csv", "photos/a.jpg\nphotos/b.jpg", "a first line that names the columns"),
    ],
)
def test_lists_with_columns_that_cannot_be_used(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / name))


class Piped:
    """In place of the standard input."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_names_from_the_standard_input(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, "in/a.jpg", "b.jpg", "-")
    fsspec.filesystem("memory").pipe("/bucket/far.jpg", b"far")
    monkeypatch.chdir(tmp_path)
    lines = f"in/a.jpg\n\n# nothing\n{tmp_path}/b.jpg\r\n{memory}/far.jpg\nin/a.jpg"
    monkeypatch.setattr(sys, "stdin", Piped(lines.encode()))
    source = open_source("-")
    assert list(contents(source).values()) == [b"in/a.jpg", b"b.jpg", b"far"]
    assert names(source)[0] == "in/a.jpg"
    assert source.description == "list -: 3 files, 1 named twice left out"
    cases = {b"": "empty list", b"\xff": "in UTF-8", b"\xff\xd8\xff\xe0": "got an image"}
    for data, message in cases.items():
        monkeypatch.setattr(sys, "stdin", Piped(data))
        with pytest.raises(ValueError, match=message):
            open_source("-")
    monkeypatch.setattr(sys, "stdin", Piped(b"a.jpg\n" * 9))
    with pytest.raises(ValueError, match="at most 20 bytes"):
        open_source("-", limits=Limits(max_bytes=20))
    with pytest.raises(ValueError, match="leave the column out"):
        open_source("-", column="path")


@pytest.mark.parametrize("form", ["list.txt", "table.parquet", "list.csv", "list.jsonl"])
def test_a_list_from_elsewhere_names_nothing_of_this_machine(
    form: str, tmp_path: Path, memory: str
) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    local = [
        f"file://{secret}", f"FILE://{secret}", f"local://{secret}", f"file:{secret}", "zip://a.jpg::/tmp/a.zip",
        f"simplecache::file://{secret}", "data://x", f"{memory}/a.jpg::file://{secret}",
    ]  # fmt: skip
    lines = ["a.jpg", *local, f"{memory}/b.jpg", f"..{secret}", str(secret)]
    files = fsspec.filesystem("memory")
    files.pipe({"/bucket/a.jpg": b"A", "/bucket/b.jpg": b"B"})
    (tmp_path / "list.txt").write_text("\n".join(lines))
    table(tmp_path / "table.parquet", {"path": lines})
    rows = [{"id": number, "path": line} for number, line in enumerate(lines)]
    (tmp_path / "list.csv").write_text(as_csv(rows))
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files.put(f"{tmp_path}/{form}", f"/bucket/{form}")
    source = open_source(f"{memory}/{form}")
    found = errors(source)
    assert len(found) == len(source.items) - 2
    read = [item.read() for item in source.items if item.name not in found]
    assert sorted(read) == [b"A", b"B"]
    # The three of the secret file are one; two are names beside the list, as any without "://" behind the scheme.
    assert sum("may only name URLs" in text for text in found.values()) == 4
    # Here the same lines are the user's own.
    if form != "table.parquet":
        own = {item.name: item for item in open_source(str(tmp_path / form)).items}
        assert own["secret.jpg"].read() == b"secret"
