"""Room for large tensors on a CPU, in pages of 2 MiB where Linux has them on request.

Memory of this size comes fresh from the system, whose first touch of each page of 4 kB costs more than writing it: on a
virtual machine (AMD EPYC, one thread) a result of 200 MB took 165 ms more in such pages than in memory that was there,
and 23 ms more in large ones.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

# Below it there is little to gain.
SMALLEST = 1 << 23


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """A dense tensor without values yet, on the device of `like`."""
    size = math.prod(shape) * dtype.itemsize
    if not like.is_cpu or size < SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(shape, dtype=dtype)
    try:
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # The system has no such pages, or no memory, which torch says better.
        return like.new_empty(shape, dtype=dtype)
    # The tensor keeps the mapping as long as it lives.
    return torch.frombuffer(room, dtype=dtype).view(*shape)
