"""Maps of one patch: its attention in every layer, and what it is like for CLIP and other models, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resclip.evaluation.datasets.base import IGNORED, Dataset
from resclip.evaluation.studies.findings import Finding, settings_of
from resclip.evaluation.studies.other_models import OtherModels, features_on
from resclip.evaluation.studies.patch_similarity import unit_patches
from resclip.evaluation.studies.patches import (
    UNLABELLED,
    LabelledImage,
    LabelledImages,
    queries_and_keys,
    recording_encoder,
    whole_patches,
)
from resclip.io.images import read_image, save_png
from resclip.segmenter import Segmenter
from resclip.visualization.panels import draw_panels
from resclip.visualization.sheets import HeatMap, strongest_share

STRONGEST = 0.1
"""Fraction of the patches whose share of a map is in the table."""
SAME_CLASS = "same class: of what lies on patches, the share of those of the patch's own class."
FEWEST = 2
"""A class has to have so many patches for one of them to be looked at where no point is named."""


def first_image(segmenter: Segmenter, dataset: Dataset) -> LabelledImage:
    """The first image of a dataset that can be read; ValueError where none of the first eight can."""
    for count in range(1, min(8, len(dataset)) + 1):
        part = Dataset(
            dataset.name, dataset.description, dataset.entries, dataset.samples[count - 1 : count]
        )
        for image in LabelledImages(part, segmenter, 1):
            return image
    raise ValueError(f"{dataset.name}: expected an image that can be read, got none of the first")


def own_image(segmenter: Segmenter, path: str) -> LabelledImage:
    """An image of the user's own, whose classes are not known.

    Raises:
        ImageError: a file that is no image.
    """
    pixels = read_image(path)
    resized = segmenter.prepare(pixels).to(segmenter.device)
    truth = np.full(pixels.shape[:2], IGNORED, np.uint8)
    return whole_patches(segmenter, Path(path).name, pixels, resized, truth)


def patch_at(image: LabelledImage, point: tuple[int, int] | None) -> tuple[int, int]:
    """(row, column) of the patch at pixel (x, y), or of the one that is chosen where no point is named.

    That is the middle patch of the rarest class that has `FEWEST` patches: its maps show the most. Without labels it is
    the image's middle patch.

    Raises:
        ValueError: a point outside the image.
    """
    height, width = image.truth.shape
    rows, columns = image.grid
    if point is not None:
        x, y = point
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"expected --query X,Y inside the image of {width} x {height} pixels: x from 0 to {width - 1}, y from "
                f"0 to {height - 1}; got {x},{y}"
            )
        row = int((y + 0.5) / height / image.cover[0] * rows)
        column = int((x + 0.5) / width / image.cover[1] * columns)
        return min(row, rows - 1), min(column, columns - 1)
    labels = image.labels()
    classes, sizes = np.unique(labels[labels != UNLABELLED], return_counts=True)
    enough = sizes >= FEWEST
    if not enough.any():
        return rows // 2, columns // 2
    rarest = classes[enough][sizes[enough].argmin()]
    places = np.argwhere(labels == rarest)
    distance = np.square(places - places.mean(axis=0)).sum(axis=1)
    row, column = places[distance.argmin()]
    return int(row), int(column)


def point_of(image: LabelledImage, patch: tuple[int, int]) -> tuple[float, float]:
    """(x, y) of a patch's middle in pixels of the image."""
    height, width = image.truth.shape
    y = (patch[0] + 0.5) / image.grid[0] * image.cover[0] * height
    x = (patch[1] + 0.5) / image.grid[1] * image.cover[1] * width
    return x, y


def attention_by_layer(
    segmenter: Segmenter, image: LabelledImage, patch: tuple[int, int], subject: str
) -> Finding:
    """One patch's query-key attention in every block, averaged over heads (figures 1 and 3 of arXiv 2411.15851).

    Args:
        segmenter: its model is looked at, whatever its method.
        image: seen whole.
        patch: (row, column) of the tower's grid.
        subject: what the files are called after.
    """
    encoder = recording_encoder(segmenter)
    skip = int(encoder.tower.has_cls)
    number = patch[0] * image.grid[1] + patch[1]
    with torch.no_grad():
        pairs = queries_and_keys(encoder.run_blocks(image.pixels))
    maps, lines = [], []
    for block, (query, key) in enumerate(pairs, 1):
        row = attention_row(query, key, number + skip)
        plane = on_grid(row[skip:], image.grid)
        maps.append(HeatMap(f"block {block}", plane, image.cover))
        lines.append(
            {
                "block": block,
                "on [CLS]": float(row[0]) if skip else None,
                "on itself": float(row[number + skip]),
                "strongest 10 %": strongest_share(plane, STRONGEST),
                "same class": same_class_share(plane, image.labels(), patch),
            }
        )
    return query_finding(
        "attention-by-layer",
        "one patch's attention in every layer",
        segmenter,
        image,
        patch,
        subject,
        maps,
        ("block", "on [CLS]", "on itself", "strongest 10 %", "same class"),
        lines,
        [
            "Shares of the patch's query-key attention, averaged over heads.",
            "strongest 10 %: of what lies on patches, the share of the strongest tenth.",
            SAME_CLASS,
        ],
    )


def model_maps(
    segmenter: Segmenter,
    image: LabelledImage,
    patch: tuple[int, int],
    others: OtherModels,
    subject: str,
) -> Finding:
    """What one patch is like for CLIP and for other models, as ProxyCLIP compares them.

    CLIP's maps are its final block's query-key attention, averaged over heads, and the cosines of its keys; those of
    other models the cosines of their features, averaged over CLIP's patches. Cosines below 0 are drawn as 0.

    Args:
        segmenter, image, patch, subject: as in `attention_by_layer`.
        others: models such as DINO and SAM.
    """
    encoder = recording_encoder(segmenter)
    skip = int(encoder.tower.has_cls)
    number = patch[0] * image.grid[1] + patch[1]
    with torch.no_grad():
        inputs = encoder.run_blocks(image.pixels)
    keys = unit_patches(inputs.key, skip)
    rows: dict[str, Tensor] = {
        "CLIP: q·k attention": attention_row(inputs.query, inputs.key, number + skip)[skip:],
        "CLIP: cosine of k": keys[number] @ keys.T,
    }
    for name, model in others.models.items():
        features = features_on(model, image.pixels, image.grid)
        rows[f"{name}: cosine"] = features[number] @ features.T
    planes = {name: on_grid(row, image.grid) for name, row in rows.items()}
    lines = [
        {
            "map": name,
            "strongest 10 %": strongest_share(plane, STRONGEST),
            "same class": same_class_share(plane, image.labels(), patch),
        }
        for name, plane in planes.items()
    ]
    return query_finding(
        "maps",
        "what one patch is like for CLIP and other models",
        segmenter,
        image,
        patch,
        subject,
        [HeatMap(name, plane, image.cover) for name, plane in planes.items()],
        ("map", "strongest 10 %", "same class"),
        lines,
        [
            "strongest 10 %: the share of a map's strongest tenth, its entries below 0 left out.",
            SAME_CLASS,
            *others.missing,
        ],
    )


def query_finding(
    study: str,
    title: str,
    segmenter: Segmenter,
    image: LabelledImage,
    patch: tuple[int, int],
    subject: str,
    maps: Sequence[HeatMap],
    columns: Sequence[str],
    lines: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> Finding:
    """A finding about one patch, whose picture is a sheet of maps."""
    point = point_of(image, patch)
    settings = segmenter.settings
    weights = f" {settings['pretrained']}" if settings.get("pretrained") else ""
    height, width = image.truth.shape
    where = (
        f"{image.name}, patch row {patch[0]}, column {patch[1]} of {image.grid[0]} x {image.grid[1]} "
        f"(x {point[0]:.0f}, y {point[1]:.0f} of {width} x {height} pixels); {settings['model']}{weights}"
    )

    def draw(path: Path) -> None:
        save_png(draw_panels(image.image, point, maps, where), path)

    if all(line["same class"] is None for line in lines):
        columns = [column for column in columns if column != "same class"]
        notes = [note for note in notes if note != SAME_CLASS]
        lines = [{name: line[name] for name in columns} for line in lines]
    return Finding(
        study,
        subject,
        title,
        columns,
        lines,
        [f"{where}.", *notes],
        settings_of(segmenter, image=image.name, patch=list(patch), grid=list(image.grid)),
        draw,
        details={"maps": {heat_map.caption: heat_map.values.tolist() for heat_map in maps}},
    )


@torch.no_grad()
def attention_row(query: Tensor, key: Tensor, token: int) -> Tensor:
    """softmax(q kᵀ/√d) of one token, averaged over heads: (1, A, L, d) each → (L,) float32."""
    one = query[0, :, token : token + 1].float()
    score = one @ key[0].float().mT / math.sqrt(query.shape[-1])
    return score.softmax(dim=-1).mean(dim=0)[0]


def on_grid(row: Tensor, grid: tuple[int, int]) -> NDArray[np.float32]:
    """(h·w,) → (h, w), entries below 0 as 0."""
    plane: NDArray[np.float32] = row.clamp_min(0).float().cpu().numpy().reshape(grid)
    return plane


def same_class_share(
    plane: NDArray[np.float32], labels: NDArray[np.int64], patch: tuple[int, int]
) -> float | None:
    """The share of a map on patches of the patch's own class; None where that is not known, or the map is 0."""
    own, total = labels[patch], float(plane.sum())
    if own == UNLABELLED or total == 0:
        return None
    return float(plane[labels == own].sum()) / total
