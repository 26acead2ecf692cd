"""Numbers in Triton's interpreter as on a GPU: bfloat16, and float32 products from TF32 parts.

The interpreter keeps bfloat16 as 16-bit integers and computes with these, cuts float32 off where a GPU rounds it, and
forms every float32 product exactly, whatever its `input_precision`. `install` sets this right for a process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Array = np.ndarray[Any, Any]
Handle = interpreter.TensorHandle
# Of one TF32 instruction: the k of m16n8k8, and of Hopper's m64nNk8.
PRODUCTS_AT_ONCE = 8


NUMPY_TYPES = {
    "int1": np.bool_,
    **{name: getattr(np, name) for name in ("int8", "int16", "int32", "int64")},
    **{name: getattr(np, name) for name in ("uint8", "uint16", "uint32", "uint64")},
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "bf16": np.uint16,
}
"""What the interpreter keeps of each type of Triton's, by its name."""


def bfloat16_to_float32(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: Array) -> Array:
    """The bits of the nearest bfloat16, the even one of two; a NaN stays one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # A carry runs into the exponent, and from the largest number into infinity, as it should.
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0 | (bits >> 16), nearest).astype(np.uint16)


def tf32(values: Array) -> Array:
    """The nearest float32 of 11 significant bits; of two the larger one in magnitude, as `cvt.rna.tf32` has it."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = ((bits + 0x1000) & 0xFFFFE000).view(np.float32)
    return np.where(np.isfinite(values), nearest, values)


def tf32_parts(values: Array) -> tuple[Array, Array]:
    """What TF32 holds of float32 numbers, and of the rest: 22 significant bits together."""
    large = tf32(values)
    with np.errstate(invalid="ignore"):
        return large, tf32(values - large)


def tf32_product(left: Array, right: Array, total: Array) -> Array:
    """total + left @ right in float32, of TF32 numbers: as on a matrix unit a row's next products are added at once.

    BLAS rounds after each of them. Units cut off the last bits where this rounds to nearest: how much that costs, a GPU
    has to tell.
    """
    total = total.astype(np.float64)
    for first in range(0, left.shape[-1], PRODUCTS_AT_ONCE):
        some = slice(first, first + PRODUCTS_AT_ONCE)
        total += left[..., some].astype(np.float64) @ right[..., some, :].astype(np.float64)
        total = total.astype(np.float32).astype(np.float64)
    return total.astype(np.float32)


def is_bfloat16(dtype: Any) -> bool:
    # By name: this is asked of every operand, and comparing types of Triton is slow.
    return bool(dtype.scalar.name == tl.bfloat16.name)


def widened(handle: Any) -> Any:
    """The same numbers in float32, where they are bfloat16."""
    if not is_bfloat16(handle.dtype):
        return handle
    return Handle(bfloat16_to_float32(handle.data), tl.float32)


def narrowed(handle: Any) -> Any:
    """A result of `widened` handles in bfloat16; of a comparison it is the truth values as they are."""
    is_truth = handle.data.dtype == bool
    data = handle.data if is_truth else float32_to_bfloat16(handle.data)
    return Handle(data, tl.bfloat16)


def convert(source: Any, dtype: Any) -> Any:
    """From or to bfloat16."""
    if not is_bfloat16(dtype):
        data = bfloat16_to_float32(source.data)
        return Handle(data.astype(interpreter._get_np_dtype(dtype)), dtype.scalar)
    if is_bfloat16(source.dtype):
        return source
    return Handle(float32_to_bfloat16(source.data.astype(np.float32)), dtype.scalar)


def install() -> None:
    """Once a process, before the first kernel runs; a second time changes nothing."""
    builder = interpreter.InterpreterBuilder
    if hasattr(builder, "plain_dot"):
        return
    builder.plain_dot = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        name = getattr(input_precision, "name", input_precision)
        if a.dtype.scalar != tl.float32 or b.dtype.scalar != tl.float32 or name == "IEEE":
            return self.plain_dot(widened(a), widened(b), d, input_precision, *rest)
        (a_large, a_small), (b_large, b_small) = (tf32_parts(handle.data) for handle in (a, b))
        if name == "TF32":
            return Handle(tf32_product(a_large, b_large, d.data), tl.float32)
        if name != "TF32x3":
            raise NotImplementedError(f"a product of precision {name} is not interpreted")
        with np.errstate(invalid="ignore", over="ignore"):
            # Triton's order: the small terms first, which infinities make NaN.
            cross = tf32_product(a_small, b_large, np.zeros_like(d.data))
            cross = tf32_product(a_large, b_small, cross)
            cross = np.where(np.isnan(cross), np.float32(0), cross)
            product = tf32_product(a_large, b_large, cross)
            return Handle(product + d.data, tl.float32)

    def in_float32(plain: Any) -> Any:
        def call(self: Any, *operands: Any) -> Any:
            *handles, operation = operands
            if not any(is_bfloat16(handle.dtype) for handle in handles):
                return plain(self, *operands)
            return narrowed(plain(self, *map(widened, handles), operation))

        return call

    def converting(plain: Any) -> Any:
        def call(self: Any, source: Any, dtype: Any, *rounding: Any) -> Any:
            if is_bfloat16(source.dtype) or is_bfloat16(dtype):
                return convert(source, dtype)
            return plain(self, source, dtype, *rounding)

        return call

    builder.create_dot = create_dot
    for name in ("unary_op", "binary_op", "ternary_op"):
        setattr(builder, name, in_float32(getattr(builder, name)))
    for name in ("cast_impl", "create_fp_to_fp"):
        setattr(builder, name, converting(getattr(builder, name)))
    plain_patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, *scope: Any) -> None:
        plain_patch(tensor, *scope)
        # Triton 3.5 and 3.6 convert arrays of one dimension, which NumPy refuses since 2.4.
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_lang_tensor
    # Sums of integers are formed again in 64 bits, for an assertion that is only looked at in debug mode.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    patch_once_a_launch()
    describe_once()
    interpreter._get_np_dtype = numpy_dtype


def patch_once_a_launch() -> None:
    """Triton looks for what it has to replace in its language at each call of a device function: a third of the time.

    Within a launch it stays replaced; here each module's first call looks.
    """
    plain = interpreter._patch_lang
    replaced: set[int] = set()

    def patch_lang(function: Any) -> Any:
        replaced.clear()
        return plain(function)

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in replaced:
            plain(self.fn)
            replaced.add(module)
        return self.rewrite()(*arguments, **keywords)

    interpreter._patch_lang = patch_lang
    interpreter.InterpretedFunction.__call__ = call


def describe_once() -> None:
    """What a tensor and its type keep of a shape is formed once for each, not for every operation."""
    plain_tensor, plain_block = tl.tensor.__init__, tl.block_type.__init__
    tensors: dict[tuple[int, ...], dict[str, Any]] = {}
    blocks: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        shape = kind.shape if kind.is_block() else ()
        if shape not in tensors:
            plain_tensor(self, handle, kind)
            own = ("handle", "type", "dtype")
            tensors[shape] = {name: value for name, value in vars(self).items() if name not in own}
            return
        vars(self).update(tensors[shape], handle=handle, type=kind, dtype=kind.scalar)

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(getattr(size, "value", size) for size in shape)
        known = blocks.get((element_ty.name, sizes))
        if known is None:
            plain_block(self, element_ty, shape)
            known = {name: value for name, value in vars(self).items() if name != "element_ty"}
            blocks[element_ty.name, sizes] = known
            return
        vars(self).update(known, element_ty=element_ty)

    tl.tensor.__init__, tl.block_type.__init__ = tensor, block


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """By the name of a type, where Triton makes a dictionary of all types each time."""
    if dtype.is_block():
        dtype = dtype.element_ty
    return np.dtype(np.uint64 if dtype.is_ptr() else NUMPY_TYPES[dtype.name])
