"""A folder of anyone's own: images, masks and a list of classes.

The layout, in which folders may be nested:

    images/street/0001.jpg      any usual image format
    masks/street/0001.png       of the same name: value i is class i of the list, 255 does not count
    classes.txt                 one class per line, or classes.json or classes.yaml: see `resclip.text.class_names`

There are no splits: each has a folder of its own.
"""

from __future__ import annotations

from pathlib import Path

from resclip.evaluation.datasets.base import (
    Dataset,
    DatasetError,
    Values,
    describe,
    files_under,
    first_that_exists,
    pair_up,
    samples_of,
)
from resclip.text.class_names import read_classes

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_CLASSES = ("classes.txt", "classes.json", "classes.yaml", "classes.yml")


def folder(root: Path, split: str | None) -> Dataset:
    """The images of `root`/images with the masks of `root`/masks; see the module's head.

    Raises:
        DatasetError: a folder or the list of classes is missing, the list cannot be used, or no image has a mask.
    """
    if split is not None:
        raise DatasetError(
            f"{root}: expected no split for a folder of your own, got {split!r}; name the folder that holds the split"
        )
    images = first_that_exists(root, "a folder of images", ["images"])
    masks = first_that_exists(root, "a folder of masks", ["masks"])
    listed = first_that_exists(root, "a list of classes", _CLASSES)
    try:
        entries = read_classes(listed)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    pairs, problems = pair_up("folder", files_under(images, _IMAGES), files_under(masks, [".png"]))
    return Dataset(
        name="folder",
        description=describe(len(pairs), f"{len(entries)} classes", root, root),
        entries=tuple(entries),
        samples=samples_of(pairs, Values({label: label for label in range(len(entries))})),
        problems=problems,
    )
