"""The classes of label maps: index, name, colour and queries of each, for programs that read the maps."""

from __future__ import annotations

import json
from collections.abc import Sequence

from resclip.visualization.colours import palette

CLASSES_FILE = "classes.json"
"""Its name in an output folder."""


def hexadecimal(colour: Sequence[int]) -> str:
    """A colour as "#rrggbb"."""
    return "#" + bytes(int(part) for part in colour).hex()


def classes_json(names: Sequence[str], queries: Sequence[Sequence[str]], unlabelled: int) -> bytes:
    """The file's content.

    Args:
        names: of the classes, by their index.
        queries: of each class: the names that were looked for.
        unlabelled: the value of pixels without a class in the label map.
    """
    colours = palette(names)
    classes = [
        {
            "index": index,
            "name": name,
            "colour": hexadecimal(colours[index].tolist()),
            "queries": list(asked),
        }
        for index, (name, asked) in enumerate(zip(names, queries, strict=True))
    ]
    lines = ",\n".join(f"    {json.dumps(one, ensure_ascii=False)}" for one in classes)
    return f'{{\n  "unlabelled": {unlabelled},\n  "classes": [\n{lines}\n  ]\n}}\n'.encode()
