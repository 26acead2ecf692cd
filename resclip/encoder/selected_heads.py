"""DIH-CLIP's selected heads: those whose maps have the least entropy, each with the values of all heads.

The maps themselves are read, rows by rows, so that memory grows with the number of patches alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.encoder.trace import MAP_BYTES, BlockStep, map_blocks
from resclip.methods.pieces import SimilarityBranch
from resclip.models.tower import merge_heads, split_heads
from resclip_kernels import AttentionOptions, SemanticFeedback, feedback_matrix, feedback_rows

if TYPE_CHECKING:
    from resclip.models import Tower

SMALLEST = 1e-6
"""What is added to an entry before its logarithm."""


def entropies(maps: Tensor) -> Tensor:
    """−Σ A log2(A + 1e-6) over rows and columns of (B, A, R, L): (B, A)."""
    terms = maps * torch.log2(maps + SMALLEST)
    return -terms.sum(dim=-1).sum(dim=-1)


def lowest(values: Tensor, count: int) -> Tensor:
    """Which of each row's values are its `count` smallest: (B, A) bool."""
    numbers = values.topk(min(count, values.shape[1]), dim=1, largest=False).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, numbers, value=True)


def block_of_selected_heads(tower: Tower, step: BlockStep, kept: int) -> Tensor:
    """What a block's selected heads add to its output: (B, L, D).

    They are chosen by their query-key maps, and attend by their key-key maps.
    """
    tokens = step.query.shape[2]
    parts = [entropies(rows) for _, rows in map_blocks(step.query, step.key, 0, tokens)]
    chosen = lowest(torch.stack(parts).sum(dim=0), kept)
    values = merge_heads(step.value)
    attended = [
        of_chosen(rows, chosen).to(values.dtype) @ values
        for _, rows in map_blocks(step.key, step.key, 0, tokens)
    ]
    heads = split_heads(torch.cat(attended, dim=1), tower.heads)
    return tower.project_out(step.block, heads)


def of_chosen(rows: Tensor, chosen: Tensor) -> Tensor:
    """The sum of the chosen heads' rows: (B, A, R, L) and (B, A) bool → (B, R, L)."""
    return torch.where(chosen[:, :, None, None], rows, 0).sum(dim=1)


def similarity_rows(unit: Tensor, branch: SimilarityBranch, first: int, last: int) -> Tensor:
    """Rows of S, cut: (B, R, n) from unit rows (B, n, D)."""
    rows = unit[:, first:last] @ unit.mT
    return rows if branch.cut is None else rows.masked_fill(rows < branch.cut, 0.0)


class SelectedHeads:
    """The maps of one stream, (softmax of its score + the similarity branch's) / 2 per head.

    Args:
        score: x and y, (B, A, n, d) each.
        similar: (B, n, D), what the similarity branch compares.
        branch: its options; None without one.
        options: of the base's attention, with SFR's weights.
        kept: how many heads are kept.
    """

    def __init__(
        self,
        score: tuple[Tensor, Tensor],
        similar: Tensor | None,
        branch: SimilarityBranch | None,
        options: AttentionOptions,
        kept: int,
    ) -> None:
        dtype = torch.promote_types(score[0].dtype, torch.float32)
        self.left, self.right = score[0].to(dtype), score[1].to(dtype)
        self.branch = branch
        self.options = options
        self.unit: Tensor | None = None
        if similar is not None and branch is not None:
            self.unit = F.normalize(similar.to(dtype), dim=-1)
            self.mean = self.similarity_mean(self.unit, branch)
        self.whole: Tensor | None = None
        self.chosen = self.choose(kept)
        """(B, A) bool."""

    @property
    def rows_at_once(self) -> int:
        """How many rows of all maps are held."""
        images, heads, count, _ = self.left.shape
        return max(1, MAP_BYTES // max(1, images * heads * count * self.left.element_size()))

    def similarity_mean(self, unit: Tensor, branch: SimilarityBranch) -> Tensor:
        """The mean of S, (B, 1, 1)."""
        count = unit.shape[1]
        if torch.compiler.is_exporting():
            return similarity_rows(unit, branch, 0, count).mean(dim=(1, 2), keepdim=True)
        if branch.cut is None:
            return unit.sum(dim=1, keepdim=True).square().sum(dim=2, keepdim=True) / count**2
        step = self.rows_at_once
        sums = [
            similarity_rows(unit, branch, first, first + step).sum(dim=(1, 2), keepdim=True)
            for first in range(0, count, step)
        ]
        return torch.stack(sums).sum(dim=0) / count**2

    def rows(self, first: int, last: int, feedback: SemanticFeedback | None) -> Tensor:
        """Rows of every head's map: (B, A, R, n)."""
        scale = self.options.scale(self.left.shape[-1], has_feedback=feedback is not None)
        score = (scale * self.left[:, :, first:last]) @ self.right.mT
        if feedback is not None:
            _, temperature = self.options.mixing
            state = (
                feedback_matrix(feedback)  # Of a graph for any size, where all rows are formed.
                if torch.compiler.is_exporting()
                else feedback_rows(feedback, torch.arange(first, last))
            )
            bonus = self.options.weighted(state, feedback.options.normalise)
            score = score + temperature * bonus.unsqueeze(1)
        maps = score.softmax(dim=-1)
        if self.unit is None or self.branch is None:
            return maps
        shared = self.branch.sharpness * (
            similarity_rows(self.unit, self.branch, first, last) - self.mean
        )
        shared = shared.masked_fill(shared < 0, -torch.inf).softmax(dim=-1)
        return (maps + shared.unsqueeze(1)) / 2

    def blocks(self, feedback: SemanticFeedback | None) -> Iterator[Tensor]:
        """Rows by rows; where all fit at once, without feedback, they are formed once."""
        count = self.left.shape[2]
        if torch.compiler.is_exporting():
            yield self.rows(0, count, feedback)
            return
        step = self.rows_at_once
        if count <= step and feedback is None:
            if self.whole is None:
                self.whole = self.rows(0, count, None)
            yield self.whole
            return
        for first in range(0, count, step):
            yield self.rows(first, min(first + step, count), feedback)

    def choose(self, kept: int) -> Tensor:
        """(B, A) bool: the heads whose maps have the least entropy."""
        parts = [entropies(rows) for rows in self.blocks(None)]
        return lowest(torch.stack(parts).sum(dim=0), kept)

    def attend(self, value: Tensor, feedback: SemanticFeedback | None) -> Tensor:
        """The sum of the chosen heads' maps over A, times the values of all heads: (B, A, n, d), like `value`."""
        heads = value.shape[1]
        values = merge_heads(value)
        attended = [
            (of_chosen(rows, self.chosen) / heads).to(values.dtype) @ values
            for rows in self.blocks(feedback)
        ]
        return split_heads(torch.cat(attended, dim=1), heads)
