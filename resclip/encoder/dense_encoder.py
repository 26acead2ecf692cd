"""`DenseEncoder`: runs a vision tower and rebuilds its final block, which gives dense features, patch by patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resclip.encoder.attention_maps import AttentionMaps, proxy_maps, tower_maps
from resclip.encoder.final_block import Coarse, FinalBlock, FinalInputs, Pass
from resclip.methods.catalogue import (
    BASES,
    FINAL_BLOCKS,
    RCS,
    SFR,
    Base,
    FinalBlockKind,
    Overview,
    ProxyAttention,
)
from resclip.methods.correlation import Correlation
from resclip.models import Tower, adapt
from resclip_kernels import (
    Implementation,
    check_implementation,
    deterministic_attention,
    patch_labels,
    residual_attention,
    resize_planes,
    semantic_feedback,
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


class DenseEncoder(nn.Module):
    """A CLIP vision tower whose final block gives one feature per patch that says what is there.

    Args:
        visual: an image tower or a CLIP model of open_clip or Hugging Face; used as it is, never changed.
        base: a name of `resclip.methods.catalogue.BASES`.
        rcs: residual cross-correlation self-attention, or None.
        sfr: semantic feedback refinement, or None.
        neighbourhood_std: σ of NACLIP's prior, in patches (only the bases that have one).
        final_block: "attention_only" or "full_residual"; None for the base's own.
        implementation: of the ops; "auto", "triton", "torch" or "reference".
        correlation: what is compared, as a `Correlation` or its text; None for the base's own.
        proxy: for base "proxyclip" the vision model: a function of normalised pixels (B, 3, H, W) that returns
            features (B, C, H_v, W_v), such as `resclip.models.proxy_models.find_proxy` makes.
        proxy_attention: ProxyCLIP's β and γ; None for the base's own.
        overview: the final block also attends to a coarse pass over the whole image, of which the pixels given to
            `forward` are a window; None: to these pixels alone.

    Raises:
        TypeError: `visual` is no vision transformer that can be rebuilt.
        ValueError: an unknown name, a layer outside the tower, SFR or an overview on a base without a score, a proxy
            that is missing or has no use.
    """

    random_projections: Tensor | None
    """(N, D, D) for correlation "random"."""

    def __init__(
        self,
        visual: nn.Module,
        base: str = "naclip",
        rcs: RCS | None = None,
        sfr: SFR | None = None,
        neighbourhood_std: float = 5.0,
        final_block: FinalBlockKind | None = None,
        implementation: Implementation | str = Implementation.AUTO,
        *,
        correlation: Correlation | str | None = None,
        proxy: Callable[[Tensor], Tensor] | None = None,
        proxy_attention: ProxyAttention | None = None,
        overview: Overview | None = None,
    ) -> None:
        super().__init__()
        if base not in BASES:
            raise ValueError(f"unknown base {base!r}; use one of: {', '.join(BASES)}")
        if final_block is not None and final_block not in FINAL_BLOCKS:
            valid = ", ".join(map(repr, FINAL_BLOCKS))
            raise ValueError(
                f"final_block must be one of {valid}, or None for the base's own; got {final_block!r}"
            )
        self.base = BASES[base]
        if isinstance(correlation, str):
            correlation = Correlation.parse(correlation)
        check_proxy(self.base, proxy, correlation, final_block)
        self.correlation = correlation or self.base.correlation
        if sfr is not None and self.base.proxy is None and not self.correlation.has_score:
            raise ValueError(
                f"SFR changes the score of the attention, and correlation {self.correlation.scores!r} of base {base!r} "
                "has none: use sfr=None or another correlation"
            )
        if overview is not None:
            check_overview(self.base, self.correlation)
        self.overview = overview
        self.tower = adapt(visual)
        self.rcs = rcs
        self.sfr = sfr
        self.layers = () if rcs is None else rcs.layers_of(self.tower.depth)
        has_prior = self.base.neighbourhood_std is not None and self.correlation.has_score
        self.neighbourhood_std = neighbourhood_std if has_prior else None
        self.final_block: FinalBlockKind = final_block or self.base.final_block
        self.proxy = proxy
        self.implementation = check_implementation(implementation)
        layer = self.correlation.layer
        if layer is not None and layer > self.tower.depth:
            raise ValueError(
                f"correlation layer must lie between 1 and {self.tower.depth}, the tower's depth; got {layer}"
            )
        self.final = FinalBlock(
            self.tower,
            self.final_block,
            self.correlation,
            self.neighbourhood_std,
            proxy_attention or self.base.proxy,
            rcs,
            sfr,
            overview,
            self.implementation,
        )
        self.register_buffer("random_projections", self.draw_projections(), persistent=False)

    def draw_projections(self) -> Tensor | None:
        """(N, D, D) of correlation "random": normal with variance 1 / D, drawn on the CPU whatever the device."""
        if self.correlation.scores != "random":
            return None
        width = self.tower.width
        generator = torch.Generator().manual_seed(self.correlation.seed)
        drawn = torch.randn(self.correlation.projections, width, width, generator=generator)
        scaled: Tensor = drawn / width**0.5
        return scaled.to(self.tower.device, self.tower.dtype)

    @torch.no_grad()
    def forward(
        self, pixels: Tensor, text: Tensor | None = None, coarse: Coarse | None = None
    ) -> DenseFeatures:
        """Dense features of a batch of images, or windows of images, of one size.

        Args:
            pixels: (B, 3, H, W), normalised with the model's mean and standard deviation; any size of at least one
                patch, and a remainder past the last whole patch is not seen.
            text: (Q, E) unit rows, one per query; needed when `sfr` is on, and read only then.
            coarse: for an encoder with an overview, B coarse passes: of the image that each of `pixels` is cut from.

        Returns:
            Features of each image, which do not depend on the other images of the batch.

        Raises:
            TypeError, ValueError: a shape or dtype that does not fit.
        """
        self.check(pixels, text)
        check_coarse(coarse, self.overview, len(pixels))
        inputs = self.run_blocks(pixels)
        if coarse is not None:
            inputs = self.final.add_overview(inputs, coarse)
        final = self.run_passes(inputs, pixels, text)
        labels = None if final.feedback is None else final.feedback.labels
        return DenseFeatures(final.patches, final.cls, labels)

    @torch.no_grad()
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
        return self.final.make_coarse(self.run_blocks(pixels))

    @torch.no_grad()
    def attention(
        self,
        pixels: Tensor,
        query: tuple[int, int] | None = None,
        text: Tensor | None = None,
    ) -> AttentionMaps:
        """The maps that `forward` attends with, for one patch or for all.

        Args:
            pixels, text: as in `forward`.
            query: (row, column) of a patch of the result's grid; None for every patch, which holds n² entries per head
                and map and is meant for small grids.

        Returns:
            Base, cross-layer, feedback and final maps (figures 1 and 3 of arXiv 2411.15851).

        Raises:
            TypeError, ValueError: as `forward`, a patch outside the grid, and an encoder with an overview, whose maps
                reach beyond these pixels.
        """
        if self.overview is not None:
            raise ValueError(
                "attention maps lie on one image, and with an overview a patch attends to a second one: "
                "use an encoder with overview=None"
            )
        self.check(pixels, text)
        inputs = self.run_blocks(pixels)
        height, width = inputs.output_grid
        if query is None:
            rows = torch.arange(height * width, device=pixels.device)
        else:
            row, column = query
            if not (0 <= row < height and 0 <= column < width):
                raise ValueError(
                    f"query must be (row, column) of a patch in the grid of {height} × {width}; got {query}"
                )
            rows = torch.tensor([row * width + column], device=pixels.device)
        feedback = self.run_passes(inputs, pixels, text).feedback
        if inputs.features is None:
            return tower_maps(self.final, inputs, rows, feedback)
        return proxy_maps(self.final, inputs, inputs.features, rows, feedback)

    def run_blocks(self, pixels: Tensor) -> FinalInputs:
        """Run all blocks but the final one, and project what the final one's passes read."""
        tower = self.tower
        features = None if self.proxy is None else self.proxy(pixels)
        pixels = pixels.to(tower.dtype)
        grid = tower.grid(pixels.shape[2], pixels.shape[3])
        # Before the final block attention is plain: torch's own, or the formula's with its map in memory.
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] = deterministic_attention
        if self.implementation is Implementation.REFERENCE:
            attend = partial(plain_attention, grid=grid)
        tokens = tower.embed(pixels)
        recorded = []
        compared = None
        for number, block in enumerate(tower.blocks[:-1], start=1):
            normed = tower.norm(block, tokens)
            query, key, value = tower.project_qkv(block, normed, grid)
            if number in self.layers:
                recorded.append((query, key))
            if number == self.correlation.layer:
                compared = normed, query, key
            tokens = tokens + tower.project_out(block, attend(query, key, value))
            tokens = tower.feed_forward(block, tokens)
        normed = tower.norm(tower.blocks[-1], tokens)
        query, key, value = tower.project_qkv(tower.blocks[-1], normed, grid)
        normed, query, key = compared or (normed, query, key)
        projections = self.project(normed)
        return FinalInputs(tokens, value, query, key, projections, tuple(recorded), grid, features)

    def project(self, normed: Tensor) -> tuple[Tensor, ...]:
        """What the correlations "xx" and "random" compare: (B, A, L, d) each, from x (B, L, D)."""
        if self.correlation.scores == "xx":
            projected = [normed]
        elif self.random_projections is not None:
            projected = [normed @ matrix for matrix in self.random_projections]
        else:
            projected = []
        return tuple(x.unflatten(-1, (self.tower.heads, -1)).transpose(1, 2) for x in projected)

    def run_passes(self, inputs: FinalInputs, pixels: Tensor, text: Tensor | None) -> Pass:
        """The first pass, and one more per round of SFR, into which the segmentation of the pass before is fed back."""
        result = self.final.run(inputs, None, None)
        if self.sfr is None or text is None:
            return result
        for _ in range(self.sfr.rounds):
            feedback = semantic_feedback(
                self.segment_patches(self.sfr, result.patches, pixels, text),
                self.sfr.feedback_options(),
                implementation=self.implementation,
            )
            result = self.final.run(inputs, feedback, result.cross_layer)
        return result

    def segment_patches(self, sfr: SFR, patches: Tensor, pixels: Tensor, text: Tensor) -> Tensor:
        """The query of every patch: (B, h, w) labels from (B, h, w, E) features.

        A proxy's patch need not be a whole number of pixels wide: the guide is then resized so that it is.
        """
        cell = self.tower.patch_size
        guide = pixels.to(self.tower.dtype)
        if self.proxy is not None:
            cells = list(zip(pixels.shape[2:], patches.shape[1:3], strict=True))
            cell = (
                max(1, round(cells[0][0] / cells[0][1])),
                max(1, round(cells[1][0] / cells[1][1])),
            )
            size = (cell[0] * patches.shape[1], cell[1] * patches.shape[2])
            if size != tuple(pixels.shape[2:]):
                guide = resize_planes(guide, size)
        return patch_labels(
            similarity(patches, text),
            guide,
            patch_size=cell,
            logit_scale=sfr.logit_scale,
            threshold=sfr.label_threshold,
            refine_iterations=sfr.refine_iterations,
            implementation=self.implementation,
        )

    def check(self, pixels: Tensor, text: Tensor | None) -> None:
        """Raise for inputs that do not fit, saying what would."""
        check_pixels(pixels, self.tower)
        if self.sfr is not None:
            check_text(text, self.tower.output_dim)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """softmax(q kᵀ/√d)·v with its map in memory: what the reference computes in the blocks before the final one."""
    return residual_attention(
        query, key, value, grid=grid, correlation="qk", implementation=Implementation.REFERENCE
    ).output


def similarity(patches: Tensor, text: Tensor) -> Tensor:
    """Cosine of every patch and every query: (B, h, w, E) and unit rows (Q, E) → (B, Q, h, w), float32 or wider."""
    dtype = torch.promote_types(patches.dtype, torch.float32)
    unit = F.normalize(patches.to(dtype), dim=-1).flatten(1, 2)
    logits: Tensor = (text.to(dtype) @ unit.mT).unflatten(2, patches.shape[1:3])
    return logits


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


def check_overview(base: Base, correlation: Correlation) -> None:
    """ValueError unless the base compares tokens, so that it can compare them with those of a coarse pass."""
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
    if len(coarse) != windows:
        raise ValueError(
            f"expected one coarse pass for each of {windows} windows; got {len(coarse)}: pick each window's "
            "image, such as coarse[[0, 0, 1]]"
        )
