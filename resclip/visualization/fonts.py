"""Text in images: a font that has the letters, the width of a line, and shortening it."""

from __future__ import annotations

import functools
import unicodedata
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

# Fonts that are looked for in the system's directories if the built-in font lacks a letter.
_FALLBACK_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
    "PingFang.ttc",
)
# A code point that no font may assign: a font draws its sign for a missing letter.
_UNASSIGNED = "\uffff"


@functools.lru_cache(maxsize=8)
def built_in_font(size: int) -> Font:
    """Pillow's own scalable font, mostly of Latin letters, at `size` pixels."""
    return ImageFont.load_default(size)


def find_font(text: str, size: int) -> Font | None:
    """The first font that has every letter of `text`: Pillow's own, then the system's; or None.

    Args:
        text: one line.
        size: in pixels.
    """
    for font in (built_in_font(size), *_system_fonts(size)):
        if all(_has_letter(font, letter) for letter in dict.fromkeys(text)):
            return font
    return None


def text_width(text: str, font: Font) -> float:
    """Width of `text` in pixels, up to where a next letter would start."""
    return font.getlength(text)


def shorten(text: str, font: Font, width: float) -> str:
    """`text`, or as much of its start as fits `width` pixels with a closing ellipsis."""
    if text_width(text, font) <= width:
        return text
    low, high = 0, len(text)  # The longest start that fits is at least low, and under high.
    while high - low > 1:
        middle = (low + high) // 2
        if text_width(text[:middle].rstrip() + "...", font) <= width:
            low = middle
        else:
            high = middle
    return text[:low].rstrip() + "..."


def without_marks(text: str) -> str:
    """`text` without accents: "café" becomes "cafe"."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in parts if unicodedata.category(letter) != "Mn")


@functools.lru_cache(maxsize=8)
def _system_fonts(size: int) -> tuple[Font, ...]:
    fonts = []
    for name in _FALLBACK_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


@functools.lru_cache(maxsize=4096)
def _has_letter(font: Font, letter: str) -> bool:
    # Marks, joiners and spaces draw nothing by themselves.
    if unicodedata.category(letter)[0] in "MZC":
        return True
    return bytes(font.getmask(letter)) != bytes(font.getmask(_UNASSIGNED))
