"""Steps that torch rounds by the number of threads on a CPU, done so that any number gives the same bits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip_kernels.cpu import multiplies_512_bits
from resclip_kernels.linear import by_onednn, is_on, takes

# torch's fused attention rounds 1 to 3 queries by the number of threads; of 4 to 139, and of 1,025, no bit moved.
MIN_FUSED_QUERIES = 4
# Keys from which on rows of queries may be faster, and the queries of such rows.
MIN_KEYS = 1024
ROWS = 256


def deterministic_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale·q kᵀ + mask)·v as F.scaled_dot_product_attention does it, (B, A, R, d); `scale` is 1/√d if None.

    Which code runs depends on the machine and the shapes alone: for many keys on a CPU with units of 512 bits, rows of
    queries by oneDNN, whose products keep these units busy; else torch's fused kernel. On AMD's family 25, whose units
    are half as wide, rows of queries take 1.1 to 1.3 times as long; family 26 was not at hand for a measurement.
    """
    if torch.compiler.is_exporting():
        # A graph for any size chooses by none.
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)
    if is_by_rows(query, key, value, attn_mask):
        return attention_by_rows(query, key, value, attn_mask, scale)
    if query.device.type != "cpu" or query.shape[-2] >= MIN_FUSED_QUERIES:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    score = (query * scale) @ key.mT
    if attn_mask is not None:
        score = score + attn_mask
    mixed: Tensor = score.softmax(dim=-1) @ value
    return mixed


def is_by_rows(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> bool:
    """Whether `deterministic_attention` goes by rows of queries; see there."""
    return (
        key.shape[-2] >= MIN_KEYS
        and query.shape[-2] >= MIN_FUSED_QUERIES
        and multiplies_512_bits()
        and is_on()
        and takes([query, key, value] if attn_mask is None else [query, key, value, attn_mask])
    )


def attention_by_rows(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, scale: float | None
) -> Tensor:
    """`deterministic_attention`, `ROWS` queries at a time: no map of all queries is ever in memory."""
    batch, heads, queries, width = query.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    mask = None if attn_mask is None else attn_mask.expand(batch, heads, queries, key.shape[2])
    output = query.new_empty((batch, heads, queries, value.shape[3]))
    for image in range(batch):
        for head in range(heads):
            scaled = key[image, head] * scale
            across = value[image, head].T.contiguous()
            for first in range(0, queries, ROWS):
                rows = slice(first, min(first + ROWS, queries))
                scores = by_onednn(query[image, head, rows], scaled)
                if mask is not None:
                    scores = scores.add_(mask[image, head, rows])
                output[image, head, rows] = by_onednn(scores.softmax(dim=-1), across)
    return output


def softmax_over_first(scores: Tensor) -> Tensor:
    """`scores.softmax(dim=0)`; written over `scores`, which are finite, unless they have a gradient.

    Over any axis but the last, torch cuts the positions into one run per thread, and takes another exponential for
    the few at a run's end.
    """
    if scores.requires_grad:
        return scores.softmax(dim=0)
    scores = scores.sub_(scores.amax(dim=0)).exp_()
    return scores.div_(scores.sum(dim=0))


def resize_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) → (B, C, H, W) as F.interpolate does it (bilinear, `align_corners=False`), plane by plane.

    For three channels together, and for no other number of them, torch with one thread runs other code than with
    several: on a CPU results would differ by up to 2e-6 of values of order 1.
    """
    alone = planes.flatten(0, 1).unsqueeze(1)
    resized = F.interpolate(alone, size=size, mode="bilinear", align_corners=False)
    together: Tensor = resized.squeeze(1).unflatten(0, planes.shape[:2])
    return together
