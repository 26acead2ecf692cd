"""What a window's final block sees of the whole picture: the tokens of a coarse pass, and the attention to them.

Knows which tensors of the coarse pass are kept and how a window's tokens gather from them. Knows no window, no model
and no order of passes; how much the result counts for is the weight of `resclip.methods.Overview`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resclip_kernels.steady import attention



@dataclass(frozen=True, eq=False)
class Coarse:
    """The final block's tokens of whole pictures, resized small, one row of each tensor a picture.

    `coarse[2]` is one picture's, `coarse[[2, 0, 2]]` and `coarse[1:3]` are several pictures', and a loop over it goes
    picture by picture.
    """

    keys: tuple[Tensor, ...]
    """(B, A, m, d), one for each score of the base (two for "qq+kk"): what a window's tokens are compared with."""
    value: Tensor
    """(B, A, m, d): what they gather. m counts [CLS] where the tower has it."""

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, numbers: int | slice | Sequence[int] | Tensor) -> Coarse:
        picked = [numbers] if isinstance(numbers, int) else numbers
        return Coarse(tuple(key[picked] for key in self.keys), self.value[picked])

    @property
    def key(self) -> int:
        """m: pictures with as many tokens fit into one batch, whatever their grids."""
        return self.value.shape[2]

    @classmethod
    def stack(cls, pictures: Sequence[Coarse]) -> Coarse:
        """One batch of several, in their order; ValueError unless there is one and all have the same `key`."""
        counts = sorted({picture.key for picture in pictures})
        if len(counts) != 1:
            raise ValueError(
                f"expected coarse passes of as many tokens each, at least one; got {counts or 'none'}: "
                "stack those that have the same key"
            )
        keys = zip(*(picture.keys for picture in pictures), strict=True)
        return cls(
            tuple(torch.cat(key) for key in keys),
            torch.cat([picture.value for picture in pictures]),
        )


def attend_coarse(
    queries: Sequence[Tensor], coarse: Coarse, temperature: float, *, plain: bool = False
) -> Tensor:
    """What every token of a window gathers from the whole picture.

        A_o·v_o = Σ softmax(x y_oᵀ / (√d·τ)) v_o

    over the scores of the base, each softmax over the coarse pass's m tokens: the base's attention within the window
    without prior, local window, feedback and cross-layer term. Rows add to the number of scores.

    Args:
        queries: x of each score, (B, A, L, d), in the order of `coarse.keys`.
        coarse: of the B windows' pictures.
        temperature: τ > 0.
        plain: the formula with its (B, A, L, m) maps in memory; else torch's attention, whose memory is linear in L.

    Returns:
        (B, A, L, d).
    """
    scale = 1 / (math.sqrt(coarse.value.shape[-1]) * temperature)
    if plain:
        maps = (
            (scale * query @ key.mT).softmax(dim=-1)
            for query, key in zip(queries, coarse.keys, strict=True)
        )
        return functools.reduce(torch.add, maps) @ coarse.value
    branches = (
        attention(query, key, coarse.value, scale=scale)
        for query, key in zip(queries, coarse.keys, strict=True)
    )
    return functools.reduce(torch.add, branches)
