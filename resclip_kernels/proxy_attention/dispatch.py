"""Which proxy attention runs, and how torch.compile sees it: as one opaque operator."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.implementation import Implementation, deferred, resolve
from resclip_kernels.proxy_attention import portable, reference

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred("resclip_kernels.proxy_attention.triton", "proxy_attention"),
    Implementation.TORCH: portable.proxy_attention,
    Implementation.REFERENCE: reference.proxy_attention,
}


def proxy_attention(
    features: Tensor,
    value: Tensor,
    height: int,
    width: int,
    beta: float,
    gamma: float,
    implementation: str,
) -> Tensor:
    """Validated arguments in, the chosen implementation's result out; nothing runs where the result is empty."""
    function = resolve(implementation, IMPLEMENTATIONS, features, value).function
    output = empty_output(features, value)
    if output.numel() == 0:
        return output
    result: Tensor = function(features, value, (height, width), beta, gamma)
    return result


def empty_output(features: Tensor, value: Tensor) -> Tensor:
    """(B, A, H_v·W_v, d) of no particular content."""
    batch, heads, _, head_width = value.shape
    return value.new_empty((batch, heads, features.shape[2] * features.shape[3], head_width))


operator = torch.library.custom_op(
    "resclip_kernels::proxy_attention", proxy_attention, mutates_args=()
)


@operator.register_fake
def _(features: Tensor, value: Tensor, *rest: object) -> Tensor:
    return empty_output(features, value)
