"""WebDataset archives: every image is found and read in place, and no damage goes unseen."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from source_support import archive, contents, folder_of, names

from resclip.batch import webdataset
from resclip.batch.sources import open_source


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_of_archives_are_read_in_place(form: int, tmp_path: Path) -> None:
    members = {
        "000.json": b"{}",
        "000.jpg": b"A" * 1000,
        "000.seg.png": b"labels, not an image",
        "001.PNG": b"",
        "sub/002.jpg": b"C" * 512,
        "sub/002.cls": b"5",
        "._001.jpg": b"hidden",
        "photo.v2.jpg": b"D",
        "x" * 90 + ".jpg": b"E",
        "long/" + "é" * 70 + ".jpg": b"F",  # 140 bytes: in a header of its own
    }
    path = archive(tmp_path / "shard-000.tar", members, format=form)
    source = open_source(path)
    assert names(source)[:4] == [
        "shard-000/000.jpg", "shard-000/001.PNG", "shard-000/sub/002.jpg", "shard-000/photo.v2.jpg",
    ]  # fmt: skip
    expected = {f"shard-000/{name}": data for name, data in members.items()}
    assert all(expected[name] == data for name, data in contents(source).items())
    assert len(source.items) == 6
    assert source.skipped == 4
    left = "left out: 1 hidden, 1 json, 1 seg.png, 1 cls"
    assert source.description.endswith(f"shard-000.tar: 6 images in 1 archive, {left}")
    assert source.items[0].local_path is None


def test_many_archives_by_braces_and_in_a_folder(tmp_path: Path) -> None:
    for shard in range(3):
        archive(tmp_path / f"s-{shard:02d}.tar", {"k.jpg": b"%d" % shard, "k.txt": b"words"})
    expected = {f"s-{shard:02d}/k.jpg": b"%d" % shard for shard in range(3)}
    by_braces = open_source(str(tmp_path / "s-{00..02}.tar"))
    assert contents(by_braces) == expected
    assert contents(open_source(str(tmp_path))) == expected
    assert by_braces.description.endswith("3 images in 3 archives, left out: 3 txt")
    with pytest.raises(FileNotFoundError, match=r"s-03\.tar"):
        open_source(str(tmp_path / "s-{00..03}.tar"))


def test_archives_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(webdataset, "MAX_MEMBERS", 2)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="at most 2 members, got more; split"):
        open_source(str(path))
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


def test_one_image_a_key(tmp_path: Path) -> None:
    """The likeliest to be the picture; what was left out is counted by its name, and `member` names another."""
    keys = {
        "a": ["png", "jpg", "json"],
        "b": ["mask.png", "input.png", "rgb.png"],
        "c": ["depth.jpg", "v2.jpg", "image.jpg"],
        "d": ["png", "input.jpg"],
        "e": ["label_ids.png", "cls"],
    }
    members = {f"{key}.{rest}": f"{key}.{rest}".encode() for key in keys for rest in keys[key]}
    # A key's members need not stand together.
    members = {name: members[name] for name in sorted(members, key=lambda name: name[::-1])}
    path = archive(tmp_path / "s.tar", members)
    source = open_source(path)
    chosen = ["a.jpg", "b.input.png", "c.image.jpg", "d.png"]
    assert sorted(names(source)) == [f"s/{name}" for name in chosen]
    assert contents(source) == {f"s/{name}": name.encode() for name in chosen}
    assert source.skipped == len(members) - 4
    for rest in ("png", "json", "mask.png", "rgb.png", "depth.jpg", "cls"):
        assert f"1 {rest}" in source.description or "of other kinds" in source.description
    assert names(open_source(path, member="mask.png")) == ["s/b.mask.png"]
    assert names(open_source(path, member=".PNG")) == ["s/a.png", "s/d.png"]
    assert names(open_source(path, member="cls")) == ["s/e.cls"]
    with pytest.raises(
        ValueError, match=r"such as NAME\.tif, got .*1 mask\.png|other kinds.*member="
    ):
        open_source(path, member="tif")
    (tmp_path / "list.txt").write_text("s.tar")
    with pytest.raises(ValueError, match="archives for the member 'png', got a list"):
        open_source(str(tmp_path / "list.txt"), member="png")
    only = archive(tmp_path / "only.tar", {"a.seg.png": b"", "b.seg.png": b""})
    with pytest.raises(ValueError, match=r"without any \(2 seg\.png\).* member="):
        open_source(only)


def test_links_in_archives(tmp_path: Path) -> None:
    """GNU tar stores the second of two hard-linked files as a link to the first; links lead to members alone."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        about = tarfile.TarInfo("./in/a.png")
        about.size = 700
        tar.addfile(about, io.BytesIO(bytes(700)))
        for name, kind, target in (
            ("hard.png", tarfile.LNKTYPE, "in/a.png"),
            ("in/soft.png", tarfile.SYMTYPE, "a.png"),
            ("in/later.png", tarfile.SYMTYPE, "../z.png"),
            ("twice.png", tarfile.SYMTYPE, "hard.png"),
            ("loop.png", tarfile.SYMTYPE, "loop.png"),
            ("out.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("up.png", tarfile.LNKTYPE, "../../a.png"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("folder.png", tarfile.DIRTYPE, ""),
            (".dot.png", tarfile.REGTYPE, ""),
        ):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, target
            tar.addfile(about)
        about = tarfile.TarInfo("z.png")
        about.size = 1
        tar.addfile(about, io.BytesIO(b"Z"))
    source = open_source(str(path))
    expected = ["in/a", "hard", "in/soft", "in/later", "twice", "z"]
    assert names(source) == [f"s/{name}.png" for name in expected]
    sizes = [len(data) for data in contents(source).values()]
    assert sizes == [700, 700, 700, 1, 700, 1]
    left = "left out: 3 link to no member, 1 special file, 1 hidden"
    assert source.description.endswith(f"6 images in 1 archive, {left}")


def test_headers_that_lie_are_damage(tmp_path: Path) -> None:
    """Of any size in reasonable time and memory; nothing of Python's own words."""

    def header(size: int, **values: Any) -> bytes:
        about = tarfile.TarInfo("a.jpg")
        for name, value in values.items():
            setattr(about, name, value)
        data = bytearray(about.tobuf(tarfile.GNU_FORMAT))
        # As tarfile writes a number in binary, a negative one too.
        data[124:136] = size.to_bytes(12, "big", signed=True)
        data[124] |= 0x80
        data[148:156] = b" " * 8
        data[148:156] = f"{sum(data):06o}\0 ".encode()
        return bytes(data)

    sparse = tarfile.TarInfo("a.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    lies = {
        "a name of gigabytes": header(1 << 34, type=b"L"),
        "values of gigabytes": header(1 << 34, type=b"x"),
        "a negative name": header(-512, type=b"x"),
        "a member before itself": header(-1024),
        "a member on itself": header(-512),
        "no numbers": sparse.tobuf(tarfile.PAX_FORMAT),
    }
    path = tmp_path / "s.tar"
    one = Path(archive(path, {"b.jpg": b"B"})).read_bytes()[:1024]
    for what, data in lies.items():
        with path.open("wb") as stream:
            stream.write(one + data)
            stream.truncate(1 << 34)
        with pytest.raises(ValueError, match="damaged or cut short") as caught:
            open_source(str(path))
        assert "unpack" not in str(caught.value), what
