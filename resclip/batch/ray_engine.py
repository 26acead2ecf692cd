"""The batch engine of a cluster: Ray Data reads, segments and writes on all its machines.

Knows the order of the steps, which of a cluster's processors each of them takes, and how Ray's failures look from
outside. Knows nothing of what the steps do. Scheduling, back-pressure and restarts are Ray Data's.

An image comes out once, whatever dies on the way. Every step hands on portions of `PORTION` images, a portion is a
row of Ray's tables, and a row is a block. A task that Ray runs again therefore gives the blocks it gave before, one for
one, even where a file can no longer be read: Ray knows a block by its number among those of its task. What an image's
files hold does not depend on its portion (`Segmenter.pad_batches`), and writing them twice leaves the same files.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from resclip.batch.job import Task
from resclip.batch.manifest import Row
from resclip.batch.sources import Item
from resclip.batch.steps import Outcome, Problem, Reading, read, segment, write
from resclip.batch.storage import Store
from resclip.errors import WeightsUnavailable
from resclip.inference.prefetch import prefetch
from resclip.loading import PRECISIONS
from resclip.segmenter import Segmenter

PORTION = 4
"""Images that travel together: of 12 megapixels 48 MB of labels, 144 MB more with an overlay."""

PORTIONS_PER_CALL = 8
"""Most portions that a model is given at once. A call fills up the last batch of windows: of 32 images with six each,
half a batch of 16 in twelve."""

BLOCKS = 1024
"""Most blocks that items are put into, each of them read by one task."""

ITEMS = 1 << 18
"""Images of one Ray dataset: their names take 40 MB here and in Ray's store. Models are loaded anew for the next
262,144, which is half a minute in hours."""

THREADS = 4
"""That read, or write, in one task: they mostly wait for a disk or server."""

MAX_SECONDS = 86_400
"""Without any image done. Ray Data's 30 minutes are too few: a gigapixel has 20,000 windows, on a core six hours."""

SECONDS_TO_CONNECT = 5.0

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 says first, with empty settings (RFC 9113, section 3.4)."""
SETTINGS = 4

COLUMN = "images"

ERRORS = (OSError, MemoryError, ValueError, TypeError, ImportError, WeightsUnavailable)
"""Of a step, that end the job. They travel as portions do: Ray Data would put a paragraph behind their text."""


def run(
    task: Task,
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
        task: what is done to each.
        request: the call of `resclip.load` that made `segmenter`; "cpu" as its `device` leaves GPUs alone.
        segmenter: whose text features, precision and batch size all models take, so that their results are the same.
        items: the images; 262,144 are taken at a time.
        store: where files go.
        address: HOST:PORT of a cluster's head; None for $RAY_ADDRESS, else the cluster that runs on this machine, else
            one that is started here for this job.
        actors: models; None for one a GPU, or one a machine where there is none.

    Yields:
        A row an image once its files are written, in no particular order.

    Raises:
        OSError: a file cannot be written.
        ConnectionError: there is no cluster at the address.
        MemoryError: there is not enough for a single window.
        ValueError: the address is none; the cluster has no room for so many models, or no GPU for `device`.
        ImportError: Ray is not installed.
        RuntimeError: an error of Ray's, or one that no step should have.
    """
    remaining = iter(items)
    chunks = iter(lambda: list(itertools.islice(remaining, ITEMS)), [])
    first = next(chunks, None)
    if first is None:
        return
    with connection(address) as ray:
        places = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        crew = plan_crew(places, actors, request.keywords.get("device"))
        call = model_call(request, segmenter, crew)
        for chunk in itertools.chain([first], chunks):
            yield from rows_of(ray, pipeline(ray, task, call, store, crew, chunk))


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
    if target and target not in ("auto", "local"):
        check_address(target)
    try:
        with quiet_start():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **({} if target else {"include_dashboard": False}),
            )
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
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_address(address: str) -> None:
    """Whether a Ray cluster may be there: by itself Ray tries for minutes.

    Raises:
        ValueError: it is not of the form HOST:PORT.
        ConnectionError: nobody answers, or somebody else.
    """
    try:
        parts = urlsplit(f"//{address}")
        place = parts.hostname, parts.port
    except ValueError:
        place = None, None
    if "/" in address or None in place:
        raise ValueError(
            f"expected the address of a Ray cluster's head as HOST:PORT, such as 10.0.0.1:6379, got {address!r}; "
            "`ray status` on the head shows whether it runs"
        )
    try:
        with socket.create_connection(place, timeout=SECONDS_TO_CONNECT) as link:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            link.sendall(HTTP2_PREFACE)
            answer = link.recv(9, socket.MSG_WAITALL)
    except OSError as error:
        raise ConnectionError(
            f"{address}: expected the head of a Ray cluster, which cannot be reached ({error}); "
            "check the address, and whether `ray start --head` runs there"
        ) from error
    # The head speaks gRPC, which is HTTP/2: its first frame holds settings.
    if len(answer) < 9 or answer[3] != SETTINGS:
        raise ConnectionError(
            f"{address}: expected the head of a Ray cluster, got another service; "
            "its port is the one that `ray start --head` names (6379, not the dashboard's 8265)"
        )


@dataclass(frozen=True)
class Crew:
    """Who does the work."""

    models: int
    gpus: int
    """Of a model."""
    cores: int
    """Threads of a model without a GPU."""

    @property
    def model_cores(self) -> float:
        """What Ray sets aside for a model: more than half of a core, so that no two of them share one."""
        return 0.0 if self.gpus else self.cores - 0.4

    @property
    def task_cores(self) -> float:
        """For a task that reads or writes: beside a model on all of its cores there is room for one.

        Never what a model has: Ray Data does steps that ask for the same in one process, one by one.
        """
        return 1.0 if self.gpus else 0.4


def plan_crew(
    places: Sequence[dict[str, float]], actors: int | None, device: str | torch.device | None
) -> Crew:
    """How many models there are, and what each of them has.

    Args:
        places: of each machine, how much it has: {"CPU": 8.0, "GPU": 1.0, ...}.
        actors: models that are asked for.
        device: that is asked for.

    Raises:
        ValueError: there is no room.
    """
    gpus = sum(int(place.get("GPU", 0)) for place in places)
    cores = [int(place["CPU"]) for place in places if place.get("CPU", 0) >= 1]
    kind = None if device is None else torch.device(device).type
    if kind not in (None, "cpu", "cuda") or (kind == "cuda" and not gpus):
        raise ValueError(
            f"expected a device that the cluster has, got {str(device)!r} of "
            f"{gpus} GPUs and {sum(cores)} cores; leave --device out"
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
        return Crew(wanted, 1, 0)
    share = max(
        share
        for share in range(1, max(cores) + 1)
        if sum(count // share for count in cores) >= wanted
    )
    return Crew(wanted, 0, share)


def model_call(request: partial[Segmenter], segmenter: Segmenter, crew: Crew) -> partial[Segmenter]:
    """The call that makes a model on any machine: one that gives the results of `segmenter`."""
    precision = {dtype: name for name, dtype in PRECISIONS.items()}[segmenter.encoder.tower.dtype]
    same = {
        "classes": segmenter.vocabulary.to(torch.device("cpu")),
        "device": "cuda" if crew.gpus else "cpu",
        "precision": precision,
        "batch_size": segmenter.pipeline.batch_size,
        "cache": None,
        "progress": False,
    }
    return partial(request.func, *request.args, **{**request.keywords, **same})


def pipeline(
    ray: Any,
    task: Task,
    call: partial[Segmenter],
    store: Store,
    crew: Crew,
    items: Sequence[Item],
) -> Any:
    """The Ray dataset whose rows are portions of the job's rows."""
    portions = [items[start : start + PORTION] for start in range(0, len(items), PORTION)]
    # A job of few portions is dealt out to all models, twice over.
    per_call = min(PORTIONS_PER_CALL, max(1, len(portions) // (2 * crew.models)))
    table = packed(*portions)
    options = {"batch_format": "pyarrow"}
    tasks = {**options, "num_cpus": crew.task_cores}
    with quiet_context(ray):
        dataset = ray.data.from_arrow(table, override_num_blocks=min(len(portions), BLOCKS))
        return (
            dataset.map_batches(read_portions, batch_size=None, fn_args=(task,), **tasks)
            .map_batches(
                Model,
                batch_size=per_call,
                fn_constructor_args=(task, call, store, crew.cores),
                compute=ray.data.ActorPoolStrategy(size=crew.models),
                num_cpus=crew.model_cores,
                num_gpus=crew.gpus,
                **options,
            )
            .map_batches(write_portions, batch_size=None, fn_args=(task, store), **tasks)
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


def read_portions(table: Any, task: Task) -> Iterator[Any]:
    """Items → readings."""
    return repacked(prefetch(partial(read, task), unpacked(table), workers=THREADS, ahead=THREADS))


class Model:
    """Readings → outcomes: what an actor keeps.

    Args:
        task, store: see `run`.
        call: makes the segmenter, once it is needed: an error in it is then one of a step.
        cores: threads of its own; 0 for torch's default.
    """

    def __init__(self, task: Task, call: partial[Segmenter], store: Store, cores: int) -> None:
        self.task = task
        self.call = call
        self.store = store
        if cores:
            torch.set_num_threads(cores)

    @cached_property
    def segmenter(self) -> Segmenter:
        """The model."""
        return self.call()

    def __call__(self, table: Any) -> Iterator[Any]:
        """Label the images of some portions, their windows in shared batches."""
        return repacked(self.outcomes(unpacked(table)))

    def outcomes(self, readings: Iterator[Reading | Problem]) -> Iterator[Outcome]:
        """The same of images, one by one."""
        yield from segment(self.task, self.segmenter, self.store, readings)


def write_portions(table: Any, task: Task, store: Store) -> Iterator[Any]:
    """Outcomes → rows, once their files are written."""
    return repacked(
        prefetch(partial(write, task, store), unpacked(table), workers=THREADS, ahead=THREADS)
    )


def repacked(values: Iterator[Any]) -> Iterator[Any]:
    """A table a portion, as soon as it is full; an error takes the place of what is missing."""
    try:
        while portion := list(itertools.islice(values, PORTION)):
            yield packed(portion)
    except ERRORS as error:
        yield packed(error)


def packed(*portions: Sequence[Any] | Exception) -> Any:
    """A table with a row a portion."""
    import pyarrow as pa

    data = [pickle.dumps(portion, pickle.HIGHEST_PROTOCOL) for portion in portions]
    return pa.table({COLUMN: pa.array(data, pa.large_binary())})  # Large: of more than 2 GB.


def unpacked(table: Any) -> Iterator[Any]:
    """What the portions of a table hold.

    Raises:
        Exception: one of `ERRORS`, from the step before.
    """
    for cell in table[COLUMN]:
        portion = pickle.loads(cell.as_buffer())
        if isinstance(portion, Exception):
            raise portion
        yield from portion


def summary(error: BaseException) -> str:
    """What an error of Ray says in one line: of a traceback that it quotes the last, else the first."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1 if "Traceback" in str(error) else 0].strip()
