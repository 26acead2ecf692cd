"""The batch job on Ray: the files and rows of one machine, whatever dies on the way, and errors in one line."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ray", reason='needs Ray: pip install "resclip[scale]"')
pytest.importorskip("pyarrow", reason='needs pyarrow: pip install "resclip[batch]"')

from batch_support import files_in, make_images, rows_of, toy_segmenter
from ray_support import (
    FragileItem,
    FragileStore,
    FullStore,
    is_alive,
    killed,
    load_fragile,
    load_nothing,
    load_slow,
    models,
    shades,
)

from resclip import Segmenter
from resclip.batch import ray_engine, steps
from resclip.batch.items import Item
from resclip.batch.job import BatchJob
from resclip.batch.manifest import Manifest, Row
from resclip.batch.ray_engine import WorkerPlan, plan_workers
from resclip.batch.sources import open_source
from resclip.batch.storage import Store
from resclip.errors import WeightsUnavailable

COUNT = 40
BROKEN = 5
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


@dataclass(frozen=True)
class Setting:
    """Images on disk, and what is to be made of them."""

    items: list[Item]
    segmenter: Segmenter
    job: BatchJob

    def here(self, model: Any, folder: Path) -> list[Row]:
        """What one machine makes of them."""
        store = Store(str(folder))
        return timeless(steps.run(self.job, model, self.items, store, workers=2))

    def on_ray(
        self,
        request: partial[Any],
        store: Store,
        items: Iterable[Item] | None = None,
        address: str | None = None,
    ) -> Iterator[Row]:
        items = self.items if items is None else items
        return ray_engine.run(
            self.job, request, self.segmenter, items, store, address=address, actors=2
        )


def timeless(rows: Iterable[Row]) -> list[Row]:
    return sorted((replace(row, seconds=0.0) for row in rows), key=lambda row: row.index)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder, COUNT, broken=BROKEN)
    segmenter = toy_segmenter()
    job = BatchJob(segmenter.vocabulary.names, segmenter.preparation, overlay=True, scores=True)
    return Setting(open_source(str(folder)).items, segmenter, job)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One machine of two cores; its processes find the modules beside this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        ray_engine.import_ray()
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def joined(cluster: Any) -> Iterator[Any]:
    """Two machines and a process that is part of them, as a notebook may be: workers stay warm between jobs."""
    cluster.add_node(**NODE)
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


@pytest.mark.parametrize("address", ("nonsense", "ray://127.0.0.1:10001", "head:port"))
def test_what_is_no_address_is_refused(setting: Setting, tmp_path: Path, address: str) -> None:
    request = partial(load_nothing, ValueError())
    rows = setting.on_ray(request, Store(str(tmp_path)), address=address)
    with pytest.raises(ValueError, match=rf"HOST:PORT.*got '{address}"):
        next(rows)


def test_an_address_where_nobody_is() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # Bound, but not listening.
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=rf"^{address}: expected .*cannot be reached"):
            ray_engine.check_address(address)
        assert time.monotonic() - start < 15


def test_an_address_of_another_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts connections and says nothing; a web server is the same to Ray."""
    monkeypatch.setattr(ray_engine, "SECONDS_TO_JOIN", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=rf"^{address}: .*another service.*dashboard"):
            ray_engine.check_address(address)
        assert time.monotonic() - start < 15


def test_without_images_ray_is_not_started(setting: Setting, tmp_path: Path) -> None:
    request = partial(load_nothing, ValueError())
    assert not list(setting.on_ray(request, Store(str(tmp_path)), [], address="nonsense"))


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "resclip\[scale\]"'):
        ray_engine.import_ray()


@pytest.mark.parametrize(
    ("machines", "actors", "device", "plan"),
    (
        pytest.param([(8, 0)], 3, None, WorkerPlan(3, 0, 2), id="a share of its cores"),
        pytest.param(
            [(8, 0), (2, 0)], None, None, WorkerPlan(2, 0, 4), id="both on the larger one"
        ),
        pytest.param([(8, 0), (0, 0)], None, None, WorkerPlan(1, 0, 8), id="a head without cores"),
        pytest.param(
            [(4, 0), (4, 0)], 1, None, WorkerPlan(1, 0, 4), id="no model is on two machines"
        ),
        pytest.param([(16, 2), (64, 8)], None, None, WorkerPlan(10, 1, 0), id="a model a GPU"),
        pytest.param([(16, 2)], 1, "cuda:1", WorkerPlan(1, 1, 0), id="fewer than GPUs"),
        pytest.param([(16, 2)], None, "cpu", WorkerPlan(1, 0, 16), id="GPUs left alone"),
    ),
)
def test_what_each_model_has(
    machines: list[tuple[int, int]], actors: int | None, device: str | None, plan: WorkerPlan
) -> None:
    """All of them fit, and a task that reads or writes beside each."""
    places = [{"CPU": float(cores), "GPU": float(gpus)} for cores, gpus in machines]
    assert plan_workers(places, actors, device) == plan
    assert plan.task_cores != plan.model_cores
    if not plan.gpus:
        room = sum(cores // plan.cores for cores, _ in machines)
        assert room >= plan.models
        assert plan.task_cores + plan.model_cores <= plan.cores


@pytest.mark.parametrize(
    ("machines", "actors", "device", "message"),
    (
        pytest.param([(4, 0), (2, 0)], 7, None, "1 to 6 actors, one a core, got 7", id="cores"),
        pytest.param([(4, 2)], 3, None, "1 to 2 actors, one a GPU, got 3", id="GPUs"),
        pytest.param([(4, 0)], None, "cuda", "got 'cuda' of 0 GPUs and 4 cores", id="no GPU"),
        pytest.param([(4, 0)], None, "mps", "got 'mps'", id="a GPU that Ray does not know"),
    ),
)
def test_no_room_for_the_models(
    machines: list[tuple[int, int]], actors: int | None, device: str | None, message: str
) -> None:
    places = [{"CPU": float(cores), "GPU": float(gpus)} for cores, gpus in machines]
    with pytest.raises(ValueError, match=message):
        plan_workers(places, actors, device)


def test_every_model_gives_what_the_first_one_gives(setting: Setting) -> None:
    """Settings that a machine would choose for itself are those of the job's manifest."""
    request = partial(dict, "builtin", None, device=None, precision=None, cache=object(), window=32)
    for plan, device in ((WorkerPlan(1, 1, 0), "cuda"), (WorkerPlan(1, 0, 4), "cpu")):
        call = ray_engine.model_call(request, setting.segmenter, plan)
        assert call.args == request.args
        vocabulary = call.keywords.pop("classes")
        assert torch.equal(vocabulary.embeddings, setting.segmenter.vocabulary.embeddings)
        assert call.keywords == {
            "device": device,
            "precision": "fp32",
            "batch_size": setting.segmenter.pipeline.batch_size,
            "cache": None,
            "progress": False,
            "window": 32,
        }


def test_the_steps_hand_on_chunks_of_four(setting: Setting, tmp_path: Path) -> None:
    """A table has as many rows, whatever became of the images in it: Ray counts them when it repeats a step."""
    store = Store(str(tmp_path / "steps"))
    model = ray_engine.Model(setting.job, partial(toy_segmenter), store, 0)
    readings = list(ray_engine.read_chunks(ray_engine.packed(setting.items[:10]), setting.job))
    outcomes = [table for reading in readings for table in model(reading)]
    rows = [
        table
        for outcome in outcomes
        for table in ray_engine.write_chunks(outcome, setting.job, store)
    ]
    for tables in (readings, outcomes, rows):
        assert [len(table) for table in tables] == [1, 1, 1]
        assert [len(list(ray_engine.unpacked(table))) for table in tables] == [4, 4, 2]
    came = timeless(row for table in rows for row in ray_engine.unpacked(table))
    assert came == setting.here(setting.segmenter, tmp_path / "here")[:10]


@pytest.mark.parametrize(
    "error",
    (
        MemoryError("there is not enough memory for one window"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "model.safetensors"),
        WeightsUnavailable("expected a checkpoint, got an image"),
    ),
    ids=lambda error: type(error).__name__,
)
def test_an_error_goes_through_the_steps_behind_it(
    setting: Setting, tmp_path: Path, error: Exception
) -> None:
    store = Store(str(tmp_path))
    model = ray_engine.Model(setting.job, partial(load_nothing, error), store, 0)
    (reading,) = ray_engine.read_chunks(ray_engine.packed(setting.items[:2]), setting.job)
    (outcome,) = model(reading)
    (last,) = ray_engine.write_chunks(outcome, setting.job, store)
    with pytest.raises(type(error)) as raised:
        list(ray_engine.unpacked(last))
    assert str(raised.value) == str(error)


def test_every_byte_is_that_of_one_machine(
    setting: Setting, cluster: Any, notes: Path, tmp_path: Path
) -> None:
    """Few images: each process of Ray's takes seconds to start."""
    few = replace(setting, items=setting.items[:8])
    wanted = few.here(setting.segmenter, tmp_path / "here")
    assert {row.status for row in wanted} == {"done", "failed"}
    request = partial(load_fragile, str(notes), dies_at=-1)
    store = Store(str(tmp_path / "ray"))
    rows = list(few.on_ray(request, store, address=cluster.address))
    assert timeless(rows) == wanted
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "here")
    assert not ray_engine.import_ray().is_initialized()
    assert until(lambda: not any(map(is_alive, models(notes))), seconds=20)


@pytest.mark.slow
def test_every_byte_is_that_of_one_machine_whatever_process_dies(
    setting: Setting, cluster: Any, notes: Path, tmp_path: Path
) -> None:
    """A reader, a model between two chunks of a call, and a writer between a file and its row."""
    wanted = setting.here(setting.segmenter, tmp_path / "here")
    assert sum(row.status == "failed" for row in wanted) == BROKEN
    ray = ray_engine.import_ray()
    items = list(setting.items)
    items[5] = FragileItem(**asdict(items[5]), notes=str(notes))
    store = FragileStore(str(tmp_path / "ray"), notes=str(notes), victim="002_labels.png")
    # Calls are of two chunks: eight images, of which the first four are on their way. Reader and writer die early, so
    # that the processes in their place start together.
    request = partial(load_fragile, str(notes), dies_at=8)
    rows = list(setting.on_ray(request, store, items, address=cluster.address))
    assert killed(notes) == {"reader", "model", "writer"}
    assert timeless(rows) == wanted
    store.clean()  # As the next job does: the writer may have left a temporary file.
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "here")
    assert not ray.is_initialized()
    assert until(lambda: not any(map(is_alive, models(notes))), seconds=20)


@pytest.mark.slow
def test_a_full_disk_ends_the_job(
    setting: Setting, joined: Any, notes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = FullStore(str(tmp_path / "ray"))
    with pytest.raises(OSError, match="No space left on device") as raised:
        list(setting.on_ray(partial(load_slow, str(notes), seconds=0.0), store))
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename.startswith(str(tmp_path))
    assert "Traceback" not in "".join(capfd.readouterr())
    assert until(lambda: not any(map(is_alive, models(notes))), seconds=20)


@pytest.mark.slow
def test_an_interrupt_ends_the_models(
    setting: Setting, joined: Any, notes: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "ray"))
    # A model ends after the chunk that it is at, of 8 s; all images would take it 40.
    rows = setting.on_ray(partial(load_slow, str(notes), seconds=2.0), store)

    def interrupt() -> None:
        until(lambda: bool(models(notes)), seconds=60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(rows)
    thread.join()
    assert until(lambda: not any(map(is_alive, models(notes))), seconds=20)


@pytest.mark.slow
def test_a_lost_machine_loses_no_image(
    setting: Setting, joined: Any, notes: Path, tmp_path: Path
) -> None:
    wanted = setting.here(shades(0.0), tmp_path / "here")
    store = Store(str(tmp_path / "ray"))
    (lost,) = joined.worker_nodes
    # The model there has images that it will never finish, in calls that Ray has to give to another.
    request = partial(load_slow, str(notes), stuck_on=lost.node_id)
    rows = setting.on_ray(request, store)
    first = list(itertools.islice(rows, 1))
    assert until(lambda: len(models(notes)) == 2, seconds=60)
    joined.remove_node(lost, allow_graceful=False)
    try:
        rest = list(rows)
    finally:
        joined.add_node(**NODE)
    assert len(models(notes)) == 3
    store.clean()
    assert timeless(first + rest) == wanted
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "here")


@pytest.mark.slow
def test_a_place_on_earth_a_server_that_is_gone_and_a_replaced_image(
    setting: Setting, joined: Any, notes: Path, tmp_path: Path
) -> None:
    """Files, manifests and what is done again are those of one machine."""
    rasterio = pytest.importorskip("rasterio", reason="writes a GeoTIFF")
    pictures = tmp_path / "pictures"
    make_images(pictures, 6)
    place = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    pixels = np.random.default_rng(0).integers(1, 256, (3, 40, 56), np.uint8)
    pixels[:, :, :20] = 0
    shape: dict[str, Any] = {"height": 40, "width": 56, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(
        pictures / "map.tif", "w", driver="GTiff", crs="EPSG:32632", transform=place, **shape
    ) as dataset:
        dataset.write(pixels)
    names = sorted(path.name for path in pictures.iterdir())
    job = replace(setting.job, form="tif", overlay=False)
    request = partial(load_slow, str(notes))

    def run(items: Sequence[Item], folder: str, *, on_ray: bool) -> list[str]:
        """Do what is missing; its names."""
        store = Store(str(tmp_path / folder))
        with Manifest(store, {"of": "a test"}) as manifest:
            missing = manifest.missing(items)
            rows: Iterable[Row]
            if on_ray:
                changed = replace(setting, job=job)
                rows = changed.on_ray(request, store, missing)
            else:
                rows = steps.run(job, shades(0.0), missing, store, workers=2)
            for row in rows:
                manifest.add(row)
        return [item.name for item in missing]

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # Bound, but not listening.
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/gone.png?key=secret"
        (pictures / "list.txt").write_text("\n".join([*names, url]))
        items = open_source(str(pictures / "list.txt")).items
        gone = items[-1].name
        for again in ([item.name for item in items], ["001.jpg", gone]):
            for folder, on_ray in (("here", False), ("ray", True)):
                assert run(items, folder, on_ray=on_ray) == again
            rows = rows_of(tmp_path / "ray")
            assert rows == rows_of(tmp_path / "here")
            assert files_in(tmp_path / "ray") == files_in(tmp_path / "here")
            assert [row["name"] for row in rows if row["status"] == "failed"] == [gone]
            assert "cannot be reached" in rows[-1]["error"]
            assert "secret" not in str(rows)
            Image.fromarray(np.full((30, 44, 3), 250, np.uint8)).save(pictures / "001.jpg")
    with rasterio.open(tmp_path / "ray" / "map_labels.tif") as labels:
        assert labels.crs == "EPSG:32632"
        assert labels.transform == place
        assert labels.nodata == 255
        values = labels.read(1)
        assert (values[:, :20] == 255).all()
        assert (values[:, 20:] < 3).all()
