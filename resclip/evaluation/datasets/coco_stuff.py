"""COCO-Stuff 164k (Caesar et al., CVPR 2018): 171 classes on COCO's pictures.

Knows two encodings of its masks, which lie beside each other or alone (the folders are `coco`'s):

    000000000139.png                  the archive's: 0-181 with gaps, 255 unlabelled
    000000000139_labelTrainIds.png    mmsegmentation's: 0-170, 255 unlabelled

The converted masks are taken where as many pictures have one. Unlabelled pixels do not count.
"""

from __future__ import annotations

from pathlib import Path

from resclip.class_names import dataset_classes
from resclip.evaluation.datasets.coco import IDS, OFFICIAL, find_pictures, mask_folders
from resclip.evaluation.datasets.encodings import Encoding, best_masks
from resclip.evaluation.datasets.layout import describe, first_that_exists, pair_up, samples_of
from resclip.evaluation.datasets.palettes import benchmark_palette
from resclip.evaluation.datasets.samples import Dataset, Values


_NAME = "coco-stuff"

_ENCODINGS = (
    Encoding("_labelTrainIds.png", Values({label: label for label in range(len(IDS))})),
    Encoding(".png", Values({value: label for label, value in enumerate(IDS)})),
)


def coco_stuff(root: Path, split: str | None) -> Dataset:
    """80 things and 91 kinds of stuff.

    Args:
        root: see `coco`.
        split: "train2017" instead of "val2017".

    Raises:
        DatasetError: a folder is missing, there is no mask, or no picture has one.
    """
    split = split or "val2017"
    place, pictures = find_pictures(root, split)
    folder = first_that_exists(root, f"the masks of COCO-Stuff's {split}", mask_folders(split))
    encoding, masks = best_masks(folder, _ENCODINGS, pictures)
    pairs, problems = pair_up(_NAME, pictures, masks)
    what = f"COCO-Stuff 164k's {split} with masks *{encoding.ending}"
    return Dataset(
        name=_NAME,
        description=describe(len(pairs), what, place, root, OFFICIAL.get(split)),
        entries=tuple(dataset_classes(_NAME)),
        samples=samples_of(pairs, encoding.values),
        problems=problems,
        palette=benchmark_palette(_NAME),
    )
