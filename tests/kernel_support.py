"""Seeded inputs and error budgets, shared by tests and benchmarks.

Knows the ops' shapes. Knows no expected value: those come from the reference in float64.
"""

from __future__ import annotations

import os
import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def kernel_device() -> str:
    """Where the tests run Triton kernels: on the GPU if there is one, else on the CPU under the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def nan_padded(tensor: Tensor) -> Tensor:
    """The same values, cut from a buffer that is NaN all around: whatever reads past an edge shows."""
    shape = [size + 2 for size in tensor.shape]
    buffer = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
    inner: Tensor = buffer[tuple(slice(1, size + 1) for size in tensor.shape)]
    inner.copy_(tensor)
    return inner


def fresh_seed() -> int:
    """A seed from RESCLIP_TEST_SEED, or a new one; print it where it is used, so that a failure can be replayed."""
    asked = os.environ.get("RESCLIP_TEST_SEED")
    return int(asked) if asked else random.SystemRandom().randrange(1 << 31)


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
        got: what is judged.
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
    own = (reference.double() - oracle).abs().max().item()
    rounding = torch.finfo(got.dtype).eps * oracle.abs().max().item()
    if error > 2 * (own + rounding):
        raise AssertionError(
            f"worst error {error:.3e} exceeds 2 × (reference {own:.3e} + rounding {rounding:.3e})"
        )
