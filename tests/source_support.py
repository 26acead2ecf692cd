"""What tests of sources share: folders, tables and archives whose contents are known."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resclip.batch.sources import Source
from resclip.errors import describe


def folder_of(root: Path, *names: str) -> Path:
    """Files whose bytes are their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def names(source: Source) -> list[str]:
    return [item.name for item in source.items]


def contents(source: Source) -> dict[str, bytes]:
    return {item.name: item.read() for item in source.items}


def contents_of_readable(source: Source) -> dict[str, bytes]:
    return {item.name: item.read() for item in source.items if item.error is None}


def errors(source: Source) -> dict[str, str]:
    """What those say that cannot be read, known before or not."""
    found = {}
    for item in source.items:
        try:
            item.read()
        except (ValueError, OSError) as error:
            found[item.name] = describe(error)
    return found


def table(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def archive(path: Path, members: dict[str, bytes], **options: Any) -> str:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return str(path)
