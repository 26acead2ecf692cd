"""Text in images: a line in fonts that have its letters, its width, and what is done where no font has them.

Pillow's own font comes first. For letters that it lacks fontconfig (`fc-list`) is asked, and where there is none, fonts
are looked for by name in the system's directories; neither is required.
"""

from __future__ import annotations

import functools
import subprocess
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont, features

from resclip.errors import MissingLettersWarning

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

# Looked for in the system's directories where fontconfig does not answer, as on Windows and macOS.
_FONT_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansBengali-Regular.ttf",
    "NotoSansTamil-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "segoeui.ttf",
    "Nirmala.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "PingFang.ttc",
)
# A code point that no font may assign: a font draws its sign for a missing letter.
_UNASSIGNED = "\uffff"
_LONGEST = 400
"""Letters of a line that are looked at; no picture shows as many."""
_PATIENCE = 10.0
"""Seconds to wait for fontconfig, which may read all fonts of a new machine first."""

# By the first word of a letter's Unicode name; of all others Debian's fonts-noto-core has the scripts.
_PACKAGES = {
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"), "fonts-noto-cjk"),
    "emoji": "fonts-symbola",
}
_SAID: set[str] = set()
"""Scripts that were warned of."""


class Line(NamedTuple):
    """A line of text, ready to be measured and drawn."""

    runs: tuple[tuple[str, Font], ...]
    """Parts of the text from left to right, each with a font that has its letters."""
    size: int
    """Of the letters, in pixels."""

    @property
    def text(self) -> str:
        """What is drawn."""
        return "".join(text for text, _ in self.runs)

    @property
    def width(self) -> float:
        """In pixels, up to where a next letter would start."""
        return sum(font.getlength(text) for text, font in self.runs)

    def draw(
        self,
        canvas: Image.Image,
        position: tuple[float, float],
        fill: tuple[int, int, int],
    ) -> None:
        """Draw from `position`, (left, middle of the letters' height), to the right, all runs on one base line."""
        pen, x = ImageDraw.Draw(canvas), position[0]
        # All sit on the base line that Pillow's own font has around this middle.
        own = built_in_font(self.size)
        ascent, descent = own.getmetrics() if isinstance(own, ImageFont.FreeTypeFont) else (0, 0)
        base = position[1] + (ascent - descent) / 2
        for text, font in self.runs:
            pen.text((x, base), text, fill=fill, font=font, anchor="ls")
            x += font.getlength(text)


def set_line(text: str, size: int, instead: str = "") -> Line:
    """`text` in one line, in fonts that have its letters.

    Where no font has a letter, `MissingLettersWarning` says so, once for each script; the line is then drawn without
    accents if that is enough, else `instead` is drawn, or without one a question mark for each such letter.

    Args:
        size: of the letters, in pixels.
        instead: a text of Latin letters, also for a text of which nothing would be seen.
    """
    line = " ".join(text.split())[:_LONGEST]
    line = "".join(letter for letter in line if unicodedata.category(letter) not in ("Cc", "Cs"))
    if all(map(_draws_nothing, line)):
        line = instead
    runs = _runs(line, size)
    if runs is None:
        _say_missing([letter for letter in line if find_font(letter, size) is None])
        line = without_marks(line)
        runs = _runs(line, size)
    if runs is None:
        some = ("?" if find_font(letter, size) is None else letter for letter in line)
        runs = _runs(instead or "".join(some), size)
    _say_unshaped(line)
    return Line(runs or (), size)


def fit_line(text: str, size: int, width: float, instead: str = "") -> Line:
    """As `set_line`, or as much of its start as fits `width` pixels with a closing ellipsis."""
    return _cut(set_line(text, size, instead), width)


def fit_lines(texts: Sequence[str], size: int, width: float, instead: Sequence[str]) -> list[Line]:
    """As `fit_line`, line by line; those that would then read the same are cut in their middle instead."""
    whole = [set_line(text, size, other) for text, other in zip(texts, instead, strict=True)]
    lines = [_cut(line, width) for line in whole]
    counts: dict[str, int] = {}
    for line in lines:
        counts[line.text] = counts.get(line.text, 0) + 1
    return [
        _cut(full, width, middle=True) if counts[line.text] > 1 else line
        for full, line in zip(whole, lines, strict=True)
    ]


def _cut(line: Line, width: float, *, middle: bool = False) -> Line:
    """The line, or the longest start of it, or of its start and its end, that fits with an ellipsis."""
    if line.width <= width:
        return line
    text = line.text

    def shortened(letters: int) -> Line:
        head = (letters + 1) // 2 if middle else letters
        while 0 < head < len(text) and _hangs_on(text[head]):
            head -= 1  # A letter keeps its marks or goes with them.
        tail = len(text) - (letters // 2 if middle else 0)
        while tail < len(text) and _hangs_on(text[tail]):
            tail += 1
        short = text[:head].rstrip() + "..." + text[tail:].lstrip()
        return Line(_runs(short, line.size) or (), line.size)

    low, high = 0, len(text)  # The longest that fits has at least `low` letters, and under `high`.
    while high - low > 1:
        letters = (low + high) // 2
        if shortened(letters).width <= width:
            low = letters
        else:
            high = letters
    return shortened(low)


def without_marks(text: str) -> str:
    """`text` without accents: "café" becomes "cafe"."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in parts if unicodedata.category(letter) != "Mn")


@functools.lru_cache(maxsize=8)
def built_in_font(size: int) -> Font:
    """Pillow's own scalable font, mostly of Latin letters, at `size` pixels."""
    return ImageFont.load_default(size)


def find_font(text: str, size: int) -> Font | None:
    """A font that has every letter of `text`: Pillow's own, else one of the system's; or None.

    Args:
        text: one line.
        size: in pixels.
    """
    letters = "".join(sorted({letter for letter in text if not _draws_nothing(letter)}))
    own = built_in_font(size)
    if _has_letters(own, letters):
        return own
    for path, index in _system_fonts(letters):
        font = _load(path, index, size)
        if font is not None and _has_letters(font, letters):
            return font
    return None


@functools.lru_cache(maxsize=4096)
def _runs(text: str, size: int) -> tuple[tuple[str, Font], ...] | None:
    """The text in as few fonts as it takes, from left to right; None where a letter has no font."""
    font = find_font(text, size)
    if font is not None:
        return ((text, font),)
    runs: list[tuple[str, Font]] = []
    for cluster in _clusters(text):
        if runs and _has_letters(runs[-1][1], cluster):
            runs[-1] = (runs[-1][0] + cluster, runs[-1][1])
            continue
        font = find_font(cluster, size)
        if font is None:
            return None
        runs.append((cluster, font))
    # Where the text's first letter is of a script that runs from right to left, so do its parts.
    kinds = (unicodedata.bidirectional(letter) for letter in text)
    first = next((kind for kind in kinds if kind in ("L", "R", "AL")), "L")
    return tuple(runs if first == "L" else reversed(runs))


def _clusters(text: str) -> Iterator[str]:
    """Letters, each with the marks that hang on it."""
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or not _hangs_on(text[end]):
            yield text[start:end]
            start = end


def _hangs_on(letter: str) -> bool:
    """Whether this is drawn on the letter before it: a mark, or what joins letters."""
    return unicodedata.category(letter)[0] == "M" or letter in "\u200c\u200d"


def _system_fonts(letters: str) -> tuple[tuple[str, int], ...]:
    """(file, index in it) of fonts to try for letters that Pillow's own font lacks."""
    return (*_fontconfig(letters), *((name, 0) for name in _FONT_FILES))


@functools.lru_cache(maxsize=1024)
def _fontconfig(letters: str) -> tuple[tuple[str, int], ...]:
    """(file, index in it) of the system's fonts that have all these letters, upright sans first; empty without it."""
    codes = " ".join(f"{ord(letter):x}" for letter in letters)
    pattern = f":scalable=true:charset={codes}"
    fields = "%{file}\t%{index}\t%{family[0]}\t%{style[0]}\n"
    try:
        finished = subprocess.run(
            ["fc-list", pattern, "--format", fields],
            capture_output=True,
            timeout=_PATIENCE,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for row in finished.stdout.decode("utf-8", "replace").splitlines():
        path, index, family, style = row.split("\t")[:4]
        plain = style.lower() in ("regular", "book", "roman", "normal", "medium")
        serif = "serif" in family.lower() and "sans" not in family.lower()
        odd = any(word in family.lower() for word in ("mono", "math", "condensed"))
        # The upper 16 bits number a variable font's instance.
        place = (path, int(index) & 0xFFFF if index.isdigit() else 0)
        found.append(((not plain, serif, odd, family, path), place))
    return tuple(dict.fromkeys(place for _, place in sorted(found)))


@functools.lru_cache(maxsize=256)
def _load(path: str, index: int, size: int) -> Font | None:
    """A font by its file, or by a file's name in the system's directories; None where it cannot be used."""
    try:
        return ImageFont.truetype(path, size, index=index)
    except (OSError, ValueError):
        return None


def _draws_nothing(letter: str) -> bool:
    """Marks, joiners and spaces draw nothing by themselves."""
    kind = unicodedata.category(letter)
    return kind[0] in "MZ" or kind == "Cf"


def _has_letters(font: Font, text: str) -> bool:
    return all(_has_letter(font, letter) for letter in dict.fromkeys(text))


@functools.lru_cache(maxsize=8192)
def _has_letter(font: Font, letter: str) -> bool:
    return _draws_nothing(letter) or bytes(font.getmask(letter)) != bytes(font.getmask(_UNASSIGNED))


def script_of(letter: str) -> str:
    """The script of a letter as Unicode names it, such as "CJK" or "ARABIC"; "emoji" for pictures and symbols."""
    if unicodedata.category(letter)[0] == "S":
        return "emoji"
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def _say_missing(letters: Sequence[str]) -> None:
    """Warn of letters without a font, once for each script."""
    scripts: dict[str, list[str]] = {}
    for letter in dict.fromkeys(letters):
        shown = letter if letter.isprintable() else f"U+{ord(letter):04X}"
        scripts.setdefault(script_of(letter), []).append(shown)
    for script, some in scripts.items():
        package = _PACKAGES.get(script, "fonts-noto-core")
        _say(
            script,
            f"no font here has letters of the script {script} ({' '.join(some[:8])}), so a name in it is shown in "
            f"pictures as the number of its class: install a font, such as Debian's package {package}",
        )


def _say_unshaped(text: str) -> None:
    """Warn of text that has to be shaped where Pillow cannot, once for each script."""
    if text.isascii() or _can_shape():
        return
    for letter in dict.fromkeys(text):
        if unicodedata.bidirectional(letter) in ("R", "AL") or unicodedata.category(letter) == "Mc":
            script = script_of(letter)
            _say(
                script,
                f"this Pillow has no Raqm with FriBiDi, so names in the script {script} are drawn letter by letter "
                "from left to right: install libfribidi, and a Pillow with Raqm, as its wheels have it",
            )


def _say(script: str, message: str) -> None:
    if script not in _SAID:
        _SAID.add(script)
        warnings.warn(message, MissingLettersWarning, stacklevel=2)


@functools.cache
def _can_shape() -> bool:
    """Whether Pillow lays out text from right to left, and joins letters and marks."""
    return bool(features.check("raqm") and features.check("fribidi"))
