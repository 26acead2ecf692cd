"""Which patch labels run, and how torch.compile sees them: as one opaque operator."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.dispatch import Implementation, deferred, resolve
from resclip_kernels.online_softmax import check_no_nan, kernel_limit
from resclip_kernels.ops.patch_labels import portable, reference

IMPLEMENTATIONS = {
    Implementation.TRITON: deferred("resclip_kernels.ops.patch_labels.triton", "patch_labels"),
    Implementation.TORCH: portable.patch_labels,
    Implementation.REFERENCE: reference.patch_labels,
}


def patch_labels(
    logits: Tensor,
    image: Tensor,
    patch_size: list[int],
    logit_scale: float,
    threshold: float,
    refine_iterations: int,
    dilations: list[int],
    implementation: str,
) -> Tensor:
    """Validated arguments in, the chosen implementation's labels out.

    Raises:
        ValueError: logits that hold NaN; only here are the values at hand when the caller is compiled.
    """
    check_no_nan(logits)
    limit = kernel_limit(image.shape[2:])
    function = resolve(implementation, IMPLEMENTATIONS, logits, image, limit=limit).function
    labels: Tensor = function(
        logits,
        image,
        (patch_size[0], patch_size[1]),
        logit_scale,
        threshold,
        refine_iterations,
        tuple(dilations),
    )
    return labels


operator = torch.library.custom_op("resclip_kernels::patch_labels", patch_labels, mutates_args=())


@operator.register_fake
def _(logits: Tensor, *rest: object) -> Tensor:
    return logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=torch.int64)
