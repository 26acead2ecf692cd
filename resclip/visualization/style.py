"""Colours and sizes that all drawn sheets share."""

from __future__ import annotations

import numpy as np
from PIL import Image

INK = (24, 24, 27)
FAINT_INK = (113, 113, 122)
PAPER = (255, 255, 255)

MARGIN = 28
"""Pixels around a sheet and between its panels."""
CAPTION = 15
"""Height in pixels of the letters of captions and small print."""

# Rec. 601 luma of an RGB triple.
LUMA = np.array([0.299, 0.587, 0.114])


def resampling(height: int, new_height: int) -> Image.Resampling:
    """Smooth for photographs; if an image is enlarged more than four times, its pixels are shown as they are."""
    return Image.Resampling.NEAREST if new_height > 4 * height else Image.Resampling.LANCZOS
