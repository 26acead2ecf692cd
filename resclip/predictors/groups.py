"""From groups of patches to scores of pixels: how models whose patches end in group tokens segment.

GroupViT (Xu et al., CVPR 2022) and what follows it (SegCLIP, OVSegmentor, PGSeg, CoCu) hand over soft assignments,
features of the groups, a feature of the image and a scale; what comes after is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels import check_choice, check_count, check_fraction, check_pair, check_positive

GroupRule = Literal["original", "hugging-face"]
RULES: tuple[str, ...] = get_args(GroupRule)
MOST_SCALE = 100.0
"""Largest scale of the original rule's softmax."""
KEPT = 5
"""How many classes an image may have by the original rule: those most similar to its average feature."""
NO_MODULES = (
    "RCS and SFR change the attention between patches in a CLIP tower's final block, and this model's patches end in "
    "group tokens, which have none"
)
"""Why RCS and SFR do not apply to a model of this kind."""


def group_map(assignments: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """(B, G, h, w): which share of each patch goes to each of the last stage's groups.

    Args:
        assignments: one (B, G_i, G_{i−1}) a stage, G_0 = h · w patches; a softmax over the groups each.
        grid: (h, w) in patches.
    """
    whole = reduce(lambda earlier, later: later @ earlier, assignments)
    if whole.ndim != 3 or whole.shape[2] != grid[0] * grid[1]:
        raise ValueError(
            f"assignments must be (B, groups, {grid[0] * grid[1]}) for a grid of {grid[0]} × {grid[1]} patches, each "
            f"with the groups of the one before; got {', '.join(str(tuple(each.shape)) for each in assignments)}"
        )
    planes: Tensor = whole.unflatten(2, grid)
    return planes


def group_scores(
    assignments: Sequence[Tensor],
    groups: Tensor,
    average: Tensor,
    text: Tensor,
    logit_scale: float,
    *,
    grid: tuple[int, int],
    size: tuple[int, int],
    threshold: float | None = None,
    kept: int = KEPT,
    rule: GroupRule = "original",
) -> Tensor:
    """Scores of pixels from groups of patches.

    m is `group_map`, resized bilinearly to the pixels. The original rule: a pixel belongs to the group of its largest
    m; with p = softmax over classes of min(s, 100) · cos(group, text), the `kept` classes of largest cos(average, text)
    and q = softmax over those alone, the pixel's scores are its group's q · p (0 for classes that are not kept). The
    rule of Hugging Face's port: Σ_g s · cos(group_g, text) · m_g · s, where no group owns a pixel.

    Args:
        assignments: see `group_map`: GroupViT and PGSeg have two stages, SegCLIP and OVSegmentor one.
        groups: (B, G, E) features of the last stage's groups, of any norm.
        average: (B, E) feature of the image, of any norm; for the original rule alone.
        text: (C, E) features of the classes, of any norm.
        logit_scale: s, as a factor and not as its logarithm.
        grid: (h, w) in patches.
        size: (H, W) of the result.
        threshold: of the original rule's background, in [0, 1]: it puts a channel in front that is 1 where a pixel's
            largest score is below it, and below the largest of all groups, else 0. None: no such channel.
        kept: at least 1.
        rule: "original" or "hugging-face".

    Returns:
        (B, C, H, W), or (B, 1 + C, H, W) with a threshold.

    Raises:
        TypeError, ValueError: a shape or value that does not fit.
    """
    check_choice("rule", rule, RULES)
    check_positive("logit_scale", logit_scale)
    check_count("kept", kept, 1)
    height, width = check_pair("size", size, "(height, width) in pixels", 1)
    planes = F.interpolate(group_map(assignments, grid), size=(height, width), mode="bilinear")
    unit, text = F.normalize(groups, dim=-1), F.normalize(text, dim=-1)
    if unit.shape[:2] != planes.shape[:2] or unit.shape[2] != text.shape[1]:
        raise ValueError(
            f"groups must be ({planes.shape[0]}, {planes.shape[1]}, {text.shape[1]}), one feature a group as wide as "
            f"the text's; got {tuple(groups.shape)}"
        )
    cosines = unit @ text.T  # (B, G, C)
    if rule == "hugging-face":
        if threshold is not None:
            raise ValueError("rule='hugging-face' has no background; leave out threshold=")
        flat = (logit_scale * cosines).transpose(1, 2) @ planes.flatten(2)
        soft: Tensor = logit_scale * flat.unflatten(2, (height, width))
        return soft
    logits = min(logit_scale, MOST_SCALE) * cosines
    similar = F.normalize(average, dim=-1) @ text.T  # (B, C)
    chosen = similar.topk(min(kept, len(text)), dim=1).indices
    barred = torch.ones_like(similar, dtype=torch.bool).scatter(1, chosen, value=False)
    of_kept = logits.masked_fill(barred.unsqueeze(1), -torch.inf).softmax(dim=2)
    table = of_kept * logits.softmax(dim=2)  # (B, G, C)
    if threshold is not None:
        check_fraction("threshold", threshold)
        limit = table.amax(dim=(1, 2), keepdim=True).clamp(max=threshold)
        background = (table.amax(dim=2, keepdim=True) < limit).to(table)
        table = torch.cat([background, table], dim=2)
    owners = planes.argmax(dim=1).flatten(1).unsqueeze(1)  # (B, 1, H · W)
    flat = table.transpose(1, 2).gather(2, owners.expand(-1, table.shape[2], -1))
    scores: Tensor = flat.unflatten(2, (height, width))
    return scores
