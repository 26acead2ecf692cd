"""The compact state of semantic feedback: what the second pass's attention needs instead of an n × n matrix.

Also what all implementations share: the Gaussian's taps, and where the samples of a path stand.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from resclip_kernels.checks import check_type
from resclip_kernels.options.semantic_feedback import Connectivity, FeedbackOptions

# Of the fields below and what they mean: a state that another version pickled may lie otherwise.
FORMAT = 2
# Added to a row's sum before the division, as in the released program.
ROW_SUM_EPSILON = 1e-8


@dataclass(frozen=True)
class SemanticFeedback:
    """Ŝ of a batch of label maps, ready to be rebuilt in row blocks of any size.

    n = h·w patches in row-major order.
    """

    labels: Tensor
    """(B, h, w) int64: one label per patch."""
    options: FeedbackOptions
    """By which it was made."""
    far: Tensor | None
    """(B, n, ⌈n/8⌉) uint8: bit j % 8 of byte j // 8 is set where j has i's label but is not connected to it.
    None where there is no path decay."""
    row_sums: Tensor
    """(B, n) float32 (float64 from the reference on request): sums of the smoothed rows, before the division."""
    maximum: Tensor
    """(B,) like `row_sums`: the largest entry of each image's row-normalised matrix."""
    dense: Tensor | None = None
    """(B, n, n): Ŝ itself, where the reference made it."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), in patches."""
        height, width = self.labels.shape[1:]
        return height, width

    @property
    def patches(self) -> int:
        """n = h·w."""
        return math.prod(self.grid)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "format": FORMAT}

    def __setstate__(self, fields: dict[str, Any]) -> None:
        """ValueError for a state that another version of this project has stored."""
        fields = dict(fields)
        came = fields.pop("format", None)
        if came != FORMAT or fields.keys() != self.__dataclass_fields__.keys():
            raise ValueError(
                f"a stored state of semantic_feedback must be of format {FORMAT}; got {came or 'none'}, of another "
                "version of resclip: make it anew from its labels"
            )
        vars(self).update(fields)

    def of_images(self, some: slice) -> SemanticFeedback:
        """The state of some images of the batch, as views."""
        return replace(
            self,
            labels=self.labels[some],
            far=None if self.far is None else self.far[some],
            row_sums=self.row_sums[some],
            maximum=self.maximum[some],
            dense=None if self.dense is None else self.dense[some],
        )

    def images(self) -> list[SemanticFeedback]:
        """A state of each image of the batch alone, as views."""
        return [self.of_images(slice(image, image + 1)) for image in range(len(self.labels))]


def check_state(
    feedback: SemanticFeedback | None, grid: tuple[int, int], name: str, like: Tensor
) -> None:
    """TypeError or ValueError unless this is no feedback, or that of `like`'s images, grid and device.

    Args:
        feedback: what the caller gave.
        grid: (h, w) of the attention, in patches.
        name: of `like`, for the message.
        like: a tensor of the attention, images first.
    """
    if feedback is None:
        return
    check_type("feedback", feedback, SemanticFeedback, "a state of semantic_feedback, or None")
    if feedback.grid != grid or feedback.labels.shape[0] != like.shape[0]:
        raise ValueError(
            f"feedback is for {len(feedback.labels)} images of {feedback.grid} patches; got {len(like)} of "
            f"{grid} in {name}: make it from their labels on that grid"
        )
    if feedback.labels.device != like.device:
        raise ValueError(
            f"feedback must be on the device of {name}, {like.device}; its state is on {feedback.labels.device}: "
            "make it from labels there"
        )


def kernel_limit(feedback: SemanticFeedback | None) -> str | None:
    """Why kernels cannot form this state's Ŝ; None where they can, or where there is none."""
    if feedback is not None and feedback.dense is not None and feedback.far is None:
        return (
            "the kernel rebuilds Ŝ from the state's bits and this state has none: "
            "make it with semantic_feedback(..., implementation='auto')"
        )
    return None


def gaussian_kernel(smoothing_std: float, patches: int) -> Tensor:
    """(K,) float64 Gaussian of K = min(n, int(6σ + 1)) taps, one more if that is even, summing to 1."""
    taps = min(patches, int(6 * smoothing_std + 1))
    taps += 1 - taps % 2
    distance = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-0.5 * (distance / smoothing_std).square())
    return kernel / kernel.sum()


@functools.lru_cache(maxsize=64)
def sample_times(steps: int) -> tuple[float, ...]:
    """t_0 … t_M of the released path test: float32 values of torch.linspace(0, 1, M + 1) with s = float32(1/M).

    t_k = s·k below the middle and fma(−s, M − k, 1) from there on, rounded once to float32 each; computed on the host
    so that no device's own linspace can decide a tie. Products of two float32 fit float64 exactly, and 1 minus such a
    product rounds to the same float32 as the fused operation for every M that an image can have.
    """
    if steps == 0:
        return (0.0,)
    step = float(torch.tensor(1.0 / steps, dtype=torch.float32))
    times = [
        step * k if k < (steps + 1) // 2 else 1.0 - step * (steps - k) for k in range(steps + 1)
    ]
    return tuple(torch.tensor(times, dtype=torch.float64).to(torch.float32).tolist())


@functools.lru_cache(maxsize=16)
def path_table(size: int, steps: int, connectivity: Connectivity) -> Tensor:
    """Where a path stands after k of its samples, along one axis of the grid.

    Args:
        size: patches along the axis.
        steps: M = max(h, w) − 1.
        connectivity: "prefix" (the released rule: float32 products, sum rounded half to even, the time of sample k is
            that of M + 1 samples whatever the path's length).

    Returns:
        (M + 1, size, size) int32 on the CPU: coordinate of sample k on the way from row index to column index.
    """
    if connectivity != "prefix":
        raise ValueError(f"only 'prefix' samples depend on each axis alone; got {connectivity!r}")
    times = torch.tensor(sample_times(steps), dtype=torch.float32).view(-1, 1, 1)
    position = torch.arange(size, dtype=torch.float32)
    start, end = position.view(1, -1, 1), position.view(1, 1, -1)
    return (start * (1.0 - times) + end * times).round().to(torch.int32)


def line_coordinate(start: Tensor, end: Tensor, k: Tensor, distance: Tensor) -> Tensor:
    """round(start + (end − start)·k/distance), half to even, in exact integer arithmetic; distance ≥ 1."""
    twice = 2 * (end - start) * k
    floor, remainder = (
        torch.div(twice, 2 * distance, rounding_mode="floor"),
        torch.remainder(twice, 2 * distance),
    )
    above = (remainder > distance) | ((remainder == distance) & ((start + floor) % 2 == 1))
    return start + floor + above
