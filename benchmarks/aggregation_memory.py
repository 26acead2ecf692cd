"""What the ops that compare all tokens with all take of memory: the peak of live tensors, which has to be linear in n.

Tensors are on torch's "meta" device, which has sizes and no values: every step of the torch implementation runs and
none of its arithmetic. Counted are the tensors that a call makes, its result among them, and not its arguments.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.reporting import table
from resclip_kernels import proxy_attention, similarity_aggregation

TOKENS = (1024, 4096, 16_384)
WIDTH = 768
"""Channels of the features and columns of the values: ViT-B's."""
HEADS = 12
THRESHOLD = 0.4
MOST_GROWTH = 1.05
"""Largest growth of the bytes a token between the two largest numbers of tokens; a map in memory would make it 4."""
MEBIBYTE = 1 << 20


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that exist at once, of those that are made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {storage.data for storage in storages((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage.data not in given and storage.data not in self.sizes:
                self.sizes[storage.data] = storage.size
                weakref.finalize(storage.owner, self.sizes.pop, storage.data)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


class Storage:
    """A tensor's memory: what names it, its bytes, and the object that lives as long."""

    def __init__(self, tensor: Tensor) -> None:
        self.owner = tensor.untyped_storage()
        # Its address would be 0 on "meta".
        self.data = self.owner._cdata  # noqa: SLF001
        self.size = self.owner.nbytes()


def storages(values: Any) -> list[Storage]:
    """Of all tensors in nested values."""
    return [Storage(value) for value in tree_leaves(values) if isinstance(value, Tensor)]


def aggregate(tokens: int) -> Tensor:
    """`similarity_aggregation` of one image."""
    features, value = (torch.empty(1, tokens, WIDTH, device="meta") for _ in range(2))
    return similarity_aggregation(features, value, threshold=THRESHOLD, implementation="torch")


def attend(tokens: int, cut: float | None) -> Tensor:
    """`proxy_attention` of one image, without resizing."""
    grid = (tokens // 32, 32)
    features = torch.empty(1, WIDTH, *grid, device="meta")
    value = torch.empty(1, HEADS, tokens, WIDTH // HEADS, device="meta")
    return proxy_attention(features, value, grid=grid, cut=cut, implementation="torch")


CALLS: dict[str, Callable[[int], Tensor]] = {
    "similarity_aggregation": aggregate,
    "proxy_attention": partial(attend, cut=None),
    f"proxy_attention, cut {THRESHOLD}": partial(attend, cut=THRESHOLD),
}


def peak_of(call: Callable[[int], Tensor], tokens: int) -> int:
    """Bytes of all tensors that the call has at once, beside its arguments."""
    arguments = 2 * tokens * WIDTH * torch.float32.itemsize
    with LiveTensors() as live:
        call(tokens)
    return live.peak - arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; exit status 1 where memory grows faster than the tokens."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks aggregation-memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    rows, growths = [], []
    for name, call in CALLS.items():
        peaks = [peak_of(call, tokens) for tokens in TOKENS]
        growths.append(peaks[-1] / TOKENS[-1] / (peaks[-2] / TOKENS[-2]))
        cells = [
            f"{peak / MEBIBYTE:.1f} ({peak / tokens / 1024:.1f})"
            for tokens, peak in zip(TOKENS, peaks, strict=True)
        ]
        rows.append([name, *cells])
    maps = [f"{4 * tokens**2 / MEBIBYTE:,.0f}" for tokens in TOKENS]
    rows.append(["one map of all pairs, float32", *maps])
    print(
        f"Peak of live tensors in MiB (KiB a token), one image, {WIDTH} channels and columns, float32, by torch:\n"
    )
    print(table(["op", *(f"n = {tokens:,}" for tokens in TOKENS)], rows))
    return int(max(growths) > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
