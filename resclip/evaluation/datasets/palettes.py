"""The benchmarks' own colours, a class each.

Knows the packaged file and where each list is from ("source" in it). Knows no picture and no folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from resclip.files import read_text
from resclip.images import PixelArray


_FILE = Path(__file__).parents[2] / "data" / "palettes.json"


def benchmark_palette(name: str) -> PixelArray:
    """(C, 3) uint8: red, green and blue of each class of a benchmark, in label order.

    Some classes of Context, COCO-Stuff and ADE20K share a colour, as published.

    Args:
        name: one of `resclip.class_names.DATASETS`.

    Raises:
        ValueError: another name.
    """
    palettes = json.loads(read_text(_FILE, "colours as JSON"))
    if name not in palettes:
        raise ValueError(f"unknown palette {name!r}; use one of: {', '.join(palettes)}")
    colours = " ".join(palettes[name]["colours"]).split()
    palette: PixelArray = np.array([list(bytes.fromhex(colour)) for colour in colours], np.uint8)
    return palette
