"""The options of one proxy attention."""

from __future__ import annotations

from dataclasses import dataclass

from resclip_kernels.checks import check_finite, check_positive, check_range, set_floats
from resclip_kernels.options.semantic_feedback import FeedbackMixing, MixingKeywords


@dataclass(frozen=True, kw_only=True)
class ProxyAttentionOptions(FeedbackMixing):
    """What decides the map of `proxy_attention` beside the features; the defaults are ProxyCLIP's.

    Raises:
        TypeError, ValueError: a value out of its range.
    """

    beta: float = 1.2
    """How far above the mean similarity an entry must lie, as a multiple of the mean; any finite number."""
    gamma: float = 3.0
    """γ > 0: sharpness of the softmax."""
    cut: float | None = None
    """Entries of X Xᵀ below it count as 0, in the mean as well; from −1 to 1. None: all count. SFP's is 0.4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("beta", self.beta)
        check_positive("gamma", self.gamma)
        set_floats(self, "beta", "gamma")
        if self.cut is not None:
            check_range("cut", self.cut, -1.0, 1.0)
            set_floats(self, "cut")


class ProxyAttentionKeywords(MixingKeywords, total=False):
    """The fields of `ProxyAttentionOptions` as keyword arguments."""

    beta: float
    gamma: float
    cut: float | None
