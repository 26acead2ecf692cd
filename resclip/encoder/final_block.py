"""The rebuilt final block: one pass of a base's attention with SFR, RCS and overview, then the tower's head."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.encoder.feature_surgery import feature_surgery
from resclip.encoder.key_alignment import aligned
from resclip.encoder.similarity import similarity
from resclip.encoder.trace import Trace
from resclip.errors import UnknownChannelsWarning, reason
from resclip.methods.catalogue import (
    FINAL_BLOCKS,
    RCS,
    SFR,
    Base,
    FinalBlockKind,
    Overview,
    ProxyAttention,
    check_modules,
    find_base,
)
from resclip.methods.correlation import PROJECTION, Correlation
from resclip.methods.pieces import Pieces
from resclip.models import Tower
from resclip.models.checkpoints import read_weights
from resclip.models.tower import split_heads
from resclip_kernels import (
    AttentionOptions,
    Implementation,
    ProxyAttentionOptions,
    SemanticFeedback,
    check_callable,
    check_choice,
    check_implementation,
    check_positive,
    check_type,
    deterministic_attention,
    fast_linear,
    patch_labels,
    proxy_attention,
    residual_attention,
    resize_planes,
    score_operands,
    semantic_feedback,
)
from resclip_kernels import Correlation as OpCorrelation


@dataclass(frozen=True, eq=False)
class Coarse:
    """The final block's keys and values of whole images at a small size; each tensor has one row per image.

    `coarse[2]` is one image's, `coarse[[2, 0, 2]]` and `coarse[1:3]` are several images', and a loop over it goes
    image by image.
    """

    keys: tuple[Tensor, ...]
    """(B, A, m, d), one for each score of the base (two for "qq+kk"): what a window's tokens are compared with."""
    value: Tensor
    """(B, A, m, d): what they gather. m counts [CLS] where the tower has it."""

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, numbers: int | slice | Sequence[int] | Tensor) -> Coarse:
        index = [numbers] if isinstance(numbers, int) else numbers
        return Coarse(tuple(key[index] for key in self.keys), self.value[index])

    @property
    def key(self) -> int:
        """m, the number of tokens: images with equal m fit into one batch, whatever their grids."""
        return self.value.shape[2]

    @classmethod
    def stack(cls, images: Sequence[Coarse]) -> Coarse:
        """One batch of several, in their order; ValueError for none, and for different `key`s."""
        counts = sorted({image.key for image in images})
        if len(counts) != 1:
            raise ValueError(
                f"expected at least one coarse pass, and as many tokens in each; got {counts or 'none'}: "
                "stack those that have the same key"
            )
        keys = zip(*(image.keys for image in images), strict=True)
        return cls(
            tuple(torch.cat(key) for key in keys),
            torch.cat([image.value for image in images]),
        )


def attend_coarse(
    queries: Sequence[Tensor], coarse: Coarse, temperature: float, *, plain: bool = False
) -> Tensor:
    """What every token of a window gathers from the whole image.

        A_o·v_o = Σ softmax(x y_oᵀ / (√d·τ)) v_o

    over the scores of the base, each softmax over the coarse pass's m tokens: the base's attention within the window
    without prior, local window, feedback and cross-layer term. Rows add to the number of scores.

    Args:
        queries: x of each score, (B, A, L, d), in the order of `coarse.keys`.
        coarse: of the B windows' images.
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
        deterministic_attention(query, key, coarse.value, scale=scale)
        for query, key in zip(queries, coarse.keys, strict=True)
    )
    return functools.reduce(torch.add, branches)


class FinalInputs(NamedTuple):
    """What every pass of the final block reads."""

    tokens: Tensor
    """(B, L, D): the block's input."""
    value: Tensor
    """(B, A, L, d), of LN1(tokens)."""
    query: Tensor
    key: Tensor
    """(B, A, L, d) each: what is compared, from the final block or from the correlation's `layer`."""
    projections: tuple[Tensor, ...]
    """(B, A, L, d) each: what is compared instead, for the correlations that project anew."""
    cross_layers: tuple[tuple[Tensor, Tensor], ...]
    """(q, k) of the middle blocks that RCS averages."""
    grid: tuple[int, int]
    """(h, w) of the tower."""
    features: Tensor | None
    """(B, C, H_v, W_v) of the proxy; None where the base compares CLIP's own tokens."""
    overview: Tensor | None = None
    """(B, A, L, d): A_o·v_o, what the tokens gather from the whole image's coarse pass."""

    @property
    def output_grid(self) -> tuple[int, int]:
        """(h, w) of the result."""
        if self.features is None:
            return self.grid
        return self.features.shape[2], self.features.shape[3]


@dataclass(frozen=True, eq=False, kw_only=True)
class TowerInputs:
    """What passes read in final blocks of several streams or blocks, which have neither proxy nor overview."""

    grid: tuple[int, int]
    """(h, w) of the tower, and of the result."""
    cross_layers: tuple[tuple[Tensor, Tensor], ...]
    """(q, k) of the middle blocks that RCS averages."""
    features: ClassVar[None] = None
    overview: ClassVar[None] = None

    @property
    def output_grid(self) -> tuple[int, int]:
        """(h, w) of the result."""
        return self.grid


class Pass(NamedTuple):
    """What one pass of the final block gives."""

    tokens: Tensor
    """(B, L', D): the block's output, before the tower's head."""
    cross_layer: Tensor | None
    """A_c·v, for the next pass."""
    feedback: SemanticFeedback | None
    """The state that was fed back into this pass; None for the first."""


class FinalBlock:
    """The final block of a tower with a method's attention in place of its own.

    It holds the method and no state of an image; several threads may use it at once. Methods whose pieces give it
    other streams of tokens are its subclasses, which `make_final_block` chooses.

    Args: see `resclip.DenseEncoder`.

    Raises:
        ValueError, TypeError: as `resclip.DenseEncoder` does.
    """

    needs_trace: ClassVar[str] = ""
    """Why the block alone, without the run of all blocks, cannot be the method; empty where it can."""
    streams: ClassVar[int] = 1
    """How many sets of tokens go through the block."""

    def __init__(
        self,
        tower: Tower,
        base: str = "naclip",
        rcs: RCS | None = None,
        sfr: SFR | None = None,
        neighbourhood_std: float | None = 5.0,
        kind: FinalBlockKind | None = None,
        implementation: Implementation | str = Implementation.AUTO,
        *,
        correlation: Correlation | str | None = None,
        proxy: Callable[[Tensor], Tensor] | None = None,
        proxy_attention: ProxyAttention | None = None,
        overview: Overview | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self.base = find_base(base)
        if kind is not None:
            check_choice("final_block", kind, FINAL_BLOCKS, ", or None for the base's own")
        if neighbourhood_std is not None:
            check_positive("neighbourhood_std", neighbourhood_std)
        if proxy is not None:
            check_callable(
                "proxy",
                proxy,
                "a function of normalised pixels, such as find_proxy('colour') makes",
            )
        if isinstance(correlation, str):
            correlation = Correlation.parse(correlation)
        for name, value, kinds, words in (
            ("correlation", correlation, Correlation, "a Correlation, its text, or None"),
            ("proxy_attention", proxy_attention, ProxyAttention, "a ProxyAttention or None"),
            ("overview", overview, Overview, "an Overview or None"),
            ("pieces", pieces, Pieces, "a Pieces, or None for the base's own"),
        ):
            if value is not None:
                check_type(name, value, kinds, words)
        check_modules(rcs, sfr)
        if tuple(tower.convolution.stride) != tower.patch_size:
            raise TypeError(
                f"the tower's patches of {tower.patch_size} pixels overlap, its stride is "
                f"{tuple(tower.convolution.stride)}: use a tower whose patches lie side by side"
            )
        check_proxy(self.base, proxy, correlation, kind)
        self.correlation = correlation or self.base.correlation
        if sfr is not None and self.base.proxy is None and not self.correlation.has_score:
            raise ValueError(
                f"SFR changes the score of the attention, and correlation {self.correlation.scores!r} of base {base!r} "
                "has none: use sfr=None or another correlation"
            )
        if sfr is not None and tower.text_obstacle is not None:
            raise ValueError(
                f"SFR segments by text, and {tower.text_obstacle}; without SFR this tower can be used"
            )
        self.pieces = self.base.pieces if pieces is None else pieces
        check_pieces(self.pieces, self.base, self.correlation, tower)
        if overview is not None:
            check_overview(self.base, self.correlation, self.pieces)
        if self.base.feature_surgery and not tower.has_cls:
            raise ValueError(
                f"base {self.base.name!r} weighs texts by [CLS], and this tower has none: use a tower with [CLS], or "
                "another base with the same pieces"
            )
        self.overview = overview
        self.tower = tower
        self.rcs = rcs
        self.sfr = sfr
        self.layers = () if rcs is None else rcs.layers_of(tower.depth)
        has_prior = self.base.neighbourhood_std is not None and self.correlation.has_score
        self.neighbourhood_std = neighbourhood_std if has_prior else None
        self.kind: FinalBlockKind = kind or self.base.final_block
        self.proxy = proxy
        self.proxy_attention = proxy_attention or self.base.proxy
        if sfr is not None and self.proxy_attention and not self.proxy_attention.masked:
            raise ValueError(
                "SFR raises entries of the proxy's score above its mask, and masked=False leaves no mask: "
                "use sfr=None, or masked=True"
            )
        self.implementation = check_implementation(implementation)
        layer = self.correlation.layer
        if layer is not None and layer > tower.depth:
            raise ValueError(
                f"correlation layer must lie between 1 and {tower.depth}, the tower's depth; got {layer}"
            )
        if self.correlation.blocks > tower.depth:
            raise ValueError(
                f"correlation blocks must lie between 1 and {tower.depth}, the tower's depth; got "
                f"{self.correlation.blocks}"
            )
        self.random_projections = self.draw_projections()
        self.learned_projection = self.read_projection()

    def draw_projections(self) -> Tensor | None:
        """(N, D, D) of correlation "random": normal with variance 1 / D, drawn on the CPU whatever the device."""
        if self.correlation.scores != "random":
            return None
        width = self.tower.width
        generator = torch.Generator().manual_seed(self.correlation.seed)
        drawn = torch.randn(self.correlation.projections, width, width, generator=generator)
        scaled: Tensor = drawn / width**0.5
        return scaled.to(self.tower.device, self.tower.dtype)

    def read_projection(self) -> Tensor | None:
        """(1, D, D) of correlation "learned", out of its file.

        Raises:
            ValueError: the file cannot be read, or its projection does not fit the tower.
        """
        path = self.correlation.path
        if path is None:
            return None
        try:
            weights = read_weights(Path(path))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"cannot read the learned projection {path!r}: {reason(error)}"
            ) from error
        matrix, width = weights.get(PROJECTION), self.tower.width
        if matrix is None or matrix.shape != (width, width) or not matrix.isfinite().all():
            got = "none" if matrix is None else f"one of {tuple(matrix.shape)}"
            raise ValueError(
                f"{path!r} must hold a finite {PROJECTION!r} of ({width}, {width}), the width of the tower's tokens; "
                f"got {got}: learn one with this model"
            )
        return matrix.to(self.tower.device, self.tower.dtype).unsqueeze(0)

    def on(self, entrance: nn.Module) -> FinalBlock:
        """The same method over a replica of the tower; see `Tower.on`."""
        tower = self.tower.on(entrance)
        if tower is self.tower:
            return self
        other = copy.copy(self)
        other.tower = tower
        return other

    @property
    def kept_tokens(self) -> int:
        """How many (B, L, D) are kept of the blocks before, beside RCS's."""
        return 0

    def trace(self, pixels: Tensor, grid: tuple[int, int]) -> Trace:
        """What a forward pass of these pixels keeps of the blocks before this one."""
        return Trace(self, pixels, grid)

    def run_proxy(self, pixels: Tensor) -> Tensor | None:
        """The proxy's features (B, C, H_v, W_v); None where the base has none.

        Raises:
            TypeError, ValueError: the proxy gave anything else.
        """
        if self.proxy is None:
            return None
        features = self.proxy(pixels)
        if not isinstance(features, Tensor):
            raise TypeError(
                f"proxy= must return a tensor of features (B, C, H, W); got {type(features).__name__}"
            )
        if features.ndim != 4 or features.shape[0] != pixels.shape[0] or 0 in features.shape[1:]:
            raise ValueError(
                f"proxy= must return features (B, C, H, W) for {pixels.shape[0]} images; got {tuple(features.shape)}"
            )
        return features

    def make_traced_inputs(self, block: Any, tokens: Tensor, trace: Trace) -> Any:
        """What the final block's passes read, from its input (B, L, D) and what was kept on the way to it."""
        return self.make_inputs(
            block, tokens, trace.grid, trace.cross_layers, trace.compared, trace.features
        )

    def make_inputs(
        self,
        block: Any,
        tokens: Tensor,
        grid: tuple[int, int],
        cross_layers: Sequence[tuple[Tensor, Tensor]] = (),
        compared: tuple[Tensor, Tensor, Tensor] | None = None,
        features: Tensor | None = None,
    ) -> FinalInputs:
        """What the final block's passes read.

        Args:
            block: the final block's modules.
            tokens: its input (B, L, D).
            grid: (h, w) in patches.
            cross_layers: (q, k) of the middle blocks that RCS averages.
            compared: LN1's output, q and k of the block whose tokens are compared; None for the final one's.
            features: of the proxy.
        """
        with fast_linear():
            normed = self.tower.norm(block, tokens)
            query, key, value = self.tower.project_qkv(block, normed, grid)
        normed, query, key = compared or (normed, query, key)
        projections = self.project(normed, query, key, value)
        if self.pieces.alignment is not None:
            query, key = self.align(query, key, int(self.tower.has_cls))
        return FinalInputs(
            tokens, value, query, key, projections, tuple(cross_layers), grid, features
        )

    def align(self, query: Tensor, key: Tensor, skip: int) -> tuple[Tensor, Tensor]:
        """q and k of `KeyAlignment`, twice as wide; `skip` counts [CLS]."""
        if self.pieces.alignment is None:
            return query, key
        return aligned(query, key, self.pieces.alignment, skip)

    def project(
        self, normed: Tensor, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, ...]:
        """What is compared by correlations that do not compare q and k alone: (B, A, L, d) each, from x (B, L, D)."""
        if "vv" in self.correlation.scores:
            parts = {"q": query, "k": key, "v": value}
            return tuple(parts[score[0]] for score in self.correlation.scores.split("+"))
        matrices = (
            self.learned_projection if self.random_projections is None else self.random_projections
        )
        if self.correlation.scores == "xx":
            projected = [normed]
        elif matrices is not None:
            projected = [normed @ matrix for matrix in matrices.to(normed)]
        else:
            projected = []
        return tuple(split_heads(x, self.tower.heads) for x in projected)

    def run_passes(self, inputs: FinalInputs, pixels: Tensor | None, text: Tensor | None) -> Pass:
        """The first pass, and one more per round of SFR, into which the segmentation of the pass before is fed back."""
        result = self.run(inputs, None, None)
        if self.sfr is None or text is None or pixels is None:
            return result
        for _ in range(self.sfr.rounds):
            patches, cls = self.features(inputs, result.tokens)
            labels = self.segment_patches(self.sfr, patches, pixels, text, cls)
            feedback = semantic_feedback(
                labels, self.sfr.feedback_options(), implementation=self.implementation
            )
            result = self.run(inputs, feedback, result.cross_layer)
            # Labels below 0 are those of an image whose logits held NaN, and so will its logits after this pass.
            is_broken = (labels[:, 0, 0] < 0)[:, None, None]
            result = result._replace(tokens=result.tokens.masked_fill(is_broken, torch.nan))
        return result

    def logits(self, patches: Tensor, cls: Tensor | None, text: Tensor) -> Tensor:
        """The method's logits: (B, Q, h, w), float32 or wider, of `features`' results and unit rows (Q, E).

        Cosines, or what CLIP Surgery makes of them.
        """
        if not self.base.feature_surgery:
            return similarity(patches, text)
        if cls is None:
            raise ValueError(
                f"base {self.base.name!r} weighs texts by [CLS]: pass its features, (B, E), with the patches'"
            )
        return feature_surgery(patches, cls, text)

    @torch.no_grad()
    def segment_patches(
        self, sfr: SFR, patches: Tensor, pixels: Tensor, text: Tensor, cls: Tensor | None = None
    ) -> Tensor:
        """The query of every patch: (B, h, w) labels from (B, h, w, E) features, and [CLS]'s (B, E).

        A proxy's patch need not be a whole number of pixels wide: the guide is then resized so that it is.
        """
        cell = self.tower.patch_size
        guide = pixels.to(self.tower.dtype)
        if self.proxy is not None:
            cell = (
                cell_side(pixels.shape[2], patches.shape[1]),
                cell_side(pixels.shape[3], patches.shape[2]),
            )
            size = (cell[0] * patches.shape[1], cell[1] * patches.shape[2])
            if size != tuple(pixels.shape[2:]):
                guide = resize_planes(guide, size)
        return patch_labels(
            self.logits(patches, cls, text),
            guide,
            patch_size=cell,
            logit_scale=sfr.logit_scale,
            threshold=sfr.label_threshold,
            refine_iterations=sfr.refine_iterations,
            implementation=self.implementation,
        )

    def make_coarse(self, inputs: FinalInputs) -> Coarse:
        """The keys and values of whole images, to which their windows will attend."""
        return Coarse(tuple(right for _, right in self.operands(inputs)), inputs.value)

    def add_overview(self, inputs: FinalInputs, coarse: Coarse) -> FinalInputs:
        """The inputs together with what their tokens gather from a coarse pass: once for all passes."""
        gathered = attend_coarse(
            [left for left, _ in self.operands(inputs)],
            coarse,
            self.correlation.temperature,
            plain=self.implementation is Implementation.REFERENCE,
        )
        # The base's map is the mean over random projections, and the sum of all its other scores.
        count = len(inputs.projections) if self.op_correlation(inputs) == "pp" else 1
        return inputs._replace(overview=gathered / count)

    def operands(self, inputs: FinalInputs) -> list[tuple[Tensor, Tensor]]:
        """(x, y) of every score x yᵀ that the base compares tokens by."""
        return score_operands(
            self.op_correlation(inputs), inputs.query, inputs.key, inputs.projections
        )

    def op_correlation(self, inputs: FinalInputs) -> OpCorrelation:
        """The correlation under the op's names; see `op_name`."""
        return self.op_name(bool(inputs.projections))

    def op_name(self, projects: bool) -> OpCorrelation:
        """The op's name: "pp" for those that name what is projected ("xx", "vv", …), "pp-sum" for "qq+kk+vv"."""
        if self.correlation.scores == "qq+kk+vv":
            return "pp-sum"
        return "pp" if projects else cast(OpCorrelation, self.correlation.scores)

    def run(
        self, inputs: FinalInputs, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> Pass:
        """One pass: the attention and the rest of the block."""
        tower, block = self.tower, self.tower.block_list[-1]
        attend = self.attend if inputs.features is None else self.attend_by_proxy
        attended, cross_layer = attend(inputs, feedback, cross_layer)
        # Around the layers alone: it costs a microsecond for every call of torch.
        with fast_linear():
            tokens = self.finish(block, inputs.tokens, tower.project_out(block, attended))
        return Pass(tokens, cross_layer, feedback)

    def patch_keys(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, n, D): out_proj(k) with its bias, the keys of all heads of the patches, from the block's input (B, L, D).

        What MaskCLIP compares patches by (`resclip.steps.prompt_denoising`).
        """
        tower, block = self.tower, self.tower.block_list[-1]
        with fast_linear():
            _, key, _ = tower.project_qkv(block, tower.norm(block, tokens), grid)
            keys: Tensor = tower.attention_output(block, key[:, :, int(tower.has_cls) :])
        return keys

    def finish(self, block: Any, tokens: Tensor, projected: Tensor) -> Tensor:
        """The rest of the block, as `kind` says, from its input and its attention's output: (B, L, D) each."""
        if self.kind == "attention_only":
            return projected
        if self.kind == "full_residual":
            projected = tokens + projected
        return self.tower.feed_forward(block, projected)

    def features(self, inputs: Any, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tower's head on a pass's tokens: (B, h, w, E) of the patches, and (B, E) of [CLS] where it is there."""
        with fast_linear():
            tokens = self.tower.head(tokens)
        skip = tokens.shape[1] - math.prod(inputs.output_grid)
        patches = tokens[:, skip:].unflatten(1, inputs.output_grid)
        return patches, tokens[:, 0] if skip else None

    def image_vectors(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, E): [CLS] by CLIP's own final block and head, from the block's input (B, L, D); what CLIP compares."""
        tower, block = self.tower, self.tower.block_list[-1]
        with fast_linear():
            heads = tower.project_qkv(block, tower.norm(block, tokens), grid)
            vectors: Tensor = tower.head(self.own_cls(tokens, *heads))[:, 0]
        return vectors

    def own_cls(self, tokens: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, 1, D): [CLS] behind CLIP's own final block, from the block's input (B, L, D) and its projections."""
        tower, block = self.tower, self.tower.block_list[-1]
        attended = deterministic_attention(query[:, :, :1], key, value)
        return tower.feed_forward(block, tokens[:, :1] + tower.project_out(block, attended))

    def attend(
        self, inputs: FinalInputs, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The base's attention with SFR and RCS: (B, A, L, d), and A_c·v for the next pass."""
        attended, cross_layer = residual_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            self.attention_options(inputs),
            projections=inputs.projections,
            feedback=feedback,
            cross_layers=inputs.cross_layers,
            cross_layer=cross_layer,
            implementation=self.implementation,
        )
        if self.overview is not None and inputs.overview is not None:
            attended = torch.lerp(
                attended, self.with_rcs(inputs.overview, cross_layer), self.overview.weight
            )
        return attended, cross_layer

    def with_rcs(self, attended: Tensor, cross_layer: Tensor | None) -> Tensor:
        """τ_r · ((1 − λ_r) · attended + λ_r · A_c·v): what `residual_attention` makes of the base's attention.

        RCS's sum is linear, so that mixing two of its results is mixing what came into it.
        """
        if self.rcs is None or cross_layer is None:
            return attended
        return self.rcs.temperature * torch.lerp(attended, cross_layer, self.rcs.weight)

    def attend_before(
        self, normed: Tensor, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """(B, A, L, d): the correlation in a block before the final one, which has no prior, SFR or RCS.

        Args:
            normed: LN1's output (B, L, D).
            query, key, value: its projections, (B, A, L, d) each.
            grid: (h, w) in patches.
        """
        projections = self.project(normed, query, key, value)
        return residual_attention(
            query,
            key,
            value,
            projections=projections,
            grid=grid,
            correlation=self.op_name(bool(projections)),
            score_temperature=self.correlation.temperature,
            window=self.correlation.window,
            implementation=self.implementation,
        ).output

    def attention_options(self, inputs: FinalInputs) -> AttentionOptions:
        """What decides the map of `residual_attention` beside its tensors."""
        options = self.base_options(inputs.grid, bool(inputs.projections))
        return replace(options, **self.rcs.attention_options()) if self.rcs else options

    def base_options(self, grid: tuple[int, int], projects: bool) -> AttentionOptions:
        """The base's map with SFR's weights, without RCS."""
        # Aligned keys are twice as wide, and their score stays over the root of a head's width.
        widened = 1.0 if self.pieces.alignment is None else 0.5**0.5
        return AttentionOptions(
            grid=grid,
            correlation=self.op_name(projects),
            score_temperature=self.correlation.temperature * widened,
            window=self.correlation.window,
            neighbourhood_std=self.neighbourhood_std,
            **(self.sfr.attention_options() if self.sfr else {}),
        )

    def attend_by_proxy(
        self, inputs: FinalInputs, feedback: SemanticFeedback | None, cross_layer: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """ProxyCLIP's attention with SFR and RCS: (B, A, H_v·W_v, d), and A_c·v on that grid for the next pass.

        SFR works on the proxy's grid, RCS on CLIP's: A_c·v is computed there, without [CLS]'s row, and then resized
        bilinearly to the proxy's grid, which resizes the rows of A_c and leaves its columns as they are.
        """
        features = inputs.features
        if features is None:
            raise ValueError("expected the features of a proxy; got None")
        skip = int(self.tower.has_cls)
        value = inputs.value[:, :, skip:]
        options = self.proxy_options()
        if self.proxy_attention is not None and not self.proxy_attention.masked:
            resized = resize_heads(value, inputs.grid, inputs.output_grid)
            attended = unmasked_attention(features, resized, options.gamma)
        else:
            attended = proxy_attention(
                features,
                value,
                options,
                grid=inputs.grid,
                feedback=feedback,
                implementation=self.implementation,
            )
        if self.rcs is None:
            return attended, None
        if cross_layer is None:
            averaged = residual_attention(
                inputs.query,
                inputs.key,
                inputs.value,
                grid=inputs.grid,
                correlation="identity",
                cross_layers=inputs.cross_layers,
                implementation=self.implementation,
            ).cross_layer
            if averaged is None:
                raise ValueError("RCS needs at least one layer")
            cross_layer = resize_heads(averaged[:, :, skip:], inputs.grid, inputs.output_grid)
        return self.with_rcs(attended, cross_layer), cross_layer

    def proxy_options(self) -> ProxyAttentionOptions:
        """What decides the map of `proxy_attention` beside its tensors."""
        options = self.proxy_attention or ProxyAttention()
        return ProxyAttentionOptions(
            beta=options.beta,
            gamma=options.gamma,
            **(self.sfr.attention_options() if self.sfr else {}),
        )


def unmasked_attention(features: Tensor, value: Tensor, gamma: float) -> Tensor:
    """softmax(γ · X Xᵀ)·v, the same map for every head: ProxyCLIP's attention without its mask.

    γ·β·mean(X Xᵀ) is the same in all entries of a row, so that without a mask the softmax does not see it.

    Args:
        features: (B, C, H_v, W_v) of the proxy.
        value: (B, A, H_v·W_v, d) on its grid.
        gamma: γ > 0.

    Returns:
        (B, A, H_v·W_v, d) in `value`'s dtype.
    """
    unit = unit_positions(features).unsqueeze(1)
    # All heads side by side in one product: they share the map.
    together = value.transpose(1, 2).flatten(2).unsqueeze(1).to(unit.dtype)
    attended = deterministic_attention(unit, unit, together, scale=gamma)
    by_head: Tensor = attended.squeeze(1).unflatten(-1, (value.shape[1], value.shape[3]))
    return by_head.transpose(1, 2).to(value.dtype)


def unit_positions(features: Tensor) -> Tensor:
    """X: (B, C, H_v, W_v) → (B, H_v·W_v, C) of unit length, float32 or wider; a position without length stays 0."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(wide.flatten(2).mT, dim=-1)


def cell_side(pixels: int, patches: int) -> int:
    """How many whole pixels a patch takes, nearest to its share of them; at least 1."""
    whole = pixels % patches == 0
    return pixels // patches if whole else max(1, round(pixels / patches))


def resize_heads(heads: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, A, h·w, d) on one grid → (B, A, H·W, d) on another, bilinearly (`align_corners=False`)."""
    if grid == size:
        return heads
    planes = heads.mT.unflatten(-1, grid).flatten(0, 1)  # [B * A, d, h, w]
    wide = torch.promote_types(heads.dtype, torch.float32)
    resized = F.interpolate(planes.to(wide), size=size, mode="bilinear", align_corners=False)
    result: Tensor = resized.to(heads.dtype).flatten(2).mT.unflatten(0, heads.shape[:2])
    return result


def check_proxy(
    base: Base,
    proxy: Callable[[Tensor], Tensor] | None,
    correlation: Correlation | None,
    final_block: FinalBlockKind | None,
) -> None:
    """ValueError unless a proxy is passed exactly where the base attends by one."""
    if base.proxy is None:
        if proxy is not None:
            raise ValueError(
                f"base {base.name!r} has no use for a proxy; use base 'proxyclip', or proxy=None"
            )
        return
    if proxy is None:
        raise ValueError(
            f"base {base.name!r} takes its attention from another vision model: pass proxy=, such as "
            "resclip.models.proxy_models.find_proxy('colour') or find_proxy('vit_base_patch8_224.dino')"
        )
    if correlation is not None:
        raise ValueError(
            f"base {base.name!r} compares the proxy's features, so correlation must be None; "
            f"got {correlation.scores!r}"
        )
    if final_block not in (None, base.final_block):
        raise ValueError(
            f"base {base.name!r} works on the proxy's grid, where the final block has no residual: "
            f"final_block must be None or {base.final_block!r}; got {final_block!r}"
        )


def check_pieces(pieces: Pieces, base: Base, correlation: Correlation, tower: Tower) -> None:
    """ValueError where a piece has no sense on this base or tower."""
    changing = [name for name, _ in pieces.items() if name not in ("denoising", "refocusing")]
    if base.proxy is not None and changing:
        raise ValueError(
            f"base {base.name!r} attends by another model's features, which {', '.join(changing)} does not change: "
            "leave it out, or use another base"
        )
    if pieces.alignment is not None and correlation.scores != "qk":
        raise ValueError(
            "KeyAlignment rotates keys towards the queries that they are compared with: it takes correlation 'qk'; "
            f"got {correlation.scores!r}"
        )
    if correlation.layer is not None and changing:
        raise ValueError(
            f"correlation layer={correlation.layer} compares another block's tokens, and {', '.join(changing)} changes "
            "the final block's: leave one of them out"
        )
    if pieces.denoising is not None:
        shape = (tower.depth, tower.width, tower.patch_size[0])
        if not pieces.denoising.channels_of(*shape):
            warnings.warn(
                f"base {base.name!r} denoises tokens by channels that stand out, and which do is known for OpenAI's "
                f"ViT-B/16 and ViT-L/14 alone: this tower of {shape[0]} blocks, {shape[1]} wide, is not denoised; name "
                "its channels: --piece denoising:channels=…, or Denoising(channels=…)",
                UnknownChannelsWarning,
                stacklevel=2,
            )


def check_overview(base: Base, correlation: Correlation, pieces: Pieces) -> None:
    """ValueError unless the base compares tokens, so that it can compare them with those of a coarse pass."""
    own = [name for name, _ in pieces.items() if name not in ("denoising", "refocusing")]
    if own:
        raise ValueError(
            f"an overview is not defined for the pieces {', '.join(own)} of base {base.name!r}: use overview=None or "
            "another base"
        )
    if base.proxy is not None:
        raise ValueError(
            f"an overview compares CLIP's tokens, and base {base.name!r} attends by another model's features: "
            "use overview=None or another base"
        )
    if correlation.scores in ("identity", "none"):
        raise ValueError(
            f"an overview attends by what the base compares, and correlation {correlation.scores!r} of base "
            f"{base.name!r} compares nothing: use overview=None or another correlation"
        )
