"""The datasets to measure on: benchmarks as they lie on disk, folders of anyone's own, and the drawn scenes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from resclip.evaluation.datasets import ade20k, builtin, cityscapes, coco, context, folder, voc
from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    DatasetError,
    ImageFile,
    ImagePixels,
    LabelFile,
    Problem,
    Sample,
    SampleImage,
    Truth,
    Values,
    cut,
)

__all__ = [
    "DATASETS",
    "IGNORED",
    "Dataset",
    "DatasetError",
    "ImageFile",
    "ImagePixels",
    "LabelFile",
    "Problem",
    "Sample",
    "SampleImage",
    "Truth",
    "Values",
    "open_dataset",
]

_READERS: Mapping[str, Callable[..., Dataset]] = {
    "builtin": builtin.builtin,
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
"""The drawn scenes; the benchmarks in the order of the papers' tables, those with a background first; a folder."""

_OPTIONS = {"builtin": ("count", "size"), "folder": ("ignore_index", "label_offset")}
"""The options of those readers that have some."""

DATASETS = tuple(_READERS)
"""What `open_dataset` takes: the scenes, the eight benchmarks and "folder"."""


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str | None = None,
    **options: int,
) -> Dataset:
    """The dataset called `name`, as it lies below `root`. Lists files; opens no image.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds it; each reader's docstring says which layouts it finds. The scenes need none.
        split: instead of the standard one, where the layout has several.
        options: of the scenes, their `count` and `size`; of "folder", what the values in its masks mean: the
            `ignore_index`, which does not count (255), and the `label_offset`, which is taken from a value to get its
            class (0; 1 for masks that count from 1).

    Raises:
        DatasetError: an unknown name or option, no root, or a layout that is missing: what was looked for and what was
            found.
        ImportError: the layout needs a package that is not installed.
        OSError: a list of names or classes cannot be read.
    """
    if name not in _READERS:
        raise DatasetError(f"unknown dataset {cut(name)!r}; use one of: {', '.join(DATASETS)}")
    unknown = next((option for option in options if option not in _OPTIONS.get(name, ())), None)
    if unknown is not None:
        known = ", ".join(_OPTIONS.get(name, ())) or "no options"
        raise DatasetError(f"{name}: unknown option {unknown!r}; it has {known}")
    if root is None and name != "builtin":
        raise DatasetError(f"{name}: expected the folder that holds the dataset, got none")
    folder = None if root is None else Path(root).expanduser()
    return replace(_READERS[name](folder, split, **options), split=split)
