"""Which implementation of an op runs, and why: the rule that picks one, and what Triton kernels need."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from resclip_kernels.first_use import JUDGE

Function = TypeVar("Function")

# What the kernels take; float64 is left to the reference.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Major and minor version. Triton 3.4 and earlier do not compile the kernels: tuples of constants, `disable_licm`.
MIN_TRITON = (3, 5)
# Before Ampere Triton compiles the kernels' products without matrix units, and they spill 1 to 3 kB a thread.
MIN_COMPUTE_CAPABILITY = (8, 0)


class Implementation(str, Enum):
    """The values of every op's `implementation` argument."""

    AUTO = "auto"
    """Triton on an AMD GPU, or an NVIDIA GPU of compute capability 8.0 or higher, once its results there have been
    compared with PyTorch's (see `resclip_kernels.first_use`); PyTorch everywhere else."""
    TRITON = "triton"
    """Fused GPU kernels; inference only."""
    LIBRARY = "library"
    """PyTorch's own fused kernels alone, compiled by PyTorch on a GPU: plain attention and FlexAttention for
    `residual_attention`, inference only; what "torch" is for the ops that no library has."""
    TORCH = "torch"
    """Lean PyTorch for any device, CPU included."""
    REFERENCE = "reference"
    """The plain formula, materialised; float64-capable. The tests' oracle and the benchmarks' baseline."""


WITH_KERNELS = {Implementation.TRITON: None, Implementation.TORCH: None}


@dataclass(frozen=True)
class Choice(Generic[Function]):
    """What was resolved: the implementation's name, the reason in words, and the function itself."""

    implementation: Implementation
    reason: str
    function: Function


def parse_implementation(requested: Implementation | str) -> Implementation:
    """Turn `requested` into an `Implementation`; ValueError with the valid names otherwise."""
    try:
        return Implementation(requested)
    except ValueError:
        valid = ", ".join(repr(member.value) for member in Implementation)
        raise ValueError(f"implementation must be one of {valid}; got {requested!r}") from None


def check_implementation(
    requested: Implementation | str, *tensors: Tensor | None
) -> Implementation:
    """`requested` as an `Implementation`, refused here and now where no op could run it on this machine.

    Args:
        requested: by name.
        tensors: on the device and in the dtype of those that ops will be called with, where that is known.

    Raises:
        ValueError: no implementation's name, or "triton" where there is no Triton that compiles the kernels.
    """
    implementation = parse_implementation(requested)
    if implementation is Implementation.TRITON:
        why_not = kernel_obstacle(*tensors)
        if why_not is not None:
            raise ValueError(f"implementation 'triton' cannot run: {why_not}")
    return implementation


def resolve(
    requested: Implementation | str,
    available: Mapping[Implementation, Function],
    *tensors: Tensor | None,
    limit: str | None = None,
    op: str | None = None,
) -> Choice[Function]:
    """Pick an implementation from the ones an op has.

    An explicit request is honoured or refused, never replaced by another implementation.

    Args:
        requested: what the caller wants, `"auto"` to leave it open.
        available: the op's implementations by name; `TORCH` is always among them. `AUTO` is what "auto" takes where
            kernels can run, if that is not `TRITON`.
        tensors: what the op is called with; None stands for an argument left out.
        limit: why the op's own kernels cannot take these arguments, None where they can.
        op: its name, by which "auto" knows whether its kernels have been compared with torch on this device; None: it
            takes them unseen.

    Raises:
        ValueError: `requested` is no implementation, or one that this op does not have, or cannot run here.
    """
    implementation = parse_implementation(requested)
    if implementation is Implementation.AUTO:
        implementation, reason = automatic(available, *tensors, limit=limit, op=op)
        function = available[implementation]
        if implementation is Implementation.TRITON:
            # Some ops have a mixture of both, by what is faster.
            function = available.get(Implementation.AUTO, function)
        return Choice(implementation, reason, function)
    if implementation is Implementation.LIBRARY and implementation not in available:
        return Choice(Implementation.TORCH, "requested by name", available[Implementation.TORCH])
    if implementation not in available:
        members = [member for member in available if member is not Implementation.AUTO]
        has = ", ".join(repr(member.value) for member in members)
        raise ValueError(
            f"implementation {implementation.value!r} does not exist for this op; it has {has}. "
            "Use 'auto' for the fastest of them"
        )
    if implementation is Implementation.TRITON:
        why_not = kernel_obstacle(*tensors) or limit
        if why_not is not None:
            raise ValueError(f"implementation 'triton' cannot run: {why_not}")
    if implementation is Implementation.LIBRARY and needs_gradient(*tensors):
        # FlexAttention has none on a CPU.
        raise ValueError(
            "implementation 'library' cannot run: it is for inference and a tensor requires grad; "
            "use 'torch', or torch.no_grad()"
        )
    return Choice(implementation, "requested by name", available[implementation])


def automatic(
    available: Mapping[Implementation, Any],
    *tensors: Tensor | None,
    limit: str | None,
    op: str | None,
) -> tuple[Implementation, str]:
    """Triton for tensors on a GPU that the kernels can take, torch else; and the reason."""
    if Implementation.TRITON not in available:
        return Implementation.TORCH, "this op has no Triton kernels"
    if not are_on_gpu(*tensors):
        return Implementation.TORCH, "portable PyTorch runs on every device"
    why_not = kernel_obstacle(*tensors) or limit
    if why_not is None and op is not None:
        why_not = JUDGE.obstacle(op, tensors)
    if why_not is not None:
        return Implementation.TORCH, why_not
    return Implementation.TRITON, "the tensors are on a GPU"


def explain(op: str, device: torch.device, dtype: torch.dtype) -> tuple[Implementation, str]:
    """What "auto" takes for an op on a device in a dtype, and why; compares the kernels if that is still due."""
    with torch.no_grad():
        tensor = torch.empty(1, device=device, dtype=dtype)
        return automatic(WITH_KERNELS, tensor, limit=None, op=op)


def are_on_gpu(*tensors: Tensor | None) -> bool:
    """Whether any of these is on a CUDA or HIP device."""
    return any(tensor is not None and tensor.is_cuda for tensor in tensors)


def kernel_obstacle(*tensors: Tensor | None) -> str | None:
    """Why Triton kernels cannot run on these tensors, and what to do; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton (Linux), or use 'torch'"
    version = triton_version()
    if version < MIN_TRITON:
        return (
            f"the kernels need triton {dotted(MIN_TRITON)} or later, that of torch 2.9; got {dotted(version)}. "
            "Upgrade torch, or use 'torch'"
        )
    present = [tensor for tensor in tensors if tensor is not None]
    for device in {tensor.device for tensor in present if tensor.is_cuda}:
        capability = compute_capability(device)
        if capability is not None and capability < MIN_COMPUTE_CAPABILITY:
            return (
                f"the kernels need a GPU of compute capability {dotted(MIN_COMPUTE_CAPABILITY)} or higher "
                f"(NVIDIA Ampere or later); {device} has {dotted(capability)}. Use 'torch'"
            )
    if needs_gradient(*present):
        return "the kernels are for inference and a tensor requires grad; use 'torch', or torch.no_grad()"
    for tensor in present:
        if tensor.is_floating_point() and tensor.dtype not in KERNEL_DTYPES:
            valid = ", ".join(str(dtype).removeprefix("torch.") for dtype in KERNEL_DTYPES)
            return f"the kernels take {valid}; got {tensor.dtype}: convert it, or use 'torch'"
        if not (tensor.is_cuda or tensor.is_meta or interpreting()):
            return (
                f"the kernels need a CUDA or HIP device; got a tensor on {tensor.device}. Move it, use 'torch', "
                "or set TRITON_INTERPRET=1 before the first kernel runs to have them interpreted, slowly"
            )
    return None


@functools.cache
def triton_version() -> tuple[int, int]:
    """Major and minor version of the installed Triton."""
    major, minor = importlib.import_module("triton").__version__.split(".")[:2]
    return int(major), int(minor)


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """An NVIDIA GPU's compute capability; None for AMD's GPUs, which have none."""
    return None if torch.version.hip is not None else torch.cuda.get_device_capability(device)


def dotted(version: tuple[int, int]) -> str:
    """(3, 5) as "3.5"."""
    return ".".join(map(str, version))


def interpreting() -> bool:
    """Whether Triton's interpreter stands in for a GPU (the environment's TRITON_INTERPRET)."""
    return os.environ.get("TRITON_INTERPRET", "0") in {"1", "true", "on", "yes"}


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would have to follow these tensors."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def deferred(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of a module that is imported when it is first called: Triton takes a second."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments)

    return call
