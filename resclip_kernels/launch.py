"""Launching Triton kernels: on which device, with which options, and for whom to see.

Every launch goes through `launch`, so that a watcher can count launches, or collect them with their exact arguments
and constants without running anything.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resclip_kernels.dispatch import interpreting
from resclip_kernels.first_use import float32_products


@dataclass(frozen=True)
class Target:
    """What a kernel is compiled for."""

    backend: str
    """"cuda", "hip", or "interpreter"."""
    architecture: int | str
    """Compute capability times ten ("cuda"), the gfx name ("hip"), 0 for the interpreter."""

    multiprocessors: int = 0
    """Of the device; 0: as many as the largest of this architecture has."""

    @property
    def dot_precision(self) -> str:
        """How float32 products are formed: as exactly as the reference's, on matrix units where that is possible.

        Three TF32 products keep 22 bits of mantissa; AMD's matrix units take float32 as it is. The environment variable
        RESCLIP_FLOAT32=ieee has NVIDIA's multiply-adds form them, all 24 bits and several times slower.
        """
        wanted = float32_products()
        return "ieee" if self.backend == "hip" else wanted

    @property
    def programs_at_once(self) -> int:
        """Multiprocessors (compute units), each of which runs at least one program at a time."""
        known = {80: 108, 86: 84, 87: 16, 89: 142, 90: 132, 100: 148, 103: 160, 120: 188, 121: 48}
        if self.multiprocessors or self.backend == "interpreter":
            return self.multiprocessors or 1
        return 304 if self.backend == "hip" else known.get(int(self.architecture), 132)

    @property
    def shared_memory(self) -> int:
        """Bytes that one block may use."""
        if self.backend == "hip":
            return 64 << 10
        sizes = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
        return sizes.get(int(self.architecture), 99) << 10


@dataclass(frozen=True)
class Options:
    """How a kernel is compiled, beside its constants."""

    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = True
    """Whether a product and a sum may become one rounding."""
    registers: int | None = None
    """Most registers a thread; None: as many as the compiler likes."""

    @property
    def keywords(self) -> dict[str, Any]:
        """As Triton takes them."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fp_fusion,
            **limit,
        }


@dataclass(frozen=True)
class Launch:
    """One launch: everything that decides what is compiled and how often it runs."""

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    options: Options


@dataclass
class Watcher:
    """Collects launches."""

    execute: bool
    target: Target | None
    launches: list[Launch] = field(default_factory=list)

    def names(self) -> list[str]:
        """The kernels launched so far, in order."""
        return [launch.kernel.__name__ for launch in self.launches]


WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watch(*, execute: bool = True, target: Target | None = None) -> Iterator[Watcher]:
    """Collect every launch of this thread; with `execute=False` nothing runs, so tensors may be on "meta"."""
    watcher = Watcher(execute, target)
    token = WATCHER.set(watcher)
    try:
        yield watcher
    finally:
        WATCHER.reset(token)


def target_of(tensor: Tensor) -> Target:
    """What kernels on this tensor are compiled for."""
    watcher = WATCHER.get()
    if watcher is not None and watcher.target is not None:
        return watcher.target
    if interpreting():
        return Target("interpreter", 0)
    return device_target(tensor.device)


@functools.cache
def device_target(device: torch.device) -> Target:
    """What kernels on this GPU are compiled for."""
    properties = torch.cuda.get_device_properties(device)
    count = properties.multi_processor_count
    if torch.version.hip is not None:
        return Target("hip", properties.gcnArchName.split(":")[0], count)
    return Target("cuda", 10 * properties.major + properties.minor, count)


def launch(
    kernel: Any,
    programs: int,
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
    options: Options,
    *,
    on: Tensor,
) -> None:
    """Run `programs` instances of a kernel on the device of `on`; none where `programs` is 0.

    Args:
        kernel: a function under `triton.jit`.
        programs: the one-dimensional grid; the only axis that may exceed 65,535.
        arguments: tensors, tuples of tensors and numbers, by the kernel's names.
        constants: its `tl.constexpr` parameters.
        options: compile options.
        on: a tensor on the device.
    """
    watcher = WATCHER.get()
    if watcher is not None:
        watcher.launches.append(Launch(kernel, programs, arguments, constants, options))
        if not watcher.execute:
            return
    if programs == 0:
        return
    device = torch.cuda.device(on.device) if on.is_cuda else contextlib.nullcontext()
    with device:
        kernel[(programs,)](**arguments, **constants, **options.keywords)
