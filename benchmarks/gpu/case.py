"""What a case of the GPU benchmark is, and the device and sizes with which its variants are set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.inputs import FUSED, Device
from benchmarks.gpu.timing import FAILURES, Tier, Variant, shorten

AUTO, LIBRARY = "auto", "library"
LAYERS, BASE = "layers", "base"
"""Parts of the residual attention alone: the middle blocks' mean, and all else with that mean given."""
PLAIN = ("flash", "cudnn", "efficient")
"""Plain attention by the kernels that PyTorch has."""
FILES = "files"
"""The variant that runs from file to file."""
VARIANTS = (
    *(FUSED, AUTO, LAYERS, BASE, LIBRARY, "torch", "reference", "compiled"),
    *(*PLAIN, "flex", FILES),
)
"""Columns of the tables, in this order."""


@dataclass(frozen=True)
class Bench:
    """Where cases run, and at which size."""

    device: Device
    dry_run: bool
    scratch: Path
    """A folder for files, which is removed after the run."""

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """As wanted on a GPU; float32 where the interpreter stands in, whose half precision is slow."""
        return torch.float32 if self.dry_run else wanted

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """torch.compile for this one shape; without a GPU its tracing alone, which needs no compiler."""
        torch._dynamo.reset()  # noqa: SLF001 - the documented way to forget what other shapes compiled.
        if self.dry_run:
            return torch.compile(function, dynamic=False, backend="eager")
        return torch.compile(function, dynamic=False)


@dataclass(frozen=True)
class Case:
    """One op at one shape: what is counted, and the ways to compute it."""

    op: str
    name: str
    flops: int
    bytes: int
    variants: Callable[[Bench], Sequence[Variant]]
    """Makes the inputs; called when the case's turn comes."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp16",)
    """In which what it `needs` must have passed its checks."""
    needs: tuple[str, ...] = ()
    """Ops that it calls; empty: its own."""
    items: int = 1
    """Images a call."""
    whole: bool = False
    """Timed by the host until the device is idle: a pipeline, whose launches are part of it."""
    rank: int = 0
    """Cases of rank 1 come after all others of their tier: no figure needs them."""
    tiers: tuple[Tier, ...] = (Tier.FIGURE, Tier.REST)
    """Those that its variants have."""


def missing(name: str, reason: str) -> Variant:
    """A variant that cannot express the case."""
    return Variant(name, None, reason)


def tried(name: str, make: Callable[[], Variant], tier: Tier = Tier.REST) -> Variant:
    """A variant that is set up when its turn comes, which may fail; see `ready`."""
    return Variant(name, None, tier=tier, setup=make)


def ready(variant: Variant) -> Variant:
    """The variant set up, or why it could not be."""
    if variant.setup is None:
        return variant
    try:
        return variant.setup()
    except FAILURES as error:
        return missing(variant.name, f"could not be set up: {shorten(error)}")
