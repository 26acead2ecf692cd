"""Parquet: images as bytes, paths and URLs, found by their columns and read piece by piece."""

from __future__ import annotations

import base64
import contextlib
import pickle
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_support import contents, folder_of, names, table

from resclip.batch.parquet_pages import find_pages
from resclip.batch.sources import open_source
from resclip.io.limits import Limits

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(251)) + b"\xfb\xff\xfe"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"jpg": [b"A", b"B"], "__key__": ["x/1", "2"]}, {"x/1": b"A", "2": b"B"}),
        ({"id": [7, None], "bytes": [b"A", b"B"]}, {"7": b"A", "t/000000001": b"B"}),
        (
            {
                "label": [0, 1],
                "image": pa.array([{"bytes": b"A", "path": "c.jpg"}, {"bytes": b"B"}], IMAGE),
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
    assert pickle.loads(pickle.dumps(source.items)) == source.items


def test_a_column_may_be_named(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"image": [b"A"], "thumbnail": [b"B"], "n": [1]})
    assert open_source(path).items[0].read() == b"A"
    assert open_source(path, column="thumbnail").items[0].read() == b"B"
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
    assert source.items[0].read() == b"x/1.jpg"
    assert source.items[3].read() == b"y/1.jpg"
    with pytest.raises(ValueError, match=f"{source.items[2].name}.*got none"):
        source.items[2].read()
    assert source.items[2].local_path is None
    table(tmp_path / "y" / "c.parquet", {"image": [b"A"]})
    with pytest.raises(ValueError, match=r"y/c\.parquet: expected images in column path"):
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
    items = open_source(path).items
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
    assert all(item.read() == b"A" for item in source.items)
    assert opened == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label": [1], "x": [1.5]}, r"label \(int64\), x \(double\)"),
        ({"image": [["a list"]]}, "image .list"),
        ({"image": pa.array([], pa.binary())}, "empty table"),
        (
            {"image": ["a photo of a cat, in words", "of a dog"]},
            r"got the columns image \(string\)",
        ),
        ({"image": [base64.b64encode(bytes(9999)).decode()]}, r"got the columns image \(string\)"),
        ({"images": [[PNG, PNG]], "n": [1]}, "images holds lists: make a row of each image"),
        ({f"column {n} " + "x" * 99: [n] for n in range(60)}, r"x \(int64\) and 48 more; name one"),
        (b"PAR1 and nothing else", "damaged"),
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
    assert len(str(caught.value)) < 1500
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize("name", ["URL", "Url", "IMAGE_Path", "FileName"])
def test_the_case_of_a_columns_name_does_not_matter(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path, "p/a.jpg")
    path = table(tmp_path / "t.parquet", {"TEXT": ["x"], name: ["p/a.jpg"], "KEY": ["k"]})
    for column in (None, name.swapcase()):
        assert contents(open_source(path, column=column)) == {"k": b"p/a.jpg"}
    both = table(tmp_path / "b.parquet", {"Image": [b"A"], "image": [b"B"], "IMAGE": [b"C"]})
    assert [open_source(both, column=name).items[0].read() for name in ("Image", "image", "IMAGE")] == [
        b"A", b"B", b"C",
    ]  # fmt: skip
    assert open_source(both).items[0].read() == b"B"


def test_images_as_base64(tmp_path: Path) -> None:
    plain = base64.b64encode(PNG).decode()
    texts = [
        None,
        plain,
        f"data:image/png;base64,{plain}",
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        base64.encodebytes(PNG).decode(),
        "",
        "a caption",
        plain[:100] + "!" + plain[100:],
    ]
    for name in ("image", "jpg", "IMAGE_BASE64"):
        columns = {name: texts, "path": [f"{number}.png" for number in range(len(texts))]}
        path = table(tmp_path / f"{name}.parquet", columns)
        items = open_source(path).items
        assert [item.name for item in items] == columns["path"]
        assert [item.read() for item in items[1:5]] == [PNG] * 4
        for item, message in ((items[0], "got none"), (items[6], "got another text of 9 char")):
            with pytest.raises(ValueError, match=f"^{item.name}: .*row {item.index}, {message}"):
                item.read()
        with pytest.raises(ValueError, match="characters with others in it$"):
            items[7].read()
    any_name = table(tmp_path / "any.parquet", {"foto": texts})
    assert open_source(any_name, column="foto").items[1].read() == PNG


def test_texts_that_are_no_locations_are_not_shown(tmp_path: Path) -> None:
    """Among paths, an image as base64 is one; data and captions are rows that fail."""
    folder_of(tmp_path, "a.jpg", "work/data/images/x")
    data = base64.b64encode(bytes(9999)).decode()
    cells = ["a.jpg", base64.b64encode(PNG).decode(), data, "a caption", "work/data/images/x"]
    items = open_source(table(tmp_path / "t.parquet", {"path": cells})).items
    assert [items[number].read() for number in (0, 1, 4)] == [b"a.jpg", PNG, b"work/data/images/x"]
    for number in (2, 3):
        assert items[number].name == f"t/{number:09d}"
        with pytest.raises(
            ValueError, match=r"row \d, got another text of [\d,]+ characters$"
        ) as caught:
            items[number].read()
        assert data[:20] not in str(caught.value)
    with pytest.raises(
        ValueError, match="texts that are none of these; name another column"
    ) as caught:
        open_source(table(tmp_path / "t.parquet", {"x": [data, data]}), column="x")
    assert data[:20] not in str(caught.value)


def test_a_cell_of_too_many_bytes(tmp_path: Path) -> None:
    columns = {"image": [b"x" * 999, b"x" * 1000, b"x" * 1001]}
    items = open_source(table(tmp_path / "t.parquet", columns)).items
    limits = Limits(max_bytes=1000)
    assert [len(item.read(limits)) for item in items[:2]] == [999, 1000]
    with pytest.raises(ValueError, match="at most 1,000 bytes.* row 2, got 1,001; .*max_bytes="):
        items[2].read(limits)


def damaged(path: Path, column: str, place: str, number: int) -> tuple[list[int], int]:
    """Damage a page of a table with one row group: its header or its contents. The rows of each page, and its own."""
    data = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        names = [file.schema.column(index).path for index in range(len(file.schema))]
        about = file.metadata.row_group(0).column(names.index(column))
        rows = file.metadata.num_rows
    start = about.dictionary_page_offset or about.data_page_offset
    pages = find_pages(bytes(data[start : start + about.total_compressed_size]), rows).data
    page = pages[number]
    begin = start + page.start if place == "header" else start + page.end - 9
    data[begin : begin + 9] = b"\xff" * 9
    path.write_bytes(data)
    return [each.first for each in pages], page.rows


@pytest.mark.parametrize("place", ["header", "contents"])
@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_pages_beside_a_damaged_one_are_read(
    place: str, nullable: bool, version: str, kind: str, tmp_path: Path
) -> None:
    generator = random.Random(0)
    data: list[bytes | None] = [generator.randbytes(9) + bytes(300) for _ in range(90)]
    values = pa.array(data)
    if kind == "struct":
        values = pa.StructArray.from_arrays([values], ["bytes"])
    fields = [pa.field("image", values.type, nullable=nullable), pa.field("id", pa.int32())]
    rows = pa.table([values, pa.array(range(90), pa.int32())], schema=pa.schema(fields))
    path = tmp_path / "t.parquet"
    options = {"compression": "zstd", "use_dictionary": False, "data_page_version": version}
    pq.write_table(rows, path, data_page_size=2000, write_batch_size=1, **options)
    column = "image.bytes" if kind == "struct" else "image"
    firsts, count = damaged(path, column, place, 5)
    assert len(firsts) > 9
    lost = range(firsts[5], firsts[5] + count)
    items = open_source(str(path)).items
    for item in random.Random(1).sample(items, len(items)):
        if item.index not in lost:
            assert item.read() == data[item.index]
            continue
        with pytest.raises(
            ValueError, match=f"^{item.name}: .*row {item.index}, got a damaged page"
        ):
            item.read()


def test_names_and_paths_on_a_damaged_page(tmp_path: Path) -> None:
    """Images on such a page have names of their own, or are rows that fail; the others are found."""
    texts = [f"{number:05}.jpg" for number in range(60)]
    for name in ("name", "path"):
        columns = {"image": [b"A"] * 60} if name == "name" else {}
        path = tmp_path / f"{name}.parquet"
        table(
            path, {**columns, name: texts}, use_dictionary=False, compression="none",
            data_page_size=100, write_batch_size=1, column_encoding=None,
        )  # fmt: skip
        firsts, count = damaged(path, name, "header", 2)
        source = open_source(str(path))
        lost = range(firsts[2], firsts[2] + count)
        assert 0 < count < 30
        assert [item.name for item in source.items] == [
            f"{name}/{number:09d}" if number in lost else text for number, text in enumerate(texts)
        ]
        if name == "path":
            with pytest.raises(ValueError, match="damaged page"):
                source.items[lost[0]].read()


def test_damage_at_random_is_a_sentence(tmp_path: Path, seed: int) -> None:
    """Nothing but ValueError comes of it, of few words."""
    generator = random.Random(seed)
    path = tmp_path / "t.parquet"
    columns = {
        "image": [generator.randbytes(50) for _ in range(40)],
        "name": list(map(str, range(40))),
    }
    table(path, columns, data_page_size=200, write_batch_size=1)
    whole = path.read_bytes()
    said: list[str] = []

    @contextlib.contextmanager
    def catching() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            said.append(str(error))

    for number in range(60):
        data = bytearray(whole)
        at = generator.randrange(len(data)) if number % 2 else -generator.randrange(9, 400)
        data[at : at + 4] = generator.randbytes(4)
        # Another name each time: open tables are kept.
        broken = tmp_path / f"{number}.parquet"
        broken.write_bytes(data)
        with catching():
            for item in open_source(str(broken)).items:
                with catching():
                    item.read()
    assert said
    assert max(map(len, said)) < 400
    assert not [text for text in said if "StopIteration" in text]


def test_more_rows_than_a_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resclip.batch.parquet.MAX_ROWS", 1000)
    path = table(tmp_path / "t.parquet", {"image": pa.array([None] * 100_000, pa.binary())})
    with pytest.raises(ValueError, match=r"has 100,000 rows, which its [\d,]+ bytes cannot hold"):
        open_source(path)


def test_an_empty_cell_is_one_image_that_fails(tmp_path: Path) -> None:
    source = open_source(table(tmp_path / "t.parquet", {"image": [b"A", None], "id": [3, 4]}))
    assert source.items[0].read() == b"A"
    with pytest.raises(ValueError, match="^4: .*row 1, got none"):
        source.items[1].read()


def test_a_row_group_whose_figures_contradict_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow would end the process: its rows fail after one look by another process, and those of the next are read."""
    looks: list[object] = []
    run = subprocess.run

    def look(command: list[str], **options: Any) -> Any:
        looks.append(command)
        *python, code, first, index = command
        return run(
            [*python, f"if int(__import__('sys').argv[1]) < 1: 1 / 0\n{code}", first, index],
            **options,
        )

    rows = 6
    path = tmp_path / "t.parquet"
    options = {"row_group_size": rows, "use_dictionary": False, "compression": "none"}
    pq.write_table(
        pa.table({"image": [bytes([n]) * 999 for n in range(2 * rows)]}), path, **options
    )
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    monkeypatch.setattr(subprocess, "run", look)
    items = open_source(str(path)).items
    for item in items[:rows]:
        with pytest.raises(ValueError, match="row group 0 is damaged"):
            item.read()
    assert len(looks) == 2
    assert [item.read()[0] for item in items[rows:]] == [*range(rows, 2 * rows)]
