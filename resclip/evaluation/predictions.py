"""What is written while a set is measured: predictions as label images, and sheets that show truth and prediction.

Knows datasets, label maps and files. Knows no model, and computes no figure but an image's own.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resclip.evaluation.datasets.base import IGNORED, Dataset, Sample
from resclip.evaluation.metrics import confusion, scores_of
from resclip.io.images import PixelArray, save_png
from resclip.visualization.overlay import LegendEntry, draw_sheet, palette
from resclip_kernels import check_count

OPACITY = 0.7
"""Of the colours on a sheet's overlays: they matter more than the image, which stands beside them."""

_RIGHT = (228, 228, 231)
_WRONG = (
    213,
    94,
    0,
)  # Vermilion: far from the light grey of what is right, for colour-blind people too.
_IGNORED = (161, 161, 170)

# What Windows, the strictest, has no file names with; "%" as it starts the codes of the others.
_UNSAFE = re.compile(r'[<>:"\\|?*%\x00-\x1f\x7f]|[. ]$')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


class SavePredictions:
    """Writes each image's predicted classes as FOLDER/SET/ROW/NAME.png; a name's "/" are folders.

    The files are paletted PNGs whose values are class indices, in the set's own colours where it has some.

    Args:
        folder: made where it is missing; files that it has are replaced.
        dataset: whose images come.
        row: the method's name in the table.
    """

    def __init__(self, folder: Path, dataset: Dataset, row: str) -> None:
        self.folder = folder / safe_name(dataset.name) / safe_name(row)
        self.colours = colours_of(dataset).tobytes()

    def __call__(
        self,
        sample: Sample,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        """Write one prediction. Raises OSError where that cannot be done."""
        label_map = Image.fromarray(labels.astype(np.uint8))  # A dataset has at most 255 classes.
        label_map.putpalette(self.colours)
        write(label_map, self.folder / f"{safe_name(sample.name)}.png")


class Sheets:
    """Writes FOLDER/SET/ROW/NAME.png for a few images: image, truth, prediction and difference, side by side.

    Pixels that do not count are striped. The legend names the classes that truth or prediction have, with their share
    of the truth. The images are the same for every row, and however many processes share the set.

    Args:
        folder: made where it is missing; files that it has are replaced.
        dataset: whose images come.
        row: the method's name in the table.
        count: of images, spread evenly over the set; all of it where it has no more.

    Raises:
        ValueError, TypeError: a `count` that is none.
    """

    def __init__(self, folder: Path, dataset: Dataset, row: str, count: int) -> None:
        check_count("count", count, 0)
        self.folder = folder / safe_name(dataset.name) / safe_name(row)
        self.caption = f"{dataset.name}, {row}"
        self.classes = dataset.classes
        self.chosen = {dataset.samples[index].name for index in evenly_spaced(count, len(dataset))}
        special = np.array([_IGNORED, _RIGHT, _WRONG], np.uint8)
        self.colours = np.concatenate([colours_of(dataset), special])

    def __call__(
        self,
        sample: Sample,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        """Write the image's sheet if it is among the chosen. Raises OSError where that cannot be done."""
        if sample.name in self.chosen:
            sheet = self.draw(sample.name, image, truth, labels)
            write(sheet, self.folder / f"{safe_name(sample.name)}.png")

    def draw(
        self,
        name: str,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> Image.Image:
        """The sheet of one image; mode RGB."""
        ignored, right, wrong = range(len(self.classes), len(self.classes) + 3)
        counted = truth != IGNORED
        known = np.where(counted, truth, ignored).astype(np.int64)
        judged = np.where(counted, np.where(truth == labels, right, wrong), ignored)
        views = [("Truth", known), ("Prediction", labels), ("Difference", judged)]
        special = {wrong: "wrong", right: "right", ignored: "ignored"}
        shares = np.bincount(judged.ravel(), minlength=wrong + 1) / judged.size
        entries = [(index, text, float(shares[index])) for index, text in special.items()]
        return draw_sheet(
            image,
            views,
            self.colours,
            [*(entry for entry in entries if entry[2]), *self.present(known, labels)],
            OPACITY,
            footer=f"{self.caption}, {name}{self.figures(truth, labels)}",
            legend_caption="Share of the truth",
            hatched=ignored,
        )

    def present(self, known: NDArray[np.int64], labels: NDArray[np.int64]) -> list[LegendEntry]:
        """(class, name, share of the truth), largest first, then what is only predicted, largest first."""
        true, predicted = (
            np.bincount(values.ravel(), minlength=len(self.classes) + 1) / values.size
            for values in (known, labels)
        )
        there = [
            index for index in range(len(self.classes)) if true[index] or predicted[index]
        ]  # fmt: skip
        there.sort(key=lambda index: (-true[index], -predicted[index]))
        return [(index, self.classes[index], float(true[index])) for index in there]

    def figures(self, truth: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
        """The image's own mIoU and pixel accuracy in words; nothing where no pixel counts."""
        scores = scores_of(confusion(truth, labels, len(self.classes), IGNORED))
        if scores.miou is None:
            return ""
        return f": mIoU {scores.miou:.1f} in this image, {scores.pixel_accuracy:.1f} % of its pixels right"


def evenly_spaced(count: int, length: int) -> list[int]:
    """`count` indices below `length`, the middles of as many equal parts; all indices where there are no more."""
    count = min(count, length)
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def colours_of(dataset: Dataset) -> PixelArray:
    """(classes, 3) uint8: the set's own colours, else the library's."""
    return palette(len(dataset.entries)) if dataset.palette is None else dataset.palette


def safe_name(name: str) -> str:
    """A relative path, "/" between its parts, that every system takes and that leads to no other folder.

    What some system does not allow in a file's name becomes its code, as in a web address: "a:b" is "a%3Ab". Different
    names stay different.
    """
    return "/".join(map(_safe_part, name.split("/")))


def _safe_part(part: str) -> str:
    safe = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", part)
    if _DEVICES.fullmatch(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    return safe or "%"


def write(image: Image.Image, path: Path) -> None:
    """Save as PNG, whole or not at all, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(image, path)
