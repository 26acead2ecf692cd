"""The files of an image in each format, by name: the same for `resclip segment` and `resclip batch`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from resclip.formats.class_masks import class_masks
from resclip.formats.classes import CLASSES_FILE
from resclip.formats.coco import annotate, categories, image_entry
from resclip.formats.geojson import feature_collection
from resclip.formats.yolo import yolo_lines
from resclip.geometry.contours import DEFAULT_TOLERANCE, check_tolerance
from resclip.geometry.instances import Instance, check_min_area
from resclip.io.picture import Georeference

FORMATS = ("coco", "yolo", "geojson", "masks", "sheet")

COCO_FILE = "annotations.json"
"""The COCO file of a whole run."""
YOLO_FILE = "data.yaml"
YOLO_FOLDER = "labels"

RUN_FILES = (CLASSES_FILE, COCO_FILE, YOLO_FILE)
"""Names in an output folder that are a run's and never an image's."""


def files_of_run(formats: Iterable[str]) -> list[str]:
    """The files of a whole run that writes these formats."""
    own = {"coco": COCO_FILE, "yolo": YOLO_FILE}
    return [CLASSES_FILE, *(own[name] for name in formats if name in own)]


@dataclass(frozen=True)
class Export:
    """Which formats are written, and how; small, and can be pickled.

    Args:
        formats: of `FORMATS`, each once.
        min_area: smaller instances, in pixels, are left out.
        tolerance: of polygons, in pixels.

    Raises:
        ValueError, TypeError: a value that does not fit.
    """

    formats: tuple[str, ...] = ()
    min_area: int = 1
    tolerance: float = DEFAULT_TOLERANCE

    def __post_init__(self) -> None:
        from resclip_kernels import check_choice

        for name in self.formats:
            check_choice("format", name, FORMATS)
        object.__setattr__(self, "formats", tuple(dict.fromkeys(self.formats)))
        check_min_area(self.min_area)
        check_tolerance(self.tolerance)

    @property
    def needs_instances(self) -> bool:
        """Whether a format has instances, so that they have to be found."""
        return any(name != "sheet" for name in self.formats)

    def files(
        self,
        stem: str,
        instances: Sequence[Instance],
        names: Sequence[str],
        georeference: Georeference,
    ) -> Iterator[tuple[str, bytes]]:
        """Names, relative to the output folder, and contents of an image's files, but for COCO's and the sheet."""
        if "yolo" in self.formats:
            lines = "".join(f"{line}\n" for line in yolo_lines(instances, self.tolerance))
            yield f"{YOLO_FOLDER}/{stem}.txt", lines.encode()
        if "geojson" in self.formats:
            collection = feature_collection(instances, georeference, self.tolerance)
            yield f"{stem}.geojson", (_text(collection) + "\n").encode()
        if "masks" in self.formats:
            for name, data in class_masks(instances, names):
                yield f"{stem}_masks/{name}", data

    def coco(
        self,
        file_name: str,
        size: tuple[int, int],
        instances: Sequence[Instance],
        names: Sequence[str],
    ) -> bytes:
        """A COCO file of a single image, whose id is 1."""
        content = {
            "images": [image_entry(1, file_name, size)],
            "annotations": list(annotate(instances, 1, 1, self.tolerance)),
            "categories": categories(names),
        }
        return (_text(content) + "\n").encode()


NO_EXPORT = Export()
"""No other format."""


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
