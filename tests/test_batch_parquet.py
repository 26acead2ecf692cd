"""Parquet: images as bytes, paths and URLs, found by their columns and read piece by piece."""

from __future__ import annotations

import pickle
import random
import re
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_support import contents, folder_of, names, table

from resclip.batch.sources import open_source

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


def test_an_empty_cell_is_one_image_that_fails(tmp_path: Path) -> None:
    source = open_source(table(tmp_path / "t.parquet", {"image": [b"A", None], "id": [3, 4]}))
    assert source.items[0].read() == b"A"
    with pytest.raises(ValueError, match="^4: .*row 1, got none"):
        source.items[1].read()
