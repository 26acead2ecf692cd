"""The label map in lean torch: queries stream through at full size, a few planes at a time."""

from __future__ import annotations

from torch import Tensor

from resclip_kernels.online_softmax import best_query
from resclip_kernels.options.upsample_argmax import UpsampleOptions


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    options: UpsampleOptions,
    query_to_class: Tensor | None,
    guide: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The formula of `resclip_kernels.upsample_argmax` without (Q, H, W) planes at full size.

    The class of the most probable query is the most probable class. Queries go in the order of their classes, so
    that the first of equal ones belongs to the smallest class.
    """
    order = None if query_to_class is None else query_to_class.argsort(stable=True)
    best, label = best_query(
        logits,
        size,
        logit_scale=options.logit_scale,
        guide=guide,
        refine_iterations=options.refine_iterations,
        dilations=options.dilations,
        through=options.through,
        order=order,
    )
    if query_to_class is not None:
        label = query_to_class[order][label].long()
    return label.where(best >= options.threshold, 0), best
