"""How well similarities tell patches of one class from patches of two: precision and recall over pairs of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resclip.encoder.dense_encoder import DenseEncoder
from resclip.encoder.final_block import FinalInputs
from resclip.evaluation.datasets.base import Dataset
from resclip.evaluation.plots import Curve, plot_curves
from resclip.evaluation.studies.findings import Finding, settings_of, subject_in_words
from resclip.evaluation.studies.other_models import OtherModels, features_on
from resclip.evaluation.studies.patches import (
    UNLABELLED,
    LabelledImages,
    queries_and_keys,
    recording_encoder,
    spread,
)
from resclip.methods.catalogue import RCS
from resclip.models.tower import merge_heads
from resclip.segmenter import Segmenter

BINS = 4096
"""Cosines from −1 to 1 are counted in so many bins: all pairs of a dataset take 64 kB a row."""
ROWS = 256
"""So many patches are compared with all others at a time."""
MOST_PATCHES = 1024
"""Of an image at most so many labelled patches are compared with each other, evenly spread: a million pairs."""
CURVE_POINTS = 200
"""Points of a stored and drawn curve."""


class Sides(NamedTuple):
    """What a similarity compares: the cosine of each of `left` and each of `right`."""

    left: Tensor
    right: Tensor
    """(n, C) of unit length each."""


class PairCounts:
    """Pairs of patches by their similarity, those of one class and those of two; linear in the number of bins."""

    def __init__(self) -> None:
        self.same = np.zeros(BINS, np.int64)
        self.other = np.zeros(BINS, np.int64)

    def add(self, sides: Sides, labels: Tensor) -> None:
        """Count every ordered pair of two different patches.

        Args:
            sides: of m patches.
            labels: (m,) their classes.
        """
        for first in range(0, len(labels), ROWS):
            rows = slice(first, first + ROWS)
            cosine = sides.left[rows] @ sides.right.T
            bins = ((cosine + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
            is_same = labels[rows, None] == labels[None, :]
            # A patch and itself are no pair: they go into bins of their own, which are cut off.
            own = torch.arange(len(cosine), device=labels.device)
            bins += BINS * is_same
            bins[own, own + first] = 2 * BINS
            counts = torch.bincount(bins.flatten(), minlength=2 * BINS + 1).cpu().numpy()
            self.other += counts[:BINS]
            self.same += counts[BINS : 2 * BINS]

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(recall, precision) with pairs called of one class from each bin on, from the highest similarity down."""
        found = np.cumsum(self.same[::-1])
        called = found + np.cumsum(self.other[::-1])
        recall = found / max(1, found[-1])
        precision = np.where(called > 0, found / np.maximum(1, called), 1.0)
        return recall, precision

    @property
    def average_precision(self) -> float:
        """Σ precision · Δrecall over the bins, pairs of one bin being called together."""
        recall, precision = self.curve()
        return float(np.sum(np.diff(recall, prepend=0.0) * precision))

    @property
    def share(self) -> float:
        """Of all pairs those of one class: the average precision of chance."""
        same, other = int(self.same.sum()), int(self.other.sum())
        return same / max(1, same + other)


def patch_similarity(
    segmenter: Segmenter, dataset: Dataset, others: OtherModels, most_images: int
) -> Finding:
    """Precision-recall curves of CLIP's and other models' similarities on a dataset.

    Pairs are two labelled patches of one image; all images' pairs are pooled. A similarity is the cosine of two
    vectors: of q, k or v of all heads side by side, or of another model's features, which are averaged over CLIP's
    patches, so that all rows are of the same pairs.

    Args:
        segmenter: its model is looked at; of its method only the layers that RCS would average count.
        dataset: with labels.
        others: compared with CLIP.
        most_images: at most so many images, evenly spread.

    Raises:
        ValueError: no pair of one class, or none of two.
    """
    encoder = recording_encoder(segmenter)
    depth = encoder.tower.depth
    middle = RCS().layers_of(depth) if depth > 1 else ()
    counts: dict[str, PairCounts] = {}
    images = LabelledImages(dataset, segmenter, most_images)
    used = patches = 0
    for image in images:
        flat = image.labels().ravel()
        labelled = np.flatnonzero(flat != UNLABELLED)
        if len(labelled) < 2:
            continue
        chosen = labelled[spread(len(labelled), MOST_PATCHES)]
        index = torch.from_numpy(chosen).to(image.pixels.device)
        labels = torch.from_numpy(flat[chosen]).to(image.pixels.device)
        sides = clip_sides(encoder, image.pixels, middle)
        for name, model in others.models.items():
            features = features_on(model, image.pixels, image.grid)
            sides[name] = Sides(features, features)
        for name, (left, right) in sides.items():
            counts.setdefault(name, PairCounts()).add(Sides(left[index], right[index]), labels)
        used, patches = used + 1, patches + len(chosen)
    pairs = next(iter(counts.values()), PairCounts())
    if not (pairs.same.any() and pairs.other.any()):
        raise ValueError(
            f"{dataset.name}: expected pairs of patches of one class and of two in its images, got "
            f"{pairs.same.sum():,} and {pairs.other.sum():,}: use more images"
        )
    lines = [{"similarity": name, "AP": one.average_precision} for name, one in counts.items()]
    lines.append({"similarity": "chance", "AP": pairs.share})
    total = int(pairs.same.sum() + pairs.other.sum())
    notes = [
        subject_in_words(segmenter, dataset.description, used),
        (
            f"AP: average precision of calling two patches of an image one class by their cosine, over {total:,} "
            f"ordered pairs of {patches:,} patches; a patch's class is its most frequent one."
        ),
        *others.missing,
    ]
    return Finding(
        "patch-similarity",
        dataset.name,
        "which similarities tell classes apart",
        ("similarity", "AP"),
        lines,
        notes,
        settings_of(
            segmenter, images=used, patches=patches, pairs=total, digest=dataset.digest[:16]
        ),
        partial(
            plot_curves,
            f"Pairs of patches of one class, on {dataset.name}",
            ("recall", "precision"),
            [
                Curve(f"{name}: AP {one.average_precision:.3f}", *thinned(*one.curve()))
                for name, one in counts.items()
            ],
            level=("chance", pairs.share),
            limits=((0, 1), (0, 1.02)),
        ),
        details={
            "curves": {
                name: dict(zip(("recall", "precision"), thinned(*one.curve()), strict=True))
                for name, one in counts.items()
            }
        },
        problems=tuple(images.problems),
    )


@torch.no_grad()
def clip_sides(encoder: DenseEncoder, pixels: Tensor, middle: Sequence[int]) -> dict[str, Sides]:
    """What CLIP's similarities compare in one image, by name; `middle` are numbers of blocks."""
    inputs = encoder.run_blocks(pixels)
    skip = int(encoder.tower.has_cls)
    query, key, value = (
        unit_patches(part, skip) for part in (inputs.query, inputs.key, inputs.value)
    )
    sides: Mapping[str, Sides] = {
        "q·k": Sides(query, key),
        "q·q": Sides(query, query),
        "k·k": Sides(key, key),
        "v·v": Sides(value, value),
    }
    blocks = middle_sides(inputs, skip, middle)
    return {**sides, **blocks}


def middle_sides(inputs: FinalInputs, skip: int, middle: Sequence[int]) -> dict[str, Sides]:
    """q and k of middle blocks, by name."""
    projected = queries_and_keys(inputs)
    found = {}
    for number in middle:
        query, key = projected[number - 1]
        found[f"q·k of block {number}"] = Sides(unit_patches(query, skip), unit_patches(key, skip))
    return found


def unit_patches(heads: Tensor, skip: int) -> Tensor:
    """(1, A, L, d) → (n, A·d) of unit length, float32, without the first `skip` tokens."""
    return F.normalize(merge_heads(heads)[0, skip:].float(), dim=-1)


def thinned(
    recall: NDArray[np.float64], precision: NDArray[np.float64]
) -> tuple[list[float], list[float]]:
    """The curve at `CURVE_POINTS` recalls, evenly spaced from its first to 1."""
    wanted = np.linspace(recall[recall > 0][0], 1.0, CURVE_POINTS)
    index = np.searchsorted(recall, wanted, side="left").clip(max=len(recall) - 1)
    return recall[index].tolist(), precision[index].tolist()
