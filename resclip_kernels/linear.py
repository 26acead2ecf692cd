"""Linear layers in float32 on a CPU by oneDNN where that is faster than what PyTorch takes, and by PyTorch elsewhere.

PyTorch multiplies float32 matrices by MKL, which keeps its best code for Intel's CPUs. PyTorch brings oneDNN as well,
with code for every CPU that has AVX-512, in the same precision. Which of the two multiplies is a rule, not a
measurement, so that a machine gives the same bits at every start:

- AMD's CPUs with AVX-512 (Zen 4 and later): oneDNN;
- all others: PyTorch's own.

The environment's RESCLIP_LINEAR=torch switches oneDNN off.
"""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resclip_kernels.cpu import is_amd

SWITCH = "RESCLIP_LINEAR"
"""Variable of the environment: "torch" for PyTorch's own layers."""


def fast_linear() -> AbstractContextManager[Any]:
    """Within it, this thread's linear layers run by oneDNN where the rule says so; also those of other libraries.

    It changes no setting of PyTorch: it is a `TorchFunctionMode`, which sees the calls of one thread. A call that
    oneDNN does not take (another dtype or device, gradients, autocast, a subclass of tensors), and all calls while a
    graph is being made, run as they are.
    """
    return OneDnnLinear() if is_on() else nullcontext()


class OneDnnLinear(TorchFunctionMode):
    """Sends `F.linear` to oneDNN; see `fast_linear`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            return by_onednn(*args, **(kwargs or {}))
        if func is F.multi_head_attention_forward:
            # Its layers are called where this mode is off.
            attended = self_attention(*args, **(kwargs or {}))
            if attended is not None:
                return attended
        return func(*args, **(kwargs or {}))


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """rows · weightᵀ, by oneDNN where the rule says so and it takes these."""
    return by_onednn(rows, weight) if is_on() else F.linear(rows, weight)


def by_onednn(
    input: Tensor,  # noqa: A002 - callers of F.linear may use its names
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """F.linear by oneDNN; by PyTorch where oneDNN does not take these, or they do not fit."""
    # oneDNN reads memory by these shapes and, of the bias, by no strides, whatever it is given.
    fits = (
        weight.ndim == 2
        and input.ndim > 0
        and input.shape[-1] == weight.shape[1]
        and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))
    )
    if fits and takes([input, weight] if bias is None else [input, weight, bias]):
        try:
            result: Tensor = operator()(input, weight, bias, "none", [], "")
            return result
        except RuntimeError:
            pass  # A limit of oneDNN.
    return F.linear(input, weight, bias)


def takes(tensors: list[Tensor]) -> bool:
    """Whether oneDNN takes a layer of these: plain float32 on a CPU, outside autograd and autocast."""
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return (
        not needs_gradient
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and all(
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.dtype is torch.float32
            and tensor.device.type == "cpu"
            and tensor.layout is torch.strided
            and tensor.numel() > 0
            for tensor in tensors
        )
    )


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    **others: Any,
) -> tuple[Tensor, None] | None:
    """What F.multi_head_attention_forward gives for plain self-attention, (L, B, D), in steps; None for all else."""
    is_plain = (
        query is key is value
        and query.ndim == 3
        and in_proj_weight is not None
        and bias_k is None
        and bias_v is None
        and not add_zero_attn
        and not (training and dropout_p)
        and key_padding_mask is None
        and not need_weights
        and (attn_mask is None or attn_mask.ndim == 2)
        and (attn_mask is None or attn_mask.dtype is query.dtype)  # Bools are the other way round.
        and not (attn_mask is None and others.get("is_causal"))
        and not use_separate_proj_weight
        and query.shape[2] == embed_dim_to_check
    )
    if not is_plain or in_proj_weight is None or not takes([query, in_proj_weight]):
        return None
    length, batch, width = query.shape
    projected = by_onednn(query, in_proj_weight, in_proj_bias)
    heads = projected.view(length, batch, 3, num_heads, width // num_heads)
    q, k, v = heads.permute(2, 1, 3, 0, 4).unbind(0)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    merged = attended.permute(2, 0, 1, 3).reshape(length, batch, width)
    return by_onednn(merged, out_proj_weight, out_proj_bias), None


def is_on() -> bool:
    """Whether layers run by oneDNN here and now: the rule says so, and no graph is being made."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    is_graph = torch.compiler.is_compiling() or tracing
    return not is_graph and linear_obstacle() is None


def linear_obstacle() -> str | None:
    """Why linear layers are PyTorch's own here; None where they run by oneDNN."""
    if os.environ.get(SWITCH, "") == "torch":
        return f"the environment's {SWITCH} is 'torch'"
    return machine_obstacle()


@functools.cache
def machine_obstacle() -> str | None:
    """Why this machine and this PyTorch do not multiply by oneDNN; None where they do."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "the CPU has no AVX-512, where PyTorch's own code is as fast"
    if not is_amd():
        return "the CPU is not AMD's, and MKL's code for AVX-512 is at its best on Intel's"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if operator() is None:
        return "this PyTorch has no operator for a linear layer by oneDNN"
    return None


@functools.cache
def operator() -> Any:
    """oneDNN's linear layer, which torch.compile calls too; None where it is missing, since its name is not public."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
