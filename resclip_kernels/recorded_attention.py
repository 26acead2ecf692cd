"""What stands in for a CLIP block's `nn.MultiheadAttention`: its parameters, layouts and call, and the recorder.

Knows unmasked self-attention and what RCS needs of a middle block: its q and k. Knows no correlation, no grid and no
feedback.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip_kernels.checks import check_count

if TYPE_CHECKING:
    from typing_extensions import Self


class SelfAttention(nn.MultiheadAttention, ABC):
    """What both modules share: `nn.MultiheadAttention`'s parameters and layouts, for self-attention without a mask.

    It is a subclass, so that whoever looks for `nn.MultiheadAttention` (open_clip's conversion to float16 does) still
    finds it.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        bias: bool,
        batch_first: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        check_count("embed_dim", embed_dim, 1)
        check_count("num_heads", num_heads, 1)
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads; got {embed_dim} and {num_heads}"
            )
        super().__init__(
            embed_dim, num_heads, dropout, bias, batch_first=batch_first, device=device, dtype=dtype
        )

    def share(self, attention: nn.MultiheadAttention) -> Self:
        """Hold `attention`'s own parameters, dropout and mode instead of new ones."""
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.dropout = attention.dropout
        self.training = attention.training
        return self

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Self-attention of `query`.

        Args:
            query, key, value: one and the same tensor, (B, L, E) with batch_first, (L, B, E) without, or (L, E),
                floating point like the parameters.
            key_padding_mask, attn_mask, is_causal: none.
            need_weights: False, since no L × L map is held.
            average_attn_weights: without effect, since there are no weights.

        Returns:
            The output in the input's layout, and None.

        Raises:
            TypeError, ValueError: a call that is no unmasked self-attention, or what `attend` refuses.
        """
        self.check_call(query, key, value, key_padding_mask, need_weights, attn_mask, is_causal)
        return self.project_out(self.attend(query), query), None

    @abstractmethod
    def attend(self, tokens: Tensor) -> Tensor:
        """Every head's result for tokens in one of the layouts of `forward`: (B, A, L, d)."""

    def check_call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        """ValueError or TypeError for a call that is no self-attention over whole pictures."""
        name = type(self).__name__
        if not isinstance(query, Tensor):
            raise TypeError(f"query must be a torch.Tensor; got {type(query).__name__}")
        if key is not query or value is not query:
            raise ValueError(
                f"{name} is self-attention: expected one tensor as query, key and value, got different ones; "
                "pass (x, x, x), or keep nn.MultiheadAttention for cross-attention"
            )
        if query.ndim not in (2, 3) or query.shape[-1] != self.embed_dim:
            layout = "(B, L, E)" if self.batch_first else "(L, B, E)"
            raise ValueError(
                f"query must be {layout} or (L, E) with E = {self.embed_dim}; got {tuple(query.shape)}"
            )
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ValueError(
                f"{name} takes no mask: every token of a picture attends to every other. Expected "
                "key_padding_mask=None, attn_mask=None and is_causal=False; leave them out"
            )
        if need_weights:
            raise ValueError(
                f"{name} never holds an L × L map in memory, so it has no weights to return: "
                "pass need_weights=False"
            )

    def project(self, tokens: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
        """Parts `start` to `stop` of q, k, v: (B, A, L, d) each, views of one new tensor that holds nothing else."""
        rows = slice(start * self.embed_dim, stop * self.embed_dim)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        projected = F.linear(tokens, self.in_proj_weight[rows], bias)
        parts = projected.unflatten(-1, (stop - start, self.num_heads, self.head_dim))
        if parts.ndim == 4:
            parts = parts.unsqueeze(0)  # [L, parts, A, d] of an unbatched call.
        elif not self.batch_first:
            parts = parts.transpose(0, 1)
        heads: tuple[Tensor, ...] = parts.permute(2, 0, 3, 1, 4).unbind()
        return heads

    def project_out(self, attended: Tensor, tokens: Tensor) -> Tensor:
        """(B, A, L, d) → the layout of `tokens`, through `out_proj`."""
        if tokens.ndim == 2:
            attended = attended.squeeze(0).transpose(0, 1)  # [L, A, d]
        elif self.batch_first:
            attended = attended.transpose(1, 2)  # [B, L, A, d]
        else:
            attended = attended.permute(2, 0, 1, 3)  # [L, B, A, d]
        output: Tensor = self.out_proj(attended.flatten(-2))
        return output


class QueryKeyRecorder(SelfAttention):
    """A middle block's attention that remembers q and k of its last call, for RCS (arXiv 2411.15851, section 3.2).

    Computes what `nn.MultiheadAttention` computes, softmax(q kᵀ/√d)·v through `out_proj`, with fused attention. v is
    projected apart from q and k, so that keeping those two keeps nothing else; with autograd on they keep their graph
    as well, so run under `torch.no_grad()` where no gradient is wanted. A copy or a pickle has recorded nothing.

    Args:
        embed_dim, num_heads, dropout, bias, batch_first, device, dtype: `nn.MultiheadAttention`'s.

    Raises:
        TypeError, ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, dropout, bias, batch_first, device, dtype)
        self._recorded: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention) -> Self:
        """A recorder with `attention`'s own parameters: the same objects, not copies.

        Raises:
            TypeError: no `nn.MultiheadAttention`.
            ValueError: one with kdim, vdim, add_bias_kv or add_zero_attn.
        """
        check_source(attention)
        recorder = cls(
            attention.embed_dim,
            attention.num_heads,
            batch_first=attention.batch_first,
            device="meta",
        )
        return recorder.share(attention)

    @property
    def query(self) -> Tensor:
        """(B, A, L, d): q of the last call, in the dtype it was computed in; ValueError before the first."""
        return self.recorded()[0]

    @property
    def key(self) -> Tensor:
        """(B, A, L, d): k of the last call, like `query`."""
        return self.recorded()[1]

    def recorded(self) -> tuple[Tensor, Tensor]:
        """q and k of the last call."""
        if self._recorded is None:
            raise ValueError(
                "this QueryKeyRecorder has recorded nothing since it was made, copied or cleared: "
                "put it in place of a block's `attn` and run the model up to that block first"
            )
        return self._recorded

    def clear(self) -> None:
        """Forget q and k, and free their memory."""
        self._recorded = None

    def attend(self, tokens: Tensor) -> Tensor:
        """Plain self-attention; q and k are kept until the next call or `clear()`."""
        query, key = self.project(tokens, 0, 2)
        (value,) = self.project(tokens, 2, 3)
        self._recorded = query, key
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without what was recorded: it belongs to the images of one run, and its graph cannot be copied."""
        state: dict[str, Any] = nn.Module.__getstate__(self)
        return {**state, "_recorded": None}


def check_source(attention: nn.MultiheadAttention) -> None:
    """TypeError or ValueError unless `attention` is self-attention with one projection for q, k and v."""
    if not isinstance(attention, nn.MultiheadAttention):
        raise TypeError(
            f"attention must be an nn.MultiheadAttention; got {type(attention).__name__}: "
            "use a model whose blocks have CLIP's plain attention, such as ViT-B-16 or ViT-L-14"
        )
    extra = {
        "kdim": attention.kdim != attention.embed_dim,
        "vdim": attention.vdim != attention.embed_dim,
        "add_bias_kv": attention.bias_k is not None or attention.bias_v is not None,
        "add_zero_attn": attention.add_zero_attn,
    }
    given = [name for name, on in extra.items() if on]
    if given:
        raise ValueError(
            f"expected an nn.MultiheadAttention with one projection for q, k and v and no extra tokens; "
            f"got one with {', '.join(given)}, which CLIP's vision blocks do not have: leave it in place"
        )
