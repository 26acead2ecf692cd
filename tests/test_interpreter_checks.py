"""The interpreter's sanitizer finds each kind of fault, names the kernel, and finds none in kernels without."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

import triton
import triton.language as tl
from interpreter_checks import (
    NO_BARRIER,
    OUT_OF_BOUNDS,
    OUTSIDE_A_VIEW,
    READ_RACE,
    TWO_LANES,
    TWO_WRITERS,
    WRITE_RACE,
    Sanitizer,
)

from resclip_kernels.dispatch import interpreting

pytestmark = pytest.mark.skipif(not interpreting(), reason="a GPU is here, and runs the kernels")


@triton.jit
def copy_kernel(source, target, start, stop, BLOCK: tl.constexpr):
    """target[i] = source[i] for the program's block of i in [start, stop)."""
    offs = start + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + offs, tl.load(source + offs, mask=offs < stop), mask=offs < stop)


@triton.jit
def shift_kernel(values, BLOCK: tl.constexpr, BACK: tl.constexpr):
    """values[i] = values[i ± BLOCK]: of the program before or after this one."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if BACK:
        other = tl.load(values + offs - BLOCK, mask=offs >= BLOCK, other=0.0)
    else:
        other = tl.load(values + offs + BLOCK, mask=offs + BLOCK < BLOCK * tl.num_programs(0))
    tl.store(values + offs, other)


@triton.jit
def sum_kernel(values, total, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    """Every program adds its block to one number."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    block = tl.sum(tl.load(values + offs))
    if ATOMIC:
        tl.atomic_add(total, block)
    else:
        tl.store(total, block)


@triton.jit
def lanes_kernel(values, BLOCK: tl.constexpr):
    """Two lanes a place."""
    tl.store(values + tl.arange(0, BLOCK) // 2, 1.0)


@triton.jit
def exchange_kernel(values, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Reverses a block through memory."""
    offs = tl.arange(0, BLOCK)
    tl.store(values + offs, offs.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    reversed_values = tl.load(values + BLOCK - 1 - offs)
    if BARRIER:
        tl.debug_barrier()
    tl.store(values + offs, reversed_values)


def taken(checks: Sanitizer) -> list[str]:
    """What was found, which is not to fail this test."""
    found = list(checks.found)
    checks.found.clear()
    return found


def test_addresses_beyond_a_tensor_are_found(kernel_checks: Sanitizer) -> None:
    """Before its memory and after it; the lanes are left out, so that the process lives."""
    source, target = torch.arange(64.0), torch.zeros(64)
    for start, stop in ((0, 64), (48, 64)):
        copy_kernel[(1,)](source, target, start, stop, BLOCK=64)
    assert kernel_checks.found == []
    assert torch.equal(source, target)
    for start, stop in ((1, 65), (-1, 64), (1 << 40, 1 << 41)):
        copy_kernel[(1,)](source, target, start, stop, BLOCK=64)
        assert taken(kernel_checks) == [f"copy_kernel {OUT_OF_BOUNDS}"]
    assert torch.equal(source, target)


def test_addresses_beyond_a_view_are_found(kernel_checks: Sanitizer) -> None:
    buffer, target = torch.zeros(4, 16, dtype=torch.float16), torch.zeros(64)
    copy_kernel[(1,)](buffer[1:3], target, 0, 32, BLOCK=64)
    assert kernel_checks.found == []
    for start, stop in ((0, 33), (-1, 32)):
        copy_kernel[(1,)](buffer[1:3], target[1:], start, stop, BLOCK=64)
        assert taken(kernel_checks) == [f"copy_kernel {OUTSIDE_A_VIEW}"]


def test_tensors_in_tuples_are_the_launchs_too(kernel_checks: Sanitizer) -> None:
    @triton.jit
    def pair_kernel(pair, BLOCK: tl.constexpr):
        offs = tl.arange(0, BLOCK)
        tl.store(pair[1] + offs, tl.load(pair[0] + offs))

    source, target = torch.arange(16.0), torch.zeros(16, dtype=torch.int64)
    pair_kernel[(1,)]((source, target), BLOCK=16)
    assert torch.equal(target, source.long())
    assert kernel_checks.found == []


@pytest.mark.parametrize(("back", "problem"), [(True, READ_RACE), (False, WRITE_RACE)])
def test_races_between_programs_are_found(
    kernel_checks: Sanitizer, back: bool, problem: str
) -> None:
    """Programs run one after the other here: what one before has written or has read."""
    shift_kernel[(3,)](torch.zeros(48), BLOCK=16, BACK=back)
    assert taken(kernel_checks) == [f"shift_kernel {problem}"]
    shift_kernel[(1,)](torch.zeros(48), BLOCK=16, BACK=back)
    assert kernel_checks.found == []


def test_two_writers_are_found_unless_they_are_atomic(kernel_checks: Sanitizer) -> None:
    values, total = torch.ones(64), torch.zeros(1)
    sum_kernel[(4,)](values, total, ATOMIC=True, BLOCK=16)
    assert total.item() == 64
    assert kernel_checks.found == []
    sum_kernel[(4,)](values, total, ATOMIC=False, BLOCK=16)
    assert taken(kernel_checks) == [f"sum_kernel {TWO_WRITERS}"]
    lanes_kernel[(1,)](values, BLOCK=16)
    assert taken(kernel_checks) == [f"lanes_kernel {TWO_LANES}"]


def test_an_update_of_what_another_program_stored_is_found(kernel_checks: Sanitizer) -> None:
    @triton.jit
    def mixed_kernel(values):
        if tl.program_id(0) == 0:
            tl.store(values, 1.0)
        else:
            tl.atomic_add(values, 1.0)

    mixed_kernel[(2,)](torch.zeros(1))
    assert taken(kernel_checks) == [f"mixed_kernel {TWO_WRITERS}"]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_missing_barrier_is_found(kernel_checks: Sanitizer, dtype: torch.dtype) -> None:
    values = torch.zeros(16, dtype=dtype)
    exchange_kernel[(1,)](values, BLOCK=16, BARRIER=True)
    assert kernel_checks.found == []
    exchange_kernel[(1,)](values, BLOCK=16, BARRIER=False)
    assert taken(kernel_checks) == [f"exchange_kernel {NO_BARRIER}"]


def test_a_launch_knows_nothing_of_the_one_before(kernel_checks: Sanitizer) -> None:
    values = torch.zeros(48)
    for _ in range(2):
        copy_kernel[(3,)](values, torch.zeros(48), 0, 48, BLOCK=16)
        exchange_kernel[(1,)](values, BLOCK=16, BARRIER=True)
    assert kernel_checks.found == []


def test_what_is_found_is_an_error_at_the_end(kernel_checks: Sanitizer) -> None:
    """As of every test, by conftest.py's fixture: each kernel and fault once."""
    inner = Sanitizer()
    message = f"^exchange_kernel {NO_BARRIER}; lanes_kernel {TWO_LANES}$"

    def run() -> None:
        with inner.watching():
            for _ in range(2):
                exchange_kernel[(1,)](torch.zeros(16), BLOCK=16, BARRIER=False)
            lanes_kernel[(1,)](torch.zeros(16), BLOCK=16)

    with pytest.raises(AssertionError, match=message):
        run()
    # The fixture's own saw the same.
    assert taken(kernel_checks) == inner.found


def test_every_test_is_watched() -> None:
    assert triton.runtime.interpreter.GridExecutor.__call__.__qualname__.startswith("Sanitizer.")
