"""How much the attention of different patches is alike, block by block: SCLIP's and ResCLIP's spatial invariance."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from resclip.evaluation.datasets.base import Dataset
from resclip.evaluation.plots import Curve, plot_curves
from resclip.evaluation.studies.findings import Finding, settings_of, subject_in_words
from resclip.evaluation.studies.patches import (
    LabelledImages,
    queries_and_keys,
    recording_encoder,
)
from resclip.segmenter import Segmenter

ROWS = 256
"""So many rows of a map are in memory at a time."""


@torch.no_grad()
def likeness(query: Tensor, key: Tensor, skip: int) -> float:
    """Mean cosine of two patches' attention to the patches: 1 where all attend alike, near 0 where none do.

    With r_i the row of patch i in softmax(q kᵀ/√d), [CLS]'s column left out, at unit length, it is the mean of
    r_i · r_j over the pairs i ≠ j, (‖Σ r_i‖² − n) / (n(n − 1)), of each head and then over heads. No map is held.

    Args:
        query, key: (1, A, L, d).
        skip: tokens before the first patch.
    """
    queries, keys = query[0].float(), key[0].float()
    count = queries.shape[1] - skip
    if count < 2:
        return 1.0
    total = queries.new_zeros((queries.shape[0], count))
    for first in range(skip, queries.shape[1], ROWS):
        score = queries[:, first : first + ROWS] @ keys.mT / math.sqrt(queries.shape[-1])
        total += F.normalize(score.softmax(dim=-1)[..., skip:], dim=-1).sum(dim=1)
    alike = (total.square().sum(dim=-1) - count) / (count * (count - 1))
    return float(alike.mean())


def spatial_invariance(segmenter: Segmenter, dataset: Dataset, most_images: int) -> Finding:
    """The likeness of attention in every block, averaged over images, and that of the final block's q·q and k·k.

    Args:
        segmenter: its model is looked at, whatever its method.
        dataset: its labels are not used.
        most_images: at most so many images, evenly spread.

    Raises:
        ValueError: no image could be read.
    """
    encoder = recording_encoder(segmenter)
    skip = int(encoder.tower.has_cls)
    depth = encoder.tower.depth
    names = [f"block {number}: q·k" for number in range(1, depth + 1)]
    names += [f"block {depth}: q·q", f"block {depth}: k·k"]
    sums, used = [0.0] * len(names), 0
    images = LabelledImages(dataset, segmenter, most_images)
    for image in images:
        with torch.no_grad():
            pairs = queries_and_keys(encoder.run_blocks(image.pixels))
        query, key = pairs[-1]
        for number, pair in enumerate([*pairs, (query, query), (key, key)]):
            sums[number] += likeness(*pair, skip)
        used += 1
    if not used:
        raise ValueError(f"{dataset.name}: expected an image that can be read, got none")
    means = [total / used for total in sums]
    lines = [{"attention": name, "likeness": mean} for name, mean in zip(names, means, strict=True)]
    blocks = [float(number) for number in range(1, depth + 1)]
    ends = [
        Curve(f"{name}: {mean:.2f}", [float(depth)], [mean])
        for name, mean in zip(names[depth:], means[depth:], strict=True)
    ]
    return Finding(
        "spatial-invariance",
        dataset.name,
        "how much different patches attend alike",
        ("attention", "likeness"),
        lines,
        [
            subject_in_words(segmenter, dataset.description, used),
            (
                "likeness: mean cosine of the attention of two patches of an image, without [CLS]; 1: all patches "
                "attend alike."
            ),
        ],
        settings_of(segmenter, images=used, digest=dataset.digest[:16]),
        partial(
            plot_curves,
            f"How much different patches attend alike, on {dataset.name}",
            ("block", "mean cosine of two patches' attention"),
            [Curve("q·k of each block", blocks, means[:depth]), *ends],
            limits=((0.5, depth + 0.5), (0, 1)),
            ticks=blocks,
            markers=True,
        ),
        problems=tuple(images.problems),
    )
