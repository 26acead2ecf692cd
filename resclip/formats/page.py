"""A segmentation as a piece of HTML, for notebooks."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

MOST_ROWS = 100
"""Rows of a table of classes; the others are counted."""


def html_of(png: bytes, caption: str, rows: Sequence[tuple[str, str, float, float]]) -> str:
    """An image and a table of classes.

    Args:
        png: the image.
        caption: below the image.
        rows: colour as "#rrggbb", name, fraction of the labelled pixels and mean probability, of each class.
    """
    cells = "".join(
        f'<tr><td style="background:{colour}">&nbsp;&nbsp;</td><td style="text-align:left">{html.escape(name)}</td>'
        f"<td>{area:.1%}</td><td>{probability:.2f}</td></tr>"
        for colour, name, area, probability in rows[:MOST_ROWS]
    )
    if len(rows) > MOST_ROWS:
        cells += f'<tr><td></td><td colspan="3">and {len(rows) - MOST_ROWS:,} more</td></tr>'
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<img style="max-width:100%" alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        "<table><tr><th></th><th>class</th><th>area</th><th>mean probability</th></tr>"
        f"{cells}</table>"
    )
