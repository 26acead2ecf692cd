"""CLIPtrase's clusters: patches that the last block but one correlates are one region, and each region votes.

Shao et al., Explore the Potential of CLIP for Training-Free Open Vocabulary Semantic Segmentation, ECCV 2024.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from resclip.encoder.similarity import similarity
from resclip.methods.steps import ClusterVote
from resclip_kernels import (
    check_count,
    check_float,
    check_pair,
    check_positive,
    check_range,
    check_type,
    resize_planes,
)

NOISE = -1
"""The cluster of patches that belong to none."""
UPSCALING = 4
"""Cells of a cluster's smoothed map along a patch's side."""
MEDIAN = 7
"""Side in these cells of the median's window."""
BLOCK = 1024
"""Rows that are compared at a time: 17 MB of distances to 4,096 rows."""


def cluster_vote(
    labels: Tensor, correlation: Tensor, grid: tuple[int, int], step: ClusterVote
) -> Tensor:
    """Every pixel of a cluster gets the label that most of its pixels have, the smallest of several.

    Clusters are DBSCAN's of what patches correlate with more than [CLS] does; noise joins the clusters around it. A
    picture without any cluster keeps its labels.

    Args:
        labels: (B, H, W) integers of at least 0, of whole pictures.
        correlation: (B, 1 + n, 1 + n) of block M − 1, [CLS] first; "correlation" of what `DenseEncoder` hands over.
        grid: (h, w) in patches.
        step: ε and the least number of neighbours.

    Returns:
        (B, H, W) in the dtype of `labels`.

    Raises:
        TypeError, ValueError: shapes that do not fit.
    """
    check_type("step", step, ClusterVote, "a ClusterVote")
    check_labels(labels, 3, "(B, H, W)")
    check_float("correlation", correlation, 3, "(B, 1 + n, 1 + n)")
    height, width = check_pair("grid", grid, "(h, w) in patches", 1)
    expected = (len(labels), 1 + height * width, 1 + height * width)
    if correlation.shape != expected:
        raise ValueError(
            f"correlation must be (B, 1 + n, 1 + n) = {expected} for the images of labels and a grid of {height} × "
            f"{width}, with [CLS] first; got {tuple(correlation.shape)}"
        )
    size = (labels.shape[1], labels.shape[2])
    voted = labels.clone()
    for image, own in enumerate(correlation):
        local = local_correlation(own)
        clusters = dbscan(local, step.eps, step.min_samples)
        if bool((clusters != NOISE).any()):
            voted[image] = vote(labels[image], cluster_map(local, clusters, grid, size))
    return voted


def local_correlation(correlation: Tensor) -> Tensor:
    """D[i, j] = max(0, R[i, j] − R[CLS, j]): (1 + n, 1 + n) → (n, n), what patches share beyond the whole picture's."""
    wide = correlation.to(torch.promote_types(correlation.dtype, torch.float32))
    return (wide[1:, 1:] - wide[:1, 1:]).clamp_(min=0)


def dbscan(rows: Tensor, eps: float, min_samples: int) -> Tensor:
    """Clusters by density: DBSCAN with Euclidean distances (Ester et al., KDD 1996).

    Rows at most ε apart are neighbours, and a row with at least `min_samples` neighbours, itself counted, is a core.
    Cores that are linked by neighbours are one cluster; other neighbours of its cores belong to it too, and to the
    first of several clusters. Clusters are numbered by their first cores.

    Args:
        rows: (n, D).
        eps: ε.
        min_samples: at least 1.

    Returns:
        (n,) int64: each row's cluster from 0; −1 for noise.

    Raises:
        TypeError, ValueError: arguments that do not fit.
    """
    check_float("rows", rows, 2, "(n, D)")
    check_range("eps", eps, 0, 1e6)
    check_count("min_samples", min_samples, 1)
    near = neighbours(rows, eps).cpu().numpy()
    is_core = near.sum(axis=1) >= min_samples
    clusters = np.full(len(near), NOISE, dtype=np.int64)
    found = 0
    for seed in np.flatnonzero(is_core):
        if clusters[seed] != NOISE:
            continue
        clusters[seed] = found
        front: Any = np.array([seed])
        while len(front):
            reached = near[front].any(axis=0) & (clusters == NOISE)
            clusters[reached] = found
            front = np.flatnonzero(reached & is_core)
        found += 1
    return torch.from_numpy(clusters).to(rows.device)


def neighbours(rows: Tensor, eps: float) -> Tensor:
    """(n, n) bool: which rows are at most ε apart, each of itself; a block of distances in memory at a time."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # Distances stay, and the squares whose differences they are become smaller, so that less is lost in float32.
    mean = wide.mean(dim=0)
    near = torch.zeros(len(rows), len(rows), dtype=torch.bool, device=rows.device)
    for top in range(0, len(rows), BLOCK):
        left = wide[top : top + BLOCK] - mean
        for start in range(top, len(rows), BLOCK):
            right = wide[start : start + BLOCK] - mean
            squares = left.square().sum(1)[:, None] + right.square().sum(1)
            block = squares - 2 * (left @ right.mT) <= eps * eps
            near[start : start + BLOCK, top : top + BLOCK] = block.mT
            near[top : top + BLOCK, start : start + BLOCK] = block
    return near.fill_diagonal_(True)


def cluster_map(
    local: Tensor, clusters: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Which cluster each pixel belongs to: (H, W) int64, noise among them.

    The mean of the rows of D of a cluster's patches is a map of what they correlate with. It is resized bilinearly to
    4 times the grid, smoothed by a median of 7 × 7 cells, mirrored at the edges, and resized to the pixels; each of
    these goes to the cluster of the largest value, the first of several.

    Args:
        local: (n, n), D, see `local_correlation`.
        clusters: (n,) int64 from 0, −1 for noise; at least one cluster.
        grid: (h, w) in patches, n of them.
        size: (H, W) in pixels.

    Raises:
        ValueError: there is no cluster.
    """
    count = int(clusters.max()) + 1
    if count < 1:
        raise ValueError(
            "expected at least one cluster; got noise alone: keep the labels as they are"
        )
    best = torch.full(size, -torch.inf, dtype=local.dtype, device=local.device)
    winner = torch.zeros(size, dtype=torch.int64, device=local.device)
    for number in range(count):
        plane = local[clusters == number].mean(dim=0).unflatten(0, grid)
        fine = (UPSCALING * grid[0], UPSCALING * grid[1])
        smoothed = median_filter(resize_planes(plane[None, None], fine)[0, 0])
        values = resize_planes(smoothed[None, None], size)[0, 0]
        is_larger = values > best
        best = torch.where(is_larger, values, best)
        winner = winner.masked_fill(is_larger, number)
    return winner


def median_filter(plane: Tensor) -> Tensor:
    """The median of 7 × 7 cells around each cell of (h, w), h and w at least 3; mirrored, edge cells repeated."""
    margin = MEDIAN // 2
    for axis in (0, 1):
        ahead = plane.narrow(axis, 0, margin).flip(axis)
        behind = plane.narrow(axis, plane.shape[axis] - margin, margin).flip(axis)
        plane = torch.cat([ahead, plane, behind], dim=axis)
    # NumPy's takes a fifth of the time of torch's on a CPU: 25 ms for 256 × 256 cells.
    around = sliding_window_view(plane.detach().cpu().numpy(), (MEDIAN, MEDIAN))
    cells = around.reshape(*around.shape[:2], -1)  # A copy, which may be reordered.
    middle = MEDIAN * MEDIAN // 2
    cells.partition(middle, axis=2)
    return torch.from_numpy(cells[:, :, middle].copy()).to(plane.device)


def vote(labels: Tensor, regions: Tensor) -> Tensor:
    """Each pixel's label becomes the most frequent one of its region, the smallest of several.

    Args:
        labels: (H, W) integers of at least 0.
        regions: (H, W) int64, from 0.

    Returns:
        (H, W) in the dtype of `labels`.

    Raises:
        TypeError, ValueError: shapes that do not fit.
    """
    check_labels(labels, 2, "(H, W)")
    if regions.shape != labels.shape:
        raise ValueError(
            f"regions must be (H, W) = {tuple(labels.shape)} like labels; got {tuple(regions.shape)}"
        )
    if not labels.numel():
        return labels.clone()
    kinds = int(labels.max()) + 1
    pairs = regions * kinds + labels.long()
    counts = torch.bincount(pairs.flatten(), minlength=(int(regions.max()) + 1) * kinds)
    winners: Tensor = counts.unflatten(0, (-1, kinds)).argmax(dim=1).to(labels.dtype)
    return winners[regions]


def times_cls(logits: Tensor, cls: Tensor, text: Tensor, scale: float = 100.0) -> Tensor:
    """Each query's logits times what [CLS] gives it: logits · scale · cos([CLS], text).

    The released program's rule for the dataset VOC20 alone. Of two negative factors the product is positive.

    Args:
        logits: (B, Q, h, w).
        cls: (B, E), not unit-normed.
        text: (Q, E) unit rows.
        scale: of the cosine; changes probabilities, never which query is the likeliest.

    Raises:
        TypeError, ValueError: shapes that do not fit.
    """
    check_float("logits", logits, 4, "(B, Q, h, w)")
    check_float("cls", cls, 2, "(B, E)")
    check_float("text", text, 2, "(Q, E)")
    check_positive("scale", scale)
    if cls.shape != (len(logits), text.shape[1]) or len(text) != logits.shape[1]:
        raise ValueError(
            f"expected logits (B, Q, h, w), cls (B, E) and text (Q, E) of the same images and queries; got "
            f"{tuple(logits.shape)}, {tuple(cls.shape)} and {tuple(text.shape)}"
        )
    return logits * (scale * similarity(cls[:, None, None], text))


def check_labels(labels: Tensor, dimensions: int, layout: str) -> None:
    """TypeError or ValueError unless these are integers of at least 0."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        came = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be integers {layout}; got {came}")
    if labels.ndim != dimensions or (labels.numel() and int(labels.min()) < 0):
        raise ValueError(
            f"labels must be {layout}, each at least 0; got {tuple(labels.shape)}"
            + (f" with {int(labels.min())}" if labels.numel() else "")
        )
