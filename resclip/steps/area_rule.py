"""Classes that take little of the picture are dropped, in two passes over strips of rows.

See `resclip.methods.steps.AreaRule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from resclip_kernels import (
    check_callable,
    check_count,
    check_float,
    check_fraction,
    check_pair,
    pamr,
    resize_planes,
)

LOWEST = -1e30
"""What −∞ in logits counts as: bilinear weights may be 0, and 0 · −∞ is no number."""


def class_probabilities(
    logits: Tensor,
    size: tuple[int, int],
    *,
    query_to_class: Tensor | None = None,
    logit_scale: float = 40.0,
    through: tuple[int, int] | None = None,
    guide: Tensor | None = None,
    refine_iterations: int = 0,
    dilations: tuple[int, ...] = (8, 16),
) -> Tensor:
    """The probabilities that `resclip_kernels.upsample_argmax` takes the largest of, for all classes.

    Args:
        logits: (Q, h, w).
        size: (H, W) in pixels.
        query_to_class: (Q,) integers from 0; None: every query is its own class.
        logit_scale: factor of the logits in the softmax.
        through: a size in between, to which the logits are resized first.
        guide: (C, H, W) for PAMR; needed where `refine_iterations` is not 0.
        refine_iterations, dilations: of PAMR.

    Returns:
        (classes, H, W), float32 or wider: of each class the largest of its queries' probabilities. Its memory and that
        of (Q, H, W) are held: ask for few rows at a time.

    Raises:
        TypeError, ValueError: a shape or dtype that does not fit.
    """
    check_float("logits", logits, 3, "(Q, h, w)")
    queries = logits.shape[0]
    check_count("the number of queries", queries, 1)
    size = check_pair("size", size, "(height, width) in pixels", 1)
    if query_to_class is not None and query_to_class.shape != (queries,):
        raise ValueError(
            f"query_to_class must be ({queries},), one class per query; got {tuple(query_to_class.shape)}"
        )
    planes = logits.to(torch.promote_types(logits.dtype, torch.float32)).clamp(min=LOWEST)[None]
    for step in (through, size):
        if step is not None and step != tuple(planes.shape[2:]):
            planes = resize_planes(planes, step)
    if refine_iterations:
        if guide is None:
            raise ValueError("refine_iterations needs a guide image; pass guide, or 0 iterations")
        planes = pamr(guide[None], planes, iterations=refine_iterations, dilations=dilations)
    # Not torch's softmax, whose last bits depend on the number of threads over any axis but the last.
    scores = logit_scale * planes[0]
    scores = scores.sub_(scores.amax(dim=0)).exp_()
    scores = scores.div_(scores.sum(dim=0))
    if query_to_class is None:
        return scores
    classes: list[int] = query_to_class.tolist()
    merged = scores.new_zeros(max(classes) + 1, *size)
    for number, plane in zip(classes, scores, strict=True):
        torch.maximum(merged[number], plane, out=merged[number])
    return merged


def small_classes(counts: Tensor, share: float) -> Tensor:
    """Which classes but the first have at most `share` of the pixels of all classes but the first.

    Args:
        counts: (classes,) int64, pixels of which a class is the likeliest.
        share: in [0, 1].

    Returns:
        (classes,) bool.

    Raises:
        TypeError, ValueError: a share outside [0, 1].
    """
    check_fraction("share", share)
    # By Python's numbers, which are wider than float32, and not all devices have float64.
    listed: list[int] = counts.tolist()
    most = share * sum(listed[1:])
    small = [False, *(count <= most for count in listed[1:])]
    return torch.tensor(small[: len(listed)], device=counts.device)


def count_pixels(probabilities: Tensor) -> Tensor:
    """(classes,) int64: the pixels of (classes, H, W) of which each class is the likeliest."""
    return torch.bincount(probabilities.argmax(dim=0).flatten(), minlength=len(probabilities))


def label_pixels(
    probabilities: Tensor, dropped: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The likeliest class of each pixel once classes are dropped.

    Args:
        probabilities: (classes, H, W).
        dropped: (classes,) bool, those whose probability becomes 0.
        threshold: a pixel whose largest probability is below it gets class 0.

    Returns:
        (H, W) int64 classes, and (H, W) their probabilities, before the threshold.
    """
    best, labels = probabilities.masked_fill(dropped[:, None, None], 0).max(dim=0)
    return labels.where(best >= threshold, 0), best


def apply_area_rule(
    probabilities: Tensor, share: float, threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Labels of a picture without the classes that take little of it.

    By the counts of the arg-max, every class but the first with at most `share` of the pixels of all classes but the
    first gets the probability 0; arg-max and threshold come after.

    Args:
        probabilities: (classes, H, W) of the whole picture.
        share: in [0, 1]; 0 changes nothing.
        threshold: a pixel whose largest probability is below it then gets class 0.

    Returns:
        (H, W) int64 classes, and (H, W) their probabilities, before the threshold.

    Raises:
        TypeError, ValueError: a shape, dtype or number that does not fit.
    """
    check_float("probabilities", probabilities, 3, "(classes, H, W)")
    check_count("the number of classes", len(probabilities), 1)
    check_fraction("threshold", threshold)
    return label_pixels(probabilities, small_classes(count_pixels(probabilities), share), threshold)


def apply_area_rule_by_strips(
    read: Callable[[int, int], Tensor],
    height: int,
    rows: int,
    share: float,
    threshold: float = 0.0,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """`apply_area_rule` of a picture whose probabilities do not fit into memory: they are asked for twice.

    Args:
        read: (first, last) → (classes, last − first, W), probabilities of these rows.
        height: of the picture.
        rows: of a strip.
        share, threshold: as in `apply_area_rule`.

    Yields:
        (first row, labels, probabilities) of each strip, in order, as `apply_area_rule` gives them.

    Raises:
        TypeError, ValueError: as `apply_area_rule`.
    """
    check_callable("read", read, "a function of the first and last row")
    check_count("height", height, 1)
    check_count("rows", rows, 1)
    check_fraction("threshold", threshold)
    strips = [(first, min(first + rows, height)) for first in range(0, height, rows)]
    counts = sum(count_pixels(read(*strip)) for strip in strips)
    assert isinstance(counts, Tensor)
    dropped = small_classes(counts, share)
    for first, last in strips:
        yield first, *label_pixels(read(first, last), dropped, threshold)
