"""MaskCLIP's two steps behind the logits: prompt denoising and key smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.methods.steps import KeySmoothing, PromptDenoising
from resclip_kernels import check_float, check_type

LEFT_OUT = -100.0
"""The logit of a query that is left out: far below any cosine."""


def denoise_prompts(logits: Tensor, step: PromptDenoising) -> Tensor:
    """Queries that no patch of the picture is likely to show get −100 everywhere (MaskCLIP, ECCV 2022, section 3.3).

    A query stays where its largest softmax(scale · logits) over the picture's patches reaches the threshold. Comes
    before `smooth_by_keys`.

    Args:
        logits: (B, Q, h, w) cosines of whole pictures.
        step: threshold and scale.

    Returns:
        (B, Q, h, w), float32 or wider.

    Raises:
        TypeError, ValueError: no such logits.
    """
    check_type("step", step, PromptDenoising, "a PromptDenoising")
    wide = check_logits(logits)
    largest = (step.scale * wide).softmax(dim=1).amax(dim=(2, 3), keepdim=True)
    return wide.masked_fill(largest < step.threshold, LEFT_OUT)


def smooth_by_keys(logits: Tensor, keys: Tensor, step: KeySmoothing) -> Tensor:
    """Unsure patches take the probabilities of patches with similar keys (MaskCLIP, ECCV 2022, section 3.3).

    With p = softmax(scale · logits) of each patch, and K̄ the keys divided by their norm along the axis:

        p_i ← Σ_j (K̄ K̄ᵀ)_ij p_j  where max p_i < threshold

    The weights are neither normalised nor free of negative ones, so that rows no longer sum to 1. No n × n map is
    formed: K̄ᵀ p comes first.

    Args:
        logits: (B, Q, h, w) cosines of whole pictures, or what `denoise_prompts` made of them.
        keys: (B, n, D) of their h · w patches, row by row, such as `FinalBlock.patch_keys` gives.
        step: threshold, axis and scale.

    Returns:
        (B, Q, h, w) float32 or wider: probabilities, no longer cosines.

    Raises:
        TypeError, ValueError: shapes that do not fit.
    """
    check_type("step", step, KeySmoothing, "a KeySmoothing")
    wide = check_logits(logits)
    check_float("keys", keys, 3, "(B, n, D)")
    images, _, height, width = wide.shape
    if keys.shape[:2] != (images, height * width):
        raise ValueError(
            f"keys must be (B, n, D) with B = {images} and n = {height * width}, one for each patch of logits; "
            f"got {tuple(keys.shape)}"
        )
    probabilities = (step.scale * wide).softmax(dim=1)
    # Along the channels it is each position's own norm; over positions it is one norm a channel.
    unit = F.normalize(keys.to(wide.dtype), dim=1 if step.axis == "channel" else 2)
    gathered = unit.mT @ probabilities.flatten(2).mT  # [B, D, Q]
    smoothed = (unit @ gathered).mT.unflatten(2, (height, width))
    is_unsure = probabilities.amax(dim=1, keepdim=True) < step.threshold
    return torch.where(is_unsure, smoothed, probabilities)


def check_logits(logits: Tensor) -> Tensor:
    """The logits in float32 or wider; TypeError or ValueError unless they are (B, Q, h, w) of at least one of each."""
    check_float("logits", logits, 4, "(B, Q, h, w)")
    if 0 in logits.shape[1:]:
        raise ValueError(
            f"logits must be (B, Q, h, w) with at least one query and one patch; got {tuple(logits.shape)}"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
