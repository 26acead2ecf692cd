"""The label map by fused kernels: one launch without refinement. Validation is done by the caller."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.online_softmax_triton import Result, best_query
from resclip_kernels.options.upsample_argmax import UpsampleOptions


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    options: UpsampleOptions,
    query_to_class: Tensor | None,
    guide: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The formula of `resclip_kernels.upsample_argmax`; computes in float32 whatever the logits' dtype.

    The class of the most probable query is the most probable class. The kernels read the queries in the order of their
    classes, so that the first of equal ones belongs to the smallest class; no logit is copied for it.
    """
    order = classes = None
    if query_to_class is not None:
        order = query_to_class.argsort(stable=True)
        classes = query_to_class[order]
    label = logits.new_empty((logits.shape[0], *size), dtype=torch.int64)
    probability = logits.new_empty(label.shape, dtype=torch.float32)
    best_query(
        logits,
        size,
        Result(options.logit_scale, options.threshold, label, probability, order, classes),
        guide=guide,
        refine_iterations=options.refine_iterations,
        dilations=options.dilations,
        through=options.through,
    )
    return label, probability
