"""The methods as values: one base attention each, RCS and SFR as knobs, and presets of the knobs.

Knows the papers' settings. Knows no tensor and no model; `DenseEncoder` carries a method out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from resclip.builtin import PRESET as BUILTIN_PRESET
from resclip_kernels import CONNECTIVITIES
from resclip_kernels.checks import check_fraction, check_positive

FinalBlock = Literal["attention_only", "full_residual"]
FINAL_BLOCKS: tuple[str, ...] = get_args(FinalBlock)
Connectivity = Literal["prefix", "line", "component"]


@dataclass(frozen=True)
class Base:
    """What a method makes of the final block, before RCS and SFR."""

    name: str
    correlation: Literal["qk", "qq", "kk", "qq+kk", "identity"]
    """Which self-correlation scores the attention; see `resclip_kernels.residual_attention`."""
    final_block: FinalBlock
    """"attention_only": no residual and no MLP; "full_residual": CLIP's own block."""
    neighbourhood: bool
    """Whether NACLIP's Gaussian neighbourhood prior is added to the score."""
    summary: str
    citation: str


BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        Base(
            "clip",
            "qk",
            "full_residual",
            False,
            "CLIP's own final block",
            "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
        ),
        Base(
            "maskclip",
            "identity",
            "attention_only",
            False,
            "each patch keeps its own value",
            "Zhou, Loy & Dai, Extract Free Dense Labels from CLIP, ECCV 2022",
        ),
        Base(
            "sclip",
            "qq+kk",
            "full_residual",
            False,
            "query-query plus key-key attention",
            "Wang, Mei & Yuille, SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference, ECCV 2024",
        ),
        Base(
            "clearclip",
            "qq",
            "attention_only",
            False,
            "query-query attention, no residual, no MLP",
            "Lan et al., ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference, ECCV 2024",
        ),
        Base(
            "naclip",
            "kk",
            "attention_only",
            True,
            "key-key attention with a Gaussian neighbourhood prior",
            "Hajimiri, Ben Ayed & Dolz, Pay Attention to Your Neighbours, WACV 2025",
        ),
    )
}
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

    layers: tuple[int, ...] | None = None
    """Blocks counted from 1, none of them the final one. None: from the middle to three quarters of the depth, which
    is the released 6–9 of 12 blocks, 12–18 of 24 and 16–24 of 32."""
    weight: float = 0.4
    """λ_r in [0, 1]."""
    temperature: float = 2.0
    """τ_r > 0."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers:
                raise ValueError("RCS needs at least one layer; use rcs=None to turn it off")
        check_fraction("RCS weight", self.weight)
        check_positive("RCS temperature", self.temperature)

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The blocks to take from a tower of `depth` blocks; ValueError where one of them cannot be taken."""
        if self.layers is None:
            if depth < 2:
                raise ValueError(f"RCS needs blocks before the final one; the tower has {depth}")
            return tuple(range(max(1, depth // 2), max(1, min(3 * depth // 4, depth - 1)) + 1))
        outside = [layer for layer in self.layers if not 1 <= layer < depth]
        if outside:
            raise ValueError(
                f"RCS layers must lie between 1 and {depth - 1} (block {depth} is the final one, which RCS repairs); "
                f"got {', '.join(map(str, outside))}"
            )
        return self.layers


@dataclass(frozen=True)
class SFR:
    """Semantic feedback refinement: a first segmentation becomes an attention term of the second pass.

    S ← τ_s · ((1 − λ_s) · S + λ_s · Ŝ); arXiv 2411.15851, section 3.3. The defaults are the released program's.
    """

    weight: float = 0.6
    """λ_s in [0, 1]."""
    temperature: float = 2.1
    """τ_s > 0."""
    label_threshold: float = 0.3
    """θ: pixels whose largest probability is under it get query 0."""
    smoothing_std: float = 5.0
    """σ of the Gaussian along the flattened patch index, in patches; 0 for none."""
    connectivity: Connectivity | None = "prefix"
    """Which pairs path decay spares ("prefix" released, "line" paper, "component"); None: no decay."""
    refine_iterations: int = 10
    """PAMR iterations on the first pass's logits; 0 for none."""
    logit_scale: float = 40.0
    """Factor of the logits before the softmax over queries."""
    normalise: bool = True
    """Rows of Ŝ divided by their sums and the matrix by its maximum (released); False is the paper's equation."""

    def __post_init__(self) -> None:
        check_fraction("SFR weight", self.weight)
        check_positive("SFR temperature", self.temperature)
        check_fraction("SFR label_threshold", self.label_threshold)
        check_positive("SFR logit_scale", self.logit_scale)
        if self.smoothing_std < 0:
            raise ValueError(f"SFR smoothing_std must be at least 0; got {self.smoothing_std}")
        if self.refine_iterations < 0:
            raise ValueError(
                f"SFR refine_iterations must be at least 0; got {self.refine_iterations}"
            )
        if self.connectivity is not None and self.connectivity not in CONNECTIVITIES:
            valid = ", ".join(map(repr, CONNECTIVITIES))
            raise ValueError(
                f"SFR connectivity must be one of {valid}, or None; got {self.connectivity!r}"
            )


@dataclass(frozen=True)
class Method:
    """A base with or without ResCLIP's two modules, under the name that the command line takes."""

    name: str
    base: str
    summary: str
    citation: str
    rcs: RCS | None = None
    sfr: SFR | None = None
    final_block: FinalBlock | None = None
    """None: the base's own."""


METHODS: Mapping[str, Method] = {
    **{name: Method(name, name, base.summary, base.citation) for name, base in BASES.items()},
    "resclip": Method(
        "resclip", "naclip", "NACLIP + RCS + SFR", RESCLIP_CITATION, rcs=RCS(), sfr=SFR()
    ),
}


@dataclass(frozen=True)
class Preset:
    """Values for the knobs of RCS, SFR and the segmenter; a knob that is not named keeps its default."""

    name: str
    summary: str
    rcs: Mapping[str, Any] = field(default_factory=dict)
    sfr: Mapping[str, Any] = field(default_factory=dict)
    segmenter: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, method: Method) -> Method:
        """The method with this preset's values in the modules that it has."""
        return replace(
            method,
            rcs=method.rcs and replace(method.rcs, **self.rcs),
            sfr=method.sfr and replace(method.sfr, **self.sfr),
        )


def released(
    name: str,
    label_threshold: float,
    sfr: tuple[float, float],
    rcs: tuple[float, float],
    **segmenter: float,
) -> Preset:
    """A row of the released settings; pairs are (temperature, weight) as published."""
    return Preset(
        name,
        f"released settings for {name}",
        rcs={"layers": (6, 7, 8, 9), "temperature": rcs[0], "weight": rcs[1]},
        sfr={"label_threshold": label_threshold, "temperature": sfr[0], "weight": sfr[1]},
        segmenter=segmenter,
    )


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "released",
            "the released program: layers 6-9 whatever the depth",
            rcs={"layers": (6, 7, 8, 9)},
        ),
        Preset(
            "paper",
            "the paper's equations: no PAMR, no normalisation of the feedback, whole path tested",
            rcs={"layers": (6, 7, 8, 9), "temperature": 1.0, "weight": 0.5},
            sfr={
                "temperature": 1.0,
                "weight": 0.7,
                "connectivity": "line",
                "refine_iterations": 0,
                "normalise": False,
            },
        ),
        released("voc20", 0.10, (2.1, 0.6), (2.0, 0.6), window=0),
        released("voc21", 0.50, (2.2, 0.7), (2.0, 0.3), window=0, probability_threshold=0.1),
        released("context59", 0.25, (1.8, 0.7), (2.0, 0.4)),
        released("context60", 0.30, (1.8, 0.7), (2.0, 0.3), probability_threshold=0.1),
        released("coco-object", 0.11, (1.8, 0.7), (2.0, 0.4), probability_threshold=0.1),
        released("coco-stuff", 0.11, (1.8, 0.7), (2.0, 0.4)),
        released("cityscapes", 0.10, (2.1, 0.6), (2.0, 0.2), short_side=560),
        released("ade20k", 0.25, (2.1, 0.7), (2.0, 0.3)),
        Preset("builtin", "chosen for the built-in model on validation scenes", **BUILTIN_PRESET),
    )
}


def find_method(name: str, preset: str | None = None) -> Method:
    """The method called `name`, with a preset's values; ValueError with the valid names otherwise."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; use one of: {', '.join(METHODS)}")
    method = METHODS[name]
    return method if preset is None else find_preset(preset).apply(method)


def find_preset(name: str) -> Preset:
    """The preset called `name`; ValueError with the valid names otherwise."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; use one of: {', '.join(PRESETS)}")
    return PRESETS[name]


def knobs(module: RCS | SFR | None) -> dict[str, Any] | None:
    """A module's values as a JSON-able dict."""
    return None if module is None else asdict(module)
