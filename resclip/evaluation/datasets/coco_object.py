"""COCO-Object (Xu et al., "GroupViT", CVPR 2022): COCO's 80 things on a background, which is class 0.

Knows how it is made of COCO-Stuff's masks, or of COCO's instances where there is no folder of masks (the folders are
`coco`'s):

    000000000139_instanceTrainIds.png    GroupViT's: 0 background, 1-80 things
    000000000139.png                     COCO-Stuff's: 0-181 with gaps, 255 unlabelled
    000000000139_labelTrainIds.png       mmsegmentation's of COCO-Stuff: 0-170, 255 unlabelled
    instances_val2017.json               COCO's: polygons and run lengths

Background is whatever no thing covers: all stuff, and the unlabelled pixels too, which COCO-Stuff leaves out. That is
GroupViT's conversion (convert_dataset/convert_coco_object.py: each value above 90, 255 among them, becomes 0), which
the published figures are measured with; so every pixel counts. The three kinds of masks give the same labels, and the
one that most pictures have is taken. Instances give other labels at the rims of things: see `coco_instances`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resclip.class_names import dataset_classes, parse_entries
from resclip.evaluation.datasets.coco import (
    IDS,
    OFFICIAL,
    THINGS,
    find_pictures,
    instance_files,
    mask_folders,
)
from resclip.evaluation.datasets.coco_instances import read_instances
from resclip.evaluation.datasets.encodings import Encoding, best_masks
from resclip.evaluation.datasets.layout import describe, first_that_exists, pair_up, samples_of
from resclip.evaluation.datasets.palettes import benchmark_palette
from resclip.evaluation.datasets.samples import (
    IGNORED,
    Dataset,
    DatasetError,
    PictureFile,
    Problem,
    Sample,
    Values,
)


_NAME = "coco-object"

# The label of each of COCO-Stuff's classes.
_LABELS = tuple(place + 1 if place < THINGS else 0 for place in range(len(IDS)))


def _values(labels: Mapping[int, int]) -> Values:
    """COCO-Stuff's values, with its unlabelled pixels as background."""
    return Values({**labels, IGNORED: 0}, ignored=frozenset())


_ENCODINGS = (
    Encoding("_instanceTrainIds.png", Values({label: label for label in range(THINGS + 1)})),
    Encoding(".png", _values(dict(zip(IDS, _LABELS, strict=True)))),
    Encoding("_labelTrainIds.png", _values(dict(enumerate(_LABELS)))),
)


def coco_object(root: Path, split: str | None) -> Dataset:
    """80 things and their background.

    Args:
        root: see `coco`.
        split: "train2017" instead of "val2017".

    Raises:
        DatasetError: a folder is missing, there is no mask, no picture has one, or a JSON file is not COCO's.
        ImportError: there are instances alone, and pycocotools is not installed.
    """
    split = split or "val2017"
    place, pictures = find_pictures(root, split)
    truth = first_that_exists(
        root,
        f"COCO-Stuff's masks or COCO's instances of {split}",
        [*mask_folders(split), *instance_files(split)],
    )
    if truth.suffix == ".json":
        samples, problems = _from_instances(truth, pictures)
        kind = truth.name
    else:
        encoding, masks = best_masks(truth, _ENCODINGS, pictures)
        pairs, problems = pair_up(_NAME, pictures, masks)
        samples = samples_of(pairs, encoding.values)
        kind = f"masks *{encoding.ending}"
    what = f"COCO-Object's {split} with {kind}"
    return Dataset(
        name=_NAME,
        description=describe(len(samples), what, place, root, OFFICIAL.get(split)),
        entries=tuple(dataset_classes(_NAME)),
        samples=samples,
        problems=problems,
        palette=benchmark_palette(_NAME),
    )


def _from_instances(
    path: Path, pictures: Mapping[str, Path]
) -> tuple[tuple[Sample, ...], tuple[Problem, ...]]:
    names = [entry.name for entry in parse_entries(dataset_classes(_NAME))]
    categories = {value + 1: (label, names[label]) for label, value in enumerate(IDS[:THINGS], 1)}
    truths, faults = read_instances(path, categories)
    pairs, problems = pair_up(_NAME, pictures, dict.fromkeys([*truths, *faults], path))
    samples = tuple(
        Sample(name, PictureFile(picture), truths[name])
        for name, picture, _ in pairs
        if name in truths
    )
    faulty = [Problem(name, faults[name]) for name, _, _ in pairs if name in faults]
    if not samples:
        raise DatasetError(
            f"{_NAME}: expected pictures whose instances can be drawn, got none, such as {faulty[0].name!r}: "
            f"{faulty[0].reason}"
        )
    return samples, tuple(sorted([*problems, *faulty], key=lambda problem: problem.name))
