"""prefetch: order, bounds, errors and stopping early."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator

import pytest

from resclip.inference.prefetch import available_cores, prefetch


def test_results_come_in_order_however_long_each_takes() -> None:
    def slow(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0.0)
        return number * number

    assert list(prefetch(slow, range(20), workers=4)) == [n * n for n in range(20)]
    assert list(prefetch(slow, [], workers=1)) == []


def test_an_error_comes_in_its_position_and_ends_the_threads() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise KeyError(number)
        return number

    before = threading.active_count()
    results = prefetch(fail, range(100), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="3"):
        next(results)
    assert threading.active_count() == before


def test_the_look_ahead_is_bounded_and_closing_it_early_ends_the_threads() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    before = threading.active_count()
    results = prefetch(lambda number: number, items(), workers=2)
    for _ in range(20):
        number = next(results)
        assert taken[-1] <= number + 3
    results.close()
    assert threading.active_count() == before
    assert len(taken) <= 20 + 3


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
