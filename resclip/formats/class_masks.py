"""A PNG for each class that an image shows: 255 where the class is, 0 elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from resclip.geometry.instances import Instance
from resclip.io.files import code_of, portable_part
from resclip.io.images import encode_png

MOST_BYTES = 150
"""Of a class's name in a file's; a longer one is "class-" and the class's index."""

ENDINGS = ("_labels", "_scores", "_overlay", "_sheet")
"""With which an image's files end; a class's file in a folder where an image may have some does not."""


def mask_names(names: Sequence[str]) -> list[str]:
    """The names of the classes' files without ".png": allowed on every system, and no two the same on any."""
    taken: set[str] = set()
    found = []
    for index, name in enumerate(names):
        part = portable_part(name.replace("/", code_of("/")))
        if len(part.encode("utf-8", "surrogatepass")) > MOST_BYTES or part.startswith("."):
            part = f"class-{index}"
        if part.casefold().endswith(ENDINGS):
            head, _, tail = part.rpartition("_")
            part = f"{head}{code_of('_')}{tail}"
        unique, number = part, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{part}-{number}"
        taken.add(unique.casefold())
        found.append(unique)
    return found


def class_masks(instances: Sequence[Instance], names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of a PNG for each class that has instances, of the image's size, mode L.

    Args:
        instances: of all classes.
        names: of all classes.
    """
    files = mask_names(names)
    for index in sorted({instance.index for instance in instances}):
        mask = np.zeros(instances[0].components.parts.shape, np.uint8)
        for instance in instances:
            if instance.index == index:
                x, y, width, height = instance.box
                mask[y : y + height, x : x + width][instance.crop] = 255
        yield f"{files[index]}.png", encode_png(Image.fromarray(mask))
