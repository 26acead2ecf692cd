"""Patch labels in lean torch: queries stream through, three (H, W) planes per image are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from resclip_kernels.online_softmax import best_query
from resclip_kernels.options.patch_labels import PatchLabelsOptions


def patch_labels(
    logits: Tensor,
    image: Tensor,
    options: PatchLabelsOptions,
) -> Tensor:
    """The formula of `resclip_kernels.patch_labels` without (Q, H, W) probabilities."""
    best, label = best_query(
        logits,
        (image.shape[2], image.shape[3]),
        logit_scale=options.logit_scale,
        guide=image,
        refine_iterations=options.refine_iterations,
        dilations=options.dilations,
        need_probability=options.threshold > 0,
    )
    if options.threshold <= 0:
        return majority(label, options.patch_size)
    return majority(label.where(best >= options.threshold, 0), options.patch_size)


def majority(labels: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, H, W) pixel labels → (B, h, w): the most frequent label of each patch, the smallest on a tie.

    Sorted labels form runs; the longest run wins, the earliest of equally long ones. torch.mode leaves ties open.
    """
    patch_height, patch_width = patch_size
    height, width = labels.shape[1] // patch_height, labels.shape[2] // patch_width
    pixels = patch_height * patch_width
    whole = labels[:, : height * patch_height, : width * patch_width]
    patches = whole.unflatten(1, (height, patch_height)).unflatten(3, (width, patch_width))
    ordered: Tensor = patches.transpose(2, 3).flatten(3).sort(dim=-1).values  # [B, h, w, P * P]
    position = torch.arange(pixels, device=labels.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    start = torch.where(starts, position, 0).cummax(dim=-1).values
    rank = (position - start) * pixels + (pixels - 1 - position)
    return ordered.gather(-1, rank.argmax(dim=-1, keepdim=True)).squeeze(-1)
