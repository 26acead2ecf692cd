"""`residual_attention` as a module in place of an open_clip final block's `nn.MultiheadAttention`.

With it comes the module that records q and k of the blocks before, which RCS averages.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip_kernels.checks import check_count, check_pair, check_type, merge_options
from resclip_kernels.dispatch import Implementation, parse_implementation
from resclip_kernels.ops.residual_attention import AttentionOptions, residual_attention
from resclip_kernels.ops.semantic_feedback import SemanticFeedback
from resclip_kernels.options.residual_attention import AttentionKeywords

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


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
        """ValueError or TypeError for a call that is no self-attention over whole images."""
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
                f"{name} takes no mask: every token of an image attends to every other. Expected "
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
        # nn.MultiheadAttention reads the weights of this layer, and never calls it.
        layer = self.out_proj
        return F.linear(attended.flatten(-2), layer.weight, layer.bias)


class PerThread:
    """What a module keeps of the images on their way, by thread: threads that share a model do not mix their images.

    A copy or a pickle has nothing.
    """

    def __init__(self) -> None:
        self.local = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> PerThread:
        return PerThread()

    def __reduce__(self) -> tuple[type[PerThread], tuple[()]]:
        return PerThread, ()


class QueryKeyRecorder(SelfAttention):
    """A middle block's attention that remembers q and k of its last call, for RCS (arXiv 2411.15851, section 3.2).

    Computes what `nn.MultiheadAttention` computes, softmax(q kᵀ/√d)·v through `out_proj`, with fused attention. v is
    projected apart from q and k, so that keeping those two keeps nothing else; with autograd on they keep their graph
    as well, so run under `torch.no_grad()` where no gradient is wanted. Every thread has its own last call, so that
    threads can share a model. A copy or a pickle has recorded nothing.

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
        self._kept = PerThread()

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
        """q and k of this thread's last call."""
        recorded: tuple[Tensor, Tensor] | None = getattr(self._kept.local, "recorded", None)
        if recorded is None:
            raise ValueError(
                "this QueryKeyRecorder has recorded nothing in this thread since it was made, copied or cleared: "
                "put it in place of a block's `attn` and run the model up to that block first"
            )
        return recorded

    def clear(self) -> None:
        """Forget this thread's q and k, and free their memory."""
        self._kept.local.recorded = None

    def attend(self, tokens: Tensor) -> Tensor:
        """Plain self-attention; q and k are kept until the next call or `clear()`."""
        query, key = self.project(tokens, 0, 2)
        (value,) = self.project(tokens, 2, 3)
        self.keep(query, key)
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout if self.training else 0.0
        )

    def keep(self, query: Tensor, key: Tensor) -> None:
        """Remember q and k, (B, A, L, d) each; a subclass may keep them elsewhere."""
        self._kept.local.recorded = query, key


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


CrossLayers = tuple[tuple[Tensor, Tensor], ...]


class CachedCrossLayer(NamedTuple):
    """A_c·v of one pass, together with the very tensors that it was made of."""

    cross_layers: CrossLayers
    cross_layer: Tensor
    """(B, A, L, d)."""

    def came_from(self, cross_layers: CrossLayers) -> bool:
        """Whether no recorder has run since: their tensors are the same objects."""
        return len(cross_layers) == len(self.cross_layers) and all(
            query is cached_query and key is cached_key
            for (query, key), (cached_query, cached_key) in zip(
                cross_layers, self.cross_layers, strict=True
            )
        )


@dataclass
class Scope:
    """What one `two_passes` of one thread has."""

    feedback: SemanticFeedback | None = None
    cached: CachedCrossLayer | None = None
    """A_c·v of the first pass."""


class ModuleKeywords(AttentionKeywords, total=False):
    """What `ResidualAttention` takes beside the sizes: its own arguments and the fields of `AttentionOptions`."""

    options: AttentionOptions | None
    feedback: SemanticFeedback | None
    recorders: Iterable[QueryKeyRecorder]
    implementation: Implementation | str


class ResidualAttention(SelfAttention):
    """`residual_attention` in place of the final block's `nn.MultiheadAttention`, with its parameters and call.

    The formula, term by term, is `resclip_kernels.residual_attention`'s; the methods are SCLIP (arXiv 2312.01597),
    ClearCLIP (arXiv 2407.12442), NACLIP (arXiv 2404.08181) and ResCLIP (arXiv 2411.15851). The block around it stays
    as it is. In an open_clip tower:

        blocks = visual.transformer.resblocks
        for block in blocks[5:9]:
            block.attn = QueryKeyRecorder.from_attention(block.attn)
        recorders = [block.attn for block in blocks[5:9]]
        blocks[-1].attn = ResidualAttention.from_attention(
            blocks[-1].attn, correlation="kk", neighbourhood_std=5.0, recorders=recorders
        )

    `options` may be replaced between calls, as may each of its fields under its own name (`module.window = 3`), `grid`,
    `feedback` and `implementation`; `recorders` is fixed, and not part of the module: parameters and state dict are
    `nn.MultiheadAttention`'s.

    Args:
        embed_dim, num_heads, bias, batch_first, device, dtype: `nn.MultiheadAttention`'s; initialised as it is.
        options: of `residual_attention`; there are no projections for "pp". None: the defaults.
        grid: (h, w) in patches; None for that of `options`, without those for a square of the patches that come.
        feedback: state of `semantic_feedback`, or None.
        recorders: of the middle blocks whose maps RCS averages; their q and k are read at each call.
        implementation: see `Implementation`.
        keywords: fields of `AttentionOptions`, in place of those of `options`.

    Raises:
        TypeError, ValueError: a size, option or recorder that does not fit.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: AttentionOptions | None = None,
        grid: tuple[int, int] | None = None,
        feedback: SemanticFeedback | None = None,
        recorders: Iterable[QueryKeyRecorder] = (),
        implementation: Implementation | str = Implementation.AUTO,
        **keywords: Any,
    ) -> None:
        super().__init__(embed_dim, num_heads, 0.0, bias, batch_first, device, dtype)
        # The grid of these is replaced at each call by that of the tokens that come.
        merged = {"grid": (1, 1), **keywords} if options is None else keywords
        self.options = merge_options(AttentionOptions, options, merged)
        self.grid = options.grid if grid is None and options is not None else grid
        self._kept = PerThread()
        self._feedback = feedback
        self.implementation = parse_implementation(implementation)
        # A tuple, which nn.Module does not look into: the recorders are the blocks' modules.
        check_type("recorders", recorders, Iterable, "QueryKeyRecorder modules")
        self._recorders = tuple(recorders)
        for recorder in self._recorders:
            if not isinstance(recorder, QueryKeyRecorder):
                raise TypeError(
                    f"recorders must be QueryKeyRecorder modules; got {type(recorder).__name__}: "
                    "make one with QueryKeyRecorder.from_attention(block.attn)"
                )
        self.check_options()

    @classmethod
    def from_attention(
        cls, attention: nn.MultiheadAttention, **keywords: Unpack[ModuleKeywords]
    ) -> Self:
        """A module with `attention`'s own parameters: the same objects, not copies.

        Args:
            attention: what it replaces.
            keywords: the constructor's keyword-only arguments.

        Raises:
            TypeError: no `nn.MultiheadAttention`, or an option that does not exist.
            ValueError: one with kdim, vdim, add_bias_kv or add_zero_attn, or an option's value that does not fit.
        """
        check_source(attention)
        module = cls(
            attention.embed_dim,
            attention.num_heads,
            batch_first=attention.batch_first,
            device="meta",
            **keywords,
        )
        return module.share(attention)

    @property
    def grid(self) -> tuple[int, int] | None:
        """(h, w) in patches, or None for a square."""
        return self._grid

    @grid.setter
    def grid(self, grid: Sequence[int] | None) -> None:
        if grid is None:
            self._grid: tuple[int, int] | None = None
            return
        self._grid = check_pair("grid", grid, "(h, w) in patches, or None for a square", 1)

    @property
    def scope(self) -> Scope | None:
        """This thread's `two_passes`; None outside of it."""
        scope: Scope | None = getattr(self._kept.local, "scope", None)
        return scope

    @property
    def feedback(self) -> SemanticFeedback | None:
        """State of `semantic_feedback`; within `two_passes`, the one that this thread has set there."""
        scope = self.scope
        return self._feedback if scope is None else scope.feedback

    @feedback.setter
    def feedback(self, feedback: SemanticFeedback | None) -> None:
        scope = self.scope
        if scope is None:
            self._feedback = feedback
        else:
            scope.feedback = feedback

    @property
    def recorders(self) -> tuple[QueryKeyRecorder, ...]:
        """The middle blocks' recorders; to change them, make another module from this one."""
        return self._recorders

    @contextmanager
    def two_passes(self) -> Iterator[Self]:
        """A scope in which the block runs more than once on the same tokens: ResCLIP's two passes (section 3.3).

        It starts without `feedback`. Its first pass caches A_c·v, which the later ones take over, so that RCS is
        computed once; it is computed anew whenever a recorder has run in between. When the scope ends, A_c·v is
        dropped and `feedback` is what it was before, so that nothing of these images reaches the next ones. The scope
        is this thread's alone:

            with attention.two_passes():
                first = block(tokens)
                attention.feedback = semantic_feedback(labels_of(first))
                second = block(tokens)
        """
        local = self._kept.local
        before = getattr(local, "scope", None)
        local.scope = Scope()
        try:
            yield self
        finally:
            local.scope = before

    def attend(self, tokens: Tensor) -> Tensor:
        """Residual attention with the module's options, of [CLS] and h·w patches.

        Raises:
            ValueError: a grid that does not fit, a recorder that has not run, or has run on other shapes; dropout
                while training.
        """
        if self.training and self.dropout:
            raise ValueError(
                f"ResidualAttention has no dropout, and the attention it was made from drops {self.dropout} "
                "while training: call .eval(), or set .dropout = 0.0"
            )
        grid = self.grid_of(tokens.shape[1 if tokens.ndim == 3 and self.batch_first else 0])
        cross_layers = tuple(recorder.recorded() for recorder in self._recorders)
        scope = self.scope
        cached = None if scope is None else scope.cached
        reusable = cached is not None and cached.came_from(cross_layers)
        query, key, value = self.project(tokens, 0, 3)
        attended, cross_layer = residual_attention(
            query,
            key,
            value,
            replace(self.options, grid=grid),
            feedback=self.feedback,
            cross_layers=cross_layers,
            cross_layer=cached.cross_layer if cached is not None and reusable else None,
            implementation=self.implementation,
        )
        if scope is not None and cross_layer is not None:
            scope.cached = CachedCrossLayer(cross_layers, cross_layer)
        return attended

    def grid_of(self, tokens: int) -> tuple[int, int]:
        """(h, w) of `tokens` tokens, [CLS] included; ValueError where `grid` does not fit, or no square does."""
        patches = tokens - 1
        if self._grid is not None:
            height, width = self._grid
            if height * width != patches:
                raise ValueError(
                    f"a grid of {height} × {width} patches has {1 + height * width} tokens with [CLS]; got {tokens}: "
                    "set .grid = (h, w) of these images, or None for a square"
                )
            return height, width
        if patches < 1:
            raise ValueError(f"expected [CLS] and at least one patch; got {tokens} tokens")
        # torch.compile follows this where math.isqrt breaks the graph.
        side = round(patches**0.5)
        if side * side != patches:
            raise ValueError(
                f"{tokens} tokens are [CLS] and {patches} patches, which make no square: set .grid = (h, w)"
            )
        return side, side

    def check_options(self) -> None:
        """TypeError or ValueError for options that the op refuses, tried on one patch and one head of width 1."""
        token = torch.zeros(1, 1, 2, 1, device="cpu")
        residual_attention(
            token,
            token,
            token,
            replace(self.options, grid=(1, 1)),
            implementation=Implementation.TORCH,
        )

    def extra_repr(self) -> str:
        """The options, for `print(module)`."""
        return (
            f"correlation={self.options.correlation!r}, grid={self._grid}, "
            f"neighbourhood_std={self.options.neighbourhood_std}, "
            f"feedback={'set' if self.feedback is not None else None}, recorders={len(self._recorders)}"
        )


def option_property(name: str) -> property:
    """A field of `ResidualAttention.options` as the module's own attribute; to set it is to replace the options."""

    def get(module: ResidualAttention) -> Any:
        return getattr(module.options, name)

    def set_(module: ResidualAttention, value: Any) -> None:
        module.options = replace(module.options, **{name: value})

    return property(get, set_)


for field in fields(AttentionOptions):
    if field.name != "grid":
        setattr(ResidualAttention, field.name, option_property(field.name))
