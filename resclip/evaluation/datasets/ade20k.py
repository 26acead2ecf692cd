"""ADE20K (Zhou et al., CVPR 2017): the 150 classes of the scene parsing challenge of 2016.

The folders of the challenge's archive ADEChallengeData2016.zip, which mmsegmentation takes as it is:

    ADEChallengeData2016/images/validation/ADE_val_00000001.jpg
    ADEChallengeData2016/annotations/validation/ADE_val_00000001.png    0 does not count, 1-150 classes

The full release of ADE20K is not read, but recognised and refused.
"""

from __future__ import annotations

from pathlib import Path

from resclip.evaluation.datasets.base import (
    Dataset,
    DatasetError,
    Values,
    benchmark,
    files_under,
    first_that_exists,
    pair_up,
    samples_of,
)

_NAME = "ade20k"
_FOLDERS = ("", "ADEChallengeData2016/", "ade/ADEChallengeData2016/")
_OFFICIAL = {"training": 20_210, "validation": 2_000}

# The challenge's objectInfo150.txt counts the classes from 1. 0 is for other objects, which its evaluation leaves out.
_VALUES = Values({value: value - 1 for value in range(1, 151)}, frozenset({0}))

_FULL_RELEASE = (
    "index_ade20k.pkl",
    "index_ade20k.mat",
    "images/ADE",
    "ADE20K_2021_17_01",
    "ADE20K_2016_07_26",
)


def ade20k(root: Path, split: str | None) -> Dataset:
    """The challenge's 150 classes.

    Args:
        root: ADEChallengeData2016, the folder above, or the one above mmsegmentation's "ade".
        split: "training" instead of "validation".

    Raises:
        DatasetError: a folder is missing, or is of ADE20K's full release; or no image has a mask.
    """
    split = split or "validation"
    candidates = [f"{folder}annotations/{split}" for folder in _FOLDERS]
    if not any((root / candidate).exists() for candidate in candidates):
        _refuse_full_release(root)
    masks = first_that_exists(root, f"the masks of ADE20K's {split}", candidates)
    release = masks.parents[1]
    images = first_that_exists(release, f"the images of ADE20K's {split}", [f"images/{split}"])
    pairs, problems = pair_up(_NAME, files_under(images, [".jpg"]), files_under(masks, [".png"]))
    samples = samples_of(pairs, _VALUES)
    official = _OFFICIAL.get(split)
    return benchmark(_NAME, f"ADE20K's {split}", images, root, official, samples, problems)


def _refuse_full_release(root: Path) -> None:
    sign = next((name for name in _FULL_RELEASE if (root / name).exists()), None)
    if sign is not None:
        raise DatasetError(
            f"{root}: expected the scene parsing challenge's data with its 150 classes, found {sign!r} of ADE20K's "
            "full release, whose masks hold thousands of object names as colours; get ADEChallengeData2016.zip instead"
        )
