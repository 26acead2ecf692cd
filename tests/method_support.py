"""A small tower with random weights, a proxy without any, and encoders of every method on them."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from resclip import DenseEncoder
from resclip.methods.catalogue import Method


def small_tower(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 6, "heads": 2}
    return VisionTransformer(mlp_ratio=2.0, output_dim=32, **{**settings, **changes}).eval()


def text(queries: int, width: int) -> Tensor:
    return normalize(torch.randn(queries, width), dim=1)


def colours(pixels: Tensor) -> Tensor:
    """A proxy on a grid of its own, 12 pixels a cell: what colour it has."""
    return avg_pool2d(pixels, 12).contiguous()


def make(visual: Any, method: Method, **changes: Any) -> DenseEncoder:
    if method.base == "proxyclip":
        changes["proxy"] = colours
    return DenseEncoder(visual, base=method.base, rcs=method.rcs, sfr=method.sfr, **changes)
