"""What the final block's tokens are compared by: one option for the bases' choices and SCLIP's ablations.

Knows names and ranges. Knows no tensor; `DenseEncoder` makes the operands, `residual_attention` the map.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from resclip.methods.options_text import parse_options
from resclip_kernels import check_count, check_positive

Scores = Literal["qk", "qq", "kk", "qq+kk", "xx", "random", "none", "identity"]
SCORES: tuple[str, ...] = get_args(Scores)
MEANINGS = {
    "qk": "query-key, CLIP's own",
    "qq": "query-query",
    "kk": "key-key",
    "qq+kk": "the sum of both maps",
    "xx": "the block's normalised input with itself: the identity projection",
    "random": "the mean over random projections of it",
    "none": "nothing: every token alike, so that a prior alone decides",
    "identity": "no attention: each patch keeps its own value",
}


@dataclass(frozen=True)
class Correlation:
    """The map that the final block attends with, before prior, SFR and RCS.

    With x = LN1(tokens) and q, k its projections, per head: softmax(a bᵀ / (√d·τ)). The choices beside the bases' own
    are the ablations of SCLIP (Wang et al., arXiv 2312.01597, sections 3 and 4), NACLIP's neighbourhood-only attention
    ("none": a score of 0, so that the prior alone decides) and MaskCLIP's unit matrix ("identity").
    """

    scores: Scores = "kk"
    """A key of `MEANINGS`; the rows of "qq+kk" add to 2, all others' to 1."""
    temperature: float = 1.0
    """τ > 0 beside √d: below 1 sharpens the attention."""
    window: int | None = None
    """Odd side w of a local window in patches: a patch attends to the w × w patches around it alone, and [CLS] to all.
    1 is the unit matrix. None: every patch sees the whole image."""
    layer: int | None = None
    """Block, counted from 1, whose x, q and k are compared; the values stay the final block's. None: the final one."""
    projections: int = 1
    """Number of random projections ("random" alone): D × D, entries normal with variance 1 / D, heads as q has them."""
    seed: int = 0
    """Of the random projections: the same seed gives the same ones, whatever the device."""

    def __post_init__(self) -> None:
        if self.scores not in SCORES:
            valid = ", ".join(map(repr, SCORES))
            raise ValueError(f"correlation must be one of {valid}; got {self.scores!r}")
        check_positive("correlation temperature", self.temperature)
        check_count("correlation projections", self.projections, 1)
        check_count("correlation seed", self.seed, 0)
        if self.window is not None:
            check_count("correlation window", self.window, 1)
            if self.window % 2 == 0:
                raise ValueError(
                    f"correlation window must be odd, so that it has a middle patch; got {self.window}"
                )
        if self.layer is not None:
            check_count("correlation layer", self.layer, 1)
        if self.scores != "random" and self.projections != 1:
            raise ValueError(
                f"projections count random projections; with {self.scores!r} there are none: "
                "use correlation 'random', or leave projections out"
            )
        if not self.has_score:
            given = [
                item.name
                for item in fields(self)
                if item.name != "scores" and getattr(self, item.name) != item.default
            ]
            if given:
                raise ValueError(
                    f"correlation 'identity' compares nothing, so {', '.join(given)} would change nothing: "
                    "leave it out, or choose another correlation"
                )

    @property
    def has_score(self) -> bool:
        """Whether there is a score that a prior or SFR could change."""
        return self.scores != "identity"

    @classmethod
    def parse(cls, text: str) -> Correlation:
        """From text: the scores, then any of the other options, such as "random,projections=8,seed=1" or "qk,layer=4".

        Raises:
            ValueError, TypeError: an unknown name, an option that does not exist, or a value that does not fit.
        """
        scores, comma, rest = (part.strip() for part in text.partition(","))
        # Made first without the rest, so that an unknown name is what the message speaks of.
        chosen = cls(scores)  # type: ignore[arg-type]
        return parse_options(cls, rest, scores=chosen.scores) if comma else chosen
