"""The steps behind the tokens on an image's way: what runs on a batch of windows, on all windows, on the whole picture.

`WindowSteps` says what the encoder has to hand over and makes logits of it; `PictureSteps` makes labels of a picture's
logits where a step needs all of it. The arithmetic of each step is a module of `resclip.steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from resclip.encoder.dense_encoder import BeforeText, DenseEncoder
from resclip.encoder.final_block import Coarse
from resclip.inference.memory import format_bytes, free_memory
from resclip.inference.rejection import UNCERTAIN
from resclip.methods.steps import Steps
from resclip.steps.area_rule import LOWEST, apply_area_rule_by_strips, class_probabilities
from resclip.steps.class_purification import purify
from resclip.steps.cluster_vote import cluster_vote, times_cls
from resclip.steps.cross_windows import WindowTokens, attend_windows, check_method
from resclip.steps.graph_propagation import patch_centres, propagate
from resclip.steps.prompt_denoising import denoise_prompts, smooth_by_keys
from resclip.steps.text_adjustment import adjust, group_queries
from resclip.text.vocabulary import Vocabulary
from resclip_kernels import (
    Implementation,
    LaplacianPropagationOptions,
    laplacian_propagation,
    pamr,
    resize_planes,
    upsample_argmax,
)

BACKGROUND = "background"
"""The name of a first class that stands for what no other class is."""
PLANE_COPIES = 2
"""Float32 planes a query that are held at a picture's size before propagation over it: resized in up to two steps."""
CELL_COPIES = 6
"""Fields of a query that its solver holds on the grid of cells: four, what they are pooled from, and the result."""


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """What the model makes of B windows of one size before it has seen a word: either of the first three."""

    pixels: Tensor | None = None
    """(B, 3, H, W), normalised, where they are read again with the words."""
    patches: Tensor | None = None
    """(B, h, w, E): features, of methods without SFR."""
    cls: Tensor | None = None
    """(B, E), where there is [CLS]."""
    inputs: Any = None
    """What the final block's passes read, of methods with SFR: their second pass is another one for other words."""
    tokens: WindowTokens | None = None
    """What windows attend to one another by."""
    context: Mapping[str, Tensor] = field(default_factory=dict)
    """What the encoder handed over, by the names of `WANTED`."""


@dataclass
class WindowEvidence:
    """What is kept of one window until all of its image's windows have come."""

    corner: tuple[int, int]
    """(y, x) of its first pixel."""
    size: tuple[int, int]
    """(H, W) in pixels, as the encoder got it."""
    image_vector: Tensor | None
    """(E,): CLIP's own vector of the whole picture; None where the window is all of it, or its own is wanted."""
    pixels: Tensor | None = None
    """(3, H, W), normalised, where steps behind other windows' keys read them."""
    logits: Tensor | None = None
    """(Q, h, w)."""
    patches: Tensor | None = None
    """(h, w, C): what a graph of patches compares, the proxy's features or CLIP's."""
    context: dict[str, Tensor] = field(default_factory=dict)
    """What the encoder handed over, by the names of `WANTED`."""
    tokens: WindowTokens | None = None
    """What windows attend to one another by."""

    def of_steps(self) -> Tensor:
        """The logits that the steps have made."""
        if self.logits is None:
            raise ValueError("expected the logits of a window; it has not been encoded")
        return self.logits


class WindowSteps:
    """The steps up to an image's stitched logits.

    Args:
        steps: which there are.
        encoder: the model with its method.
        vocabulary: the classes, on the model's device.
        second_text: (Q, E) unit rows, what crops of ambiguous classes are compared with; None: the vocabulary.

    Raises:
        ValueError: a step that this encoder or vocabulary has no use for.
    """

    def __init__(
        self,
        steps: Steps,
        encoder: DenseEncoder,
        vocabulary: Vocabulary,
        second_text: Tensor | None = None,
    ) -> None:
        self.steps = steps
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.second_text = second_text
        self.wanted = frozenset(self.list_wanted())
        if not encoder.tower.has_cls:
            needs = {
                "adjustment": steps.adjustment is not None,
                "purification": self.reads_images and steps.purification is not None,
                "clusters": steps.clusters is not None,
            }
            for name, is_needed in needs.items():
                if is_needed:
                    raise ValueError(
                        f"step {name!r} needs CLIP's [CLS] token, and this tower has none: leave the step out "
                        f"(--step {name}:none, or steps={{'{name}': None}}), or use a tower with [CLS]"
                    )
        encoder.check_wanted(self.wanted)
        self.groups: Tensor | None = None
        if steps.adjustment is not None:
            self.groups = group_queries(vocabulary.embeddings, steps.adjustment.group_threshold)
        if steps.windows is not None:
            check_method(encoder.final)
            if encoder.overview is not None:
                raise ValueError(
                    "an overview and cross-window keys are two ways to see beyond a window: leave one of them out"
                )
        self.background = 0
        if steps.purification is not None:
            self.background = count_background(vocabulary)
            if second_text is not None and second_text.shape != vocabulary.embeddings.shape:
                raise ValueError(
                    "second_text must have one row for each of the vocabulary's embeddings, "
                    f"{tuple(vocabulary.embeddings.shape)}; got {tuple(second_text.shape)}"
                )
        elif second_text is not None:
            raise ValueError(
                "second_text is what class purification compares crops with: add that step, or leave second_text out"
            )

    def list_wanted(self) -> Iterator[str]:
        """Names of `WANTED` that the steps need of each window."""
        steps = self.steps
        if steps.adjustment is not None:
            # Of a picture that is one window the encoder gives it on the way.
            yield "image"
        if steps.smoothing is not None:
            yield "keys"
        if steps.purification is not None:
            yield "spread"
        if steps.clusters is not None:
            yield "correlation"
        if steps.propagation is not None and self.encoder.proxy is not None:
            yield "features"

    @property
    def reads_images(self) -> bool:
        """Whether any step needs CLIP's own vector of an image."""
        steps = self.steps
        return steps.adjustment is not None or (
            steps.purification is not None and steps.purification.ambiguity <= 1
        )

    @property
    def reads_whole_image(self) -> bool:
        """Whether windows need the vector of the picture that they are cut from."""
        return self.steps.adjustment is not None and self.steps.adjustment.image == "picture"

    @property
    def waits_for_all(self) -> bool:
        """Whether windows have logits only once all windows of their image are there."""
        return self.steps.windows is not None or self.steps.propagation is not None

    @property
    def reads_cls(self) -> bool:
        """Whether logits are made with [CLS] beside the patches."""
        clusters = self.steps.clusters
        return self.encoder.base.feature_surgery or (
            clusters is not None and bool(clusters.cls_factor)
        )

    @property
    def reads_pixels(self) -> bool:
        """Whether logits of a window are made with its pixels at hand, beside what the model has made of them."""
        return self.encoder.sfr is not None or self.steps.purification is not None

    def read(self, pixels: Tensor, coarse: Coarse | None) -> WindowBatch:
        """Run a batch of windows as far as that goes without a word.

        Args:
            pixels: (B, 3, H, W).
            coarse: of the images that they are cut from, for an encoder with an overview.
        """
        read = self.encoder.read(pixels, coarse, wanted=self.wanted)
        kept = pixels if self.reads_pixels else None
        if self.steps.windows is not None:
            tokens = WindowTokens.of(self.encoder.final, read.inputs)
            return WindowBatch(kept, tokens=tokens, context=read.context)
        if self.encoder.sfr is not None:
            return WindowBatch(kept, inputs=read.inputs, context=read.context)
        features = self.encoder.complete(read, None, None)
        cls = features.cls if self.reads_cls else None
        return WindowBatch(kept, features.patches, cls, context=read.context)

    def take(self, batch: WindowBatch, evidence: Sequence[WindowEvidence]) -> None:
        """Logits of a batch's windows, by all steps that look at a window alone.

        Args:
            batch: of `read`.
            evidence: of the first windows of the batch; the others are empty ones.
        """
        if batch.tokens is not None:
            for number, one in enumerate(evidence):
                one.tokens = batch.tokens.window(number)
                one.context = {name: tensor[number] for name, tensor in batch.context.items()}
                one.pixels = None if batch.pixels is None else batch.pixels[number]
            return
        patches, cls = batch.patches, batch.cls
        if patches is None:
            text = self.vocabulary.embeddings
            read = BeforeText(batch.inputs, dict(batch.context))
            features = self.encoder.complete(read, batch.pixels, text)
            patches, cls = features.patches, features.cls
        count = len(evidence)
        self.take_features(
            patches[:count],
            None if cls is None else cls[:count],
            {name: tensor[:count] for name, tensor in batch.context.items()},
            None if batch.pixels is None else batch.pixels[:count],
            evidence,
        )

    def take_features(
        self,
        patches: Tensor,
        cls: Tensor | None,
        context: dict[str, Tensor],
        pixels: Tensor | None,
        evidence: Sequence[WindowEvidence],
    ) -> None:
        """`take` of features, (B, h, w, E) and (B, E), for B windows."""
        vectors = context.get("image")
        if vectors is not None:
            vectors = torch.stack(
                [
                    own if one.image_vector is None else one.image_vector
                    for one, own in zip(evidence, vectors, strict=True)
                ]
            )
        logits = self.window_logits(patches, cls, context, pixels, vectors)
        for number, one in enumerate(evidence):
            one.logits = logits[number]
            if self.steps.propagation is not None:
                seen = context.get("features")
                one.patches = patches[number] if seen is None else seen[number].movedim(0, 2)
            one.context = {
                name: tensor[number] for name, tensor in context.items() if name == "correlation"
            }

    def window_logits(
        self,
        patches: Tensor,
        cls: Tensor | None,
        context: dict[str, Tensor],
        pixels: Tensor | None,
        vectors: Tensor | None,
    ) -> Tensor:
        """(B, Q, h, w): see `resclip.methods.steps` for the order."""
        steps, text = self.steps, self.vocabulary.embeddings
        if steps.adjustment is not None and self.groups is not None and vectors is not None:
            logits = adjust(patches, text, self.groups, vectors, steps.adjustment)
        else:
            logits = self.encoder.final.logits(patches, cls, text)
        if steps.clusters is not None and steps.clusters.cls_factor and cls is not None:
            logits = times_cls(logits, cls, text)
        if steps.prompts is not None:
            logits = denoise_prompts(logits, steps.prompts)
        if steps.smoothing is not None:
            logits = smooth_by_keys(logits, context["keys"], steps.smoothing)
        if steps.purification is not None and pixels is not None:
            logits = self.purified(logits, context["spread"], pixels)
        return logits

    def purified(self, logits: Tensor, spread: Tensor, pixels: Tensor) -> Tensor:
        """Maps in [0, 1] in place of the logits, the same for each query of a class; 0 for the background's."""
        assert self.steps.purification is not None
        maps = purify(
            logits,
            spread,
            pixels,
            self.vocabulary.embeddings,
            self.encoder.image_vectors,
            self.steps.purification,
            patch_size=self.encoder.tower.patch_size,
            background=self.background,
            second_text=self.second_text,
        ).maps
        nothing = maps.new_zeros(len(maps), self.background, *maps.shape[2:])
        return torch.cat([nothing, maps], dim=1)

    def finish(self, evidence: Sequence[WindowEvidence]) -> None:
        """Logits of all windows of an image, by the steps that look at them together."""
        steps, final = self.steps, self.encoder.final
        corners = [one.corner for one in evidence]
        if steps.windows is not None:
            tokens = WindowTokens.cat([one.tokens for one in evidence if one.tokens is not None])
            patches = attend_windows(final, tokens, corners, steps.windows)
            context = {
                name: torch.stack([one.context[name] for one in evidence]) for name in self.wanted
            }
            seen = [one.pixels for one in evidence if one.pixels is not None]
            pixels = torch.stack(seen) if seen else None
            self.take_features(patches, None, context, pixels, evidence)
        if steps.propagation is None:
            return
        grids = torch.stack([one.logits for one in evidence if one.logits is not None])
        features = torch.stack([one.patches for one in evidence if one.patches is not None])
        grid = (grids.shape[2], grids.shape[3])
        height, width = evidence[0].size
        cell = (height // grid[0], width // grid[1])
        spread = propagate(
            features.flatten(0, 2),
            grids.flatten(2).mT.flatten(0, 1),
            patch_centres(corners, grid, cell),
            steps.propagation,
        )
        grids = spread.unflatten(0, (len(evidence), -1)).mT.unflatten(2, grid)
        for number, one in enumerate(evidence):
            one.logits = grids[number]


class PictureView(Protocol):
    """Rows of an image's result before their labels; see `resclip.inference.pipeline.Picture`."""

    size: tuple[int, int]
    """(n, W)."""
    through: tuple[int, int] | None
    logits: Tensor
    """(Q, h, w)."""

    @property
    def guide(self) -> Tensor:
        """(3, n, W)."""


class PictureSteps:
    """From stitched logits to labels where a step changes how they are decided; false where none does.

    Args:
        steps: which there are.
        vocabulary: the classes, on the model's device.
        logit_scale, threshold, refine_iterations, dilations, implementation: as `upsample_argmax` takes them.
        min_margin: least difference between a pixel's two most probable classes; 0: any.
    """

    def __init__(
        self,
        steps: Steps,
        vocabulary: Vocabulary,
        *,
        logit_scale: float,
        threshold: float,
        refine_iterations: int,
        dilations: tuple[int, ...],
        implementation: Implementation,
        min_margin: float = 0.0,
    ) -> None:
        self.steps = steps
        self.vocabulary = vocabulary
        self.min_margin = min_margin
        self.settings: dict[str, Any] = {
            "query_to_class": vocabulary.query_to_class,
            "logit_scale": logit_scale,
            "refine_iterations": refine_iterations,
            "dilations": dilations,
        }
        self.threshold = threshold
        self.implementation = implementation
        if steps.purification is None:
            return
        # It gives maps from 0 to 1 in place of logits.
        if steps.area is not None:
            raise ValueError(
                "an area rule counts probabilities, and class purification gives maps that are none: leave one of them "
                "out"
            )
        if steps.propagation is not None:
            raise ValueError(
                "propagation over a graph spreads logits, and class purification gives maps that are none: leave one "
                "of them out"
            )
        if threshold:
            raise ValueError(
                "class purification tells background by a first class of that name, and its maps are no probabilities: "
                f"leave the probability threshold out, got {threshold}"
            )
        if min_margin:
            raise ValueError(
                "min_margin compares probabilities, and the maps of class purification are none: leave one of them out"
            )

    def __bool__(self) -> bool:
        return self.needs_all_rows or self.steps.purification is not None or self.min_margin > 0

    @property
    def needs_all_rows(self) -> bool:
        """Whether rows cannot be decided by themselves."""
        steps = self.steps
        return any(step is not None for step in (steps.laplacian, steps.area, steps.clusters))

    def labels(
        self, picture: PictureView, evidence: Sequence[WindowEvidence]
    ) -> tuple[Tensor, Tensor]:
        """Labels and probabilities, (n, W) each.

        Args:
            picture: rows of the result, all of them where a step needs them.
            evidence: of the windows whose labels still need it.

        Raises:
            ValueError: the logits hold NaN, or there is not enough memory for what a step holds.
        """
        steps, guided = self.steps, bool(self.settings["refine_iterations"])
        logits, through = picture.logits, picture.through
        if logits.device.type == "cpu" and logits.isnan().any():
            raise ValueError(
                "the logits hold NaN: look for it in the pixels, the weights or the text"
            )
        guide = picture.guide if guided or steps.laplacian is not None else None
        if steps.laplacian is not None and guide is not None:
            options = LaplacianPropagationOptions(
                grid=steps.laplacian.grid, iterations=steps.laplacian.iterations, cells=True
            )
            check_memory(len(logits), picture.size, options, logits.device)
            logits = laplacian_propagation(
                at_size(logits, picture.size, through)[None],
                guide[None],
                self.vocabulary.embeddings,
                options,
                implementation=self.implementation,
            )[0]
            through = None
        if steps.purification is not None:
            labels, probabilities = self.largest_maps(logits, picture.size, through, guide)
        elif steps.area is not None:
            labels, probabilities = self.without_small(logits, picture.size, through, guide)
        else:
            whole, best = upsample_argmax(
                logits[None],
                picture.size,
                threshold=self.threshold,
                through=through,
                guide=guide[None] if guided and guide is not None else None,
                implementation=self.implementation,
                **self.settings,
            )
            labels, probabilities = whole[0], best[0]
        if steps.clusters is not None:
            window = evidence[0]
            height, width = window.of_steps().shape[1:]
            correlation = window.context["correlation"][None]
            labels = cluster_vote(labels[None], correlation, (height, width), steps.clusters)[0]
        if self.min_margin:
            close = self.margins(logits, picture.size, through, guide) < self.min_margin
            # NaN is not below it, and what stands for NaN stays.
            labels = labels.masked_fill(close & (labels >= 0), UNCERTAIN)
        return labels, probabilities

    def margins(
        self,
        logits: Tensor,
        size: tuple[int, int],
        through: tuple[int, int] | None,
        guide: Tensor | None,
    ) -> Tensor:
        """(n, W): how much more probable a pixel's first class is than its second."""
        height, rows, read = self.probability_rows(logits, size, through, guide)
        best = [
            read(first, min(height, first + rows)).topk(2, dim=0).values
            for first in range(0, height, rows)
        ]
        return torch.cat([two[0] - two[1] for two in best])

    def class_scores(self, logits: Tensor) -> Tensor:
        """What `resclip.scores.ClassScores` keeps of logits (Q, h, w): logarithms of probabilities, or maps."""
        planes = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.steps.purification is None:
            planes = planes.clamp(min=LOWEST).mul_(self.settings["logit_scale"])
            return planes.sub_(planes.logsumexp(dim=0))
        background = count_background(self.vocabulary)
        if background:
            planes = planes.clone()
            planes[:background] = 1 - planes[background:].amax(dim=0)
        return planes

    def without_small(
        self,
        logits: Tensor,
        size: tuple[int, int],
        through: tuple[int, int] | None,
        guide: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Labels by the area rule, whose probabilities are formed by strips where they are many."""
        assert self.steps.area is not None
        height, rows, read = self.probability_rows(logits, size, through, guide)
        strips = list(
            apply_area_rule_by_strips(read, height, rows, self.steps.area.share, self.threshold)
        )
        return torch.cat([labels for _, labels, _ in strips]), torch.cat(
            [best for _, _, best in strips]
        )

    def probability_rows(
        self,
        logits: Tensor,
        size: tuple[int, int],
        through: tuple[int, int] | None,
        guide: Tensor | None,
    ) -> tuple[int, int, Callable[[int, int], Tensor]]:
        """Height, how many rows are held together, and what gives the class probabilities of some, (classes, n, W)."""
        height, width = size
        refined = bool(self.settings["refine_iterations"])
        rows = max(1, PROBABILITY_BYTES // (4 * len(logits) * width))
        if refined or rows >= height:
            rows = height
        elif through is not None or logits.shape[1:] != size:
            logits, through = at_size(logits, size, through), None

        def read(first: int, last: int) -> Tensor:
            part = logits if rows == height else logits[:, first:last]
            return class_probabilities(
                part,
                (last - first, width),
                through=through,
                guide=guide if refined else None,
                **self.settings,
            )

        return height, rows, read

    def largest_maps(
        self,
        maps: Tensor,
        size: tuple[int, int],
        through: tuple[int, int] | None,
        guide: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Labels of purified maps: the class of the largest, or the background where 1 − it is as large."""
        planes = at_size(maps, size, through)
        if self.settings["refine_iterations"] and guide is not None:
            planes = pamr(
                guide[None],
                planes[None],
                iterations=self.settings["refine_iterations"],
                dilations=self.settings["dilations"],
                implementation=self.implementation,
            )[0]
        background = count_background(self.vocabulary)
        best, labels = planes[background:].max(dim=0)
        if background:
            labels = labels + 1
            nothing = 1 - best
            labels = labels.where(best > nothing, 0)
            best = torch.maximum(best, nothing)
        return labels, best


PROBABILITY_BYTES = 1 << 28
"""Bytes of class probabilities that are held at a time."""


def at_size(planes: Tensor, size: tuple[int, int], through: tuple[int, int] | None) -> Tensor:
    """(Q, h, w) → (Q, H, W), bilinearly, over the size in between if there is one."""
    for step in (through, size):
        if step is not None and step != tuple(planes.shape[1:]):
            planes = resize_planes(planes[None], step)[0]
    return planes


def check_memory(
    queries: int,
    size: tuple[int, int],
    options: LaplacianPropagationOptions,
    device: torch.device,
) -> None:
    """ValueError where the planes of a picture's queries, at its size and of its cells, are more than memory holds."""
    cells = options.output_size(*size)
    needed = 4 * queries * (PLANE_COPIES * math.prod(size) + CELL_COPIES * math.prod(cells))
    free = free_memory(device)
    if needed > free:
        raise ValueError(
            f"propagation over a picture of {size[0]:,} × {size[1]:,} pixels with {queries} queries takes about "
            f"{format_bytes(needed)} of memory, and {format_bytes(free)} are left: leave out laplacian, or take a "
            "smaller picture or fewer classes"
        )


def count_background(vocabulary: Vocabulary) -> int:
    """How many queries stand for the background, in front of one for each class.

    Raises:
        ValueError: a class with several queries.
    """
    numbers = vocabulary.query_to_class.tolist()
    background = numbers.count(0) if vocabulary.names[0].lower() == BACKGROUND else 0
    others = numbers[background:]
    if sorted(set(others)) != others:
        repeated = next(number for number in others if others.count(number) > 1)
        raise ValueError(
            "class purification takes one query for each class, and a first class called 'background' with any number: "
            f"class {vocabulary.names[repeated]!r} has {others.count(repeated)}; leave out its synonyms"
        )
    return background
