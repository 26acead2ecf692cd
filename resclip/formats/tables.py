"""Segmentations for pandas and supervision, which are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resclip.geometry.instances import Instance

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

MOST_BYTES = 1 << 28
"""Masks of more bytes, a byte a pixel and instance, are given to supervision by run lengths."""


def class_table(
    classes: Sequence[tuple[int, str, int, float, float]], instances: Sequence[Instance]
) -> pd.DataFrame:
    """A row for each class: index, name, pixels, area, mean_probability and instances.

    Args:
        classes: index, name, pixels, fraction of the labelled pixels, and mean probability, of each.
        instances: counted by class.

    Raises:
        ImportError: pandas is missing.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(_missing("pandas", error)) from error
    columns = ["index", "name", "pixels", "area", "mean_probability"]
    table = pd.DataFrame(list(classes), columns=columns)
    counts = np.bincount([instance.index for instance in instances], minlength=1)
    table["instances"] = [int(counts[index]) if index < len(counts) else 0 for index, *_ in classes]
    return table


def detections(instances: Sequence[Instance], size: tuple[int, int]) -> sv.Detections:
    """supervision's Detections: boxes, masks, mean probabilities and classes, with "class_name" in its data.

    Args:
        size: (H, W) of the image.

    Raises:
        ImportError: supervision is missing.
        ValueError: the masks are too large for a supervision that takes none by run lengths.
    """
    try:
        import supervision as sv
    except ImportError as error:
        raise ImportError(_missing("supervision", error)) from error
    boxes = np.array([instance.box for instance in instances], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks: Any
    needed = len(instances) * size[0] * size[1]
    if needed <= MOST_BYTES:
        masks = np.zeros((len(instances), *size), np.bool_)
        for mask, instance in zip(masks, instances, strict=True):
            mask[:] = instance.mask
    elif hasattr(sv, "CompactMask"):
        masks = sv.CompactMask.from_coco_rle([one.rle() for one in instances], boxes, size)
    else:
        raise ValueError(
            f"expected at most {MOST_BYTES:,} bytes of masks for this supervision, got {needed:,}; raise min_area=, or "
            "install a newer supervision"
        )
    return sv.Detections(
        xyxy=boxes,
        mask=masks,
        confidence=np.array([instance.probability for instance in instances], np.float64),
        class_id=np.array([instance.index for instance in instances], np.int64),
        data={"class_name": np.array([instance.name for instance in instances], np.str_)},
    )


def _missing(package: str, error: ImportError) -> str:
    return f'expected the package {package}, got none that can be imported ({error}); pip install "resclip[formats]"'
