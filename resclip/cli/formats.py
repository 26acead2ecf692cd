"""Options for the formats of other programs, and the files of a run of `resclip segment` in them."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from resclip.cli.options import whole_number

if TYPE_CHECKING:
    from typing_extensions import Self

    from resclip.formats.coco import CocoFile
    from resclip.formats.files import Export
    from resclip.result import Segmentation
    from resclip.text.class_names import ClassEntry

NAMES = ("coco", "yolo", "geojson", "masks", "sheet")
"""Of `resclip.formats.files.FORMATS`, which the parser does not wait for."""

FORMAT_HELP = """\
formats to write too, separated by commas: coco (annotations.json of all images), yolo (labels/NAME.txt and data.yaml),
geojson (NAME.geojson), masks (NAME_masks/CLASS.png)
"""


def format_names(text: str) -> list[str]:
    """Names of formats, separated by commas.

    Raises:
        argparse.ArgumentTypeError: one is unknown.
    """
    return _names(text, NAMES)


def batch_format_names(text: str) -> list[str]:
    """The same, and the forms of label maps, of which one may be named; no sheet.

    Raises:
        argparse.ArgumentTypeError: a name is unknown, or both forms are named.
    """
    names = _names(text, ("png", "tif", *(name for name in NAMES if name != "sheet")))
    if {"png", "tif"} <= set(names):
        raise argparse.ArgumentTypeError("expected png or tif for label maps, got both")
    return names


def _names(text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"expected {', '.join(known)}, or several of them separated by commas, got {name!r:.80}"
            )
    return names


def add_shape_options(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Which instances the formats have, and how exact their polygons are."""
    group.add_argument(
        "--min-area",
        type=whole_number,
        metavar="N",
        help="leave instances of fewer pixels out of these formats (default: 1)",
    )
    group.add_argument(
        "--tolerance",
        type=float,
        metavar="PIXELS",
        help="how far polygons may be off to be simpler; 0: exact (default: 0.75)",
    )


def export_from(arguments: argparse.Namespace, formats: Sequence[str]) -> Export:
    """What the options ask for.

    Raises:
        ValueError: a value out of range, or one for formats where there is none.
    """
    from resclip.formats.files import Export

    given = {
        name: value
        for name in ("min_area", "tolerance")
        if (value := getattr(arguments, name)) is not None
    }
    export = Export(tuple(formats), **given)
    if given and not export.needs_instances:
        raise ValueError(
            f"{min(given)}= is for format=coco, yolo, geojson or masks: add one of them, or leave it out"
        )
    return export


def entries_from(arguments: argparse.Namespace, classes: Sequence[str]) -> list[ClassEntry]:
    """The classes that `load_from` takes, with what is looked for of each."""
    from resclip.text.class_names import parse_entries, with_background

    if arguments.background is not None:
        classes = with_background(classes, arguments.background)
    return parse_entries(classes)


def classes_from(entries: Sequence[ClassEntry]) -> bytes:
    """The content of classes.json: what the values in label maps mean."""
    from resclip.formats.classes import classes_json
    from resclip.result import highest_label

    names = [entry.name for entry in entries]
    queries = [entry.queries for entry in entries]
    return classes_json(names, queries, highest_label(len(names)))


class RunFiles:
    """The files in other formats of a run: of each image as it comes, and of all when it ends.

    What is written of all images is complete or not there at all. Use it as a context manager.

    Args:
        folder: the output folder.
        export: what is written.
        names: of the classes.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, folder: Path, export: Export, names: Sequence[str]) -> None:
        self.folder = folder
        self.export = export
        self.names = names
        self._stack = contextlib.ExitStack()
        self._coco: CocoFile | None = None

    def __enter__(self) -> Self:
        from resclip.formats.coco import CocoFile
        from resclip.formats.files import COCO_FILE, YOLO_FILE
        from resclip.formats.yolo import yolo_data
        from resclip.io.files import write_atomically

        if "yolo" in self.export.formats:
            write_atomically(self.folder / YOLO_FILE, yolo_data(self.names).encode())
        if "coco" in self.export.formats:
            self._coco = self._stack.enter_context(CocoFile(self.folder / COCO_FILE, self.names))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def add(self, result: Segmentation, stem: str, file_name: str) -> list[Path]:
        """Write an image's files; their paths.

        Args:
            stem: of the files, relative to the output folder.
            file_name: of the image, as COCO's file names it.
        """
        from resclip.io.files import make_folder, write_atomically
        from resclip.io.images import save_png

        paths = []
        if self.export.needs_instances:
            instances = result.masks(self.export.min_area)
            for name, data in self.export.files(stem, instances, result.names, result.georeference):
                path = self.folder / PurePosixPath(name)
                make_folder(path.parent)
                write_atomically(path, data)
                paths.append(path)
            if self._coco is not None:
                height, width = result.labels.shape
                self._coco.add(file_name, (height, width), instances, self.export.tolerance)
        if "sheet" in self.export.formats:
            paths.append(self.folder / f"{stem}_sheet.png")
            make_folder(paths[-1].parent)
            save_png(result.sheet(), paths[-1])
        return paths
