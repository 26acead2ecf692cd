"""ProxyCLIP's similarities within and between classes, before and after its adaptive normalisation."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resclip.encoder.final_block import unit_positions
from resclip.evaluation.datasets.base import Dataset
from resclip.evaluation.plots import PairHistogram, plot_pair_histograms
from resclip.evaluation.studies.findings import Finding, settings_of, subject_in_words
from resclip.evaluation.studies.patches import UNLABELLED, LabelledImages, spread
from resclip.segmenter import Segmenter

BINS = 240
"""Bins of a histogram."""
MOST_POSITIONS = 1024
"""Of an image at most so many labelled positions are compared with each other, evenly spread."""


class Kind(NamedTuple):
    """One line of the table."""

    stage: str
    pairs: str


class Tally:
    """Similarities of one stage and one kind of pairs, as a histogram with its first two moments."""

    def __init__(self, low: float, high: float) -> None:
        self.edges = np.linspace(low, high, BINS + 1)
        self.counts = np.zeros(BINS, np.int64)
        self.total = self.squares = 0.0
        self.kept = self.number = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Count some similarities."""
        inside = values.clip(self.edges[0], self.edges[-1])
        self.counts += np.histogram(inside, self.edges)[0]
        self.number += len(values)
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())
        self.kept += int((values >= 0).sum())

    @property
    def mean(self) -> float:
        """The mean similarity."""
        return self.total / max(1, self.number)

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(max(0.0, self.squares / max(1, self.number) - self.mean**2))

    @property
    def share_kept(self) -> float:
        """The share that is not negative, which a mask would keep."""
        return self.kept / max(1, self.number)


def proxy_similarity(segmenter: Segmenter, dataset: Dataset, most_images: int) -> Finding:
    """Histograms of S = X Xᵀ and of γ(S − β mean S), for positions of one class and of two.

    Args:
        segmenter: of base "proxyclip": its proxy, β and γ.
        dataset: with labels.
        most_images: at most so many images, evenly spread.

    Raises:
        ValueError: a base without a proxy, or no labelled position.
    """
    encoder = segmenter.encoder
    proxy = encoder.proxy
    if proxy is None:
        raise ValueError(
            f"study 'proxy-similarity' is for a base with a proxy, and base {encoder.base.name!r} compares its own "
            "tokens: use base 'proxyclip'"
        )
    options = encoder.final.proxy_options()
    beta, gamma = options.beta, options.gamma
    reach = gamma * (1 + abs(beta))
    before, after = "before", "after"
    tallies = {
        Kind(stage, pairs): Tally(-limit, limit)
        for stage, limit in ((before, 1.0), (after, reach))
        for pairs in ("one class", "two classes")
    }
    images = LabelledImages(dataset, segmenter, most_images)
    used = 0
    for image in images:
        with torch.no_grad():
            features = proxy(image.pixels)
        unit = unit_positions(features)[0].double()
        # The mean is over all positions, labelled or not, as in the attention.
        mean = float(unit.sum(dim=0).square().sum()) / len(unit) ** 2
        flat = image.labels((features.shape[2], features.shape[3])).ravel()
        labelled = np.flatnonzero(flat != UNLABELLED)
        if len(labelled) < 2:
            continue
        chosen = labelled[spread(len(labelled), MOST_POSITIONS)]
        similarity, is_same = pairs_of(unit[torch.from_numpy(chosen).to(unit.device)], flat[chosen])
        for pairs, selected in (("one class", is_same), ("two classes", ~is_same)):
            values = similarity[selected]
            tallies[Kind(before, pairs)].add(values)
            tallies[Kind(after, pairs)].add(gamma * (values - beta * mean))
        used += 1
    if not used:
        raise ValueError(f"{dataset.name}: expected images with labelled positions, got none")
    columns = ("normalisation", "pairs", "mean", "deviation", "not negative", "count")
    lines = [
        dict(
            zip(
                columns,
                (*kind, tally.mean, tally.deviation, tally.share_kept, tally.number),
                strict=True,
            )
        )
        for kind, tally in tallies.items()
    ]

    def panel(stage: str, title: str, label: str) -> PairHistogram:
        same, other = (tallies[Kind(stage, pairs)] for pairs in ("one class", "two classes"))
        return PairHistogram(title, label, same.edges, same.counts, other.counts)

    panels = [
        panel(before, "before normalisation", "S"),
        panel(after, f"after it, β = {beta:g}, γ = {gamma:g}", "γ(S − β mean S); masked below 0"),
    ]
    model = segmenter.settings["proxy"]["model"]
    return Finding(
        "proxy-similarity",
        dataset.name,
        f"similarities of {model} within and between classes",
        columns,
        lines,
        [
            subject_in_words(segmenter, dataset.description, used),
            (
                f"S: cosines of {model}'s features of two positions of an image; after: γ(S − β mean S) with β "
                f"{beta:g}, γ {gamma:g}, and the mean over all pairs of the image; not negative: what masking keeps."
            ),
        ],
        settings_of(segmenter, images=used, proxy=segmenter.settings["proxy"]),
        partial(plot_pair_histograms, f"Similarities of {model}, on {dataset.name}", panels),
        details={
            f"{kind.stage}, {kind.pairs}": {
                "edges": tally.edges.tolist(),
                "counts": tally.counts.tolist(),
            }
            for kind, tally in tallies.items()
        },
        problems=tuple(images.problems),
    )


def pairs_of(
    unit: Tensor, labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cosines of every two different positions, each pair once, and whether they are of one class."""
    rows, columns = np.triu_indices(len(labels), k=1)
    similarity: NDArray[np.float64] = (unit @ unit.mT).cpu().numpy()[rows, columns]
    return similarity, labels[rows] == labels[columns]
