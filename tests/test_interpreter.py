"""Numbers in the interpreter are a GPU's: bfloat16 rounded as torch rounds it, products of float32 from TF32 parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="kernels need Triton, which exists for Linux alone")

import triton
import triton.language as tl
from interpreter import bfloat16_to_float32, float32_to_bfloat16, install, tf32, tf32_parts

from resclip_kernels.dispatch import interpreting

INTERPRETED = pytest.mark.skipif(not interpreting(), reason="a GPU is here, and runs the kernels")


@triton.jit
def product_kernel(left, right, total, N: tl.constexpr, PRECISION: tl.constexpr):
    """total [N, N] = left @ right + total."""
    offs = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    acc = tl.load(total + offs)
    acc = tl.dot(tl.load(left + offs), tl.load(right + offs), acc, input_precision=PRECISION)
    tl.store(total + offs, acc)


@triton.jit
def arithmetic_kernel(left, right, out, N: tl.constexpr):
    """Rows of [6, N]: every kind of operation on bfloat16, and conversions from and to other types."""
    offs = tl.arange(0, N)
    a, b = tl.load(left + offs), tl.load(right + offs)
    tl.store(out + offs, a + b)
    tl.store(out + N + offs, -a)
    tl.store(out + 2 * N + offs, tl.where(a < b, a, b))
    tl.store(out + 3 * N + offs, (a.to(tl.float32) * b.to(tl.float32)).to(tl.bfloat16))
    tl.store(out + 4 * N + offs, a.to(tl.int32).to(tl.bfloat16))
    tl.store(out + 5 * N + offs, a.to(tl.float16).to(tl.bfloat16))


def product(left: torch.Tensor, right: torch.Tensor, precision: str) -> torch.Tensor:
    total = torch.zeros(len(left), len(left))
    product_kernel[(1,)](left, right, total, N=len(left), PRECISION=precision)
    return total


def worst_bits(got: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    """Bits of the worst entry that are right, relative to the sum of its terms' magnitudes."""
    exact = left.double() @ right.double()
    scale = left.double().abs() @ right.double().abs()
    return -torch.log2(((got - exact).abs() / scale).max()).item()


def test_bfloat16_is_rounded_as_torch_does(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=generator).to(torch.int32)
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 1, 0x80000000 - (1 << 32)])
    values = torch.cat([bits, ties.to(torch.int32)]).view(torch.float32)
    rounded = torch.from_numpy(float32_to_bfloat16(values.numpy()).view("int16"))
    expected = values.bfloat16()
    torch.testing.assert_close(
        rounded.view(torch.bfloat16), expected, rtol=0, atol=0, equal_nan=True
    )
    back = torch.from_numpy(bfloat16_to_float32(rounded.numpy().view("uint16")))
    torch.testing.assert_close(back, expected.float(), rtol=0, atol=0, equal_nan=True)


@INTERPRETED
def test_operations_on_bfloat16(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (10 * torch.randn(2, 64, generator=generator)).bfloat16()
    out = torch.empty(6, 64, dtype=torch.bfloat16)
    arithmetic_kernel[(1,)](a, b, out, N=64)
    whole = a.int().bfloat16()
    assert torch.equal(out, torch.stack([a + b, -a, torch.minimum(a, b), a * b, whole, a]))


@INTERPRETED
def test_a_product_of_bfloat16_is_that_of_its_numbers(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, 16, 16, generator=generator).bfloat16()
    for precision in ("ieee", "tf32", "tf32x3"):
        got = product(left, right, precision)
        torch.testing.assert_close(got, left.float() @ right.float(), rtol=1e-5, atol=1e-5)


def test_tf32_has_11_bits_and_two_parts_have_22(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1 << 12, generator=generator).numpy()
    large, small = tf32_parts(values)
    exact = values.astype("float64")
    first, both = (
        abs(part - exact) / abs(exact) for part in (large, large + small.astype("float64"))
    )
    # Half a unit of the last of 11 bits; nearly reached by the worst of so many.
    assert 0.9 * 2.0**-11 < first.max() <= 2.0**-11
    assert both.max() <= 2.0**-22
    assert ((large.view("uint32") & 0x1FFF) == 0).all()
    # A tie goes to the larger magnitude.
    assert tf32(torch.tensor([1 + 2.0**-11, -1 - 2.0**-11]).numpy()).tolist() == [
        1 + 2.0**-10,
        -1 - 2.0**-10,
    ]


@INTERPRETED
def test_products_of_float32_have_the_bits_of_their_precision(seed: int) -> None:
    """Of 64 terms whose errors rarely point one way: a bit or two more than of one."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, 64, 64, generator=generator)
    bits = {
        name: worst_bits(product(left, right, name), left, right)
        for name in ("tf32", "tf32x3", "ieee")
    }
    assert 10 < bits["tf32"] < 14
    assert 20 < bits["tf32x3"] < 26
    assert bits["ieee"] > 20
    assert bits["tf32x3"] > bits["tf32"] + 8


@INTERPRETED
def test_the_small_part_that_is_left_out_is_the_only_loss() -> None:
    """(1 + 2⁻¹² + 2⁻²⁰)² from parts: 2⁻²⁴ and less, the square of the small part, is not formed."""
    value = 1 + 2.0**-12 + 2.0**-20
    left, right = torch.zeros(2, 16, 16)
    left[0, 0] = right[0, 0] = value
    assert product(left, right, "tf32")[0, 0] == 1
    assert product(left, right, "tf32x3")[0, 0] == 1 + 2 * (2.0**-12 + 2.0**-20)


@INTERPRETED
def test_products_of_one_instruction_are_added_at_once() -> None:
    """Each of eight ones alone would be lost beside 2²⁴, half of whose last place it is."""
    left, right = torch.zeros(2, 16, 16)
    left[0, 0] = right[0, 0] = 2.0**12
    left[0, 8:] = right[8:, 0] = 1
    for precision in ("tf32", "tf32x3"):
        assert product(left, right, precision)[0, 0] == 2.0**24 + 8


@INTERPRETED
def test_infinities_stay_what_they_are() -> None:
    """Their small part is NaN, which must not reach the product."""
    left, right = torch.ones(16, 16), torch.ones(16, 16)
    left[0, 0] = torch.inf
    got = product(left, right, "tf32x3")
    assert torch.equal(got[0], torch.full((16,), torch.inf))
    assert torch.equal(got[1], torch.full((16,), 16.0))


@INTERPRETED
def test_other_precisions_are_refused() -> None:
    """Rather than computed in another one, unseen."""
    install()
    builder: Any = triton.runtime.interpreter.interpreter_builder
    handle = triton.runtime.interpreter.TensorHandle(torch.ones(16, 16).numpy(), tl.float32)
    with pytest.raises(NotImplementedError, match="BF16x6"):
        builder.create_dot(handle, handle, handle, "BF16x6", 0)
