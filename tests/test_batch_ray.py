"""The batch job on Ray: the files and rows of one machine, whatever dies on the way, and errors in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason='needs Ray: pip install "resclip[scale]"')
pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "resclip[batch]"')

from batch_support import CLASSES, files_in, make_pictures, toy_segmenter
from ray_support import FragileItem, FragileStore, alive, killed, load, models

from resclip.batch import local, ray_engine
from resclip.batch.manifest import Row
from resclip.batch.ray_engine import Crew, check_address, plan_crew
from resclip.batch.sources import Item, open_source
from resclip.batch.store import LocalStore, open_store
from resclip.batch.task import Task

STORE_BYTES = 100 << 20
COUNT = 72
BROKEN = 7


@dataclass(frozen=True)
class Reference:
    """A job, and what one machine makes of it."""

    items: list[Item]
    files: dict[str, bytes]
    rows: list[Row]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    make_pictures(folder / "in", COUNT, broken=BROKEN)
    items = list(open_source(str(folder / "in")))
    segmenter = toy_segmenter()
    rows = local.run(a_task(), segmenter, items, open_store(str(folder / "out")), workers=2)
    return Reference(items, timeless(rows), files_in(folder / "out"))


def a_task() -> Task:
    segmenter = toy_segmenter()
    return Task(segmenter.vocabulary.names, segmenter.preparation, overlay=True, scores=True)


def timeless(rows: Any) -> list[Row]:
    return sorted((replace(row, seconds=0.0) for row in rows), key=lambda row: row.index)
