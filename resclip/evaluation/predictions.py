"""Files that show what methods predict on a dataset: label maps, and sheets that compare them with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.evaluation.datasets.base import IGNORED, Dataset, Sample, printable
from resclip.evaluation.metrics import confusion, scores_of
from resclip.io.files import code_of, portable_part
from resclip.io.images import PixelArray, save_png
from resclip.visualization.colours import palette
from resclip.visualization.legend import LegendEntry
from resclip.visualization.overlay import draw_sheet
from resclip_kernels import check_count

OPACITY = 0.7
"""The opacity of the colours on a sheet: they matter more than the image, which stands beside them."""

UNLABELLED = 255
"""The value of pixels without a predicted class in label maps."""

_RIGHT = (228, 228, 231)
# Vermilion: far from the light grey of what is right, for colour-blind people too.
_WRONG = (213, 94, 0)
_IGNORED = (161, 161, 170)
_UNLABELLED = (63, 63, 70)


@dataclass(frozen=True)
class PredictionFiles:
    """Writes what methods predict while they are evaluated; an `on_image` of `resclip.evaluation.runner.evaluate`.

    FOLDER/predictions/DATASET/METHOD/NAME.png: the predicted classes of each image, as a paletted PNG whose values are
    class indices, in the dataset's own colours if it has some; 255 where the image has no data. A "/" in a name makes
    folders.

    FOLDER/sheets/DATASET/METHOD/NAME.png: image, truth, prediction and difference side by side, for a few images.
    Pixels that do not count are striped. The legend names the classes in truth or prediction with their share of the
    truth. The images are the same for every method, however many processes share the dataset.

    Args:
        folder: made if it is missing; files in it are replaced.
        label_maps: whether predictions are written.
        sheets: for how many images sheets are written, spread evenly over the dataset; for all if it has no more.

    Raises:
        ValueError, TypeError: `sheets` is no number of images.
    """

    folder: Path
    label_maps: bool = True
    sheets: int = 0

    def __post_init__(self) -> None:
        check_count("sheets", self.sheets, 0)

    def __call__(
        self,
        method: str,
        dataset: Dataset,
        sample: Sample,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        """Write the files of one image. Raises OSError where that cannot be done."""
        name = f"{portable_path(dataset.name)}/{portable_path(method)}/{portable_path(sample.name)}.png"
        if self.label_maps:
            # At most 255 classes; −1 becomes 255.
            label_map = Image.fromarray(labels.astype(np.uint8))
            colours = colours_of(dataset)
            if labels.min(initial=0) < 0:
                full = np.full((UNLABELLED + 1, 3), _UNLABELLED, np.uint8)
                full[: len(colours)] = colours
                colours = full
            label_map.putpalette(colours.tobytes())
            write(label_map, self.folder / "predictions" / name)
        chosen = evenly_spaced(self.sheets, len(dataset))
        if any(dataset.samples[index].name == sample.name for index in chosen):
            sheet = draw_comparison(method, dataset, sample.name, image, truth, labels)
            write(sheet, self.folder / "sheets" / name)


def draw_comparison(
    method: str,
    dataset: Dataset,
    name: str,
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> Image.Image:
    """The sheet of one image; mode RGB."""
    classes = len(dataset.classes)
    ignored, right, wrong, unlabelled = range(classes, classes + 4)
    counted = truth != IGNORED
    true = np.where(counted, truth, ignored).astype(np.int64)
    predicted = np.where(labels < 0, unlabelled, labels)
    difference = np.where(counted, np.where(truth == labels, right, wrong), ignored)
    shares = np.bincount(difference.ravel(), minlength=unlabelled + 1) / difference.size
    shares[unlabelled] = float((labels < 0).mean())
    special = {wrong: "wrong", right: "right", ignored: "ignored", unlabelled: "no data"}
    legend = [
        (index, text, float(shares[index])) for index, text in special.items() if shares[index]
    ]
    scores = scores_of(confusion(truth, labels, classes, IGNORED))
    figures = ""
    if scores.miou is not None:
        figures = f": mIoU {scores.miou:.1f} in this image, {scores.pixel_accuracy:.1f} % of its pixels right"
    return draw_sheet(
        image,
        [("Truth", true), ("Prediction", predicted), ("Difference", difference)],
        np.concatenate(
            [colours_of(dataset), np.array([_IGNORED, _RIGHT, _WRONG, _UNLABELLED], np.uint8)]
        ),
        [*legend, *legend_of_classes(dataset.classes, true, predicted)],
        OPACITY,
        footer=printable(f"{dataset.name}, {method}, {name}{figures}"),
        legend_caption="Share of the truth",
        hatched=ignored,
    )


def legend_of_classes(
    classes: Sequence[str], true: NDArray[np.int64], labels: NDArray[np.int64]
) -> list[LegendEntry]:
    """(class, name, share of the truth): the true classes, largest first, then those that are only predicted."""
    in_truth, predicted = (
        np.bincount(values.ravel(), minlength=len(classes) + 1) / values.size
        for values in (true, labels)
    )
    present = [index for index in range(len(classes)) if in_truth[index] or predicted[index]]
    present.sort(key=lambda index: (-in_truth[index], -predicted[index]))
    return [(index, classes[index], float(in_truth[index])) for index in present]


def evenly_spaced(count: int, length: int) -> list[int]:
    """`count` indices below `length`, the middles of as many equal parts; all indices if there are no more."""
    count = min(count, length)
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def colours_of(dataset: Dataset) -> PixelArray:
    """(classes, 3) uint8: the dataset's own colours, else the library's."""
    return palette(dataset.classes) if dataset.palette is None else dataset.palette


def portable_path(name: str) -> str:
    """A relative path, "/" between its parts, that every system allows and that leads to no other folder.

    What some system does not allow becomes its code, as by `portable_part`, and "%" too, so that different names stay
    different.
    """
    return "/".join(
        portable_part(part.replace("%", code_of("%"))) or "%" for part in name.split("/")
    )


def write(image: Image.Image, path: Path) -> None:
    """Save as PNG, whole or not at all, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(image, path)
