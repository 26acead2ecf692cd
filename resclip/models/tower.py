"""The interface to an image tower: embedding, blocks and head of a vision transformer, callable one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADVICE = (
    "use a model with a plain vision transformer, "
    "such as 'ViT-B-16', 'ViT-L-14', 'ViT-B-16-SigLIP2' or 'EVA02-B-16'"
)


class Tower(nn.Module, ABC):
    """A vision transformer in steps.

    A plain forward pass of (B, 3, H, W) pixels is the following; the encoder replaces the last round of the loop:

        tokens = tower.embed(pixels)
        for block in tower.blocks:
            query, key, value = tower.project_qkv(block, tower.norm(block, tokens), tower.grid(H, W))
            heads = softmax(query keyᵀ / √d) value
            tokens = tower.feed_forward(block, tokens + tower.project_out(block, heads))
        features = tower.head(tokens)

    There are B images, L tokens of width D, A heads of width d, h × w patches, and outputs of width E. The wrapped
    modules are used as they are, in eval mode: nothing is copied or changed.
    """

    visual: Any
    """The wrapped model; `Any`, since attributes of an nn.Module have no types."""
    patch_size: tuple[int, int]
    """(height, width) of a patch in pixels."""
    trained_grid: tuple[int, int]
    """(h, w) that the position embedding was trained for."""
    heads: int
    """A, the number of attention heads."""
    output_dim: int
    """E, the width of the output and of the text embeddings."""
    blocks: list[Any]
    """The blocks in order; callers only pass them to the methods below."""
    has_cls: bool
    """Whether the first token is [CLS]: L = h·w + has_cls."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.eval()

    @property
    @abstractmethod
    def patch_embedding(self) -> nn.Conv2d:
        """The convolution that turns each patch into a token."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels → (B, L, D) tokens ready for block 1, [CLS] first."""

    @abstractmethod
    def norm(self, block: Any, tokens: Tensor) -> Tensor:
        """LN1(tokens), the input of q, k and v: (B, L, D) → (B, L, D)."""

    @abstractmethod
    def project_qkv(
        self, block: Any, normed: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of (B, L, D) normed tokens, each (B, A, L, d); rotary positions of `grid` are in q and k."""

    @abstractmethod
    def project_out(self, block: Any, heads: Tensor) -> Tensor:
        """(B, A, L', d) attended values → (B, L', D), ready to be added to the residual stream."""

    @abstractmethod
    def feed_forward(self, block: Any, tokens: Tensor) -> Tensor:
        """tokens + MLP(LN2(tokens)): (B, L', D) → (B, L', D)."""

    @abstractmethod
    def head(self, tokens: Tensor) -> Tensor:
        """(B, L', D) → (B, L', E): the final norm and projection of every token.

        Where the model pools its tokens first, each token is pooled alone, as if the image were that token.
        """

    @property
    def depth(self) -> int:
        """M, the number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """D, the width of the tokens."""
        return self.patch_embedding.out_channels

    @property
    def device(self) -> torch.device:
        """The weights' device."""
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.patch_embedding.weight.dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) in patches of an image of height × width pixels; a remainder is dropped by the convolution."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def embed_patches(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The patches' tokens (B, h·w, D) before any position embedding, row by row, and (h, w)."""
        patches = self.patch_embedding(pixels)
        return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])


def resize_position_embedding(
    embedding: Tensor, trained: tuple[int, int], grid: tuple[int, int], *, has_cls: bool = True
) -> Tensor:
    """(has_cls + trained patches, D) → (has_cls + grid patches, D): bicubic, [CLS]'s row left alone.

    The scale factors (h + 0.1)/g and (w + 0.1)/g themselves go to the interpolation, as in ResCLIP's released program.
    """
    if grid == trained:
        return embedding
    cls, patches = embedding[: int(has_cls)], embedding[int(has_cls) :]
    planes = patches.unflatten(0, trained).permute(2, 0, 1).unsqueeze(0)
    scale = [(new + 0.1) / old for new, old in zip(grid, trained, strict=True)]
    resized = F.interpolate(
        planes.float() if planes.dtype in (torch.float16, torch.bfloat16) else planes,
        scale_factor=scale,
        mode="bicubic",
        align_corners=False,
        recompute_scale_factor=False,
    )
    return torch.cat([cls, resized.flatten(2).squeeze(0).T.to(cls.dtype)])


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, L, A·d) → (B, A, L, d)."""
    split: Tensor = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def merge_heads(heads: Tensor) -> Tensor:
    """(B, A, L, d) → (B, L, A·d)."""
    return heads.transpose(1, 2).flatten(2)
