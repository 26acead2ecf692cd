"""Which pixels are too uncertain for a class: it is not probable enough, or another one is about as probable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TypeAlias

import torch
from torch import Tensor

from resclip_kernels import check_fraction, check_type, quoted

Threshold: TypeAlias = "float | Mapping[str, float] | list[float] | tuple[float, ...]"
"""One number for all classes, one for each in their order, or by name; classes that are not named have none."""

UNCERTAIN = -2
"""The label of such a pixel until the host has looked whether the logits held NaN, for which −1 stands on a GPU."""


def check_threshold(threshold: Threshold, names: Sequence[str] | None = None) -> None:
    """TypeError or ValueError unless these are probabilities, and fit the classes where these are known."""
    threshold = plain(threshold)
    if isinstance(threshold, Mapping):
        for name, value in threshold.items():
            check_type("each name of threshold", name, str, "a class's name")
            check_fraction(f"threshold of {quoted(name)}", value)
            if names is not None and name not in names:
                near = get_close_matches(name, names, 1)
                hint = f"did you mean {quoted(near[0])}?" if near else f"use {listed(names)}"
                raise ValueError(f"threshold names {quoted(name)}, which is no class here: {hint}")
    elif isinstance(threshold, (list, tuple)):
        for value in threshold:
            check_fraction("each of threshold", value)
        if names is not None and len(threshold) != len(names):
            raise ValueError(
                f"threshold must be one number, or one for each of the {len(names)} classes; got {len(threshold)}: "
                "name those that have one, as in {'cat': 0.5}"
            )
    elif isinstance(threshold, (int, float)):
        check_fraction("threshold", threshold)
    else:
        raise TypeError(
            "threshold must be a number from 0 to 1, one for each class in a list, or numbers by class name; got "
            f"{quoted(threshold)}"
        )


def plain(threshold: Threshold) -> Threshold:
    """Python's numbers and lists in place of NumPy's and torch's."""
    found: Threshold = threshold.tolist() if hasattr(threshold, "tolist") else threshold
    return found


def thresholds_of(
    threshold: Threshold, names: Sequence[str], device: torch.device
) -> Tensor | None:
    """(classes,) float32, each class's least probability; None where there is none at all."""
    check_threshold(threshold, names)
    threshold = plain(threshold)
    if isinstance(threshold, Mapping):
        values = [float(threshold.get(name, 0.0)) for name in names]
    elif isinstance(threshold, (list, tuple)):
        values = [float(value) for value in threshold]
    else:
        values = [float(threshold)] * len(names)
    return torch.tensor(values, device=device) if any(values) else None


def reject_improbable(labels: Tensor, probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """`UNCERTAIN` where a pixel's probability is below its class's threshold; what has no class stays as it is."""
    low = probabilities < thresholds[labels.clamp(min=0)]
    return labels.masked_fill(low & (labels >= 0), UNCERTAIN)


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, the first of them where they are many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(map(quoted, names[:most]))}{more}"
