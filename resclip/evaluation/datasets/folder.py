"""A folder of anyone's own: images, masks and a list of classes.

The layout, in which folders may be nested:

    images/street/0001.jpg      any usual image format
    masks/street/0001.png       of the same name: value i is class i of the list, 255 does not count (see `folder`)
    classes.txt                 one class per line, or classes.json or classes.yaml: see `resclip.text.class_names`

There are no splits: each has a folder of its own.
"""

from __future__ import annotations

from pathlib import Path

from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    DatasetError,
    Values,
    check_regular,
    cut,
    describe,
    files_under,
    first_that_exists,
    pair_up,
    samples_of,
)
from resclip.text.class_names import read_classes

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_CLASSES = ("classes.txt", "classes.json", "classes.yaml", "classes.yml")


_HIGHEST = 65535
"""The highest value that a mask can hold."""

_ADVICE = (
    "check that the masks go with the list of classes; for masks that count from 1 pass --label-offset 1, for another "
    f"value than {IGNORED} that does not count --ignore-index"
)


def folder(
    root: Path, split: str | None, *, ignore_index: int = IGNORED, label_offset: int = 0
) -> Dataset:
    """The images of `root`/images with the masks of `root`/masks; see the module's head.

    Args:
        ignore_index: the value in masks that does not count, 0 to 65535, even where it stands for a class.
        label_offset: what to take from a value to get its class: 1 for masks that count from 1. Values below it do not
            count.

    Raises:
        DatasetError: a folder or the list of classes is missing, the list cannot be used, no image has a mask, or no
            class can occur in masks of these options.
    """
    if split is not None:
        raise DatasetError(
            f"{root}: expected no split for a folder of your own, got {cut(split)!r}; name the folder that holds "
            "the split"
        )
    for option, number in (("ignore_index", ignore_index), ("label_offset", label_offset)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise DatasetError(f"expected {option}= as a whole number, got {cut(number)}")
    images = first_that_exists(root, "a folder of images", ["images"])
    masks = first_that_exists(root, "a folder of masks", ["masks"])
    listed = first_that_exists(root, "a list of classes", _CLASSES)
    check_regular(listed, "class names")
    try:
        entries = read_classes(listed)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    pairs, problems = pair_up("folder", files_under(images, _IMAGES), files_under(masks, [".png"]))
    return Dataset(
        name="folder",
        description=describe(len(pairs), f"{len(entries)} classes", root, root),
        entries=tuple(entries),
        samples=samples_of(pairs, _values(len(entries), ignore_index, label_offset)),
        problems=problems,
        mask_options={"ignore_index": ignore_index, "label_offset": label_offset},
    )


def _values(classes: int, ignore_index: int, label_offset: int) -> Values:
    if not 0 <= ignore_index <= _HIGHEST:
        raise DatasetError(f"expected ignore_index= from 0 to {_HIGHEST}, got {cut(ignore_index)}")
    if not -classes < label_offset <= _HIGHEST + 1 - classes:
        raise DatasetError(
            f"expected label_offset= from {1 - classes} to {_HIGHEST + 1 - classes} for {classes} classes, got "
            f"{cut(label_offset)}"
        )
    values = {label + label_offset: label for label in range(classes) if label + label_offset >= 0}
    return Values(values, frozenset({ignore_index, *range(label_offset)}), _ADVICE)
