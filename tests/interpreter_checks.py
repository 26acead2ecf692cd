"""What a GPU's sanitizer looks for, in Triton's interpreter: addresses, races and barriers.

Checked for every lane that a mask lets through:

- bounds: it lies in the memory of one of the launch's tensors, and in what that tensor, if it is a view, may touch;
- races: what one program writes no other program reads or writes, and no two lanes of a store write one place;
- barriers: what a program has stored it loads again only after `tl.debug_barrier()`, since another thread may do so.

Atomic updates may meet one another, and loads may see them before or after: such a load is the kernel's own affair.
A load before a store of the same program needs no barrier where the same threads do both, which is not visible here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from triton.runtime import interpreter

Array = np.ndarray[Any, Any]

OUT_OF_BOUNDS = "touches memory that is no tensor's of the launch"
OUTSIDE_A_VIEW = "touches memory outside the tensor, of which it is a view"
READ_RACE = "reads what another program writes"
WRITE_RACE = "writes what another program reads"
TWO_WRITERS = "writes what another program writes"
TWO_LANES = "writes one place from two lanes of a store"
NO_BARRIER = "loads what it has stored without a barrier between"

NOBODY, SEVERAL = 0, -1


class Shadow:
    """Who touched which element of a launch's tensors; a program's number is its place in the grid plus 1."""

    def __init__(self, kernel: str, tensors: list[Tensor]) -> None:
        self.kernel = kernel
        self.unit = min((tensor.element_size() for tensor in tensors), default=1)
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in tensors
        }
        self.storages = sorted(storages.items())
        self.views = sorted({extent(tensor) for tensor in tensors if tensor.numel()})
        # Zeros take no memory before they are written.
        size = -(-sum(storages.values()) // self.unit) + len(storages)
        self.writer, self.reader, self.unsettled = (np.zeros(size, np.int32) for _ in range(3))
        self.is_atomic = np.zeros(size, bool)
        self.stores: list[Array] = []

    def places(self, addresses: Array, size: int) -> Array:
        """Where the elements at these addresses, all inside the storages, are kept in the arrays above."""
        places = np.empty(addresses.shape, np.int64)
        offset = 0
        for start, length in self.storages:
            inside = (addresses >= start) & (addresses < start + length)
            if inside.any():
                places[inside] = offset + (addresses[inside] - start) // self.unit
                if inside.all():
                    break
            offset += -(-length // self.unit)
        if size > self.unit:
            places = (places[:, None] + np.arange(size // self.unit)).reshape(-1)
        return places


def extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte that a tensor's elements take, and the one past the last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((length - 1) * stride for length, stride in steps)
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def within(addresses: Array, size: int, ranges: list[tuple[int, int]]) -> Array:
    """Which elements lie in one of these ranges of addresses."""
    low, high = addresses.min(), addresses.max() + size
    if any(start <= low and high <= end for start, end in ranges):
        return np.ones(addresses.shape, bool)
    inside = np.zeros(addresses.shape, bool)
    for start, end in ranges:
        inside |= (addresses >= start) & (addresses + size <= end)
    return inside


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among arguments, which may be tuples."""
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in tensors_in(part)]
    return [value] if isinstance(value, Tensor) else []


class Sanitizer:
    """Watches kernels; `found` names each kernel and what it does wrong, once."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.shadow: Shadow | None = None

    def report(self, problem: str) -> None:
        assert self.shadow is not None
        message = f"{self.shadow.kernel} {problem}"
        if message not in self.found:
            self.found.append(message)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Sanitizer]:
        """Until the block ends; AssertionError then, where something was found and is left in `found`."""
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        with contextlib.ExitStack() as stack:
            for owner, name, hook in (
                (executor, "__call__", self.on_launch),
                (executor, "_init_args_hst", self.on_arguments),
                (builder, "create_masked_load", self.on_load),
                (builder, "create_masked_store", self.on_store),
                (builder, "create_atomic_rmw", self.on_update),
                (builder, "create_atomic_cas", self.on_exchange),
                (builder, "create_barrier", self.on_barrier),
            ):
                stack.enter_context(mock.patch.object(owner, name, hook(getattr(owner, name))))
            yield self
        if self.found:
            raise AssertionError("; ".join(self.found))

    def on_launch(self, plain: Any) -> Any:
        def call(executor: Any, *arguments: Any, **keywords: Any) -> Any:
            outer = self.shadow
            try:
                return plain(executor, *arguments, **keywords)
            finally:
                self.shadow = outer

        return call

    def on_arguments(self, plain: Any) -> Any:
        """The executor copies tensors of a device first: the kernel's addresses are those of the copies."""

        def call(executor: Any, arguments: Any, keywords: Any) -> Any:
            on_host, keywords_on_host = plain(executor, arguments, keywords)
            values = (*on_host, *keywords_on_host.values())
            self.shadow = Shadow(executor.fn.__name__, tensors_in(values))
            return on_host, keywords_on_host

        return call

    def on_load(self, plain: Any) -> Any:
        def call(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            program, places, mask = self.visit(builder, pointers, mask)
            shadow = self.shadow
            if shadow is not None and len(places):
                writer = shadow.writer[places]
                others = (writer != NOBODY) & (writer != program)
                if (others & ~shadow.is_atomic[places]).any():
                    self.report(READ_RACE)
                if (shadow.unsettled[places] == program).any():
                    self.report(NO_BARRIER)
                readers = shadow.reader[places]
                alone = (readers == NOBODY) | (readers == program)
                shadow.reader[places] = np.where(alone, program, SEVERAL)
            return plain(builder, pointers, mask, *rest)

        return call

    def on_store(self, plain: Any) -> Any:
        def call(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            program, places, mask = self.visit(builder, pointers, mask)
            shadow = self.shadow
            if shadow is not None and len(places):
                if len(np.unique(places)) != len(places):
                    self.report(TWO_LANES)
                writer, readers = shadow.writer[places], shadow.reader[places]
                if ((writer != NOBODY) & (writer != program)).any():
                    self.report(TWO_WRITERS)
                if ((readers != NOBODY) & (readers != program)).any():
                    self.report(WRITE_RACE)
                shadow.writer[places] = shadow.unsettled[places] = program
                shadow.is_atomic[places] = False
                shadow.stores.append(places)
            return plain(builder, pointers, value, mask, *rest)

        return call

    def on_update(self, plain: Any) -> Any:
        def call(builder: Any, kind: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            program, places, mask = self.visit(builder, pointers, mask)
            self.update(program, places)
            return plain(builder, kind, pointers, value, mask, *rest)

        return call

    def on_exchange(self, plain: Any) -> Any:
        def call(builder: Any, pointers: Any, *rest: Any) -> Any:
            every = interpreter.TensorHandle(np.ones_like(pointers.data, dtype=bool), None)
            program, places, mask = self.visit(builder, pointers, every)
            self.update(program, places)
            if not mask.data.all():
                # It takes no mask, and the process is to live.
                raise IndexError(self.found[-1])
            return plain(builder, pointers, *rest)

        return call

    def update(self, program: int, places: Array) -> None:
        """An atomic one."""
        shadow = self.shadow
        if shadow is not None and len(places):
            writer = shadow.writer[places]
            others = (writer != NOBODY) & (writer != program)
            if (others & ~shadow.is_atomic[places]).any():
                self.report(TWO_WRITERS)
            shadow.writer[places] = program
            shadow.is_atomic[places] = True

    def on_barrier(self, plain: Any) -> Any:
        def call(builder: Any) -> Any:
            if self.shadow is not None:
                for places in self.shadow.stores:
                    self.shadow.unsettled[places] = NOBODY
                self.shadow.stores.clear()
            return plain(builder)

        return call

    def visit(self, builder: Any, pointers: Any, mask: Any) -> tuple[int, Array, Any]:
        """(program, places that are touched, the mask without the lanes that are out of bounds)."""
        x, y, z = builder.grid_idx
        _, height, depth = builder.grid_dim
        program = 1 + (x * height + y) * depth + z
        nowhere = np.empty(0, np.int64)
        shadow = self.shadow
        if shadow is None:
            return program, nowhere, mask
        lanes = np.broadcast_to(np.asarray(mask.data, bool), np.shape(pointers.data))
        addresses = np.asarray(pointers.data)[lanes].astype(np.int64)
        if not len(addresses):
            return program, nowhere, mask
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        storages = [(start, start + length) for start, length in shadow.storages]
        known = within(addresses, size, storages)
        if not known.all():
            self.report(OUT_OF_BOUNDS)
            allowed = lanes.copy()
            allowed[lanes] = known
            mask = interpreter.TensorHandle(allowed.reshape(np.shape(mask.data)), mask.dtype)
            addresses = addresses[known]
            if not len(addresses):
                return program, nowhere, mask
        if not within(addresses, size, shadow.views).all():
            self.report(OUTSIDE_A_VIEW)
        return program, shadow.places(addresses, size), mask
