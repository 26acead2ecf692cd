"""The batch engine of a cluster: Ray Data reads, segments and writes on all its machines.

Scheduling, back-pressure and restarts are Ray Data's. An image comes out once, whatever process dies on the way: each
step hands on chunks of four images, a chunk is a row of Ray's tables, and a row is a block. A task that Ray repeats
therefore gives the blocks that it gave before, one for one, even where a file can no longer be read: Ray knows a block
by its number among those of its task. What an image's files hold does not depend on its chunk
(`Segmenter.pad_batches`), and writing them twice leaves the same files.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from resclip.batch.items import Item
from resclip.batch.job import BatchJob
from resclip.batch.manifest import Row
from resclip.batch.steps import Outcome, finish, read_item, segment_images
from resclip.batch.storage import Store
from resclip.errors import WeightsUnavailable
from resclip.inference.prefetch import prefetch
from resclip.loading import PRECISIONS
from resclip.segmenter import Segmenter

CHUNK = 4
"""Images of a chunk: with 12 megapixels each, their labels are 48 MB, and 144 MB more with an overlay."""

MAX_CHUNKS_PER_CALL = 8
"""A model is given at most so many chunks at once. The last batch of windows of a call is filled up with empty ones: of
32 images with six windows each, half a batch of 16 in twelve."""

MAX_BLOCKS = 1024
"""Items are put into at most so many blocks, each of which one task reads."""

ITEMS_PER_DATASET = 1 << 18
"""Images of one Ray dataset: their names take 40 MB here and in Ray's store. Models are loaded anew for the next
262,144, which is half a minute in hours."""

THREADS = 4
"""Threads that read, or write, in one task: they mostly wait for a disk or server."""

MAX_SECONDS = 86_400
"""A job ends after a day without any image done. Ray Data's 30 minutes are too few: a gigapixel has 20,000 windows,
which are six hours on a core."""

SECONDS_TO_CONNECT = 5.0
"""An address that has accepted no connection by then cannot be reached."""

SECONDS_TO_JOIN = 30.0
"""A service that Ray has not joined by then is no cluster: importing Ray and joining take 3 seconds, and 15 on a
machine with much else to do."""

JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
"""What a process does to see whether its argument is the address of a cluster."""

COLUMN = "images"

# Errors of a step that end the job. They travel in place of chunks: Ray Data would put a paragraph behind their text.
ERRORS = (OSError, MemoryError, ValueError, TypeError, ImportError, WeightsUnavailable)


def run(
    job: BatchJob,
    request: partial[Segmenter],
    segmenter: Segmenter,
    items: Iterable[Item],
    store: Store,
    *,
    address: str | None,
    actors: int | None,
) -> Generator[Row, None, None]:
    """Do a job's images on a cluster's GPUs, or on its cores where it has none.

    Every machine needs this library, the model's weights (or a way to fetch them), and the same view of the images
    and the store: a local folder is one that all of them mount. Ray repeats the work of a process or machine that died
    as often as it takes; a lost machine's models wait for one with room for them. After a day in which no image was
    done the job ends.

    Args:
        job: what is made of each image.
        request: the call of `resclip.load` that made `segmenter`; "cpu" as its `device` leaves GPUs alone.
        segmenter: whose text features, precision and batch size all models take, so that their results are the same.
        items: the images; 262,144 are taken at a time.
        store: the output folder.
        address: HOST:PORT of a cluster's head; None for $RAY_ADDRESS, else the cluster that runs on this machine, else
            one that is started here for this job.
        actors: models to run; None for one per GPU, or one per machine without any.

    Yields:
        A row for each image once its files are written, in no particular order.

    Raises:
        OSError: a file cannot be written.
        ConnectionError: there is no cluster at the address.
        MemoryError: there is not enough for a single window.
        ValueError: the address is not HOST:PORT; the cluster has no room for so many models, or no GPU for `device`.
        ImportError: Ray is not installed.
        RuntimeError: an error of Ray's, or one that no step should have.
    """
    remaining = iter(items)
    now = list(itertools.islice(remaining, ITEMS_PER_DATASET))
    if not now:
        return
    with connection(address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        plan = plan_workers(machines, actors, request.keywords.get("device"))
        call = model_call(request, segmenter, plan)
        while now:
            yield from rows_of(ray, pipeline(ray, job, call, store, plan, now))
            now = list(itertools.islice(remaining, ITEMS_PER_DATASET))


def import_ray() -> Any:
    """Ray with Ray Data, quiet.

    Raises:
        ImportError: it is not installed.
    """
    # Read when Ray is imported or started; what its processes have to say is in its log files.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            f'the engine "ray" needs Ray Data ({error}); pip install "resclip[scale]", or use the local engine'
        ) from error
    return ray


@contextlib.contextmanager
def connection(address: str | None) -> Iterator[Any]:
    """Ray, joined or started, and left again in the end unless this process had joined it before.

    Raises:
        ConnectionError, ValueError, ImportError: see `run`.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    target = address or os.environ.get("RAY_ADDRESS")
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if not target:
        options["include_dashboard"] = False
    if target and target not in ("auto", "local"):
        check_address(target)
    try:
        with quiet_start():
            ray.init(address=address, **options)
    except RuntimeError as error:
        raise ConnectionError(
            f"{target or 'this machine'}: expected a Ray cluster to join, got: {summary(error)}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Without what Ray's C++ writes to the descriptor of stderr, past every logger: "Set ray log level ..."."""
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def check_address(address: str) -> None:
    """Whether a Ray cluster can be joined at an address: by itself Ray tries for minutes.

    Raises:
        ValueError: the address is not of the form HOST:PORT.
        ConnectionError: nothing answers there, or another service than Ray.
    """
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[\w.:%]+\]", host) or not port.isascii() or not port.isdigit():
        raise ValueError(
            f"expected the address of a Ray cluster's head as HOST:PORT, such as 10.0.0.1:6379, got {address!r}; "
            "`ray status` on the head shows whether it runs"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"{address}: expected the head of a Ray cluster, which cannot be reached ({error}); "
            "check the address, and whether `ray start --head` runs there"
        ) from error
    # In a process of its own: Ray cannot be stopped while it tries, and a thread of it would abort the process later.
    try:
        subprocess.run(
            [sys.executable, "-c", JOIN, address],
            capture_output=True,
            check=True,
            timeout=SECONDS_TO_JOIN,
        )
    except subprocess.SubprocessError as error:
        said = f"no answer of Ray in {SECONDS_TO_JOIN:.0f} s"
        if isinstance(error, subprocess.CalledProcessError) and error.stderr:
            said = error.stderr.decode(errors="replace").splitlines()[-1]
        raise ConnectionError(
            f"{address}: expected the head of a Ray cluster, got another service ({said}); "
            "its port is the one that `ray start --head` names (6379, not the dashboard's 8265)"
        ) from error


@dataclass(frozen=True)
class WorkerPlan:
    """How many models a cluster runs, and what each of them takes."""

    models: int
    gpus: int
    """GPUs of a model: 1, or 0."""
    cores: int
    """Threads of a model without a GPU; 0 for one with a GPU."""

    @property
    def model_cores(self) -> float:
        """Cores that Ray reserves for a model: more than half of one, so that no two models share it."""
        return 0.0 if self.gpus else self.cores - 0.4

    @property
    def task_cores(self) -> float:
        """Cores that Ray reserves for a task that reads or writes: one such task fits beside a model.

        Never as many as for a model: Ray Data runs steps that ask for the same in one process, one by one.
        """
        return 1.0 if self.gpus else 0.4


def plan_workers(
    machines: Sequence[dict[str, float]], actors: int | None, device: str | torch.device | None
) -> WorkerPlan:
    """How many models there are, and what each of them has.

    Args:
        machines: the resources of each machine: {"CPU": 8.0, "GPU": 1.0, ...}.
        actors: models to run; None for one per GPU, or one per machine without any.
        device: of the models; None for the GPUs where there are any.

    Raises:
        ValueError: there is no room.
    """
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    kind = None if device is None else torch.device(device).type
    if kind not in (None, "cpu", "cuda") or (kind == "cuda" and not gpus):
        raise ValueError(
            f"expected a device that the cluster has, got {str(device)!r} of "
            f"{gpus} GPUs and {sum(cores)} cores; leave device= out"
        )
    on_gpus = gpus > 0 and kind != "cpu"
    most = gpus if on_gpus else sum(cores)
    wanted = actors or (gpus if on_gpus else len(cores))
    if not 1 <= wanted <= most or not cores:
        raise ValueError(
            f"expected 1 to {most} actors, one a {'GPU' if on_gpus else 'core'}, got {wanted}; "
            "ask for fewer, or add machines"
        )
    if on_gpus:
        return WorkerPlan(wanted, 1, 0)
    share = max(
        share
        for share in range(1, max(cores) + 1)
        if sum(count // share for count in cores) >= wanted
    )
    return WorkerPlan(wanted, 0, share)


def model_call(
    request: partial[Segmenter], segmenter: Segmenter, plan: WorkerPlan
) -> partial[Segmenter]:
    """The call that makes a model on any machine: one that gives the results of `segmenter`."""
    precision = {dtype: name for name, dtype in PRECISIONS.items()}[segmenter.encoder.tower.dtype]
    same = {
        "classes": segmenter.vocabulary.to(torch.device("cpu")),
        "device": "cuda" if plan.gpus else "cpu",
        "precision": precision,
        "batch_size": segmenter.pipeline.batch_size,
        "cache": None,
        "progress": False,
    }
    return partial(request.func, *request.args, **{**request.keywords, **same})


def pipeline(
    ray: Any,
    job: BatchJob,
    call: partial[Segmenter],
    store: Store,
    plan: WorkerPlan,
    items: Sequence[Item],
) -> Any:
    """The Ray dataset whose rows are chunks of the job's rows."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    # A job of few chunks is dealt out to all models, twice over.
    per_call = min(MAX_CHUNKS_PER_CALL, max(1, len(chunks) // (2 * plan.models)))
    table = packed(*chunks)
    options = {"batch_format": "pyarrow"}
    tasks = {**options, "num_cpus": plan.task_cores}
    with quiet_context(ray):
        dataset = ray.data.from_arrow(table, override_num_blocks=min(len(chunks), MAX_BLOCKS))
        return (
            dataset.map_batches(read_chunks, batch_size=None, fn_args=(job,), **tasks)
            .map_batches(
                Model,
                batch_size=per_call,
                fn_constructor_args=(job, call, store, plan.cores),
                compute=ray.data.ActorPoolStrategy(size=plan.models),
                num_cpus=plan.model_cores,
                num_gpus=plan.gpus,
                **options,
            )
            .map_batches(write_chunks, batch_size=None, fn_args=(job, store), **tasks)
        )


@contextlib.contextmanager
def quiet_context(ray: Any) -> Iterator[None]:
    """Ray Data's settings for datasets that are made in the block."""
    context = ray.data.DataContext()
    # Blocks are rows: see the module's beginning.
    context.target_max_block_size = 1
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = MAX_SECONDS
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with ray.data.DataContext.current(context):
        yield


def rows_of(ray: Any, dataset: Any) -> Iterator[Row]:
    """A dataset's rows as they come.

    Raises:
        Exception: one of `ERRORS`, from a step.
        RuntimeError: anything else.
    """
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from unpacked(table)
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise RuntimeError(f"Ray cannot go on: {summary(error)}") from error


def read_chunks(table: Any, job: BatchJob) -> Iterator[Any]:
    """Items → images."""
    items = unpacked(table)
    return repacked(prefetch(partial(read_item, job), items, workers=THREADS))


class Model:
    """Images → results: what an actor keeps between calls.

    Args:
        job, store: see `run`.
        call: makes the segmenter, once it is needed: an error in it is then one of a step.
        cores: threads of its own; 0 for torch's default.
    """

    def __init__(self, job: BatchJob, call: partial[Segmenter], store: Store, cores: int) -> None:
        self.job = job
        self.call = call
        self.store = store
        if cores:
            torch.set_num_threads(cores)

    @cached_property
    def segmenter(self) -> Segmenter:
        """The model."""
        return self.call()

    def __call__(self, table: Any) -> Iterator[Any]:
        """Label the images of some chunks; windows of several images share batches."""

        def outcomes() -> Iterator[Outcome]:
            # A generator, so that an error in loading the model comes where `repacked` takes it.
            yield from segment_images(self.job, self.segmenter, self.store, unpacked(table))

        return repacked(outcomes())


def write_chunks(table: Any, job: BatchJob, store: Store) -> Iterator[Any]:
    """Results → rows, once their files are written."""
    outcomes = unpacked(table)
    return repacked(prefetch(partial(finish, job, store), outcomes, workers=THREADS))


def repacked(values: Iterator[Any]) -> Iterator[Any]:
    """A table for each chunk as soon as it is full; an error takes the place of the chunks that are missing."""
    try:
        while chunk := list(itertools.islice(values, CHUNK)):
            yield packed(chunk)
    except ERRORS as error:
        yield packed(error)


def packed(*chunks: Sequence[Any] | Exception) -> Any:
    """A table with a row for each chunk."""
    import pyarrow as pa

    data = [pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL) for chunk in chunks]
    return pa.table({COLUMN: pa.array(data, pa.large_binary())})  # Chunks may have more than 2 GB.


def unpacked(table: Any) -> Iterator[Any]:
    """What the chunks of a table hold.

    Raises:
        Exception: one of `ERRORS`, from the step before.
    """
    for cell in table[COLUMN]:
        chunk = pickle.loads(cell.as_buffer())
        if isinstance(chunk, Exception):
            raise chunk
        yield from chunk


def summary(error: BaseException) -> str:
    """What an error of Ray says in one line: of a traceback that it quotes the last, else the first."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1 if "Traceback" in str(error) else 0].strip()
