"""The label map with (B, Q, H, W) logits and probabilities at full size in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.pamr import reference as pamr_reference
from resclip_kernels.options.upsample_argmax import UpsampleOptions


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    options: UpsampleOptions,
    query_to_class: Tensor | None,
    guide: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The formula of `resclip_kernels.upsample_argmax`, materialised."""
    # Bilinear weights may be 0, and 0 · −inf is no number; so low a logit has probability 0 all the same.
    logits = logits.clamp(min=max(-1e30, torch.finfo(logits.dtype).min))
    for step in (options.through, size):
        if step is not None:
            logits = F.interpolate(logits, size=step, mode="bilinear", align_corners=False)
    if guide is not None:
        logits = pamr_reference.pamr(guide, logits, options.refine_iterations, options.dilations)
    probabilities = (options.logit_scale * logits).softmax(dim=1)
    if query_to_class is None:
        query_to_class = torch.arange(logits.shape[1], device=logits.device)
    classes = int(query_to_class.max()) + 1
    merged = [
        probabilities[:, query_to_class == number].amax(dim=1)
        if (query_to_class == number).any()
        else torch.zeros_like(probabilities[:, 0])
        for number in range(classes)
    ]
    best, label = torch.stack(merged, dim=1).max(dim=1)
    wide = torch.promote_types(best.dtype, torch.float32)
    return label.where(best >= options.threshold, 0), best.to(wide)
