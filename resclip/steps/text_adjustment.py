"""Object-guided text adjustment: texts that an image shows move towards its patches, and its similarity is added.

CASS (CVPR 2025) and RF-CLIP's program; see `resclip.methods.steps.TextAdjustment`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.encoder.similarity import similarity
from resclip.methods.steps import TextAdjustment
from resclip_kernels import check_float, check_range, check_type

NEAREST = 2
"""Tokens whose mean a text moves towards."""


def group_queries(text: Tensor, threshold: float) -> Tensor:
    """Queries by complete linkage on 1 − cosine: the two nearest groups merge while they are within `threshold`.

    The distance of two groups is that of their two members furthest apart; of equally near ones those of the smallest
    numbers merge first.

    Args:
        text: (Q, E) unit rows.
        threshold: the largest distance within a group, in [0, 2].

    Returns:
        (Q,) int64 on the text's device: each query's group, numbered in the order of their first queries.

    Raises:
        TypeError, ValueError: a shape, dtype or threshold that does not fit.
    """
    check_text(text)
    check_range("threshold", threshold, 0, 2)
    rows = text.detach().cpu().double().numpy()
    distance = 1 - rows @ rows.T
    np.fill_diagonal(distance, np.inf)
    group = np.arange(len(rows))
    nearest, least = distance.argmin(axis=1), distance.min(axis=1)
    while least.min() <= threshold:
        # Of the two rows that hold the least distance, the first has the smaller number.
        kept = int(least.argmin())
        merged = int(nearest[kept])
        group[group == merged] = kept
        distance[kept] = np.maximum(distance[kept], distance[merged])
        distance[:, kept] = distance[kept]
        distance[merged] = distance[:, merged] = np.inf
        distance[kept, kept] = np.inf
        # No distance has become less, so that only who was next to one of the two may have another neighbour now.
        stale = np.flatnonzero((nearest == kept) | (nearest == merged))
        stale = np.union1d(stale, (kept, merged))
        nearest[stale] = distance[stale].argmin(axis=1)
        least[stale] = distance[stale].min(axis=1)
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[first.argsort()] = np.arange(len(first))
    return torch.from_numpy(order[number]).to(text.device)


def adjust(
    patches: Tensor, text: Tensor, groups: Tensor, image_vectors: Tensor, option: TextAdjustment
) -> Tensor:
    """Logits of windows with their texts adjusted: (1 − γ) · cosine(patch, adjusted text) + γ g.

    g, the cosine of the image vector and the text as it was, is the same number at every patch.

    Args:
        patches: (B, h, w, E) dense features, of any length.
        text: (Q, E) unit rows.
        groups: (Q,) int64 from 0, each query's group, such as `group_queries` makes.
        image_vectors: (B, E), of any length: each window's own, or that of the picture it is cut from.
        option: γ and μ.

    Returns:
        (B, Q, h, w), float32 or wider.

    Raises:
        TypeError, ValueError: a shape or dtype that does not fit.
    """
    check_inputs(patches, text, groups, image_vectors)
    seen = image_similarity(image_vectors, text)
    logits = similarity(patches, text)
    chosen, moved = move_texts(patches, text, groups, seen, logits, option.text_weight)
    unit = F.normalize(patches.to(logits.dtype), dim=-1).flatten(1, 2)
    again = (moved @ unit.mT).unflatten(2, logits.shape[2:])  # [B, G, h, w]
    logits = logits.scatter(1, chosen[:, :, None, None].expand_as(again), again)
    return (1 - option.global_weight) * logits + option.global_weight * seen[:, :, None, None]


def image_similarity(image_vectors: Tensor, text: Tensor) -> Tensor:
    """g: cosines (B, Q) of image vectors (B, E) and unit rows of text (Q, E), float32 or wider."""
    dtype = torch.promote_types(image_vectors.dtype, torch.float32)
    cosines: Tensor = F.normalize(image_vectors.to(dtype), dim=-1) @ text.to(dtype).mT
    return cosines


def move_texts(
    patches: Tensor, text: Tensor, groups: Tensor, seen: Tensor, cosines: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Of each group the query of largest g, the first on a tie, moved towards the tokens nearest to it.

    Args:
        patches, text, groups: as in `adjust`.
        seen: g, (B, Q).
        cosines: (B, Q, h, w) of patches and text.
        weight: μ.

    Returns:
        (B, G) int64 queries, and (B, G, E) their new unit rows.
    """
    count, queries = int(groups.max()) + 1, len(groups)
    index = groups.expand_as(seen)
    most = seen.new_full((len(seen), count), -torch.inf).scatter_reduce(1, index, seen, "amax")
    numbers = torch.arange(queries, device=seen.device).expand_as(seen)
    numbers = numbers.where(seen == most.gather(1, index), queries)
    chosen = torch.full_like(most, queries - 1, dtype=torch.int64)  # Where g is no number: any.
    chosen = chosen.scatter_reduce(1, index, numbers, "amin")

    flat = cosines.flatten(2)
    wanted = flat.gather(1, chosen.unsqueeze(2).expand(-1, -1, flat.shape[2]))
    nearest = wanted.topk(min(NEAREST, flat.shape[2]), dim=2).indices  # [B, G, 2]
    unit = F.normalize(patches.to(cosines.dtype), dim=-1).flatten(1, 2)
    images = torch.arange(len(unit), device=unit.device)[:, None, None]
    direction = F.normalize(unit[images, nearest].mean(dim=2), dim=-1)
    moved = torch.lerp(text.to(cosines.dtype)[chosen], direction, weight)
    return chosen, F.normalize(moved, dim=-1)


def check_text(text: Tensor) -> None:
    """TypeError or ValueError unless this is (Q, E), at least one query."""
    check_float("text", text, 2, "(Q, E)")
    if not len(text):
        raise ValueError("text must hold at least one query; got none")


def check_inputs(patches: Tensor, text: Tensor, groups: Tensor, image_vectors: Tensor) -> None:
    """TypeError or ValueError unless these belong together."""
    check_text(text)
    check_float("patches", patches, 4, "(B, h, w, E)")
    check_float("image_vectors", image_vectors, 2, "(B, E)")
    check_type("groups", groups, Tensor, "an int64 tensor (Q,)")
    queries, width = text.shape
    if groups.dtype != torch.int64 or groups.shape != (queries,) or int(groups.min()) < 0:
        raise ValueError(
            f"groups must be ({queries},) int64 from 0, one group per query; got {tuple(groups.shape)} "
            f"{groups.dtype}: make it with group_queries"
        )
    if patches.shape[3] != width or 0 in patches.shape[1:3]:
        raise ValueError(
            f"patches must be (B, h, w, {width}), the text's width, at least one patch; got {tuple(patches.shape)}"
        )
    if image_vectors.shape != (len(patches), width):
        raise ValueError(
            f"image_vectors must be ({len(patches)}, {width}), one per window; got {tuple(image_vectors.shape)}: "
            "repeat the picture's for each of its windows"
        )
