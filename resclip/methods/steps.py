"""What may be done behind the tokens, each as a value that goes with any method: from logits of a window to labels.

They act in the order of the fields of `Steps`: on the tokens and logits of windows, then on the whole picture's logits
at its own size, and last on its probabilities and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from resclip.methods.parts import Parts
from resclip_kernels import (
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_range,
)

MOST = 1_000_000

Axis = Literal["channel", "position"]
ImageVector = Literal["picture", "window"]


@dataclass(frozen=True)
class CrossWindowKeys:
    """GLA-CLIP: patches attend to the patches of all windows of their image.

    On a base that compares queries ("clearclip") or another model's features ("proxyclip").
    """

    threshold: float = 0.55
    """ρ: similarity above which a key belongs to an anchor."""
    steps: int = 2
    """How often an anchor becomes the mean of the keys that belong to it."""
    row_mean: bool = True
    """Whether each row is normalised by its own mean, or by the mean of everything."""
    beta: float | None = None
    """β; None: 1 + `beta_alpha` · ln(1 + windows)."""
    beta_alpha: float = 0.3
    gamma: float = 3.0
    """γ without `gamma_alpha`."""
    gamma_alpha: float | None = 30.0
    """γ = 1 + `gamma_alpha` over the number of keys that belong to an anchor; None: `gamma`."""

    def __post_init__(self) -> None:
        check_range("windows threshold", self.threshold, -1, 1)
        check_count("windows steps", self.steps, 0, 1_000)
        check_flag("windows row_mean", self.row_mean)
        for name, value in (
            ("beta", self.beta),
            ("beta_alpha", self.beta_alpha),
            ("gamma", self.gamma),
            ("gamma_alpha", self.gamma_alpha),
        ):
            if value is not None:
                check_range(f"windows {name}", value, -MOST, MOST)


@dataclass(frozen=True)
class TextAdjustment:
    """Moves texts that an image shows towards its patches, and adds the image's similarity to the logits.

    CASS (CVPR 2025) calls it object-guided text adjustment; RF-CLIP's program has the same. Queries are grouped by
    complete linkage on 1 − cosine; of each group the one of largest similarity g to the image vector becomes
    unit((1 − μ) text + μ unit(f)), f the mean of the 2 tokens nearest to it; logits ← (1 − γ) logits + γ g.
    """

    global_weight: float = 0.25
    """γ in [0, 1]: the share of the image's similarity."""
    text_weight: float = 0.04
    """μ in [0, 1]: how far a text moves."""
    group_threshold: float = 0.1
    """t: the largest distance, 1 − cosine, within a group."""
    image: ImageVector = "picture"
    """Whose vector counts: the whole resized picture's, or the window's own."""

    def __post_init__(self) -> None:
        check_fraction("adjustment global_weight", self.global_weight)
        check_fraction("adjustment text_weight", self.text_weight)
        check_range("adjustment group_threshold", self.group_threshold, 0, 2)
        check_choice("adjustment image", self.image, get_args(ImageVector))


@dataclass(frozen=True)
class PromptDenoising:
    """Queries that no patch of the picture is likely to show are left out (MaskCLIP, ECCV 2022, section 3.3)."""

    threshold: float = 0.5
    """A query whose largest softmax(scale · cosine) over the patches is below it gets −100 everywhere."""
    scale: float = 100.0
    """The factor of the cosines."""

    def __post_init__(self) -> None:
        check_fraction("prompts threshold", self.threshold)
        check_range("prompts scale", self.scale, 1e-6, MOST)


@dataclass(frozen=True)
class KeySmoothing:
    """Unsure patches take the probabilities of patches with similar keys (MaskCLIP, ECCV 2022, section 3.3).

    The result is probabilities, not cosines, and the segmenter's softmax, of them times its scale, says little: take
    the labels, and no threshold.
    """

    threshold: float = 1.0
    """A patch whose largest probability is below it is smoothed."""
    axis: Axis = "channel"
    """Along what keys are divided by their norm: over positions, "channel" by "channel", as the released program does,
    or at each "position" over the channels, which was probably meant."""
    scale: float = 100.0
    """The factor of the cosines."""

    def __post_init__(self) -> None:
        check_fraction("smoothing threshold", self.threshold)
        check_choice("smoothing axis", self.axis, get_args(Axis))
        check_range("smoothing scale", self.scale, 1e-6, MOST)


@dataclass(frozen=True)
class ClassPurification:
    """FreeCP: each class's map is spread by CLIP's own attention; classes that it does not confirm are dropped.

    Redundant classes fall to `redundancy`; of classes that cover the same boxes, `ambiguity`, CLIP's [CLS] of the
    cropped boxes keeps the likeliest. The result is a map in [0, 1] a class, not a cosine.
    """

    redundancy: float = 0.1
    """θ_r: the least agreement of a class's map with its spread one."""
    ambiguity: float = 0.7
    """θ_a: from which overlap of two classes on they are ambiguous; above 1 none are."""

    def __post_init__(self) -> None:
        check_range("purification redundancy", self.redundancy, 0, MOST)
        check_range("purification ambiguity", self.ambiguity, 0, MOST)


@dataclass(frozen=True)
class GraphPropagation:
    """LPOSS (CVPR 2025): logits spread over a graph of the nearest patches of all windows, by label propagation.

    As released the result is not divided: it is up to 1 / (1 − α) times as large as the logits. The largest class stays
    the largest, but probabilities lie close to 1, and a threshold of them sees little.
    """

    neighbours: int = 400
    """k: how many nearest patches each is linked to, itself included."""
    sigma: float = 0.01
    """Factor of the distance in pixels."""
    gamma: float = 3.0
    """Power of the similarity."""
    alpha: float = 0.95
    """α in [0, 1): how far labels spread."""
    steps: int = 10
    """Most steps of conjugate gradients."""

    def __post_init__(self) -> None:
        check_count("propagation neighbours", self.neighbours, 1, MOST)
        check_range("propagation sigma", self.sigma, 0, MOST)
        check_range("propagation gamma", self.gamma, 0, MOST)
        check_range("propagation alpha", self.alpha, 0, 0.999_999)
        check_count("propagation steps", self.steps, 1, 1_000)


@dataclass(frozen=True)
class LaplacianPropagation:
    """TLP: PEARL's text-aware Laplacian propagation of the picture's logits, along its edges."""

    grid: int = 80
    """Rows and columns, about, of the grid on which it is solved."""
    iterations: int = 25
    """Steps of conjugate gradients."""

    def __post_init__(self) -> None:
        check_count("laplacian grid", self.grid, 1, 1 << 16)
        check_count("laplacian iterations", self.iterations, 0, 1_000)


@dataclass(frozen=True)
class AreaRule:
    """Classes that take little of the picture are dropped (SC-CLIP's `area_threshold`).

    By the counts of the arg-max, every class but the first with at most `share` of the pixels of all classes but the
    first gets the probability 0.
    """

    share: float = 0.1
    """In [0, 1]."""

    def __post_init__(self) -> None:
        check_fraction("area share", self.share)


@dataclass(frozen=True)
class ClusterVote:
    """CLIPtrase (ECCV 2024): patches that the last block but one correlates are clustered, and each cluster votes.

    All pixels of a cluster get the most frequent label in it. For pictures that go through the model whole.
    """

    eps: float = 0.7
    """Distance of two rows that are neighbours, DBSCAN's ε."""
    min_samples: int = 3
    """Neighbours, itself counted, that make a row a core."""
    cls_factor: bool = False
    """Whether logits are multiplied by [CLS]'s, class by class, before (the released program's rule for VOC20)."""

    def __post_init__(self) -> None:
        check_range("clusters eps", self.eps, 0, MOST)
        check_count("clusters min_samples", self.min_samples, 1, MOST)
        check_flag("clusters cls_factor", self.cls_factor)


STEP_KINDS: dict[str, type[Any]] = {
    "windows": CrossWindowKeys,
    "adjustment": TextAdjustment,
    "prompts": PromptDenoising,
    "smoothing": KeySmoothing,
    "purification": ClassPurification,
    "propagation": GraphPropagation,
    "laplacian": LaplacianPropagation,
    "area": AreaRule,
    "clusters": ClusterVote,
}
"""Each step's type, by its name in `Steps`."""


@dataclass(frozen=True)
class Steps(Parts):
    """The steps of a segmenter, None where there is none, in the order in which they act."""

    kinds: ClassVar[Mapping[str, type[Any]]] = STEP_KINDS

    windows: CrossWindowKeys | None = None
    adjustment: TextAdjustment | None = None
    prompts: PromptDenoising | None = None
    smoothing: KeySmoothing | None = None
    purification: ClassPurification | None = None
    propagation: GraphPropagation | None = None
    laplacian: LaplacianPropagation | None = None
    area: AreaRule | None = None
    clusters: ClusterVote | None = None


SUFFIXES: dict[str, str] = {
    "gla": "windows",
    "cass": "adjustment",
    "freecp": "purification",
    "lposs": "propagation",
    "tlp": "laplacian",
}
"""Steps that a method's name may ask for, as in "clearclip+freecp": the suffix, and the name in `Steps`."""
