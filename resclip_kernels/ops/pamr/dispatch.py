"""Which PAMR runs, and how torch.compile sees it: as one opaque operator."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.dispatch import Implementation, deferred, resolve
from resclip_kernels.ops.pamr import portable, reference
from resclip_kernels.ops.pamr.tiles import obstacle

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred("resclip_kernels.ops.pamr.triton", "pamr"),
    Implementation.TORCH: portable.pamr,
    Implementation.REFERENCE: reference.pamr,
}


def pamr(
    image: Tensor, masks: Tensor, iterations: int, dilations: list[int], implementation: str
) -> Tensor:
    """Validated arguments in, the chosen implementation's result out."""
    limit = obstacle(masks)
    function = resolve(implementation, IMPLEMENTATIONS, image, masks, limit=limit).function
    result: Tensor = function(image, masks, iterations, tuple(dilations))
    return result


operator = torch.library.custom_op("resclip_kernels::pamr", pamr, mutates_args=())


@operator.register_fake
def _(image: Tensor, masks: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(masks, memory_format=torch.contiguous_format)
