"""WebDataset archives: every image is found and read in place, and no damage goes unseen."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from source_support import archive, contents, folder_of, names

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
    assert source.skipped == 3
    assert source.items[0].local_path is None


def test_many_archives_by_braces_and_in_a_folder(tmp_path: Path) -> None:
    for shard in range(3):
        archive(tmp_path / f"s-{shard:02d}.tar", {"k.jpg": b"%d" % shard, "k.txt": b"words"})
    expected = {f"s-{shard:02d}/k.jpg": b"%d" % shard for shard in range(3)}
    by_braces = open_source(str(tmp_path / "s-{00..02}.tar"))
    assert contents(by_braces) == expected
    assert contents(open_source(str(tmp_path))) == expected
    assert by_braces.description.endswith("3 images in 3 archives")
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
