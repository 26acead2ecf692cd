"""Seeded inputs and error budgets for the tests of kernels; expected values come from the reference in float64."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def kernel_device() -> str:
    """The device for Triton kernels: the GPU if there is one, else the CPU, where they are interpreted."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def nan_padded(tensor: Tensor) -> Tensor:
    """The same values, cut from a buffer that is NaN all around: whatever reads past an edge shows."""
    shape = [size + 2 for size in tensor.shape]
    buffer = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
    inner: Tensor = buffer[tuple(slice(1, size + 1) for size in tensor.shape)]
    inner.copy_(tensor)
    return inner


@contextlib.contextmanager
def spoilt_memory() -> Iterator[None]:
    """New memory holds NaN, or 85 where there is none: an element that nothing writes shows."""

    def spoilt(allocate: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Tensor:
            tensor: Tensor = allocate(*arguments, **options)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 85)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            patch.setattr(owner, name, spoilt(getattr(owner, name)))
        yield


def fresh_seed() -> int:
    """A seed from RESCLIP_TEST_SEED, or a new one; print it where it is used, so that a failure can be replayed."""
    wanted = os.environ.get("RESCLIP_TEST_SEED")
    return int(wanted) if wanted else random.SystemRandom().randrange(1 << 31)


def distinct_logits(
    generator: torch.Generator, batch: int, queries: int, grid: Sequence[int]
) -> Tensor:
    """(batch, queries, *grid) logits of CLIP's range, no two alike at a position, in half precision either.

    Quantiles of a normal distribution in a new order, and of another width, at each position: of 150 that were drawn
    freely two are equal in float16 now and then, and then a quarter of a patch is a tie.
    """
    ranks = torch.rand(batch, queries, *grid, generator=generator).argsort(dim=1)
    widths = 0.05 + 0.1 * torch.rand(batch, 1, *grid, generator=generator)
    return torch.special.ndtri((ranks + 0.5) / queries) * widths


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Fewer combinations than all, in which any two values of two different axes still meet.

    For axes that share no code three at a time: what two of them do to each other is seen, and a fault that needs three
    is not. Chosen greedily and in one order, so that a test's cases stay the same.
    """
    wanted = {
        (first, a, second, b)
        for first, second in itertools.combinations(range(len(axes)), 2)
        for a in range(len(axes[first]))
        for b in range(len(axes[second]))
    }
    rows = list(itertools.product(*(range(len(axis)) for axis in axes)))
    chosen = []
    while wanted:
        met = [
            {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(axes)), 2)}
            & wanted
            for row in rows
        ]
        best = max(range(len(rows)), key=lambda number: len(met[number]))
        wanted -= met[best]
        chosen.append(tuple(axis[index] for axis, index in zip(axes, rows[best], strict=True)))
    return chosen


def fused_dtypes() -> list[tuple[str, torch.dtype]]:
    """(implementation, dtype) of torch and the kernels."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return list(itertools.product(("torch", "triton"), dtypes))


class AttentionInputs(NamedTuple):
    """Random arguments of `residual_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    cross_layers: tuple[tuple[Tensor, Tensor], ...]
    labels: Tensor
    """(B, h, w) int64 of a few connected regions."""

    def to(self, dtype: torch.dtype) -> AttentionInputs:
        """The same numbers in another dtype."""
        return AttentionInputs(
            self.query.to(dtype),
            self.key.to(dtype),
            self.value.to(dtype),
            tuple((query.to(dtype), key.to(dtype)) for query, key in self.cross_layers),
            self.labels,
        )


def attention_inputs(
    seed: int,
    *,
    batch: int = 2,
    heads: int = 2,
    grid: tuple[int, int] = (5, 7),
    width: int = 64,
    layers: int = 2,
    device: str = "cpu",
) -> AttentionInputs:
    """Standard normal q, k, v (float32) and blob-like labels; scores spread as a trained CLIP's do."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, 1 + grid[0] * grid[1], width)
    tensors = [torch.randn(shape, generator=generator).to(device) for _ in range(3 + 2 * layers)]
    query, key, value, *rest = tensors
    cross_layers = tuple(zip(rest[::2], rest[1::2], strict=True))
    labels = label_map(seed, batch=batch, grid=grid).to(device)
    return AttentionInputs(query, key, value, cross_layers, labels)


def label_map(
    seed: int, *, batch: int = 1, grid: tuple[int, int], classes: int = 4, blob: int = 3
) -> Tensor:
    """(B, h, w) int64 labels in blobs about `blob` patches wide, with a tenth of the patches flipped."""
    generator = torch.Generator().manual_seed(seed)
    coarse = (batch, 1, -(-grid[0] // blob), -(-grid[1] // blob))
    labels = torch.randint(classes, coarse, generator=generator).float()
    labels = F.interpolate(labels, scale_factor=blob, mode="nearest")[:, 0, : grid[0], : grid[1]]
    noise = torch.randint(classes, labels.shape, generator=generator)
    flipped = torch.rand(labels.shape, generator=generator) < 0.1
    return torch.where(flipped, noise, labels.long())


def check_budget(got: Tensor, reference: Tensor, oracle: Tensor) -> None:
    """AssertionError unless `got` is as good as its dtype allows.

    The worst element may be off the float64 oracle by twice (the reference's own error in that dtype plus the
    dtype's rounding of the largest value).

    Args:
        got: the result to judge.
        reference: the plain formula in `got`'s dtype.
        oracle: the plain formula in float64, on the same (rounded) inputs.
    """
    if got.shape != oracle.shape or got.dtype != reference.dtype:
        raise AssertionError(
            f"expected {tuple(oracle.shape)} {reference.dtype}; got {tuple(got.shape)} {got.dtype}"
        )
    if not torch.isfinite(got).all():
        raise AssertionError(f"{(~torch.isfinite(got)).sum().item()} elements are not finite")
    if not got.numel():
        return
    error = (got.double() - oracle).abs().max().item()
    of_reference = (reference.double() - oracle).abs().max().item()
    rounding = torch.finfo(got.dtype).eps * oracle.abs().max().item()
    if error > 2 * (of_reference + rounding):
        raise AssertionError(
            f"worst error {error:.3e} exceeds 2 × (reference {of_reference:.3e} + rounding {rounding:.3e})"
        )


class Operators(TorchDispatchMode):
    """Remembers the calls of this project's operators, with their flat arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function.namespace == "resclip_kernels":
            self.calls.append((function, arguments))
        return function(*arguments, **(options or {}))


def opcheck(op: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """`torch.library.opcheck` of the operator that this call of a public op becomes while it is compiled.

    Schema, fake results, autograd and tracing, with sizes fixed and with sizes as symbols.
    """
    with pytest.MonkeyPatch.context() as patch, Operators() as operators:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        op(*arguments, **keywords)
    ((operator, flat),) = operators.calls
    torch.library.opcheck(operator, flat)
