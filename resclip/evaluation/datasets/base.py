"""What a dataset is to an evaluation, images with the true class of each pixel, and what readers of datasets share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from resclip.errors import reason
from resclip.io.errors import check_file, without_warnings
from resclip.io.files import read_text
from resclip.io.images import MAX_PIXELS, ImageError, PixelArray, read_picture
from resclip.text.class_names import dataset_classes, parse_entries

_PALETTES = Path(__file__).parents[2] / "data" / "palettes.json"


def benchmark_palette(name: str) -> PixelArray:
    """(C, 3) uint8: red, green and blue of each class of a benchmark, in label order.

    Some classes of Context, COCO-Stuff and ADE20K share a colour, as published.

    Args:
        name: one of `resclip.text.class_names.DATASETS`.

    Raises:
        ValueError: another name.
    """
    palettes = json.loads(read_text(_PALETTES, "colours as JSON"))
    if name not in palettes:
        raise ValueError(f"unknown palette {name!r}; use one of: {', '.join(palettes)}")
    colours = " ".join(palettes[name]["colours"]).split()
    palette: PixelArray = np.array([list(bytes.fromhex(colour)) for colour in colours], np.uint8)
    return palette


IGNORED = 255
"""The value of pixels that do not count, in masks and labels."""


class DatasetError(ValueError):
    """A dataset that cannot be used: what was looked for, what was found, what to do."""


@dataclass(frozen=True)
class Problem:
    """An image that is left out of the figures, and why."""

    name: str
    reason: str


class ImagePixels(NamedTuple):
    """An image that was read."""

    pixels: PixelArray
    """(H, W, 3) uint8."""
    absent: NDArray[np.bool_] | None = None
    """(H, W), true where the image has no data: no class is predicted there. None: nowhere."""


class SampleImage(Protocol):
    """Where an image comes from; picklable, as worker processes read it."""

    def read(self) -> ImagePixels:
        """The image; `ImageError` where it cannot be had."""


class Truth(Protocol):
    """Where the true classes of an image come from; picklable, as worker processes read it."""

    def read(self) -> PixelArray:
        """(H, W) uint8: class indices and `IGNORED`; `ImageError` where they cannot be had."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk."""

    path: Path

    def read(self) -> ImagePixels:
        """The image; `ImageError` where it cannot be had."""
        picture = read_picture(self.path)
        return ImagePixels(picture.pixels, picture.absent)


@dataclass(frozen=True)
class Values:
    """What the values in a mask's file stand for: classes, or pixels that do not count.

    Args:
        classes: the class of each value that stands for one.
        ignored: values of pixels that do not count, even where one stands for a class. Any other value is an error.
        advice: what to do about a value that stands for nothing, for the error.
    """

    classes: Mapping[int, int]
    ignored: frozenset[int] = frozenset({IGNORED})
    advice: str = "check that the mask belongs to this dataset"

    def labels(self, raw: NDArray[np.uint16], path: Path) -> PixelArray:
        """The classes of a mask's values, uint8, in their shape.

        Raises:
            ImageError: a value that stands for nothing; the error names `path`.
        """
        # (65536,): the class of each value, `IGNORED`, or −1 for a value that must not occur.
        table = np.full(65536, -1, np.int16)
        for value, label in self.classes.items():
            table[value] = label
        table[sorted(self.ignored)] = IGNORED
        pixels = np.bincount(raw.ravel(), minlength=len(table))
        unknown = np.flatnonzero((pixels > 0) & (table < 0))
        if len(unknown):
            shown = ", ".join(map(str, unknown[:8])) + (", …" if len(unknown) > 8 else "")
            raise ImageError(
                f"{path}: expected values among {shorten(sorted({*self.classes, *self.ignored}))}, got {shown} in "
                f"{int(pixels[unknown].sum()):,} pixels; {self.advice}"
            )
        classes: PixelArray = table.astype(np.uint8)[raw]
        return classes


@dataclass(frozen=True)
class LabelFile:
    """A mask on disk: a greyscale or paletted PNG whose values `values` explains."""

    path: Path
    values: Values

    def read(self) -> PixelArray:
        """(H, W) uint8.

        Raises:
            ImageError: the file is missing, damaged, of three channels, or holds a value that stands for nothing.
        """
        return self.values.labels(read_values(self.path), self.path)


def shorten(values: Sequence[int]) -> str:
    """Sorted numbers as text, runs of neighbours as "0 to 20"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in runs)


MASK_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
"""Pillow's names of the formats that masks may have: lossless ones, which keep a class's number."""


def read_values(path: Path) -> NDArray[np.uint16]:
    """(H, W), the numbers that a mask's pixels hold: a palette's indices, or grey levels of 8 or 16 bits.

    Raises:
        ImageError: the file is missing, no regular file, damaged, too large, or holds colours.
    """
    check_file(path, str(path))
    try:
        with without_warnings(), Image.open(path, formats=MASK_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise ImageError(
                    f"{path}: expected one number per pixel (a greyscale or paletted PNG), got mode {image.mode}; "
                    "convert colours to class indices first"
                )
            image.load()
            values = np.asarray(image)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"{path}: expected a mask of at most {MAX_PIXELS:,} pixels, got one of more, which may be a file made to "
            "exhaust memory; scale it down with its image"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: expected a mask as {', '.join(MASK_FORMATS)}, got a file of another kind or with a damaged "
            "header; get the file again, or convert it to PNG"
        ) from None
    # A hostile file makes Pillow's decoders raise anything.
    except Exception as error:
        why = f" ({reason(error)})" if isinstance(error, OSError) and error.strerror else ""
        raise ImageError(
            f"{path}: expected a whole mask, got one that cannot be read{why}; get the file again"
        ) from error
    if values.ndim != 2 or values.size == 0 or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path}: expected values from 0 to 65535; check that it is a mask")
    return values.astype(np.uint16)


@dataclass(frozen=True)
class Sample:
    """One image of a dataset."""

    name: str
    """Unique in the dataset, such as "2007_000033" or "frankfurt/frankfurt_000000_000294"."""
    image: SampleImage
    truth: Truth


@dataclass(frozen=True)
class Dataset:
    """Images with their true classes, ready to be measured on.

    Raises:
        DatasetError: no image, two of one name, or colours that do not fit the classes.
    """

    name: str
    """The name that `open_dataset` takes: "voc21"."""
    description: str
    """What was found, in words: "1,449 images of PASCAL VOC 2012's val (VOCdevkit/VOC2012)"."""
    entries: tuple[str, ...]
    """The classes in label order, each with its synonyms, as `resclip.text.class_names` reads them."""
    samples: tuple[Sample, ...]
    split: str | None = None
    """The requested split; None for the standard one, which published figures are of."""
    problems: tuple[Problem, ...] = ()
    """The images without a mask and masks without an image: they are in no figure and in every report."""
    palette: PixelArray | None = None
    """(C, 3) uint8: the dataset's own colours; None if it has none."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Arguments of `resclip.load` that go with the dataset, whatever the method."""
    mask_options: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """What the values of its masks mean, where that can be chosen: "ignore_index" and "label_offset" of "folder"."""

    def __post_init__(self) -> None:
        if not self.samples:
            raise DatasetError(f"{self.name}: expected at least one image, got none")
        names = [sample.name for sample in self.samples]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"{self.name}: expected each image once, got {cut(twice)!r} twice")
        if not self.entries:
            raise DatasetError(f"{self.name}: expected at least one class, got none")
        if len(self.entries) > IGNORED:
            raise DatasetError(
                f"{self.name}: expected at most {IGNORED} classes, got {len(self.entries)}: "
                f"a mask's value {IGNORED} is for pixels that do not count"
            )
        if self.palette is not None and self.palette.shape != (len(self.entries), 3):
            raise DatasetError(
                f"{self.name}: expected a colour for each of {len(self.entries)} classes, "
                f"got a palette of shape {self.palette.shape}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """One name per class."""
        return tuple(entry.name for entry in parse_entries(self.entries))

    @property
    def digest(self) -> str:
        """A hash of the samples' names in their order: two datasets of one digest have the same images."""
        names = "\n".join([sample.name for sample in self.samples])
        return hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest()

    def __len__(self) -> int:
        """Number of images that can be measured on."""
        return len(self.samples)


_SHOWN = 8  # How many names an error lists: two lines of a terminal.


def first_that_exists(root: Path, what: str, candidates: Sequence[str]) -> Path:
    """The first of `candidates`, paths below `root`, that exists: a folder or a file.

    Args:
        root: the folder that the user named.
        what: what is looked for, for the error: "the images of PASCAL VOC 2012".
        candidates: relative paths with "/", the preferred one first.

    Raises:
        DatasetError: `root` is no folder, or holds none of them: what was looked for, and what `root` holds.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DatasetError(f"{root}: expected a folder with {what}, got {got}; check the path")
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    looked_for = " or ".join(map(repr, candidates))
    raise DatasetError(
        f"{root}: expected {what}, looked for {looked_for}, found {_contents(root)}; "
        "name the folder that holds what was looked for"
    )


def split_names(path: Path) -> list[str]:
    """The lines of a split file, in its order, without blank ones and spaces at the ends.

    Raises:
        DatasetError: the file is missing (the error lists the splits that exist), empty or not UTF-8.
    """
    if not path.is_file():
        splits = _contents(path.parent) if path.parent.is_dir() else "no such folder"
        raise DatasetError(
            f"{path}: expected a split file with one image's name per line, got none; "
            f"in {path.parent.name}: {splits}; name another split, or get the file"
        )
    return lines_of(path, "one image's name per line")


def lines_of(path: Path, expected: str) -> list[str]:
    """The lines of a text file, without blank ones and spaces at the ends.

    Args:
        expected: what the file should hold, for the error: "one image's name per line".

    Raises:
        DatasetError: there is no such line, or the file is not UTF-8.
        OSError: the file cannot be read.
    """
    check_regular(path, expected)
    try:
        lines = [line.strip() for line in read_text(path, expected).splitlines()]
    except ValueError as error:
        raise DatasetError(str(error)) from None
    if not any(lines):
        raise DatasetError(f"{path}: expected {expected}, got an empty file; get it again")
    return [line for line in lines if line]


def check_regular(path: Path, expected: str) -> None:
    """DatasetError where a path is a folder, or a pipe or a device that reading would wait for.

    Args:
        expected: what the file should hold, for the error.
    """
    if path.exists() and not path.is_file():
        raise DatasetError(
            f"{path}: expected a file of {expected}, got something else of that name; remove it"
        )


def files_under(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files below `folder`, nested folders included, whose names end in one of `endings`.

    Hidden files and folders, such as macOS's "._0001.png", are no part of a dataset and skipped. A folder or a pipe of
    such a name is listed, so that reading it says what it is; but no folder beside a file that takes its place.

    Args:
        endings: of names, whatever the case: ".jpg", or "_gtFine_labelIds.png".

    Returns:
        By the path below `folder` without the ending, with "/" on any system: "frankfurt/frankfurt_000000_000294".

    Raises:
        DatasetError: a folder cannot be read, a link leads round in a circle, or two files differ in nothing but
            their endings.
    """
    paths: dict[str, Path] = {}
    for current, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(current)
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise DatasetError(
                f"{here}: expected a folder, got a link to one that it is in; remove it"
            )
        for file in (*files, *folders):
            ending = next((end for end in endings if file.lower().endswith(end.lower())), None)
            if ending is None or file.startswith(".") or (not ending and file in folders):
                continue
            path = here / file
            name = path.relative_to(folder).as_posix().removesuffix(file[len(file) - len(ending) :])
            if name in paths and file in folders:
                continue
            if name in paths:
                first, second = sorted((paths[name].name, file))
                raise DatasetError(
                    f"{here}: expected one file called {name!r}, got {first} and {second}; remove one"
                )
            paths[name] = path
    return paths


def pair_up(
    name: str,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    listed: Sequence[str] | None = None,
) -> tuple[list[tuple[str, Path, Path]], tuple[Problem, ...]]:
    """Images with their masks, and a `Problem` for each that has no counterpart: nothing is dropped silently.

    Args:
        name: of the dataset, for the error.
        images, masks: the existing files, by the name that an image and its mask share.
        listed: the expected names, as of a split file; all others do not belong to the split. None: all that exist.

    Returns:
        (name, image, mask) of each whole pair, and the problems; both sorted by name.

    Raises:
        DatasetError: there is no pair at all, or a name is listed twice.
    """
    names = sorted({*images, *masks} if listed is None else set(listed))
    if listed is not None and len(names) < len(listed):
        twice = next(some for some in names if listed.count(some) > 1)
        raise DatasetError(
            f"{name}: expected each image once, got {cut(twice)!r} {listed.count(twice)} times in the split file"
        )
    pairs: list[tuple[str, Path, Path]] = []
    problems: list[Problem] = []
    for some in names:
        if some in images and some in masks:
            pairs.append((some, images[some], masks[some]))
        elif some in images:
            problems.append(Problem(some, f"{images[some]}: the image has no mask"))
        elif some in masks:
            problems.append(Problem(some, f"{masks[some]}: the mask has no image"))
        else:
            problems.append(
                Problem(some, "listed in the split file, but there is neither image nor mask")
            )
    if not pairs:
        example = f", such as {cut(problems[0].name)!r}: {problems[0].reason}" if problems else ""
        raise DatasetError(
            f"{name}: expected images with masks of the same names, got {len(images):,} images and "
            f"{len(masks):,} masks, of which no two belong together{example}"
        )
    return pairs, tuple(problems)


def samples_of(pairs: Sequence[tuple[str, Path, Path]], values: Values) -> tuple[Sample, ...]:
    """`pair_up`'s pairs as a dataset's samples, all masks read by `values`."""
    samples = [
        Sample(name, ImageFile(image), LabelFile(mask, values)) for name, image, mask in pairs
    ]
    return tuple(samples)


def describe(count: int, what: str, folder: Path, root: Path, official: int | None = None) -> str:
    """A dataset in words: "1,449 images of PASCAL VOC 2012's val (VOCdevkit/VOC2012)".

    Args:
        count: how many images can be measured on.
        what: what they are of: "PASCAL VOC 2012's val".
        folder: where they were found: `root` or a folder below it.
        root: the folder that the user named.
        official: how many the dataset is published with, if that is known; it is named if `count` differs.
    """
    images = f"{count:,} image{'' if count == 1 else 's'} of {what}"
    if official not in (None, count):
        images += f", which has {official:,}"
    below = folder.relative_to(root).as_posix()
    return f"{images} ({printable(folder.name if below == '.' else below)})"


def printable(text: str) -> str:
    r"""The text as any file and font can hold it: bytes of a name that are no UTF-8 as "\udcff"."""
    return text.encode(errors="backslashreplace").decode()


def cut(value: Any, most: int = 80) -> str:
    """What came, for an error, in one line of at most so many letters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 2]} …"


def benchmark(
    name: str,
    what: str,
    folder: Path,
    root: Path,
    official: int | None,
    samples: tuple[Sample, ...],
    problems: tuple[Problem, ...],
) -> Dataset:
    """The benchmark called `name`, with its class names and colours.

    Args:
        what, folder, root, official: as `describe` takes them.
        samples, problems: what was found of it.
    """
    return Dataset(
        name,
        describe(len(samples), what, folder, root, official),
        tuple(dataset_classes(name)),
        samples,
        problems=problems,
        palette=benchmark_palette(name),
    )


def names_in_words(names: Sequence[str]) -> str:
    """The first few of `names` as an error shows them: "a, b and 3 more"; "nothing" where there is none."""
    if not names:
        return "nothing"
    rest = len(names) - _SHOWN
    return ", ".join(cut(name) for name in names[:_SHOWN]) + (
        f" and {rest:,} more" if rest > 0 else ""
    )


def _contents(folder: Path) -> str:
    """What is in a folder, in words; folders end in "/"."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        return f"a folder that cannot be read ({error.strerror})"
    return names_in_words([path.name + "/" * path.is_dir() for path in paths])


def _refuse(error: OSError) -> None:
    raise DatasetError(
        f"{error.filename}: expected a folder that can be read ({error.strerror}); check the path and its permissions"
    ) from error


_CONVERTED = "TrainIds"
"""Part of the name of every mask that mmsegmentation's and GroupViT's converters write beside the archive's own."""


@dataclass(frozen=True)
class Encoding:
    """One kind of mask files."""

    ending: str
    """How their names end; ".png" stands for the masks that no converter wrote."""
    values: Values


def best_masks(
    folder: Path, encodings: Sequence[Encoding], images: Mapping[str, Path]
) -> tuple[Encoding, dict[str, Path]]:
    """The masks below `folder` in the encoding that most of `images` have.

    Args:
        folder: with masks, nested folders included.
        encodings: the preferred one first: of two that as many images have, it is taken.
        images: by the name that an image and its mask share.

    Returns:
        The encoding, and its masks by name, whether or not they have images.

    Raises:
        DatasetError: there is no mask of any of the encodings; or as `files_under`.
    """
    candidates = []
    for encoding in encodings:
        files = files_under(folder, [encoding.ending])
        masks = {name: path for name, path in files.items() if _CONVERTED not in name}
        candidates.append((encoding, masks))
    if not any(masks for _, masks in candidates):
        endings = " or ".join(f"*{encoding.ending}" for encoding in encodings)
        present = sorted(path.name for path in folder.rglob("*") if path.is_file())
        raise DatasetError(
            f"{folder}: expected masks called {endings}, found {names_in_words(present)}; "
            "check that they were unpacked there"
        )
    return max(candidates, key=lambda candidate: len(candidate[1].keys() & images.keys()))
