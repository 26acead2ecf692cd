"""The datasets of the benchmarks, as they lie on disk, and folders of anyone's own.

Knows which reader takes which dataset. Each reader knows the layouts and label encodings of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from resclip.evaluation.datasets import ade20k, cityscapes, coco, context, folder, voc
from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    DatasetError,
    ImageFile,
    LabelFile,
    Problem,
    Sample,
    SampleImage,
    Truth,
    Values,
)

__all__ = [
    "DATASETS",
    "IGNORED",
    "Dataset",
    "DatasetError",
    "ImageFile",
    "LabelFile",
    "Problem",
    "Sample",
    "SampleImage",
    "Truth",
    "Values",
    "open_dataset",
]

_READERS: Mapping[str, Callable[[Path, str | None], Dataset]] = {
    "voc21": voc.voc21,
    "context60": context.context60,
    "coco-object": coco.coco_object,
    "voc20": voc.voc20,
    "context59": context.context59,
    "coco-stuff": coco.coco_stuff,
    "cityscapes": cityscapes.cityscapes,
    "ade20k": ade20k.ade20k,
    "folder": folder.folder,
}
"""In the order of the papers' tables: those with a background first."""

DATASETS = tuple(_READERS)
"""What `open_dataset` takes: the eight benchmarks and "folder"."""


def open_dataset(
    name: str, root: str | os.PathLike[str] | None, split: str | None = None
) -> Dataset:
    """The dataset called `name`, as it lies below `root`. Lists files; opens no image.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds it; each reader's docstring says which layouts it finds.
        split: instead of the standard one, where the layout has several.

    Raises:
        DatasetError: an unknown name, no root, or a layout that is not there: what was looked for and what was found.
        ImportError: the layout needs a package that is not installed.
        OSError: a list of names or classes cannot be read.
    """
    if name not in _READERS:
        raise DatasetError(f"unknown dataset {name!r}; use one of: {', '.join(DATASETS)}")
    if root is None:
        raise DatasetError(f"{name}: expected the folder that holds the dataset, got none")
    return replace(_READERS[name](Path(root).expanduser(), split), split=split)
