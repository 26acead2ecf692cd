"""The methods as values: each is a base attention, with RCS and SFR as options on any of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from resclip.methods.correlation import Correlation
from resclip.methods.layers import parse_layers
from resclip.methods.pieces import (
    Aggregation,
    Denoising,
    HeadSelection,
    KeyAlignment,
    LayerFusion,
    OutlierRepair,
    PatchAttention,
    Pieces,
    SecondPath,
    SecondStream,
    SimilarityBranch,
)
from resclip.methods.steps import (
    STEP_KINDS,
    SUFFIXES,
    ClusterVote,
    LaplacianPropagation,
    Steps,
    TextAdjustment,
)
from resclip_kernels import (
    CONNECTIVITIES,
    AttentionOptions,
    Connectivity,
    FeedbackOptions,
    ProxyAttentionOptions,
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_pair,
    check_range,
    check_type,
    quoted,
)

FinalBlockKind = Literal["attention_only", "full_residual", "attention_and_mlp"]
FINAL_BLOCKS: tuple[str, ...] = get_args(FinalBlockKind)
MODULES = ("rcs", "sfr")
"""ResCLIP's two modules, in the order in which they follow a base's name."""

FACTORS = (1e-6, 1e6)
"""Smallest and largest temperature, scale or sharpness: products with them stay within float32, and float16's norms."""
MOST_ROUNDS = 100
"""Largest number of rounds of SFR: each takes as long as the final block and the labels of the one before."""
MOST_ITERATIONS = 1_000
"""Largest number of PAMR's iterations: each goes through all pixels of all classes."""
MOST_PIXELS = 1 << 16
"""Largest side in pixels of an image that a model sees whole."""


@dataclass(frozen=True)
class ProxyAttention:
    """ProxyCLIP's options: the model whose features make the attention, and how (arXiv 2408.04883, section 3.3)."""

    model: str = "vit_base_patch8_224.dino"
    """"colour" (built in, no weights), or a timm model that gives patch features."""
    beta: float = ProxyAttentionOptions.beta
    """β: the multiple of the image's mean similarity that an entry has to exceed."""
    gamma: float = ProxyAttentionOptions.gamma
    """γ > 0: sharpness of the softmax."""
    input_size: int | tuple[int, int] | None = None
    """Size in pixels of the image as the proxy sees it: short side, or (height, width); None keeps its size."""
    masked: bool = True
    """Whether entries below β times the mean are dropped. False: all count; β then cancels in the softmax, and SFR
    cannot be added."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("masked",)
    """Options that `as_dict` leaves out at their defaults: figures that were stored without them stay comparable."""

    def __post_init__(self) -> None:
        check_type("proxy model", self.model, str, "the name of a model")
        check_range("proxy beta", self.beta, -FACTORS[1], FACTORS[1])
        check_range("proxy gamma", self.gamma, *FACTORS)
        check_flag("proxy masked", self.masked)
        if isinstance(self.input_size, (tuple, list)):
            size = check_pair("proxy input_size", self.input_size, "(height, width) in pixels", 1)
            object.__setattr__(self, "input_size", size)
            check_count("proxy input_size", max(size), 1, MOST_PIXELS)
        elif self.input_size is not None:
            check_count("proxy input_size", self.input_size, 1, MOST_PIXELS)


@dataclass(frozen=True)
class Base:
    """The final block of a method, before RCS and SFR."""

    name: str
    correlation: Correlation
    """What the attention compares."""
    final_block: FinalBlockKind
    """"attention_only": no residual and no MLP; "full_residual": CLIP's own block; "attention_and_mlp": the block
    without the residual around its attention, y + MLP(LN2(y))."""
    summary: str
    citation: str
    neighbourhood_std: float | None = None
    """σ in patches of NACLIP's Gaussian neighbourhood prior; None: no prior."""
    proxy: ProxyAttention | None = None
    """Options of a base whose attention is made by another vision model's features; None for the others."""
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `Segmenter` that the base has instead of the defaults."""
    position: str = "released"
    """How position embeddings are resized for another grid than the trained one, see `DenseEncoder`."""
    pieces: Pieces = field(default_factory=Pieces)
    """What is done to tokens and maps beside the attention."""
    steps: Steps = field(default_factory=Steps)
    """What is done behind the tokens."""
    rcs_temperature: float = AttentionOptions.cross_temperature
    """τ_r of RCS on this base, by default and in place of a preset's: 1 where [CLS] or earlier terms are added to the
    attention's result, so that LN_post does not cancel it."""
    feature_surgery: bool = False
    """Whether logits are CLIP Surgery's feature surgery of the cosines, and not the cosines."""

    @property
    def has_score(self) -> bool:
        """Whether the attention has a score, which SFR could change."""
        return self.proxy is not None or self.correlation.has_score


BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        Base(
            "clip",
            Correlation("qk"),
            "full_residual",
            "CLIP's own final block",
            "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
        ),
        Base(
            "maskclip",
            Correlation("identity"),
            "attention_only",
            "each patch keeps its own value",
            "Zhou, Loy & Dai, Extract Free Dense Labels from CLIP, ECCV 2022",
        ),
        Base(
            "sclip",
            Correlation("qq+kk"),
            "full_residual",
            "query-query plus key-key attention",
            "Wang, Mei & Yuille, SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference, ECCV 2024",
        ),
        Base(
            "clearclip",
            Correlation("qq"),
            "attention_only",
            "query-query attention, no residual, no MLP",
            "Lan et al., ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference, ECCV 2024",
        ),
        Base(
            "naclip",
            Correlation("kk"),
            "attention_only",
            "key-key attention with a Gaussian neighbourhood prior",
            "Hajimiri, Ben Ayed & Dolz, Pay Attention to Your Neighbours, WACV 2025",
            neighbourhood_std=5.0,
        ),
        Base(
            "naclip-neighbourhood",
            Correlation("none"),
            "attention_only",
            "the Gaussian neighbourhood prior alone, no similarity",
            "Hajimiri, Ben Ayed & Dolz, Pay Attention to Your Neighbours, WACV 2025 (ablation)",
            neighbourhood_std=5.0,
        ),
        Base(
            "proxyclip",
            Correlation("identity"),
            "attention_only",
            "attention by another vision model's features",
            "Lan et al., ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation, ECCV 2024",
            proxy=ProxyAttention(),
            segmenter={"window": 336, "stride": 112, "pad_multiple": 56},
        ),
        Base(
            "sc-clip",
            Correlation("kk"),
            "attention_only",
            "outliers filled, tokens averaged by likeness, two streams",
            "Bai et al., Self-Calibrated CLIP for Training-Free Open-Vocabulary Segmentation, arXiv 2411.15869",
            pieces=Pieces(
                outliers=OutlierRepair(),
                aggregation=Aggregation(),
                patches=PatchAttention(),
                branch=SimilarityBranch(),
                stream=SecondStream(),
            ),
            rcs_temperature=1.0,
        ),
        Base(
            "sfp",
            Correlation("qq+kk"),
            "attention_only",
            "SC-CLIP with outliers by [CLS]'s attention, and query-query maps",
            "Jin et al., Feature Purification Matters, ICCV 2025",
            pieces=Pieces(
                outliers=OutlierRepair("salience", isolated="zero"),
                aggregation=Aggregation(),
                patches=PatchAttention(0.3),
                branch=SimilarityBranch(cut=0.4),
                stream=SecondStream(scores=False),
            ),
            rcs_temperature=1.0,
        ),
        Base(
            "dih-clip",
            Correlation("kk"),
            "attention_only",
            "SC-CLIP without outliers, by the heads of least entropy",
            "DIH-CLIP: Duan et al., 2025",
            pieces=Pieces(
                aggregation=Aggregation(),
                patches=PatchAttention(),
                branch=SimilarityBranch(),
                heads=HeadSelection(),
                stream=SecondStream(),
            ),
            rcs_temperature=1.0,
        ),
        Base(
            "pearl",
            Correlation("qk"),
            "attention_only",
            "query-key attention with keys rotated towards the queries",
            "PEARL: Procrustes alignment and text-aware Laplacian propagation, 2025",
            pieces=Pieces(alignment=KeyAlignment()),
            steps=Steps(laplacian=LaplacianPropagation()),
        ),
        Base(
            "rf-clip",
            Correlation("kk"),
            "attention_only",
            "the mean of all blocks' key-key maps, over denoised tokens",
            "RF-CLIP, AAAI 2026",
            pieces=Pieces(denoising=Denoising(), fusion=LayerFusion()),
            steps=Steps(adjustment=TextAdjustment()),
        ),
        Base(
            "gem",
            Correlation("qq+kk+vv"),
            "attention_only",
            "a second path of self-self attentions over the last blocks",
            "Bousselham et al., Grounding Everything: Emerging Localization Properties in Vision-Language "
            "Transformers, CVPR 2024",
            pieces=Pieces(path=SecondPath()),
            position="antialias",
            rcs_temperature=1.0,
        ),
        Base(
            "clipsurgery",
            Correlation("vv"),
            "attention_only",
            "a second path of value-value attentions over the last blocks",
            "Li et al., A Closer Look at the Explainability of Contrastive Language-Image Pre-training, Pattern "
            "Recognition 2025",
            pieces=Pieces(path=SecondPath(iterations=0, unit=False, own_cls=True)),
            position="bilinear",
            rcs_temperature=1.0,
            feature_surgery=True,
        ),
        Base(
            "cliptrase",
            Correlation("qq+kk+vv"),
            "full_residual",
            "the sum of query-query, key-key and value-value attention",
            "Shao et al., Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic Segmentation, "
            "ECCV 2024",
            segmenter={"window": 0, "short_side": 224, "logit_scale": 100.0},
            steps=Steps(clusters=ClusterVote()),
        ),
    )
}


def find_base(name: str) -> Base:
    """The base called `name`; ValueError with the valid names otherwise."""
    if not isinstance(name, str) or name not in BASES:
        raise ValueError(f"unknown base {quoted(name)}; use one of: {', '.join(BASES)}")
    return BASES[name]


RESCLIP_CITATION = (
    "Yang et al., ResCLIP: Residual Attention for Training-free Dense Vision-language Inference, "
    "CVPR 2025"
)


@dataclass(frozen=True)
class RCS:
    """Residual cross-correlation self-attention: mixes in the mean query-key attention of middle blocks.

    A = τ_r · ((1 − λ_r) · A_base + λ_r · A_c); arXiv 2411.15851, section 3.2. The paper's equation has τ_r = 1, every
    released configuration 2.
    """

    layers: tuple[int, ...] | str | None = None
    """Blocks counted from 1, without the final one: a tuple, or text such as "6-9" or "3,6-9", which becomes a tuple.

    None: from the middle to three quarters of the depth, which are the released blocks 6–9 of 12, 12–18 of 24 and
    16–24 of 32. The paper finds maps that follow objects in the middle (section 3.1, figure 3); deeper towers pass
    through the same stages in more blocks, so the same fractions of the depth are taken. The authors' program takes
    blocks 6–9 of any tower, as the preset "released" does.
    """
    weight: float = AttentionOptions.cross_weight
    """λ_r in [0, 1]."""
    temperature: float = AttentionOptions.cross_temperature
    """τ_r > 0."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", parse_layers("RCS layers", self.layers))
        check_fraction("RCS weight", self.weight)
        check_range("RCS temperature", self.temperature, *FACTORS)

    def attention_options(self) -> dict[str, Any]:
        """Its weight and temperature, as the fields of `resclip_kernels.AttentionOptions`."""
        return {"cross_weight": self.weight, "cross_temperature": self.temperature}

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The blocks of a tower of `depth` blocks; ValueError if it lacks one of them."""
        if self.layers is None:
            if depth < 2:
                raise ValueError(f"RCS needs blocks before the final one; the tower has {depth}")
            return tuple(range(max(1, depth // 2), max(1, min(3 * depth // 4, depth - 1)) + 1))
        layers = parse_layers("RCS layers", self.layers)
        outside = [layer for layer in layers if not 1 <= layer < depth]
        if outside:
            raise ValueError(
                f"RCS layers must lie between 1 and {depth - 1} (block {depth} is the final one, which RCS repairs); "
                f"got {', '.join(map(str, outside[:5]))}{', …' if len(outside) > 5 else ''}"
            )
        return layers


@dataclass(frozen=True)
class SFR:
    """Semantic feedback refinement: a first segmentation becomes an attention term of the next pass.

    S ← τ_s · ((1 − λ_s) · S + λ_s · Ŝ); arXiv 2411.15851, section 3.3. The defaults are those of the released program,
    the code that the paper's authors published.
    """

    weight: float = AttentionOptions.feedback_weight
    """λ_s in [0, 1]."""
    temperature: float = AttentionOptions.feedback_temperature
    """τ_s > 0."""
    label_threshold: float = 0.3
    """θ in [0, 1]: pixels whose largest probability is below it get query 0."""
    smoothing_std: float = FeedbackOptions.smoothing_std
    """σ in patches of the Gaussian along the flattened patch index; 0 for none."""
    connectivity: Connectivity | None = FeedbackOptions.connectivity
    """Rule for the pairs of patches without path decay: "prefix" (released), "line" (paper) or "component"; None: no
    decay."""
    refine_iterations: int = 10
    """Iterations of PAMR on the logits of the first segmentation; 0 for none."""
    logit_scale: float = 40.0
    """Factor of the logits before the softmax over queries."""
    normalise: bool = FeedbackOptions.normalise
    """Divides rows of Ŝ by their sums, and Ŝ by its maximum (released); False is the paper's equation."""
    rounds: int = 1
    """How often a segmentation is fed back; each round segments by the features of the one before."""

    def __post_init__(self) -> None:
        check_fraction("SFR weight", self.weight)
        check_range("SFR temperature", self.temperature, *FACTORS)
        check_fraction("SFR label_threshold", self.label_threshold)
        check_range("SFR logit_scale", self.logit_scale, *FACTORS)
        check_count("SFR rounds", self.rounds, 1, MOST_ROUNDS)
        check_range("SFR smoothing_std", self.smoothing_std, 0, FACTORS[1])
        check_count("SFR refine_iterations", self.refine_iterations, 0, MOST_ITERATIONS)
        check_flag("SFR normalise", self.normalise)
        if self.connectivity is not None:
            check_choice("SFR connectivity", self.connectivity, CONNECTIVITIES, ", or None")

    def attention_options(self) -> dict[str, Any]:
        """Its weight and temperature, as the fields of `resclip_kernels.AttentionOptions` and of the proxy's."""
        return {"feedback_weight": self.weight, "feedback_temperature": self.temperature}

    def feedback_options(self) -> FeedbackOptions:
        """How its labels become the state that is fed back."""
        return FeedbackOptions(self.connectivity, self.smoothing_std, self.normalise)


@dataclass(frozen=True)
class Overview:
    """A window's final block also attends to the whole image, which is encoded once at a small size.

    With o for the tokens of that small image, and A_o the base's attention from the window to them (without prior,
    local window or feedback):

        out = τ_r · ((1 − λ_r) · ((1 − w) · A_base·v + w · A_o·v_o) + λ_r · A_c·v)

    It is inside RCS's sum because rows of A_o sum to what rows of A_base do (2 for SCLIP's sum of maps, 1 for the
    others), while rows of A_c sum to 1: so rows of the whole keep their sum.
    """

    weight: float = 0.1
    """w in [0, 1]; 0 is the plain method."""
    side: int = 0
    """The small image has as many pixels as a square of this side; 0: as a window."""

    def __post_init__(self) -> None:
        check_fraction("overview weight", self.weight)
        check_count("overview side", self.side, 0, MOST_PIXELS)

    def size(
        self, height: int, width: int, window: int, patch_size: tuple[int, int]
    ) -> tuple[int, int]:
        """(height, width) in pixels of the small image: multiples of a patch, in the image's ratio.

        An image is never enlarged, except to fill its last patch. One that would be thinner than a patch loses its
        ratio, so that it never takes more patches than a square of `side`.

        Args:
            height, width: of the image, in pixels.
            window: side of the segmenter's windows, the default of `side`.
            patch_size: of the tower, (height, width) in pixels.

        Raises:
            ValueError: `side` and `window` are both 0.
        """
        side = self.side or window
        if side == 0:
            raise ValueError(
                "the overview takes its size from the windows, and window 0 is the whole image: "
                "give the overview a side, or segment by windows"
            )
        scale = min(1.0, side / math.sqrt(height * width))
        largest = max(1, side * side // math.prod(patch_size))  # Patches along a thin image.
        rows, columns = (
            min(max(1, round(scale * length / patch)), largest)
            for length, patch in zip((height, width), patch_size, strict=True)
        )
        return rows * patch_size[0], columns * patch_size[1]


@dataclass(frozen=True)
class Method:
    """A base with or without ResCLIP's two modules, by the name that the command line takes."""

    name: str
    base: str
    summary: str
    citation: str
    rcs: RCS | None = None
    sfr: SFR | None = None
    correlation: Correlation | None = None
    """None: the base's own."""
    proxy: ProxyAttention | None = None
    """None: the base's own."""
    final_block: FinalBlockKind | None = None
    """None: the base's own."""
    pieces: Pieces | None = None
    """None: the base's own."""
    position: str | None = None
    """None: the base's own."""
    steps: Steps | None = None
    """None: the base's own."""
    refine_iterations: int = 0
    """Iterations of PAMR on the result's logits."""

    def __post_init__(self) -> None:
        find_base(self.base)
        check_modules(self.rcs, self.sfr)
        if self.correlation is not None:
            check_type("correlation", self.correlation, Correlation, "a Correlation or None")
        if self.proxy is not None:
            check_type("proxy", self.proxy, ProxyAttention, "a ProxyAttention or None")


def check_modules(rcs: RCS | None, sfr: SFR | None) -> None:
    """TypeError unless these are ResCLIP's two modules, or None."""
    for name, module, expected in (("rcs", rcs, RCS), ("sfr", sfr, SFR)):
        if module is not None and not isinstance(module, expected):
            raise TypeError(
                f"{name} must be an {expected.__name__} or None; got {quoted(module)}. To leave it out, choose a "
                "method without it"
            )


def combinations(base: Base) -> list[Method]:
    """The base alone, and with the modules that can be added: RCS to any, SFR to bases whose attention has a score."""
    methods = [Method(base.name, base.name, base.summary, base.citation)]
    cited = f"{base.citation}; {RESCLIP_CITATION}"
    for modules in (("rcs",), ("sfr",), ("rcs", "sfr")):
        if "sfr" in modules and not base.has_score:
            continue
        methods.append(
            Method(
                "+".join((base.name, *modules)),
                base.name,
                " + ".join((base.name, *(module.upper() for module in modules))),
                cited,
                rcs=RCS(temperature=base.rcs_temperature) if "rcs" in modules else None,
                sfr=SFR() if "sfr" in modules else None,
            )
        )
    return methods


METHODS: Mapping[str, Method] = {
    **{method.name: method for base in BASES.values() for method in combinations(base)},
    "resclip": Method(
        "resclip", "naclip", "naclip + RCS + SFR", RESCLIP_CITATION, rcs=RCS(), sfr=SFR()
    ),
}


PAMR = "pamr"
"""The suffix of a method's name that asks for PAMR on the result's logits."""
PAMR_ITERATIONS = 10


def find_method(name: str | Method) -> Method:
    """The method called `name`; a `Method` is returned.

    A name is a base, or "resclip", followed by any of "+rcs", "+sfr", the steps "+gla", "+cass", "+freecp", "+lposs"
    and "+tlp", and "+pamr".

    Raises:
        TypeError: neither a name nor a `Method`.
        ValueError: no such method, or SFR on a base without a score; the message names the valid ones.
    """
    if isinstance(name, Method):
        return name
    check_type("method", name, str, "a name such as 'resclip', or a Method")
    base, *parts = (part.strip() for part in name.split("+"))
    modules = [part for part in parts if part in MODULES]
    behind = [part for part in (*SUFFIXES, PAMR) if part in parts]
    ordered = "+".join((base, *(module for module in MODULES if module in modules)))
    known = set(MODULES) | set(SUFFIXES) | {PAMR}
    if ordered in METHODS and set(parts) <= known and len(set(parts)) == len(parts):
        return with_steps(METHODS[ordered], behind)
    if base in BASES and "sfr" in modules and not BASES[base].has_score:
        raise ValueError(
            f"SFR changes the attention's score, which base {base!r} does not have: leave +sfr out, or use one of: "
            f"{', '.join(other.name for other in BASES.values() if other.has_score)}"
        )
    near = difflib.get_close_matches(name, METHODS, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"unknown method {quoted(name)}{hint}; use one of: {', '.join(BASES)}, resclip; "
        "any base may be followed by +rcs, +sfr or +rcs+sfr, and by steps: "
        f"{', '.join('+' + suffix for suffix in (*SUFFIXES, PAMR))}"
    )


def check_no_steps(method: Method, what: str) -> None:
    """ValueError if a method's name asks for steps, where `what` gives features and nothing behind them."""
    if method.steps is not None or method.refine_iterations:
        raise ValueError(
            f"{what} gives features, and the steps of method {method.name!r} act behind them: leave them out of its "
            "name, or use resclip.load"
        )


def with_steps(method: Method, suffixes: Sequence[str]) -> Method:
    """The method with the steps that these suffixes ask for, beside the base's own."""
    if not suffixes:
        return method
    steps = BASES[method.base].steps
    for suffix in suffixes:
        if suffix != PAMR and getattr(steps, SUFFIXES[suffix]) is None:
            steps = replace(steps, **{SUFFIXES[suffix]: STEP_KINDS[SUFFIXES[suffix]]()})
    return replace(
        method,
        name="+".join((method.name, *suffixes)),
        summary=f"{method.summary}, then {', '.join(suffix.upper() for suffix in suffixes)}",
        steps=steps,
        refine_iterations=PAMR_ITERATIONS if PAMR in suffixes else method.refine_iterations,
    )
