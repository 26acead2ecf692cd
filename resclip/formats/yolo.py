"""Ultralytics YOLO's files for segmentation: a line of text for each instance, and the classes' names in YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from resclip.formats.keyholes import keyhole
from resclip.geometry.instances import Instance, outlines


class YoloFiles(NamedTuple):
    """The contents of two files."""

    labels: str
    """Of labels/NAME.txt: for each instance a line of its class's index and its polygon, x and y in turn, each as a
    fraction of the image's width or height."""
    data: str
    """Of data.yaml: the names of the classes, by index."""


def yolo_lines(instances: Sequence[Instance], tolerance: float) -> Iterator[str]:
    """A line for each instance.

    A line has one polygon: holes, and parts that touch at a corner, are joined with the rest by lines to and fro.
    """
    for instance, polygons in zip(instances, outlines(instances, tolerance), strict=True):
        height, width = instance.components.parts.shape
        ring = keyhole(polygons) / (width, height)
        # Seven digits: a hundredth of a pixel of an image 100,000 pixels wide.
        numbers = " ".join(f"{value:.7g}" for value in ring.ravel().tolist())
        yield f"{instance.index} {numbers}"


def yolo_data(names: Sequence[str]) -> str:
    """data.yaml: names by index; images are expected in images/, beside labels/."""
    # JSON's strings are YAML's, whatever is in them.
    lines = [
        f"  {index}: {json.dumps(name, ensure_ascii=False)}" for index, name in enumerate(names)
    ]
    return "\n".join(["path: .", "train: images", "val: images", "names:", *lines, ""])
