"""`resclip ablate` with the studies that are no sweeps: what patches attend to and are like, as tables and pictures.

What it imports from resclip.evaluation is loaded on use: `--help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resclip.cli.options import explain, segmenter_for
from resclip.cli.progress import console

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from resclip.evaluation.datasets import Dataset
    from resclip.evaluation.studies.findings import Finding
    from resclip.segmenter import Segmenter

NAMED_IMAGE = ("attention-by-layer", "maps")
"""The studies of one patch of one image, whose result is a picture."""


def run_other(
    name: str, arguments: argparse.Namespace, datasets: Sequence[Dataset], device: str | None
) -> int:
    """Carry out a study that is no sweep, in the first process alone; the exit status."""
    from resclip.evaluation.distributed import rank

    if rank() != 0:
        return 0
    status = 0
    # One image of one's own is looked at once, by the settings of the first dataset.
    for dataset in datasets[:1] if arguments.image and name in NAMED_IMAGE else datasets:
        finding = OTHERS[name](arguments, dataset, device)
        print(finding.text(), end="\n\n")
        if arguments.out is not None:
            paths = finding.write(arguments.out)
            print(f"{', '.join(map(str, paths))}\n")
        lines = [f"{dataset.name}, {one.name}: {one.reason}" for one in finding.problems]
        show_problems(lines)
        status |= int(bool(lines))
    return status


def show_problems(lines: Sequence[str]) -> None:
    """Name what was left out, on stderr."""
    for line in lines:
        console().error(f"left out: {explain(line)}")


def find_similarity(arguments: argparse.Namespace, dataset: Dataset, device: str | None) -> Finding:
    """`patch-similarity`."""
    from resclip.evaluation.studies.other_models import DINO, open_models, usual_names
    from resclip.evaluation.studies.patch_similarity import patch_similarity

    segmenter = model_for(arguments, dataset, device)
    names = others_of(arguments) or usual_names(arguments.model, [DINO])
    others = open_models(names, segmenter, need_one=False)
    return patch_similarity(segmenter, dataset, others, arguments.images)


def find_invariance(arguments: argparse.Namespace, dataset: Dataset, device: str | None) -> Finding:
    """`spatial-invariance`."""
    from resclip.evaluation.studies.spatial_invariance import spatial_invariance

    return spatial_invariance(model_for(arguments, dataset, device), dataset, arguments.images)


def find_proxy_similarity(
    arguments: argparse.Namespace, dataset: Dataset, device: str | None
) -> Finding:
    """`proxy-similarity`."""
    from resclip.evaluation.studies.proxy_similarity import proxy_similarity

    base = arguments.base or "proxyclip"
    segmenter = segmenter_for(arguments, base, dataset, device=device)
    return proxy_similarity(segmenter, dataset, arguments.images)


def find_layers(arguments: argparse.Namespace, dataset: Dataset, device: str | None) -> Finding:
    """`attention-by-layer`."""
    from resclip.evaluation.studies.query_maps import attention_by_layer

    segmenter = model_for(arguments, dataset, device)
    return attention_by_layer(segmenter, *query_of(arguments, segmenter, dataset))


def find_maps(arguments: argparse.Namespace, dataset: Dataset, device: str | None) -> Finding:
    """`maps`."""
    from resclip.evaluation.studies.other_models import DINO, SAM, open_models, usual_names
    from resclip.evaluation.studies.query_maps import model_maps

    segmenter = model_for(arguments, dataset, device)
    names = others_of(arguments) or usual_names(arguments.model, [DINO, SAM])
    others = open_models(names, segmenter, need_one=True)
    image, patch, subject = query_of(arguments, segmenter, dataset)
    return model_maps(segmenter, image, patch, others, subject)


OTHERS: Mapping[str, Callable[[argparse.Namespace, Dataset, str | None], Finding]] = {
    "attention-by-layer": find_layers,
    "spatial-invariance": find_invariance,
    "patch-similarity": find_similarity,
    "proxy-similarity": find_proxy_similarity,
    "maps": find_maps,
}
"""The studies that are no sweeps, gain aside: each makes its finding on a dataset."""


def model_for(arguments: argparse.Namespace, dataset: Dataset, device: str | None) -> Segmenter:
    """A segmenter whose model is looked at, whatever its method; an image of one's own has the model's own size."""
    plain = argparse.Namespace(**{**vars(arguments), "correlation": None})
    subject = dataset if arguments.image is None else replace(dataset, settings={})
    return segmenter_for(plain, "clip", subject, device=device)


def others_of(arguments: argparse.Namespace) -> list[str]:
    """The models that --others names; none where it is left out."""
    return [name.strip() for name in arguments.others.split(",")] if arguments.others else []


def query_of(
    arguments: argparse.Namespace, segmenter: Segmenter, dataset: Dataset
) -> tuple[Any, tuple[int, int], str]:
    """The image, the patch, and what files are called after.

    Raises:
        ValueError: a point that is none, or outside the image.
        ImageError: --image names no image.
    """
    from resclip.evaluation.studies.query_maps import first_image, own_image, patch_at

    if arguments.image is None:
        image, subject = first_image(segmenter, dataset), dataset.name
    else:
        image, subject = own_image(segmenter, arguments.image), Path(arguments.image).stem
    point = None
    if arguments.query is not None:
        found = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", arguments.query)
        if found is None:
            raise ValueError(
                f'expected --query X,Y in whole pixels, such as "120,80", got {arguments.query[:80]!r}'
            )
        point = int(found[1]), int(found[2])
    return image, patch_at(image, point), subject
