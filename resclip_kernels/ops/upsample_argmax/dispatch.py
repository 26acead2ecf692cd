"""Which label map runs, and how torch.compile sees it: as one opaque operator."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.dispatch import Implementation, deferred, resolve
from resclip_kernels.online_softmax import check_no_nan, kernel_limit
from resclip_kernels.ops.upsample_argmax import portable, reference

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred(
        "resclip_kernels.ops.upsample_argmax.triton", "upsample_argmax"
    ),
    Implementation.TORCH: portable.upsample_argmax,
    Implementation.REFERENCE: reference.upsample_argmax,
}


def upsample_argmax(
    logits: Tensor,
    size: list[int],
    query_to_class: Tensor | None,
    logit_scale: float,
    threshold: float,
    through: list[int],
    guide: Tensor | None,
    refine_iterations: int,
    dilations: list[int],
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Validated arguments in (`through` empty for none), the chosen implementation's label map and probability out.

    Raises:
        ValueError: logits that hold NaN; only here are the values at hand when the caller is compiled.
    """
    check_no_nan(logits)
    tensors = (logits, query_to_class, guide)
    function = resolve(implementation, IMPLEMENTATIONS, *tensors, limit=kernel_limit(size)).function
    label, probability = function(
        logits,
        (size[0], size[1]),
        query_to_class,
        logit_scale,
        threshold,
        (through[0], through[1]) if through else None,
        guide,
        refine_iterations,
        tuple(dilations),
    )
    return label, probability


operator = torch.library.custom_op(
    "resclip_kernels::upsample_argmax", upsample_argmax, mutates_args=()
)


@operator.register_fake
def _(logits: Tensor, size: list[int], *rest: object) -> tuple[Tensor, Tensor]:
    label = logits.new_empty((logits.shape[0], *size), dtype=torch.int64)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return label, logits.new_empty(label.shape, dtype=wide)
