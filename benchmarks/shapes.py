"""The shapes that are timed: a ViT-B/16 tower with random weights, and images for it."""

from __future__ import annotations

import functools

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import normalize

from resclip import RCS, SFR, DenseEncoder, Segmenter, Vocabulary
from resclip.builtin.scenes import held_out_scenes
from resclip.inference.preprocessing import CLIP_MEAN, CLIP_STD
from resclip.inference.preprocessing import normalise as normalise_image

OUTPUT = 512


@functools.cache
def vit_b16() -> VisionTransformer:
    """ViT-B/16's shape: 12 blocks of width 768, 12 heads, patches of 16, output 512."""
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=224,
        patch_size=16,
        width=768,
        layers=12,
        heads=12,
        mlp_ratio=4.0,
        output_dim=OUTPUT,
    ).eval()


def text(queries: int) -> Tensor:
    """(queries, 512) random unit rows."""
    generator = torch.Generator().manual_seed(1)
    return normalize(torch.randn(queries, OUTPUT, generator=generator), dim=-1)


def encoder(implementation: str = "auto") -> DenseEncoder:
    """NACLIP + RCS + SFR with the default options."""
    return DenseEncoder(vit_b16(), rcs=RCS(), sfr=SFR(), implementation=implementation)


def segmenter(queries: int, *, window: int = 224) -> Segmenter:
    """One class a query."""
    names = [str(number) for number in range(queries)]
    vocabulary = Vocabulary(text(queries), torch.arange(queries), names)
    return Segmenter(encoder(), vocabulary, window=window)


def images(count: int, size: int = 224) -> Tensor:
    """(count, 3, size, size) normalised images of drawn scenes."""
    return torch.stack(
        [
            normalise_image(torch.from_numpy(scene.image), CLIP_MEAN, CLIP_STD)
            for scene in held_out_scenes(count, size)
        ]
    )
