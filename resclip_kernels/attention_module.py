"""`residual_attention` as a module that stands where an open_clip final block has its `nn.MultiheadAttention`.

Knows the op's knobs, the grid, the recorders of the blocks before, and the scope of ResCLIP's two passes. Knows no
tower, no picture and no text: whoever assigns the module runs the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from resclip_kernels.checks import check_count
from resclip_kernels.implementation import Implementation, parse_implementation
from resclip_kernels.recorded_attention import QueryKeyRecorder, SelfAttention, check_source
from resclip_kernels.residual_attention import Correlation, residual_attention
from resclip_kernels.semantic_feedback import SemanticFeedback

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["QueryKeyRecorder", "ResidualAttention"]

CrossLayers = tuple[tuple[Tensor, Tensor], ...]


class Kept(NamedTuple):
    """A_c·v of one pass, together with the very tensors that it was made of."""

    cross_layers: CrossLayers
    cross_layer: Tensor
    """(B, A, L, d)."""

    def came_from(self, cross_layers: CrossLayers) -> bool:
        """Whether no recorder has run since: their tensors are the same objects."""
        return len(cross_layers) == len(self.cross_layers) and all(
            query is kept_query and key is kept_key
            for (query, key), (kept_query, kept_key) in zip(
                cross_layers, self.cross_layers, strict=True
            )
        )


class Knobs(TypedDict, total=False):
    """The keyword arguments of `ResidualAttention`, described there."""

    grid: tuple[int, int] | None
    correlation: Correlation
    score_temperature: float
    window: int | None
    neighbourhood_std: float | None
    feedback: SemanticFeedback | None
    feedback_weight: float
    feedback_temperature: float
    recorders: Iterable[QueryKeyRecorder]
    cross_weight: float
    cross_temperature: float
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

    Every knob is an attribute that may be changed between calls; `recorders` is fixed, and not part of the module:
    parameters and state dict are `nn.MultiheadAttention`'s.

    Args:
        embed_dim, num_heads, bias, batch_first, device, dtype: `nn.MultiheadAttention`'s; initialised as it is.
        grid: (h, w) in patches; None for a square of the patches that come.
        correlation, score_temperature, window, neighbourhood_std, feedback, feedback_weight, feedback_temperature,
            cross_weight, cross_temperature, implementation: of `residual_attention`; there are no projections for "pp".
        recorders: of the middle blocks whose maps RCS averages; their q and k are read at each call.

    Raises:
        TypeError, ValueError: a size, knob or recorder that does not fit.
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
        grid: tuple[int, int] | None = None,
        correlation: Correlation = "kk",
        score_temperature: float = 1.0,
        window: int | None = None,
        neighbourhood_std: float | None = None,
        feedback: SemanticFeedback | None = None,
        feedback_weight: float = 0.7,
        feedback_temperature: float = 1.0,
        recorders: Iterable[QueryKeyRecorder] = (),
        cross_weight: float = 0.5,
        cross_temperature: float = 1.0,
        implementation: Implementation | str = Implementation.AUTO,
    ) -> None:
        super().__init__(embed_dim, num_heads, 0.0, bias, batch_first, device, dtype)
        self.grid = grid
        self.correlation: Correlation = correlation
        self.score_temperature = score_temperature
        self.window = window
        self.neighbourhood_std = neighbourhood_std
        self.feedback = feedback
        self.feedback_weight = feedback_weight
        self.feedback_temperature = feedback_temperature
        self.cross_weight = cross_weight
        self.cross_temperature = cross_temperature
        self.implementation = parse_implementation(implementation)
        # A tuple, which nn.Module does not look into: the recorders are the blocks' modules.
        self._recorders = tuple(recorders)
        for recorder in self._recorders:
            if not isinstance(recorder, QueryKeyRecorder):
                raise TypeError(
                    f"recorders must be QueryKeyRecorder modules; got {type(recorder).__name__}: "
                    "make one with QueryKeyRecorder.from_attention(block.attn)"
                )
        self._keeping = False
        self._kept: Kept | None = None
        self.check_knobs()

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention, **knobs: Unpack[Knobs]) -> Self:
        """A module with `attention`'s own parameters: the same objects, not copies.

        Args:
            attention: what it replaces.
            knobs: the constructor's keyword-only arguments.

        Raises:
            TypeError: no `nn.MultiheadAttention`, or a knob that does not exist.
            ValueError: one with kdim, vdim, add_bias_kv or add_zero_attn, or a knob's value that does not fit.
        """
        check_source(attention)
        module = cls(
            attention.embed_dim,
            attention.num_heads,
            batch_first=attention.batch_first,
            device="meta",
            **knobs,
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
        if len(grid) != 2:
            raise ValueError(f"grid must be (h, w) in patches, or None for a square; got {grid!r}")
        height, width = grid
        check_count("grid's height", height, 1)
        check_count("grid's width", width, 1)
        self._grid = (height, width)

    @property
    def recorders(self) -> tuple[QueryKeyRecorder, ...]:
        """The middle blocks' recorders; to change them, make another module from this one."""
        return self._recorders

    @contextmanager
    def two_passes(self) -> Iterator[Self]:
        """A scope in which the block runs more than once on the same tokens: ResCLIP's two passes (section 3.3).

        It starts without `feedback`. Its first pass keeps A_c·v, which the later ones take over, so that RCS is
        computed once; it is computed anew whenever a recorder has run in between. When the scope ends, A_c·v is
        dropped and `feedback` is what it was before, so that nothing of these pictures reaches the next ones:

            with attention.two_passes():
                first = block(tokens)
                attention.feedback = semantic_feedback(labels_of(first))
                second = block(tokens)
        """
        before = self.feedback, self._keeping, self._kept
        self.feedback, self._keeping, self._kept = None, True, None
        try:
            yield self
        finally:
            self.feedback, self._keeping, self._kept = before

    def attend(self, tokens: Tensor) -> Tensor:
        """Residual attention with the module's knobs, of [CLS] and h·w patches.

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
        kept = self._kept
        query, key, value = self.project(tokens, 0, 3)
        attended, cross_layer = residual_attention(
            query,
            key,
            value,
            grid=grid,
            correlation=self.correlation,
            score_temperature=self.score_temperature,
            window=self.window,
            neighbourhood_std=self.neighbourhood_std,
            feedback=self.feedback,
            feedback_weight=self.feedback_weight,
            feedback_temperature=self.feedback_temperature,
            cross_layers=cross_layers,
            cross_layer=(
                kept.cross_layer if kept is not None and kept.came_from(cross_layers) else None
            ),
            cross_weight=self.cross_weight,
            cross_temperature=self.cross_temperature,
            implementation=self.implementation,
        )
        if self._keeping and cross_layer is not None:
            self._kept = Kept(cross_layers, cross_layer)
        return attended

    def grid_of(self, tokens: int) -> tuple[int, int]:
        """(h, w) of `tokens` tokens, [CLS] included; ValueError where `grid` does not fit, or no square does."""
        patches = tokens - 1
        if self._grid is not None:
            height, width = self._grid
            if height * width != patches:
                raise ValueError(
                    f"a grid of {height} × {width} patches has {1 + height * width} tokens with [CLS]; got {tokens}: "
                    "set .grid = (h, w) of these pictures, or None for a square"
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

    def check_knobs(self) -> None:
        """Let the op itself judge the knobs, on one image of one patch and one head of width 1."""
        token = torch.zeros(1, 1, 2, 1, device="cpu")
        residual_attention(
            token,
            token,
            token,
            grid=(1, 1),
            correlation=self.correlation,
            score_temperature=self.score_temperature,
            window=self.window,
            neighbourhood_std=self.neighbourhood_std,
            feedback_weight=self.feedback_weight,
            feedback_temperature=self.feedback_temperature,
            cross_weight=self.cross_weight,
            cross_temperature=self.cross_temperature,
            implementation=Implementation.TORCH,
        )

    def extra_repr(self) -> str:
        """The knobs, for `print(module)`."""
        return (
            f"correlation={self.correlation!r}, grid={self._grid}, neighbourhood_std={self.neighbourhood_std}, "
            f"feedback={'set' if self.feedback is not None else None}, recorders={len(self._recorders)}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without A_c·v, which belongs to one scope of `two_passes`."""
        state: dict[str, Any] = nn.Module.__getstate__(self)
        return {**state, "_keeping": False, "_kept": None}
