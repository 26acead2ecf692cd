"""`DenseEncoder`: runs a vision tower and rebuilds its final block, which gives dense features, patch by patch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from resclip.encoder.attention_maps import (
    AttentionMaps,
    LayerMaps,
    layer_maps,
    proxy_maps,
    tower_maps,
)
from resclip.encoder.final_block import Coarse
from resclip.encoder.method_blocks import make_final_block
from resclip.encoder.trace import BlockStep, Trace
from resclip.methods.catalogue import (
    RCS,
    SFR,
    FinalBlockKind,
    Overview,
    ProxyAttention,
)
from resclip.methods.correlation import Correlation
from resclip.methods.pieces import Pieces
from resclip.models import Tower, adapt
from resclip.models.tower import POSITIONS, constant_in_graphs
from resclip_kernels import (
    Implementation,
    check_choice,
    check_count,
    check_flag,
    check_implementation,
    check_pair,
    check_type,
    deterministic_attention,
    fast_linear,
    quoted,
    residual_attention,
)


@dataclass(frozen=True)
class DenseFeatures:
    """What the encoder returns for a batch."""

    patches: Tensor
    """(B, h, w, E): projected into the text's space, not unit-normed. With a proxy (h, w) is the proxy's grid."""
    cls: Tensor | None
    """(B, E): the [CLS] token after the same final block; None where there is none (SigLIP's towers, ProxyCLIP)."""
    feedback_labels: Tensor | None
    """(B, h, w) int64: the query of each patch in the last segmentation that was fed back; None without SFR."""
    context: Mapping[str, Tensor] = field(default_factory=dict)
    """What was asked for with `wanted`, by name; each begins with the batch."""


@dataclass(frozen=True, eq=False)
class BeforeText:
    """What a batch's final block reads, before any word is known: `DenseEncoder.complete` makes features of it."""

    inputs: Any
    """What the passes of the method's final block read."""
    context: dict[str, Tensor]
    """What was asked for with `wanted`."""


WANTED: Mapping[str, str] = {
    "image": "CLIP's own vector of the image, (B, E)",
    "keys": "the final block's keys behind its output projection, (B, n, D)",
    "spread": "the mean query-key map of the blocks before the final one, among patches, (B, n, n)",
    "correlation": "cosines of q, k and v among tokens in the last block but one, (B, L, L)",
    "features": "the proxy's features, (B, C, H_v, W_v)",
}
"""What `DenseEncoder.forward` can hand over beside features, for steps behind the tokens."""


class DenseEncoder(nn.Module):
    """A CLIP vision tower whose final block gives one feature per patch that says what is there.

    Args:
        visual: an image tower or a CLIP model, see `resclip.models.adapt`; used as it is, in eval mode.
        base: a name of `resclip.methods.catalogue.BASES`.
        rcs: residual cross-correlation self-attention, or None.
        sfr: semantic feedback refinement, or None.
        neighbourhood_std: σ of NACLIP's prior, in patches (only the bases that have one); None for no prior.
        final_block: "attention_only", "full_residual" or "attention_and_mlp"; None for the base's own.
        implementation: of the ops; "auto", "triton", "torch" or "reference".
        correlation: what is compared, as a `Correlation` or its text; None for the base's own.
        proxy: for base "proxyclip" the vision model: a function of normalised pixels (B, 3, H, W) that returns
            features (B, C, H_v, W_v), such as `resclip.models.proxy_models.find_proxy` makes.
        proxy_attention: ProxyCLIP's β, γ and mask; None for the base's own.
        overview: the final block also attends to a coarse pass over the whole image, of which the pixels given to
            `forward` are a window; None: to these pixels alone.
        pieces: what is done to tokens and maps beside the attention; None: the base's own.
        position: how position embeddings are resized for another grid than the trained one: "released" (bicubic, by
            ResCLIP's program's scale factors), "bicubic", "antialias" (bicubic) or "bilinear"; None: the base's own.
        inference: True computes no gradients. With False they flow from the features to the pixels and to the tower's
            parameters (a proxy's, if they require any), wherever the caller's grad mode lets them; "auto" is then
            "torch", and neither "triton" nor "library" can be named. What a method decides is a constant to them:
            SFR's labels, and so text, which is read for these alone; outliers, sinks, channels and heads that are
            picked; and which entries of a map are cut.

    Raises:
        TypeError: `visual` is no vision transformer that can be rebuilt, or was changed in a way that the encoder
            would ignore; `forward` looks for such changes too, as far as `Tower.check_host` can see them.
        ValueError: an unknown name, a layer outside the tower, SFR or an overview on a base without a score, a proxy
            that is missing or has no use.
    """

    def __init__(
        self,
        visual: nn.Module,
        base: str = "naclip",
        rcs: RCS | None = None,
        sfr: SFR | None = None,
        neighbourhood_std: float | None = 5.0,
        final_block: FinalBlockKind | None = None,
        implementation: Implementation | str = Implementation.AUTO,
        *,
        correlation: Correlation | str | None = None,
        proxy: Callable[[Tensor], Tensor] | None = None,
        proxy_attention: ProxyAttention | None = None,
        overview: Overview | None = None,
        pieces: Pieces | None = None,
        position: str | None = None,
        inference: bool = True,
    ) -> None:
        super().__init__()
        check_flag("inference", inference)
        if not inference:
            implementation = implementation_with_gradients(implementation)
        if position is not None:
            check_choice("position", position, tuple(POSITIONS), ", or None for the base's own")
        self.inference = inference
        self.tower = adapt(visual)
        self.final = make_final_block(
            self.tower,
            base,
            rcs,
            sfr,
            neighbourhood_std,
            final_block,
            implementation,
            correlation=correlation,
            proxy=proxy,
            proxy_attention=proxy_attention,
            overview=overview,
            pieces=pieces,
        )
        self.tower.check_host()
        if self.tower is not visual:
            self.tower.check_result()
        self.base = self.final.base
        self.position = self.base.position if position is None else position
        self.correlation = self.final.correlation
        self.pieces = self.final.pieces
        self.overview = overview
        self.rcs = rcs
        self.sfr = sfr
        self.layers = self.final.layers
        self.neighbourhood_std = self.final.neighbourhood_std
        self.final_block: FinalBlockKind = self.final.kind
        self.proxy = proxy
        self.implementation = self.final.implementation
        self.eval()  # Last, so that a model that is refused stays in its mode.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DenseEncoder:
        """What `to`, `half` and the like do, for the final block's own tensors too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        final = self.final
        if final.random_projections is not None:
            final.random_projections = fn(final.random_projections)
        if final.learned_projection is not None:
            final.learned_projection = fn(final.learned_projection)
        return self

    def forward(
        self,
        pixels: Tensor,
        text: Tensor | None = None,
        coarse: Coarse | None = None,
        *,
        wanted: Collection[str] = (),
    ) -> DenseFeatures:
        """Dense features of a batch of images, or windows of images, of one size.

        Args:
            pixels: (B, 3, H, W), normalised with the model's mean and standard deviation; any size of at least one
                patch, and a remainder past the last whole patch is not seen.
            text: (Q, E) unit rows, one per query; needed when `sfr` is on, and read only then.
            coarse: for an encoder with an overview, B coarse passes: of the image that each of `pixels` is cut from.
            wanted: names of `WANTED`, for `DenseFeatures.context`.

        Returns:
            Features of each image, which do not depend on the other images of the batch.

        Raises:
            TypeError, ValueError: a shape or dtype that does not fit.
        """
        self.check(pixels, text)
        check_coarse(coarse, self.overview, len(pixels))
        self.check_wanted(wanted)
        with self.grad_mode():
            return self.compute(pixels, text, coarse, wanted)

    def compute(
        self,
        pixels: Tensor,
        text: Tensor | None,
        coarse: Coarse | None,
        wanted: Collection[str],
    ) -> DenseFeatures:
        """What `forward` gives, of checked arguments, in the caller's grad mode."""
        return self._complete(self._read(pixels, coarse, wanted), pixels, text)

    def read(
        self, pixels: Tensor, coarse: Coarse | None = None, *, wanted: Collection[str] = ()
    ) -> BeforeText:
        """The part of `forward` that reads no text: all blocks but the final one's passes.

        Args: see `forward`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        self.check_model()
        check_pixels(pixels, self.tower)
        check_coarse(coarse, self.overview, len(pixels))
        self.check_wanted(wanted)
        with self.grad_mode():
            return self._read(pixels, coarse, wanted)

    def complete(
        self, read: BeforeText, pixels: Tensor | None, text: Tensor | None
    ) -> DenseFeatures:
        """The features of what was read, for some text.

        Args:
            read: of `read`, by this encoder.
            pixels, text: as in `forward`; without SFR they are not looked at, and may be None.

        Raises:
            TypeError, ValueError: SFR without pixels, or with a text that does not fit.
        """
        if self.sfr is not None:
            check_text(text, self.tower.output_dim)
            check_type(
                "pixels", pixels, Tensor, "the pixels that were read: SFR refines labels by them"
            )
        with self.grad_mode():
            return self._complete(read, pixels, text)

    def _complete(
        self, read: BeforeText, pixels: Tensor | None, text: Tensor | None
    ) -> DenseFeatures:
        final = self.final.run_passes(read.inputs, pixels, text)
        labels = None if final.feedback is None else final.feedback.labels
        return DenseFeatures(*self.final.features(read.inputs, final.tokens), labels, read.context)

    def grad_mode(self) -> AbstractContextManager[Any]:
        """Within it nothing is kept for a gradient, unless this encoder is to have some."""
        return torch.no_grad() if self.inference else nullcontext()

    def _read(self, pixels: Tensor, coarse: Coarse | None, wanted: Collection[str]) -> BeforeText:
        with fast_linear():
            tokens, trace = self._run_blocks(pixels, wanted)
            inputs = self.final.make_traced_inputs(self.tower.block_list[-1], tokens, trace)
        if coarse is not None:
            inputs = self.final.add_overview(inputs, coarse)
        context = trace.context
        if "image" in wanted:
            context["image"] = self.final.image_vectors(tokens, trace.grid)
        if "features" in wanted and trace.features is not None:
            context["features"] = trace.features
        if "keys" in wanted:
            context["keys"] = self.final.patch_keys(tokens, trace.grid)
        return BeforeText(inputs, context)

    def coarse(self, pixels: Tensor) -> Coarse:
        """The coarse passes of whole images, to which their windows attend, for an encoder with an overview.

        Args:
            pixels: (B, 3, H, W), normalised: whole images, resized to `Overview.size`.

        Raises:
            TypeError, ValueError: a shape or dtype that does not fit, or an encoder without an overview.
        """
        if self.overview is None:
            raise ValueError(
                "this encoder has no overview to make a coarse pass for: give DenseEncoder an Overview"
            )
        check_pixels(pixels, self.tower)
        with self.grad_mode():
            return self.final.make_coarse(self.run_blocks(pixels))

    @overload
    def attention(
        self,
        pixels: Tensor,
        query: tuple[int, int] | None = ...,
        text: Tensor | None = ...,
        *,
        layer: None = ...,
        head: int | None = ...,
    ) -> AttentionMaps: ...
    @overload
    def attention(
        self,
        pixels: Tensor,
        query: tuple[int, int] | None = ...,
        text: Tensor | None = ...,
        *,
        layer: int,
        head: int | None = ...,
    ) -> LayerMaps: ...
    @torch.no_grad()
    def attention(
        self,
        pixels: Tensor,
        query: tuple[int, int] | None = None,
        text: Tensor | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
    ) -> AttentionMaps | LayerMaps:
        """The maps that `forward` attends with, for one patch or for all; without gradients.

        Args:
            pixels, text: as in `forward`.
            query: (row, column) of a patch of the result's grid; None for every patch, which holds n² entries per head
                and map and is meant for small grids.
            layer: a block, counted from 1 as in `RCS(layers=...)`, whose own attention is wanted in place of the
                method's maps: softmax(q kᵀ/√d) of any block, on the tower's grid. `text` is not read then.
            head: one head alone, counted from 1; None for all.

        Returns:
            Base, cross-layer, feedback and final maps (figures 1 and 3 of arXiv 2411.15851), or `LayerMaps`.

        Raises:
            TypeError, ValueError: as `forward`, a patch outside the grid, a layer or head that there is not, and, where
                no layer is named, an encoder with an overview, whose maps reach beyond these pixels.
        """
        if head is not None:
            check_number_of("head", head, self.tower.heads, "heads")
        if layer is not None:
            return self._layer_maps(pixels, query, layer, head)
        if self.overview is not None:
            raise ValueError(
                "attention maps lie on one image, and with an overview a patch attends to a second one: "
                "use an encoder with overview=None"
            )
        if self.final.needs_trace:
            raise ValueError(
                f"base {self.base.name!r} {self.final.needs_trace}, so that no one map tells what a patch gathers: "
                "attention maps are there for bases without such pieces"
            )
        self.check(pixels, text)
        inputs = self.run_blocks(pixels)
        rows = patch_rows(query, inputs.output_grid, pixels.device)
        feedback = self.final.run_passes(inputs, pixels, text).feedback
        if inputs.features is None:
            maps = tower_maps(self.final, inputs, rows, feedback)
        else:
            maps = proxy_maps(self.final, inputs, inputs.features, rows, feedback)
        return maps if head is None else maps.of_head(head)

    def _layer_maps(
        self, pixels: Tensor, query: tuple[int, int] | None, layer: int, head: int | None
    ) -> LayerMaps:
        """One block's own attention, for `attention`."""
        tower = self.tower
        check_number_of("layer", layer, tower.depth, "layers")
        self.check_model()
        check_pixels(pixels, tower)
        grid = tower.grid(pixels.shape[2], pixels.shape[3])
        rows = patch_rows(query, grid, pixels.device)
        with fast_linear():
            tokens, trace = self._run_blocks(pixels, shown=layer)
            if trace.shown is None:
                block = tower.block_list[-1]
                trace.shown = tower.project_qkv(block, tower.norm(block, tokens), grid)[:2]
        return layer_maps(*trace.shown, rows, grid, layer, head)

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """(B, E): CLIP's own vector of whole images, its [CLS] by its own final block, not unit-normed.

        The blocks before run as the method runs them.

        Args:
            pixels: as in `forward`.

        Raises:
            TypeError, ValueError: as `forward`; a tower without [CLS].
        """
        self.check_wanted(("image",))
        self.check_model()
        check_pixels(pixels, self.tower)
        with self.grad_mode(), fast_linear():
            tokens, trace = self._run_blocks(pixels)
            return self.final.image_vectors(tokens, trace.grid)

    def run_blocks(self, pixels: Tensor) -> Any:
        """Run all blocks but the final one, and project what the final one's passes read."""
        with fast_linear():
            tokens, trace = self._run_blocks(pixels)
            return self.final.make_traced_inputs(self.tower.block_list[-1], tokens, trace)

    def _run_blocks(
        self, pixels: Tensor, wanted: Collection[str] = (), shown: int | None = None
    ) -> tuple[Tensor, Trace]:
        """The final block's input (B, L, D), and what is kept of the blocks before; linear layers as they are.

        `shown` is the number of a block whose q and k the trace keeps.
        """
        tower = self.tower
        grid = tower.grid(pixels.shape[2], pixels.shape[3])
        trace = self.final.trace(pixels, grid)
        trace.wanted = frozenset(wanted)
        pixels = pixels.to(tower.dtype)
        # Before the final block attention is plain: torch's own, or the formula's with its map in memory.
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] = deterministic_attention
        if self.implementation is Implementation.REFERENCE:
            attend = partial(plain_attention, grid=grid)
        tokens = tower.embed(pixels, self.position)
        for number, block in enumerate(tower.blocks[:-1], start=1):
            normed = tower.norm(block, tokens)
            query, key, value = tower.project_qkv(block, normed, grid)
            if number == shown:
                trace.shown = query, key
            attended = trace.attend(number, normed, (query, key, value), attend)
            output = tower.feed_forward(block, tokens + tower.project_out(block, attended))
            step = BlockStep(number, block, tokens, normed, query, key, value, output)
            tokens = trace.after(step)
        return tokens, trace

    def check_wanted(self, wanted: Collection[str]) -> None:
        """ValueError for what is no name of `WANTED`, or what this tower does not have."""
        for name in wanted:
            if name not in WANTED:
                raise ValueError(
                    f"unknown name {quoted(name)} in wanted; use any of: {', '.join(WANTED)}"
                )
        if "image" in wanted and not self.tower.has_cls:
            raise ValueError(
                "CLIP's vector of an image is its [CLS], and this tower has none: use a tower with [CLS]"
            )
        if "features" in wanted and self.proxy is None:
            raise ValueError(f"base {self.base.name!r} has no proxy, whose features were asked for")
        if {"spread", "correlation"} & set(wanted) and self.tower.depth < 2:
            raise ValueError(
                f"{' and '.join(wanted)} read the blocks before the final one, and this tower has none"
            )

    def check(self, pixels: Tensor, text: Tensor | None) -> None:
        """Raise for inputs that do not fit, and for a model that was changed since, saying what would."""
        self.check_model()
        check_pixels(pixels, self.tower)
        if self.sfr is not None or text is not None:
            check_text(text, self.tower.output_dim)

    @constant_in_graphs
    def check_model(self) -> None:
        """TypeError for a model that was changed since in a way that this encoder would not notice."""
        self.tower.check_host()


def implementation_with_gradients(requested: Implementation | str) -> Implementation:
    """The implementation of an encoder whose gradients are wanted; ValueError for one that has none."""
    implementation = check_implementation(requested)
    if implementation in (Implementation.TRITON, Implementation.LIBRARY):
        raise ValueError(
            f"implementation {implementation.value!r} is for inference, and inference=False asks for gradients: use "
            "'auto' or 'torch', or inference=True"
        )
    return Implementation.TORCH if implementation is Implementation.AUTO else implementation


def check_number_of(name: str, value: int, count: int, things: str) -> None:
    """TypeError or ValueError unless `value` is one of the tower's layers or heads, counted from 1."""
    check_count(name, value, 0)
    if not 1 <= value <= count:
        raise ValueError(
            f"{name} must be a number from 1 to {count}, for the tower has {count} {things}; got {value}"
        )


def patch_rows(
    query: tuple[int, int] | None, grid: tuple[int, int], device: torch.device
) -> Tensor:
    """(R,): the number of the patch at (row, column), or the numbers of all; ValueError for one outside the grid."""
    height, width = grid
    if query is None:
        return torch.arange(height * width, device=device)
    row, column = check_pair("query", query, "(row, column) of a patch", 0)
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f"query must be (row, column) of a patch in the grid of {height} × {width}; got {query}"
        )
    return torch.tensor([row * width + column], device=device)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """softmax(q kᵀ/√d)·v with its map in memory: what the reference computes in the blocks before the final one."""
    return residual_attention(
        query, key, value, grid=grid, correlation="qk", implementation=Implementation.REFERENCE
    ).output


def check_pixels(pixels: Tensor, tower: Tower) -> None:
    """TypeError or ValueError unless these are normalised images of at least one patch."""
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[1] != 3:
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(f"pixels must be a (B, 3, H, W) tensor; got {got}")
    if not pixels.is_floating_point():
        raise TypeError(
            f"pixels must be normalised floats; got {pixels.dtype}. "
            "Divide by 255 and normalise, or pass images to Segmenter.segment"
        )
    height, width = pixels.shape[2:]
    if 0 in tower.grid(height, width):
        patch_height, patch_width = tower.patch_size
        raise ValueError(
            f"an image of {height} × {width} pixels is smaller than one patch of "
            f"{patch_height} × {patch_width}: enlarge it first"
        )


def check_text(text: Tensor | None, width: int) -> None:
    """ValueError unless this is the text that SFR segments by: (Q, width), at least one query."""
    if text is None:
        raise ValueError("SFR segments once before it refines, so it needs text: pass (Q, E)")
    if not isinstance(text, Tensor) or not text.is_floating_point():
        came = str(text.dtype) if isinstance(text, Tensor) else type(text).__name__
        raise TypeError(
            f"text must be a float tensor (Q, {width}), such as Vocabulary.embeddings; got {came}"
        )
    if text.ndim != 2 or text.shape[1] != width or not len(text):
        raise ValueError(
            f"text must be (Q, {width}), the image tower's output width; got {tuple(text.shape)}"
        )


def check_coarse(coarse: Coarse | None, overview: Overview | None, windows: int) -> None:
    """ValueError unless every window has a coarse pass exactly where the encoder has an overview."""
    if overview is None:
        if coarse is not None:
            raise ValueError(
                "this encoder has no overview, so it cannot use a coarse pass: leave coarse out, or give "
                "DenseEncoder an Overview"
            )
        return
    if coarse is None:
        raise ValueError(
            "an encoder with an overview needs the coarse pass of each window's image: "
            "pass coarse=encoder.coarse(images)"
        )
    check_type("coarse", coarse, Coarse, "a Coarse, which encoder.coarse(images) makes")
    if len(coarse) != windows:
        raise ValueError(
            f"expected one coarse pass for each of {windows} windows; got {len(coarse)}: pick each window's "
            "image, such as coarse[[0, 0, 1]]"
        )
