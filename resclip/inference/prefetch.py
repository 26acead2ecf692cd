"""A map over many items whose next results are computed in threads before they are asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    stop: Callable[[], None] = lambda: None,
) -> Generator[Result, None, None]:
    """`map` in threads, each of them one result ahead of the consumer; close the generator to stop early.

    Args:
        function: called in threads; its error is raised when its result's turn comes.
        items: taken one at a time, in the consumer's thread.
        workers: number of threads, and of results that wait, finished or not.
        stop: called when no more results are wanted, so that long calls that run can end early.

    Yields:
        The results in the order of `items`.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                while len(pending) > workers or (pending and pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop()  # Before the pool waits for what runs.
            for future in pending:
                future.cancel()


def available_cores() -> int:
    """Number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
