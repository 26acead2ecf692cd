"""What the final block's attention compares: one option for the bases' choices and SCLIP's ablations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from resclip.methods.options_text import parse_options
from resclip_kernels import check_choice, check_count, check_range, check_type

Scores = Literal[
    "qk", "qq", "kk", "vv", "qq+kk", "qq+kk+vv", "xx", "random", "learned", "none", "identity"
]
SCORES: tuple[str, ...] = get_args(Scores)
MEANINGS = {
    "qk": "query-key, CLIP's own",
    "qq": "query-query",
    "kk": "key-key",
    "vv": "value-value",
    "qq+kk": "the sum of both maps",
    "qq+kk+vv": "the sum of three maps, the third of the values",
    "xx": "the block's normalised input with itself, without projection",
    "random": "random projections of that input; the mean of several maps",
    "learned": "one projection of that input out of a file, as `resclip ablate` learns one",
    "none": "nothing: all tokens count the same, so a neighbourhood prior alone decides",
    "identity": "no attention: each patch keeps its own value",
}
"""The choices with their explanations, as `resclip methods` prints them."""
PROJECTION = "projection"
"""The name of the learned projection in its file."""
MOST_PROJECTIONS = 256
"""Largest number of random projections: each takes a matrix of D × D and an attention of its own."""
MOST_BLOCKS = 1_000
"""Largest number of blocks; no tower is as deep."""


@dataclass(frozen=True)
class Correlation:
    """The map that the final block attends with, before prior, SFR and RCS.

    With x = LN1(tokens) and q, k its projections, per head: softmax(a bᵀ / (√d·τ)). Beside the bases' own choices
    there are the ablations of SCLIP (Wang et al., arXiv 2312.01597, sections 3 and 4), NACLIP's neighbourhood-only
    attention ("none": a score of 0, so that the prior alone decides) and MaskCLIP's identity matrix ("identity").
    """

    scores: Scores = "kk"
    """A key of `MEANINGS`; rows of the map sum to 2 for "qq+kk", to 3 for "qq+kk+vv", to 1 for the others."""
    temperature: float = 1.0
    """τ > 0, a divisor of the score beside √d: below 1 sharpens the attention."""
    window: int | None = None
    """Odd side w in patches of a local window: a patch attends to the w × w patches around it, [CLS] to all.

    1 is the identity matrix. None: every patch attends to the whole image.
    """
    layer: int | None = None
    """Block, counted from 1, whose x, q and k are compared; the values stay the final block's. None: the final one."""
    projections: int = 1
    """Number of random projections ("random" alone): D × D, entries normal with variance 1 / D, heads as q has them."""
    seed: int = 0
    """Seed of the random projections, which are the same on every device."""
    path: str | None = None
    """A safetensors file ("learned" alone) with the learned projection `PROJECTION`, (D, D): x is multiplied by it."""
    blocks: int = 1
    """How many of the last blocks attend by it in place of their own query-key attention; 1: the final one alone.

    The blocks before the final one keep their residual and MLP, and have no prior, SFR or RCS.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("path", "blocks")
    """Options that `as_dict` leaves out at their defaults: figures that were stored without them stay comparable."""

    def __post_init__(self) -> None:
        check_choice("correlation", self.scores, SCORES)
        check_range("correlation temperature", self.temperature, 1e-6, 1e6)
        check_count("correlation projections", self.projections, 1, MOST_PROJECTIONS)
        # What torch takes.
        check_count("correlation seed", self.seed, 0, (1 << 63) - 1)
        if self.window is not None:
            check_count("correlation window", self.window, 1)
            if self.window % 2 == 0:
                raise ValueError(
                    f"correlation window must be odd, so that it has a middle patch; got {self.window}"
                )
        if self.layer is not None:
            check_count("correlation layer", self.layer, 1)
        check_count("correlation blocks", self.blocks, 1, MOST_BLOCKS)
        if self.blocks > 1 and self.layer is not None:
            raise ValueError(
                f"correlation layer {self.layer} makes the final block compare another block's tokens, and blocks "
                f"{self.blocks} makes several blocks compare their own: leave one of the two out"
            )
        if self.path is not None:
            check_type("correlation path", self.path, str, "the name of a safetensors file")
        if (self.scores == "learned") != (self.path is not None):
            raise ValueError(
                "correlation 'learned' needs the file of its projection, as in 'learned,path=projection.safetensors'; "
                f"no other takes one; got {self.scores!r} with path {self.path!r}"
            )
        if self.scores != "random" and self.projections != 1:
            raise ValueError(
                f"projections count random projections; with {self.scores!r} there are none: "
                "use correlation 'random', or leave projections out"
            )
        if not self.has_score:
            changed = [
                item.name
                for item in fields(self)
                if item.name not in ("scores", "blocks")
                and getattr(self, item.name) != item.default
            ]
            if changed:
                raise ValueError(
                    f"correlation 'identity' compares nothing, so {', '.join(changed)} would change nothing: "
                    "leave it out, or choose another correlation"
                )

    @property
    def has_score(self) -> bool:
        """Whether the attention has a score, which a prior or SFR could change."""
        return self.scores != "identity"

    @classmethod
    def parse(cls, text: str) -> Correlation:
        """From text: the scores, then any of the other options, such as "random,projections=8,seed=1" or "qk,layer=4".

        Raises:
            ValueError, TypeError: an unknown name, an option that does not exist, or a value that does not fit.
        """
        check_type("correlation", text, str, "text such as 'kk' or 'qk,layer=4'")
        scores, comma, rest = (part.strip() for part in text.partition(","))
        # First, so that the error for an unknown name is about the name.
        check_choice("correlation", scores, SCORES)
        return parse_options(cls, rest, scores=scores) if comma else cls(scores)  # type: ignore[arg-type]
