"""COCO's JSON: images, categories, and an annotation for each instance."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from resclip.formats.keyholes import keyhole
from resclip.geometry.contours import Polygon, check_tolerance
from resclip.geometry.instances import Instance, outlines
from resclip.io.files import NewFile

if TYPE_CHECKING:
    from typing_extensions import Self

SEGMENTATIONS = ("auto", "polygons", "rle")


def categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """A category for each class; its id is the class's index + 1, since COCO's ids start at 1."""
    return [
        {"id": index + 1, "name": name, "supercategory": ""} for index, name in enumerate(names)
    ]


def image_entry(image_id: int, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """An image of a size (H, W)."""
    return {"id": image_id, "file_name": file_name, "width": size[1], "height": size[0]}


def annotate(
    instances: Sequence[Instance],
    image_id: int,
    first_id: int,
    tolerance: float,
    segmentation: str = "auto",
) -> Iterator[dict[str, Any]]:
    """An annotation for each instance, with ids from `first_id` on, and the mean probability as "score".

    None is a crowd: each is one instance. Its area and box are those of its pixels, whatever its polygons are.

    Args:
        segmentation: "rle": compressed run lengths, exact. "polygons": lists of coordinates, where holes are cut open
            by a line to and fro, since the format has no holes. "auto": run lengths where there are holes, else
            polygons.

    Raises:
        ValueError, TypeError: an argument out of range.
    """
    from resclip_kernels import check_choice, check_count

    check_choice("segmentation", segmentation, SEGMENTATIONS)
    check_count("image_id", image_id, 0)
    check_count("first_annotation_id", first_id, 1)
    check_tolerance(tolerance)
    # Without polygons there is nothing to trace.
    shapes: Sequence[list[Polygon]] = (
        [[]] * len(instances) if segmentation == "rle" else outlines(instances, tolerance)
    )
    for number, (instance, polygons) in enumerate(zip(instances, shapes, strict=True)):
        has_holes = any(polygon.holes for polygon in polygons)
        stored: Any
        if segmentation == "rle" or (segmentation == "auto" and has_holes):
            stored = instance.rle()
        else:
            stored = [keyhole([polygon]).ravel().tolist() for polygon in polygons]
        yield {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": instance.index + 1,
            "segmentation": stored,
            "area": instance.area,
            "bbox": list(instance.box),
            "iscrowd": 0,
            "score": round(instance.probability, 6),
        }


class CocoFile:
    """A COCO file of any number of images, written as they come; complete or not there at all.

    Memory: that of one image's annotations. As a context manager it is written whole where its block ends without an
    error.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str]) -> None:
        self.images = 0
        self.annotations = 0
        self._file = NewFile(path)
        self._stream = self._file.path.open("w", encoding="utf-8")
        # Images stand in a list of their own, behind the annotations.
        self._entries = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._stream.write(f'{{"categories": {_text(categories(names))},\n"annotations": [')

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        instances: Sequence[Instance],
        tolerance: float,
        segmentation: str = "auto",
    ) -> None:
        """The next image of a size (H, W) and its instances; ids go on from the last one's."""
        # Made before anything is written, so that a failure leaves nothing of the image in the file.
        found = annotate(instances, self.images + 1, self.annotations + 1, tolerance, segmentation)
        texts = [_text(annotation) for annotation in found]
        self.images += 1
        entry = _text(image_entry(self.images, file_name, size))
        self._entries.write(f"{',' if self.images > 1 else ''}\n{entry}")
        for text in texts:
            self.annotations += 1
            self._stream.write(f"{',' if self.annotations > 1 else ''}\n{text}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file, self._entries, self._stream:
            if error is None:
                self._stream.write('\n],\n"images": [')
                self._entries.seek(0)
                shutil.copyfileobj(self._entries, self._stream)
                self._stream.write("\n]}\n")
                self._stream.close()
                self._file.publish()


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def merge(parts: Iterable[BinaryIO], names: Sequence[str], to: BinaryIO) -> None:
    """Write one COCO file of many, with ids of its own; memory: that of one of them.

    Args:
        parts: files of the same categories, each open to read.
        names: of the classes.
        to: where it is written.
    """
    images = count = 0
    to.write(f'{{"categories": {_text(categories(names))},\n"annotations": ['.encode())
    with tempfile.TemporaryFile() as entries:
        for part in parts:
            content = json.load(part)
            numbers = {}
            for image in content["images"]:
                images += 1
                numbers[image["id"]] = images
                entry = _text({**image, "id": images})
                entries.write(f"{',' if images > 1 else ''}\n{entry}".encode())
            for annotation in content["annotations"]:
                count += 1
                moved = {"id": count, "image_id": numbers[annotation["image_id"]]}
                text = _text({**annotation, **moved})
                to.write(f"{',' if count > 1 else ''}\n{text}".encode())
        to.write(b'\n],\n"images": [')
        entries.seek(0)
        shutil.copyfileobj(entries, to)
    to.write(b"\n]}\n")
