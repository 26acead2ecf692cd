"""Random inputs for every op, laid out as the pipeline hands them over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.counts import Attention
from benchmarks.gpu.timing import FAILURES, shorten
from benchmarks.label_maps import label_map
from resclip_kernels import SemanticFeedback, semantic_feedback

SEED = 0
FUSED = "triton"
"""The implementation that is judged."""


class AttentionTensors(NamedTuple):
    """Arguments of `residual_attention`, each (B, A, L, d)."""

    query: Tensor
    key: Tensor
    value: Tensor
    cross_layers: tuple[tuple[Tensor, Tensor], ...]

    def converted(self, dtype: torch.dtype) -> AttentionTensors:
        """The same numbers in another dtype."""
        query, key, value = (tensor.to(dtype) for tensor in self[:3])
        layers = tuple((left.to(dtype), right.to(dtype)) for left, right in self.cross_layers)
        return AttentionTensors(query, key, value, layers)


@dataclass(frozen=True)
class Device:
    """Where inputs are made."""

    name: str

    def generator(self, seed: int = SEED) -> torch.Generator:
        """A seeded one."""
        return torch.Generator(self.name).manual_seed(seed)

    def normal(self, *shape: int, seed: int = SEED, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(
            shape, generator=self.generator(seed), device=self.name, dtype=torch.float32
        ).to(dtype)

    def attention(self, shape: Attention, dtype: torch.dtype) -> AttentionTensors:
        """q, k and v as views of (B, L, 3, A, d), which is how a block's projection leaves them."""
        layout = (shape.batch, shape.tokens, 3, shape.heads, shape.width)
        views = [
            self.normal(*layout, seed=number, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
            for number in range(shape.layers + 1)
        ]
        query, key, value = views[0]
        layers = tuple((left, right) for left, right, _ in views[1:])
        return AttentionTensors(query, key, value, layers)

    def labels(self, batch: int, grid: tuple[int, int], classes: int = 8) -> Tensor:
        """(B, h, w) labels in blobs an eighth of the grid wide, a tenth of the patches flipped."""
        blob = max(2, max(grid) // 8)
        return label_map(SEED, batch=batch, grid=grid, classes=classes, blob=blob).to(self.name)

    def images(self, count: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """(count, 3, H, W) normalised: smooth areas with edges and some noise."""
        coarse = self.normal(count, 3, max(2, size[0] // 32), max(2, size[1] // 32))
        smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        noise = self.normal(count, 3, *size, seed=1)
        images: Tensor = smooth + smooth.sign() + 0.05 * noise
        return images.to(dtype)

    def logits(self, batch: int, queries: int, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """(B, Q, h, w) cosines as large as CLIP's differences are."""
        return 0.1 * self.normal(batch, queries, *grid, dtype=dtype)

    def features(
        self, batch: int, channels: int, fine: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        """(B, C, H_v, W_v) features of a few kinds, clearly apart: no entry of the map is near its jump."""
        kinds = F.normalize(self.normal(6, channels), dim=-1)
        chosen = kinds[self.labels(batch, fine) % len(kinds)].permute(0, 3, 1, 2)
        noise = self.normal(batch, channels, *fine, seed=1) / channels**0.5
        features: Tensor = (chosen + 0.2 * noise).to(dtype)
        return features.contiguous()


def feedback_state(labels: Tensor, *, normalise: bool = True) -> SemanticFeedback:
    """The state by the fastest implementation that works here."""
    try:
        return semantic_feedback(labels, normalise=normalise)
    except FAILURES as error:
        print(f"  semantic_feedback by torch instead: {shorten(error)}")
        return semantic_feedback(labels, normalise=normalise, implementation="torch")


def with_matrix(state: SemanticFeedback, matrix: Tensor) -> SemanticFeedback:
    """The state as the reference makes it: the matrix itself, no bits."""
    return replace(state, far=None, dense=matrix)


def text(device: Device, queries: int, width: int) -> Tensor:
    """(Q, E) random unit rows."""
    return F.normalize(device.normal(queries, width), dim=-1)
