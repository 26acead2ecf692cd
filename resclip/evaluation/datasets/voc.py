"""PASCAL VOC 2012's segmentation dataset, with its background as a class (voc21) and without (voc20).

The development kit's folders, which the official archive VOCtrainval_11-May-2012.tar and mmsegmentation share:

    VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg
    VOCdevkit/VOC2012/SegmentationClass/2007_000033.png      paletted: 0 background, 1-20 classes, 255 borders
    VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt         1,449 names

The additional masks of "SegmentationClassAug" are not read: they are for training. The numbers are the kit's own; the
names of the classes are those of the methods' authors ("ship" for the kit's boat).
"""

from __future__ import annotations

from pathlib import Path

from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    Values,
    benchmark,
    files_under,
    first_that_exists,
    pair_up,
    samples_of,
    split_names,
)

_FOLDERS = ("VOCdevkit/VOC2012/", "VOC2012/", "")
_OFFICIAL = {"train": 1_464, "val": 1_449, "trainval": 2_913}

_VOC20 = Values({value: value - 1 for value in range(1, 21)}, frozenset({0, IGNORED}))
_VOC21 = Values({value: value for value in range(21)})


def voc20(root: Path, split: str | None) -> Dataset:
    """The 20 classes: the background does not count. See `voc21`."""
    return _voc("voc20", _VOC20, root, split)


def voc21(root: Path, split: str | None) -> Dataset:
    """The 20 classes and the background, which is class 0.

    Args:
        root: the folder of VOCdevkit, VOCdevkit itself, or VOC2012.
        split: "train" or "trainval" instead of "val".

    Raises:
        DatasetError: a folder or the split file is missing, or no image has a mask.
    """
    return _voc("voc21", _VOC21, root, split)


def _voc(name: str, values: Values, root: Path, split: str | None) -> Dataset:
    split = split or "val"
    images = first_that_exists(
        root, "PASCAL VOC 2012", [f"{folder}JPEGImages" for folder in _FOLDERS]
    )
    kit = images.parent
    masks = first_that_exists(kit, "the masks of PASCAL VOC 2012", ["SegmentationClass"])
    listed = split_names(kit / "ImageSets" / "Segmentation" / f"{split}.txt")
    pairs, problems = pair_up(
        name, files_under(images, [".jpg"]), files_under(masks, [".png"]), listed
    )
    what, samples = f"PASCAL VOC 2012's {split}", samples_of(pairs, values)
    return benchmark(name, what, kit, root, _OFFICIAL.get(split), samples, problems)
