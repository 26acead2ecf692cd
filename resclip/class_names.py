"""Class names as people type them: from an argument or a file to checked entries.

Knows text. Knows no model: turning names into features is vocabulary.py's part.

An entry is one class; commas within it separate synonyms, the first of which names the class.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

__all__ = ["check_classes", "parse_classes", "split_synonyms"]


def parse_classes(text_or_path: str | os.PathLike[str]) -> list[str]:
    """Entries from a file or from text, checked by `check_classes`.

    An existing file (UTF-8) holds one class a line, with commas between synonyms; blank lines are
    skipped. In text, a `;` anywhere means that `;` separates classes and `,` separates synonyms:
    "cat, kitten; dog" is two classes. Without `;`, commas separate classes: "sky, tree" is two.

    Raises:
        ValueError: no class, an empty one, one named twice, or a file that is not UTF-8 text.
        OSError: the file cannot be read.
    """
    if isinstance(text_or_path, os.PathLike) or _is_file(text_or_path):
        return check_classes(_read_lines(Path(text_or_path)))
    separator = ";" if ";" in text_or_path else ","
    entries = text_or_path.split(separator)
    if separator == ";" and not entries[-1].strip():
        entries.pop()  # "cat, kitten;" is how to write one class with two names.
    return check_classes(entries)


def split_synonyms(entry: str) -> list[str]:
    """The names in one entry, stripped, each once: "cat, kitten" gives ["cat", "kitten"].

    Raises:
        ValueError: a name is empty, as in "cat, , kitten".
    """
    names = [" ".join(name.split()) for name in entry.split(",")]
    if not all(names):
        raise ValueError(
            f"expected names separated by single commas, got {entry!r}; remove the empty name"
        )
    return list({_key(name): name for name in reversed(names)}.values())[::-1]


def check_classes(entries: Sequence[str]) -> list[str]:
    """`entries` with surplus spaces removed: at least one, none empty, none naming the same class.

    Two entries name the same class where their first names agree, or all their names do, whatever
    the case and the Unicode form. A synonym may stand in several entries.

    Raises:
        ValueError: which entries are at fault, and why.
        TypeError: `entries` is one string, or holds something that is not a string.
    """
    if isinstance(entries, str):
        raise TypeError(f"expected a list of class names, got the string {entries!r}; split it")
    if not entries:
        raise ValueError("expected at least one class name, got none")
    checked: list[str] = []
    seen: dict[str | frozenset[str], int] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise TypeError(f"expected class names to be text, class {position + 1} is {entry!r}")
        if not entry.strip():
            raise ValueError(f"expected a class name, got nothing for class {position + 1}")
        if any(unicodedata.category(letter) == "Cs" for letter in entry):
            raise ValueError(f"expected text, class {position + 1} ({entry!r}) is not valid UTF-8")
        names = split_synonyms(entry)
        for key in (_key(names[0]), frozenset(map(_key, names))):
            earlier = seen.setdefault(key, position)
            if earlier != position:
                raise ValueError(
                    f"expected each class once, got {checked[earlier]!r} (class {earlier + 1}) "
                    f"and {', '.join(names)!r} (class {position + 1}); remove or rename one"
                )
        checked.append(", ".join(names))
    return checked


def _key(name: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _is_file(text: str) -> bool:
    try:
        path = Path(text)
        return path.exists() and not path.is_dir()  # A pipe, as in `--classes <(...)`, is one too.
    except (OSError, ValueError):  # Too long for a path, or with a null character in it.
        return False


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected class names in UTF-8, one class a line, got other bytes at "
            f"position {error.start}; save the file as UTF-8"
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: expected one class a line, got an empty file")
    return lines
