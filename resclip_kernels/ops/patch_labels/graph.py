"""Patch labels in one graph for any size, which is what `torch.export` writes out: all planes in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.online_softmax import LOWEST
from resclip_kernels.ops.pamr import reference as pamr
from resclip_kernels.ops.patch_labels.options import PatchLabelsOptions


def patch_labels(logits: Tensor, image: Tensor, options: PatchLabelsOptions) -> Tensor:
    """The formula of `resclip_kernels.patch_labels`, with (B, Q, H, W) planes; NaN among the logits is not looked for.

    PAMR is the reference's: a dilated convolution is one node of a graph, and sixteen shifts are a hundred.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scaled = (logits.to(dtype) * options.logit_scale).clamp(min=LOWEST)
    size = (image.shape[2], image.shape[3])
    planes = F.interpolate(scaled, size=size, mode="bilinear", align_corners=False)
    if options.refine_iterations:
        planes = pamr.pamr(image, planes, options.refine_iterations, options.dilations)
    label = planes.argmax(dim=1)
    if options.threshold > 0:
        label = torch.where(planes.softmax(dim=1).amax(dim=1) >= options.threshold, label, 0)
    return majority(label, logits.shape[1], options.patch_size)


def majority(labels: Tensor, queries: int, patch_size: tuple[int, int]) -> Tensor:
    """(B, H, W) pixel labels → (B, h, w): the most frequent label of each patch, the smallest on a tie."""
    patch_height, patch_width = patch_size
    height, width = labels.shape[1] // patch_height, labels.shape[2] // patch_width
    whole = labels[:, : height * patch_height, : width * patch_width]
    number = torch.arange(queries, device=labels.device)
    votes = (whole[:, None] == number[:, None, None]).float()
    counts = votes.unflatten(2, (height, patch_height)).unflatten(4, (width, patch_width))
    most: Tensor = counts.sum(dim=(3, 5)).argmax(dim=1)
    return most
