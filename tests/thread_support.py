"""The same step with several numbers of torch's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

T = TypeVar("T")


def with_threads(numbers: Iterable[int], step: Callable[[], T]) -> list[T]:
    """What `step` gives for each number of threads; afterwards there are as many as before."""
    before = torch.get_num_threads()
    came = []
    try:
        for number in numbers:
            torch.set_num_threads(number)
            came.append(step())
    finally:
        torch.set_num_threads(before)
    return came
