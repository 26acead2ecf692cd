"""What later methods do to a tower's tokens and maps, each as a value that may be put on any base where it has a sense.

A base of `resclip.methods.catalogue` names the pieces that it is made of; `Pieces` holds those of one encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from resclip.methods.layers import MOST_LAYERS, parse_layers
from resclip.methods.parts import Parts
from resclip_kernels import (
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_range,
    check_type,
    quoted,
)

Detector = Literal["lof", "salience", "norm"]
DETECTORS: tuple[str, ...] = get_args(Detector)
Isolated = Literal["keep", "zero"]
ISOLATED: tuple[str, ...] = get_args(Isolated)
Solver = Literal["newton-schulz", "svd"]
SOLVERS: tuple[str, ...] = get_args(Solver)
MOST = 1_000_000
"""Largest number of neighbours or outliers, and largest weight or factor."""


def in_tower(name: str, layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The blocks; ValueError if a tower of `depth` blocks lacks one of them in front of the final one."""
    outside = [layer for layer in layers if not 1 <= layer < depth]
    if outside:
        raise ValueError(
            f"{name} must lie between 1 and {depth - 1}, in front of the final block {depth} of this tower; got "
            f"{', '.join(map(str, outside[:5]))}{', …' if len(outside) > 5 else ''}"
        )
    return layers


@dataclass(frozen=True)
class OutlierRepair:
    """Patches whose tokens stand apart become the mean of those of their 8 neighbours that do not.

    The tokens are those that the final block gets, and those whose similarity is compared (SC-CLIP, arXiv 2411.15869,
    section 3.2; SFP, ICCV 2025).
    """

    detector: Detector = "lof"
    """"lof": local outlier factor of the tokens; "salience": patches that [CLS] attends to more than they attend to
    themselves, in the last block but one; "norm": the longest tokens."""
    neighbours: int = 30
    """"lof": k, how many neighbours a token is compared with; at most one less than there are patches."""
    share: float = 0.05
    """"lof": the share of the patches that are outliers."""
    count: int = 10
    """"salience", "norm": how many patches are outliers at most."""
    salience: float = 1.5
    """"salience": how much [CLS]'s attention is weighted against a patch's own."""
    isolated: Isolated = "keep"
    """What becomes of an outlier with outliers alone around it: its token stays, or is 0."""

    def __post_init__(self) -> None:
        check_choice("outliers detector", self.detector, DETECTORS)
        check_count("outliers neighbours", self.neighbours, 1, MOST)
        check_fraction("outliers share", self.share)
        check_count("outliers count", self.count, 1, MOST)
        check_range("outliers salience", self.salience, 0, MOST)
        check_choice("outliers isolated", self.isolated, ISOLATED)


@dataclass(frozen=True)
class Aggregation:
    """Tokens are averaged with those that are alike in an earlier block, before and after the final block's attention.

    With U the unit rows of a block's patches: weights U Uᵀ where they reach the threshold, else 0, each row divided by
    its sum (SC-CLIP, arXiv 2411.15869, section 3.3).
    """

    threshold: float = 0.4
    """β in [-1, 1], the least cosine that counts."""
    before: int | None = None
    """Block whose patches decide what the final block gets; 0 for none; None: three quarters of the depth, which are
    blocks 9 of 12 and 17 of 24."""
    after: int | None = None
    """Block whose patches decide how the result is averaged; 0 for none; None: a third of the depth, 4 of 12, and 7 of
    24."""

    def __post_init__(self) -> None:
        check_range("aggregation threshold", self.threshold, -1, 1)
        for name, layer in (("before", self.before), ("after", self.after)):
            if layer is not None:
                check_count(f"aggregation {name}", layer, 0, MOST_LAYERS)

    def before_of(self, depth: int) -> int:
        """Block of a tower of `depth` blocks that is compared before; 0 for none."""
        layer = similarity_layer(depth) if self.before is None else self.before
        return in_tower("aggregation before", (layer,), depth)[0] if layer else 0

    def after_of(self, depth: int) -> int:
        """Block of a tower of `depth` blocks that is compared after; 0 for none."""
        layer = max(1, {24: 7}.get(depth, round(depth / 3))) if self.after is None else self.after
        return in_tower("aggregation after", (layer,), depth)[0] if layer else 0


def similarity_layer(depth: int) -> int:
    """The block whose patches are compared by default: 9 of 12, 17 of 24, else three quarters of the depth."""
    return max(1, min({24: 17}.get(depth, round(3 * depth / 4)), depth - 1))


@dataclass(frozen=True)
class SimilarityBranch:
    """One more map in the final block's attention, the same for all heads: the softmax of an earlier block's cosines.

    z = 3 · (S − mean of S) with S the cosines of all pairs of patches; entries under 0 become −∞. The final block's map
    is the mean of this one and of the base's (SC-CLIP, arXiv 2411.15869, section 3.3). It needs `PatchAttention`, for
    S knows no [CLS].
    """

    layer: int | None = None
    """Block whose patches are compared; None: the one of `Aggregation.before`'s default."""
    cut: float | None = None
    """Cosines below it count as 0 before their mean is taken (SFP); None: none."""
    sharpness: float = 3.0
    """The factor of z."""

    def __post_init__(self) -> None:
        if self.layer is not None:
            check_count("branch layer", self.layer, 1, MOST_LAYERS)
        if self.cut is not None:
            check_range("branch cut", self.cut, -1, 1)
        check_range("branch sharpness", self.sharpness, 1e-6, 1e6)

    def layer_of(self, depth: int) -> int:
        """The block of a tower of `depth` blocks."""
        layer = similarity_layer(depth) if self.layer is None else self.layer
        return in_tower("branch layer", (layer,), depth)[0]


@dataclass(frozen=True)
class PatchAttention:
    """Patches attend to patches alone in the final block, and [CLS]'s token is added to the result of each.

    It is added as it stands in the residual stream, after the output projection (SC-CLIP, SFP, DIH-CLIP).
    """

    cls_weight: float | None = None
    """Factor of [CLS]'s token; None: 0.3, and 0.1 of a tower of 24 blocks. A tower without [CLS] has 0."""

    def __post_init__(self) -> None:
        if self.cls_weight is not None:
            check_range("patches cls_weight", self.cls_weight, 0, MOST)

    def weight_of(self, depth: int) -> float:
        """The factor in a tower of `depth` blocks."""
        if self.cls_weight is None:
            return 0.1 if depth == 24 else 0.3
        return self.cls_weight


@dataclass(frozen=True)
class SecondStream:
    """The sum of several blocks' tokens goes through the final block as well, and both results are added.

    Its outliers stay, and nothing is averaged before its attention (SC-CLIP, arXiv 2411.15869, section 3.4).
    """

    layers: tuple[int, ...] | str | None = None
    """Blocks whose tokens are summed: a tuple, or text such as "4-10"; None: from a third to five sixths of the depth,
    which are blocks 4-10 of 12, and 9-19 of 24."""
    scores: bool = True
    """Whether its attention has the base's map beside that of the `SimilarityBranch`."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", parse_layers("stream layers", self.layers))
        check_flag("stream scores", self.scores)

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The blocks of a tower of `depth` blocks."""
        if self.layers is None:
            first = max(1, {24: 9}.get(depth, round(depth / 3)))
            last = {24: 19}.get(depth, round(5 * depth / 6))
            return tuple(range(first, max(first, min(last, depth - 1)) + 1))
        return in_tower("stream layers", parse_layers("stream layers", self.layers), depth)


@dataclass(frozen=True)
class HeadSelection:
    """Of each map the heads of least entropy alone, and each of these with the values of all heads (DIH-CLIP).

    The block that is compared (`SimilarityBranch.layer`) gets the attention of its own selected heads added to its
    tokens as well.
    """

    kept: int = 4
    """How many heads are kept; all where a tower has fewer."""

    def __post_init__(self) -> None:
        check_count("heads kept", self.kept, 1, MOST)


@dataclass(frozen=True)
class KeyAlignment:
    """Keys are rotated towards the queries before they are compared (PEARL's Procrustes alignment).

    With the weighted means q̄ and k̄ taken away, R is the orthogonal polar factor of K_cᵀ Q_c, per head:

        S = (q (k R)ᵀ + α K_c K_cᵀ) / √d
    """

    weight: float = 0.08
    """α, the share of the key-key score; the paper has none of it."""
    solver: Solver = "newton-schulz"
    """Five steps of "newton-schulz", the released program's, are far from converged: they project onto the strongest
    directions more than they rotate. "svd" is exact, and another method."""
    iterations: int = 5
    """Steps of "newton-schulz"."""

    def __post_init__(self) -> None:
        check_range("alignment weight", self.weight, 0, MOST)
        check_choice("alignment solver", self.solver, SOLVERS)
        check_count("alignment iterations", self.iterations, 1, 1_000)


OPENAI_CHANNELS = {
    (12, 768, 16): (4, 162, 189, 326, 429, 474, 633, 713),
    (24, 1024, 14): (250, 261, 437, 650, 720, 779, 936, 1005),
}
"""Channels, from 0, that stand out in OpenAI's weights of ViT-B/16 and ViT-L/14, by (blocks, width, patch); RF-CLIP."""


@dataclass(frozen=True)
class Denoising:
    """After each block, patches in which a channel stands out are mixed with the mean around them (RF-CLIP).

    Shares of a token: (x − min x) / Σ (x − min x). Where the largest share of the listed channels is over σ / D, x ←
    (1 − α) x + α · the sum of its 3 × 3 neighbourhood over 9, of the tokens as they were.
    """

    channels: tuple[int, ...] | str | None = None
    """Channels from 0, a tuple, or text such as "4,162"; None: those of OpenAI's weights of ViT-B/16 and ViT-L/14, and
    none for towers of other shapes, of which nobody has published any."""
    sigma: float = 5.0
    """σ: how far above 1/D a share has to be."""
    alpha: float = 0.4
    """α in [0, 1]: how much of the mean around is taken."""

    def __post_init__(self) -> None:
        check_range("denoising sigma", self.sigma, 0, MOST)
        check_fraction("denoising alpha", self.alpha)
        if self.channels is not None:
            object.__setattr__(self, "channels", parse_channels(self.channels))

    def channels_of(self, depth: int, width: int, patch: int) -> tuple[int, ...]:
        """The channels of a tower, none where no list is known; ValueError where it lacks one."""
        if self.channels is None:
            return OPENAI_CHANNELS.get((depth, width, patch), ())
        channels = parse_channels(self.channels)
        if max(channels) >= width:
            raise ValueError(
                f"denoising channels must be below {width}, the width of this tower; got {max(channels)}"
            )
        return channels


def parse_channels(channels: tuple[int, ...] | str) -> tuple[int, ...]:
    """Numbers of channels from a tuple, or from text such as "4,162"; TypeError or ValueError for anything else."""
    if isinstance(channels, str):
        parts = [part.strip() for part in channels.split(",")]
        if not all(part.isdecimal() and len(part) < 9 for part in parts):
            raise ValueError(
                f'denoising channels as text are numbers, such as "4,162"; got {quoted(channels)}'
            )
        channels = tuple(map(int, parts))
    check_type("denoising channels", channels, (tuple, list), "a tuple of numbers, or their text")
    for channel in channels:
        check_count("each of denoising channels", channel, 0, MOST)
    if not channels:
        raise ValueError("denoising channels must name one channel at least; got none")
    return tuple(channels)


@dataclass(frozen=True)
class Refocusing:
    """Patches that many others attend to lose a part of that attention to the rest (RF-CLIP's "refocus").

    In the blocks before the final one, per head. The released program has it and does not use it.
    """

    threshold: float = 0.1
    """A patch is a sink if the patches' attention to it, summed and divided by the number of tokens, is over this."""
    weight: float = 0.6
    """What a sink keeps of each patch's attention, in [0, 1]."""

    def __post_init__(self) -> None:
        check_range("refocusing threshold", self.threshold, 0, MOST)
        check_fraction("refocusing weight", self.weight)


@dataclass(frozen=True)
class LayerFusion:
    """The final map is the mean of all blocks' key-key maps; it gathers from two sets of tokens (RF-CLIP).

    These are the final block's input and the mean G of all blocks' outputs, both averaged first by the cosines of G
    that reach a threshold, without a division by their sum. [CLS]'s row and column are dropped.
    """

    threshold: float = 0.4
    """β in [-1, 1], the least cosine that counts."""

    def __post_init__(self) -> None:
        check_range("fusion threshold", self.threshold, -1, 1)


@dataclass(frozen=True)
class SecondPath:
    """Beside CLIP's own path runs a second one, which the last blocks' self-self attentions are added to.

    It begins as CLIP's tokens before the first of these blocks; queries, keys and values come from CLIP's own path,
    and there is no MLP. The base's correlation says which of them are compared with themselves; the map is the mean of
    theirs (GEM, Bousselham et al., CVPR 2024; CLIP Surgery, Li et al., arXiv 2304.05653).
    """

    blocks: int = 6
    """How many blocks at the end add to it, the final one included; all where a tower has fewer."""
    iterations: int = 1
    """How often each is averaged by its own map before; with `unit`."""
    unit: bool = True
    """Whether they are compared as unit vectors, by β of the image."""
    inverse_temperature: float | None = None
    """β; None: the mean length of the block's normed tokens over √d, per image. Without `unit`, 1/√d alone counts."""
    own_cls: bool = False
    """Whether [CLS] is taken from CLIP's own path at the end."""

    def __post_init__(self) -> None:
        check_count("path blocks", self.blocks, 1, MOST_LAYERS)
        check_count("path iterations", self.iterations, 0, 1_000)
        check_flag("path unit", self.unit)
        check_flag("path own_cls", self.own_cls)
        if self.inverse_temperature is not None:
            check_range("path inverse_temperature", self.inverse_temperature, 1e-6, 1e6)
        if not self.unit and (self.iterations or self.inverse_temperature is not None):
            raise ValueError(
                "path iterations and inverse_temperature belong to unit vectors: leave them out (iterations=0), or use "
                "unit=True"
            )


KINDS: dict[str, type[Any]] = {
    "denoising": Denoising,
    "refocusing": Refocusing,
    "outliers": OutlierRepair,
    "aggregation": Aggregation,
    "patches": PatchAttention,
    "branch": SimilarityBranch,
    "heads": HeadSelection,
    "stream": SecondStream,
    "alignment": KeyAlignment,
    "fusion": LayerFusion,
    "path": SecondPath,
}
"""Each piece's type, by its name in `Pieces`."""


@dataclass(frozen=True)
class Pieces(Parts):
    """What a method does beside its attention; None where it does not."""

    kinds: ClassVar[Mapping[str, type[Any]]] = KINDS

    denoising: Denoising | None = None
    refocusing: Refocusing | None = None
    outliers: OutlierRepair | None = None
    aggregation: Aggregation | None = None
    patches: PatchAttention | None = None
    branch: SimilarityBranch | None = None
    heads: HeadSelection | None = None
    stream: SecondStream | None = None
    alignment: KeyAlignment | None = None
    fusion: LayerFusion | None = None
    path: SecondPath | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_together()

    def check_together(self) -> None:
        """ValueError where one piece needs another, or two exclude each other."""
        repairs = [name for name in REPAIRS if getattr(self, name) is not None]
        for name, others in (("fusion", [*repairs, "path"]), ("path", [*repairs, "fusion"])):
            if getattr(self, name) is not None:
                for other in others:
                    if getattr(self, other) is not None:
                        raise ValueError(
                            f"{KINDS[name].__name__} has a final block of its own, which {KINDS[other].__name__} does "
                            "not change: leave one of them out"
                        )
        needs = (("branch", "patches"), ("heads", "branch"))
        for name, needed in needs:
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(
                    f"{KINDS[name].__name__} needs {KINDS[needed].__name__}: add {needed}={KINDS[needed].__name__}()"
                )
        if self.stream is not None and not self.stream.scores and self.branch is None:
            raise ValueError(
                "SecondStream without scores attends by a SimilarityBranch alone: add branch=SimilarityBranch()"
            )
        if self.alignment is not None and (self.heads or self.fusion or self.path):
            raise ValueError(
                "KeyAlignment changes the score of queries and keys, which HeadSelection, LayerFusion and SecondPath "
                "do not use: leave one of them out"
            )

    @property
    def repairs(self) -> bool:
        """Whether any of those is there that change the final block's tokens."""
        return any(getattr(self, name) is not None for name in REPAIRS)


REPAIRS = ("outliers", "aggregation", "patches", "branch", "heads", "stream")
"""The pieces that may be put together, in one final block."""
