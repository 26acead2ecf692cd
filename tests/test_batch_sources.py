"""Sources: every kind finds each image once, in an order of its own, and gives its bytes back."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from source_support import archive, contents, folder_of, names, table

from resclip.batch.sources import open_source


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
    assert source.description == f"folder {tmp_path}: 4 files"
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


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a folder with fewer images. Root may read everything, so the refusal is made up."""
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
    (tmp_path / "list.txt").write_text(f"pics/a.jpg\n{tmp_path.as_uri()}/pics/sub/b.png\n")
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
        (b"a.jpg\n\nb.jpg\n./a.jpg\n", "every image once.*a.jpg as number 1 and 3"),
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
