"""Small attentions and towers for the tests of the attention modules, on the device where kernels run."""

from __future__ import annotations

from typing import Any

import torch
from kernel_support import kernel_device
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from resclip_kernels.modules import QueryKeyRecorder, ResidualAttention

WIDTH, HEADS = 64, 2
PATCH = 8
LAYERS = (2, 3)  # The middle blocks of four that RCS takes here, counted from 1.


def attention(seed: int, **changes: Any) -> nn.MultiheadAttention:
    """A CLIP block's attention with random biases too, which a fresh one has at 0."""
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **changes}).eval()
    for bias in (module.in_proj_bias, module.out_proj.bias):
        if bias is not None:
            nn.init.normal_(bias, std=0.1)
    return module.to(kernel_device())


def tokens(seed: int, patches: int = 16, batch: int = 2, batch_first: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (batch, 1 + patches, WIDTH) if batch_first else (1 + patches, batch, WIDTH)
    return torch.randn(shape, generator=generator).to(kernel_device())


def tower(seed: int, image_size: tuple[int, int] = (32, 48), **changes: Any) -> VisionTransformer:
    """Four blocks; 32 × 48 pixels are 4 × 6 patches: an oblong grid, which has to be set."""
    torch.manual_seed(seed)
    visual = VisionTransformer(
        image_size,
        PATCH,
        WIDTH,
        layers=4,
        heads=HEADS,
        mlp_ratio=2.0,
        output_dim=32,
        output_tokens=True,
        **changes,
    )
    return visual.eval().to(kernel_device())


def pixels(seed: int, batch: int = 2, size: tuple[int, int] = (32, 48)) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 2)
    return torch.randn((batch, 3, *size), generator=generator).to(kernel_device())


def put_modules(visual: VisionTransformer, **options: Any) -> ResidualAttention:
    """Recorders in the middle blocks and `ResidualAttention` in the final one, by assignment."""
    blocks = visual.transformer.resblocks
    for layer in LAYERS:
        blocks[layer - 1].attn = QueryKeyRecorder.from_attention(blocks[layer - 1].attn)
    blocks[-1].attn = ResidualAttention.from_attention(
        blocks[-1].attn, recorders=[blocks[layer - 1].attn for layer in LAYERS], **options
    )
    return blocks[-1].attn


def projected(visual: VisionTransformer, images: Tensor) -> Tensor:
    """open_clip's own forward to the patches in the text's space: (B, n, 32)."""
    _, patches = visual(images)
    return patches @ visual.proj


def with_recorder(seed: int, x: Tensor) -> tuple[ResidualAttention, QueryKeyRecorder]:
    recorder = QueryKeyRecorder.from_attention(attention(seed + 5))
    recorder(x, x, x)
    return ResidualAttention.from_attention(attention(seed), recorders=[recorder]), recorder
