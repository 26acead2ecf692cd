"""Patch labels with (B, Q, H, W) probabilities in memory, as the released program computes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.ops.pamr import reference as pamr_reference
from resclip_kernels.options.patch_labels import PatchLabelsOptions


def patch_labels(
    logits: Tensor,
    image: Tensor,
    options: PatchLabelsOptions,
) -> Tensor:
    """The formula of `resclip_kernels.patch_labels`, materialised."""
    best, label = pixel_probabilities(
        logits, image, options.logit_scale, options.refine_iterations, options.dilations
    )
    return majority(label.where(best >= options.threshold, 0), options.patch_size)


def pixel_probabilities(
    logits: Tensor,
    image: Tensor,
    logit_scale: float,
    refine_iterations: int,
    dilations: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Largest probability over queries and its query: two (B, H, W)."""
    size = (image.shape[2], image.shape[3])
    # Bilinear weights may be 0, and 0 · −inf is no number; so low a logit has probability 0 all the same.
    logits = logits.clamp(min=max(-1e30, torch.finfo(logits.dtype).min))
    planes = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    planes = pamr_reference.pamr(image, planes, refine_iterations, dilations)
    best, label = (logit_scale * planes).softmax(dim=1).max(dim=1)
    return best, label


def majority(labels: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, H, W) pixel labels → (B, h, w): the most frequent label of each patch, the smallest on a tie."""
    patch_height, patch_width = patch_size
    height, width = labels.shape[1] // patch_height, labels.shape[2] // patch_width
    whole = labels[:, : height * patch_height, : width * patch_width]
    patches = whole.unflatten(1, (height, patch_height)).unflatten(3, (width, patch_width))
    patches = patches.transpose(2, 3).flatten(3)  # [B, h, w, P * P]
    result = torch.empty(patches.shape[:3], dtype=torch.int64, device=labels.device)
    for position in torch.cartesian_prod(*(torch.arange(size) for size in result.shape)):
        index = tuple(position.tolist())
        result[index] = torch.bincount(patches[index]).argmax()
    return result
