"""Cityscapes (Cordts et al., CVPR 2016): its finely annotated images, 19 classes.

The folders of the official archives, leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, and the masks that
mmsegmentation's converter puts beside the archive's own:

    leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png
    gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png         ids 0-33
    gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png    converted: 0-18 classes, 255 does not count

The converted masks are taken where as many images have one. The masks of "test" are not public.
"""

from __future__ import annotations

from pathlib import Path

from resclip.evaluation.datasets.base import (
    IGNORED,
    Dataset,
    Encoding,
    Values,
    benchmark,
    best_masks,
    cut,
    files_under,
    first_that_exists,
    pair_up,
    samples_of,
)

_NAME = "cityscapes"
_OFFICIAL = {"train": 2_975, "val": 500}

# The id of each class in the order of its train id, from cityscapesScripts' table of labels (helpers/labels.py). The 15
# other ids, such as the ego vehicle (1), parking (9) and trailers (30), do not count.
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

_ENCODINGS = (
    Encoding("_gtFine_labelTrainIds.png", Values({label: label for label in range(len(_IDS))})),
    Encoding(
        "_gtFine_labelIds.png",
        Values(
            {value: label for label, value in enumerate(_IDS)},
            # A licence plate has the id -1: 255 where one writes it into 8 bits.
            frozenset({*range(34), IGNORED}.difference(_IDS)),
        ),
    ),
)


def cityscapes(root: Path, split: str | None) -> Dataset:
    """The 19 classes that the benchmark evaluates.

    Args:
        root: the folder of leftImg8bit and gtFine, or of the folders that are called as the archives; or the one above,
            where it is called "cityscapes".
        split: "train" instead of "val".

    Raises:
        DatasetError: a folder is missing, there is no mask, or no image has one.
    """
    split = split or "val"
    images_of_all = first_that_exists(
        root,
        "the images of Cityscapes",
        ["leftImg8bit", "cityscapes/leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit"],
    )
    masks_of_all = first_that_exists(
        root,
        "the masks of Cityscapes",
        ["gtFine", "cityscapes/gtFine", "gtFine_trainvaltest/gtFine"],
    )
    image_folder = first_that_exists(
        images_of_all, f"the images of the split {cut(split)!r}", [split]
    )
    mask_folder = first_that_exists(masks_of_all, f"the masks of the split {cut(split)!r}", [split])
    images = files_under(image_folder, ["_leftImg8bit.png"])
    encoding, masks = best_masks(mask_folder, _ENCODINGS, images)
    pairs, problems = pair_up(_NAME, images, masks)
    what = f"Cityscapes' {split} with masks *{encoding.ending}"
    samples = samples_of(pairs, encoding.values)
    return benchmark(_NAME, what, image_folder, root, _OFFICIAL.get(split), samples, problems)
