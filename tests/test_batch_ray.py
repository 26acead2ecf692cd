"""The batch job on Ray: the files and rows of one machine, whatever dies on the way, and errors in one line."""

from __future__ import annotations

import builtins
import contextlib
import errno
import itertools
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason='needs Ray: pip install "resclip[scale]"')
pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "resclip[batch]"')

from batch_support import files_in, make_pictures, toy_segmenter
from ray_support import (
    FragileItem,
    FragileStore,
    FullStore,
    Shades,
    is_alive,
    killed,
    load_fragile,
    load_nothing,
    load_slow,
    models,
)

from resclip import Segmenter
from resclip.batch import local, ray_engine
from resclip.batch.manifest import Row
from resclip.batch.ray_engine import Crew, check_address, plan_crew
from resclip.batch.sources import Item, open_source
from resclip.batch.store import LocalStore, Store
from resclip.batch.task import Task

COUNT = 40
BROKEN = 5
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@dataclass(frozen=True)
class Setting:
    """Pictures on disk, and what is to be made of them."""

    items: list[Item]
    segmenter: Segmenter
    task: Task

    def here(self, model: Any, folder: Path) -> list[Row]:
        """What one machine makes of them."""
        store = LocalStore(str(folder))
        return timeless(local.run(self.task, model, self.items, store, workers=2))

    def on_ray(
        self,
        request: partial[Any],
        store: Store,
        items: Iterable[Item] | None = None,
        address: str | None = None,
    ) -> Iterator[Row]:
        items = self.items if items is None else items
        return ray_engine.run(
            self.task, request, self.segmenter, items, store, address=address, actors=2
        )


def timeless(rows: Iterable[Row]) -> list[Row]:
    return sorted((replace(row, seconds=0.0) for row in rows), key=lambda row: row.index)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("pictures")
    make_pictures(folder, COUNT, broken=BROKEN)
    segmenter = toy_segmenter()
    task = Task(segmenter.vocabulary.names, segmenter.preparation, overlay=True, scores=True)
    return Setting(list(open_source(str(folder))), segmenter, task)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of one core each; their processes find the modules beside this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        ray_engine.import_ray()
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            made.add_node(**NODE)
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def joined(cluster: Any) -> Iterator[Any]:
    """A process that is part of the cluster already, as a notebook may be: workers stay warm between jobs."""
    ray = ray_engine.import_ray()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        yield cluster
    finally:
        ray.shutdown()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def test_every_byte_is_that_of_one_machine_whatever_process_dies(
    setting: Setting, cluster: Any, notes: Path, tmp_path: Path
) -> None:
    """A reader, a model between two portions of a call, and a writer between a file and its row."""
    wanted = setting.here(setting.segmenter, tmp_path / "here")
    assert sum(row.status == "failed" for row in wanted) == BROKEN
    ray = ray_engine.import_ray()
    items = list(setting.items)
    items[30] = FragileItem(**vars(items[30]), notes=str(notes))
    store = FragileStore(str(tmp_path / "ray"), notes=str(notes), victim="010_labels.png")
    # Calls are of two portions: eight pictures, of which the first four are on their way.
    request = partial(load_fragile, str(notes), dies_at=8)
    rows = list(setting.on_ray(request, store, items, address=cluster.address))
    assert killed(notes) == {"reader", "model", "writer"}
    assert timeless(rows) == wanted
    store.clean()  # As the next job does: the writer may have left a temporary file.
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "here")
    assert not ray.is_initialized()
    assert not any(map(is_alive, models(notes)))


def test_a_lost_machine_loses_no_picture(
    setting: Setting, joined: Any, notes: Path, tmp_path: Path
) -> None:
    wanted = setting.here(Shades(0.0), tmp_path / "here")
    store = LocalStore(str(tmp_path / "ray"))
    rows = setting.on_ray(partial(load_slow, str(notes), seconds=0.1), store)
    first = list(itertools.islice(rows, 1))
    assert until(lambda: len(models(notes)) == 2, seconds=60)
    before = models(notes)
    (lost,) = joined.worker_nodes
    joined.remove_node(lost, allow_graceful=False)
    try:
        rest = list(rows)
    finally:
        joined.add_node(**NODE)
    store.clean()
    assert len(rest) > COUNT // 2
    assert models(notes) > before  # One of them was on the lost machine.
    assert timeless(first + rest) == wanted
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "here")


@pytest.mark.parametrize(
    ("request_", "store", "error", "message"),
    (
        (partial(load_slow, seconds=0.0), FullStore, OSError, "No space left on device"),
        (
            partial(load_nothing, MemoryError("there is not enough memory for one window")),
            LocalStore,
            MemoryError,
            "for one window",
        ),
        (
            partial(load_nothing, ValueError("no such checkpoint")),
            LocalStore,
            ValueError,
            "no such checkpoint",
        ),
    ),
    ids=("full disk", "too little memory", "no model"),
)
def test_errors_are_those_of_the_step(
    setting: Setting,
    joined: Any,
    notes: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    request_: partial[Any],
    store: type[LocalStore],
    error: type[Exception],
    message: str,
) -> None:
    arguments = (str(notes),) if request_.func is load_slow else ()
    request_ = partial(request_.func, *request_.args, *arguments, **request_.keywords)
    with pytest.raises(error, match=message) as raised:
        list(setting.on_ray(request_, store(str(tmp_path / "ray"))))
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)
    if isinstance(raised.value, OSError):
        assert raised.value.errno == errno.ENOSPC
        assert raised.value.filename.endswith(".png")
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err


def test_an_interrupt_ends_the_models(
    setting: Setting, joined: Any, notes: Path, tmp_path: Path
) -> None:
    store = LocalStore(str(tmp_path / "ray"))
    rows = setting.on_ray(partial(load_slow, str(notes), seconds=5.0), store)

    def interrupt() -> None:
        until(lambda: bool(models(notes)), seconds=60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(rows)
    thread.join()
    assert until(lambda: not any(map(is_alive, models(notes))), seconds=20)
