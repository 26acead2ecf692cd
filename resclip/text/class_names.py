"""Class names as people write them: one class as text, lists of classes in files, and the benchmarks' own lists.

Knows text and files. Knows no model: turning names into features is vocabulary.py's part.

A class is written as one entry:

    entry = [ name ":" ] query { "," query }

    sky                             the class "sky", asked for as "sky"
    cat, kitten                     the class "cat", asked for as "cat" and as "kitten"; the better one counts
    background: sky, wall, tree     the class "background", asked for as "sky", "wall" and "tree", not by its name

A query is what the model is asked for; the name is what a person is shown, by default the first query. A colon counts
only before a space or at the end, so "16:9 screen" is a name. Spaces at the ends do not count, and several are as one.
Names and queries are in any script and hold no comma, and a name holds no colon before a space.

A list of classes comes from text (`parse_classes`), a file (`read_classes`) or a dataset (`dataset_classes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resclip.io.files import is_file, read_text

YAML_DEPTH = 3
"""Lists and objects within one another that are read: deeper ones come out empty, as an alias may hold itself."""


class Pairs(list[tuple[Any, Any]]):
    """An object as it is written: a dict would lose a key that comes twice."""


def load_json(text: str) -> object:
    """The value of a JSON document.

    Raises:
        ValueError: where it is no JSON, and why.
    """
    try:
        return json.loads(text, object_pairs_hook=Pairs)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {error.lineno}, column {error.colno}: expected JSON, got an error: {error.msg}"
        ) from None
    except RecursionError:
        raise ValueError("expected JSON, got lists too deep to read") from None


def load_yaml(text: str) -> object:
    """The value of a YAML document, every scalar of it text: `no` and `7` are words; None where it is empty.

    Raises:
        ValueError: where it is no YAML, and why.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "reading YAML needs PyYAML: run `pip install pyyaml`, or write JSON or one entry a line"
        ) from error

    def plain(node: Any, depth: int) -> object:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        items = node.value if depth < YAML_DEPTH else []
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, depth + 1) for item in items]
        return Pairs((plain(key, YAML_DEPTH), plain(value, depth + 1)) for key, value in items)

    try:
        # Nodes keep a key that comes twice, and make no objects of Python's whatever the tags say.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML, got an error: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("expected YAML, got lists too deep to read") from None
    return None if node is None else plain(node, 0)


def kind_of(value: object) -> str:
    """What a value is, in a document's own words: "an object", "a list", or the value as JSON."""
    if isinstance(value, Pairs):
        return "an object"
    return "a list" if isinstance(value, list) else json.dumps(value)


DATASETS = (
    "voc20",
    "voc21",
    "context59",
    "context60",
    "coco-object",
    "coco-stuff",
    "cityscapes",
    "ade20k",
)
"""The benchmarks whose classes `dataset_classes` knows."""

BACKGROUND_LISTS = ("voc21", "coco-object")
"""Those whose background is a list of names: the first line of their files."""

_BACKGROUND = "background"
_NAMED = re.compile(r"(.*?):(?:$| (.*))")
_FORMATS = (".txt", ".json", ".yaml", ".yml")


@dataclass(frozen=True)
class ClassEntry:
    """One class: what it is called, and what the model is asked for. `str` writes it as an entry.

    Attributes:
        name: what people are shown.
        queries: at least one; each once, whatever the case and the Unicode form.

    Raises:
        ValueError: no query, an empty name or query, or one that no entry can hold.
    """

    name: str
    queries: tuple[str, ...]

    def __post_init__(self) -> None:
        name = _squeeze(self.name)
        queries = [_squeeze(query) for query in self.queries]
        for text in (name, *queries):
            if any(unicodedata.category(letter) == "Cs" for letter in text):
                raise ValueError(f"expected text, got {text!r}, which is not valid UTF-8")
            if "," in text:
                raise ValueError(
                    f"expected a name without a comma, got {text!r}; commas separate names"
                )
        if not queries or not all(queries):
            raise ValueError(
                f"expected names separated by single commas, got {', '.join(queries)!r}; remove the empty name"
            )
        if not name or ": " in name:
            raise ValueError(f"expected one name before the colon, got {name!r}")
        once: dict[str, str] = {}
        for query in queries:
            once.setdefault(_key(query), query)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "queries", tuple(once.values()))

    def __str__(self) -> str:
        listed = ", ".join(self.queries)
        plain = self.name == self.queries[0] and not _NAMED.fullmatch(listed)
        return listed if plain else f"{self.name}: {listed}"


def parse_entry(text: str) -> ClassEntry:
    """The class that an entry stands for; see the module's head.

    Raises:
        ValueError: what is wrong with the entry.
    """
    text = _squeeze(text)
    named = _NAMED.fullmatch(text)
    if named is None:
        queries = text.split(",")
        return ClassEntry(queries[0], tuple(queries))
    name, listed = named.groups()
    if "," in name or not name:
        raise ValueError(f"expected one name before the colon, got {text!r}")
    if not listed:
        raise ValueError(f"expected names after the colon, got {text!r}")
    return ClassEntry(name, tuple(listed.split(",")))


def parse_entries(entries: Sequence[str]) -> list[ClassEntry]:
    """The classes of a list of entries: at least one, none twice.

    Two entries name the same class where their names agree, or all their queries do, whatever the case and the Unicode
    form. A query may stand in several entries.

    Raises:
        ValueError: which entries are at fault, and why.
        TypeError: `entries` is one string, or holds something that is not a string.
    """
    if isinstance(entries, str):
        raise TypeError(f"expected a list of class names, got the string {entries!r}; split it")
    places = [f"class {number}" for number in range(1, len(entries) + 1)]
    classes = [_parse_at(place, entry) for place, entry in zip(places, entries, strict=True)]
    return _distinct(places, classes)


def check_classes(entries: Sequence[str]) -> list[str]:
    """`entries` with surplus spaces and repeated queries removed, after the checks of `parse_entries`."""
    return [str(entry) for entry in parse_entries(entries)]


def parse_classes(text_or_path: str | os.PathLike[str]) -> list[str]:
    """Entries from what a person typed: a dataset's name, a file's path, or the classes themselves.

    "@voc21" is a dataset: see `dataset_classes`. An existing file is read by `read_classes`. In any other text, a `;`
    anywhere means that `;` separates classes and `,` separates queries: "cat, kitten; dog" is two classes.
    Without `;`, commas separate classes: "sky, tree" is two. So no class typed here starts with "@"; one in a file may.

    Raises:
        ValueError: no class, an empty one, one named twice, an unknown dataset, or a file that is no list of classes.
        OSError: the file is missing or cannot be read.
    """
    if isinstance(text_or_path, os.PathLike):
        return read_classes(text_or_path)
    text = text_or_path.strip()
    if text.startswith("@"):
        return dataset_classes(text[1:])
    if is_file(text_or_path) or (text.endswith(_FORMATS) and "," not in text and ";" not in text):
        return read_classes(text_or_path)
    separator = ";" if ";" in text else ","
    entries = text.split(separator)
    if separator == ";" and not entries[-1].strip():
        entries.pop()  # "cat, kitten;" is how to write one class with two names.
    for entry in map(str.strip, entries):
        if entry.startswith("@"):
            raise ValueError(
                f"expected a dataset's name such as '@voc21' to stand alone, got {entry!r} among other classes"
            )
    return check_classes(entries)


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """Entries from a UTF-8 file, whose format follows from its name.

    | name | holds |
    |---|---|
    | .json | a list, each item one class: an entry, a list of names (the first is the class's), or an object as below |
    | .json | an object, each key one class's name, each value what it is asked for: a list, or text with commas |
    | .yaml, .yml | the same; every scalar is text, so `no` and `7` are names |
    | any other | one entry a line; blank lines are skipped |

    An object's key is a name only, as what stands before an entry's colon: {"cat": ["kitten"]} asks for "kitten" alone.
    Where the value is empty or null the name itself is asked for.

    Raises:
        ValueError: the file, the line or item, what was expected there and what came.
        ImportError: a YAML file where PyYAML is not installed.
        OSError: the file cannot be read.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    layout = "" if suffix in _FORMATS[1:] else ", one class a line"
    text = read_text(file, f"class names{layout}")
    with _naming(file):
        if suffix == ".json":
            return _document_classes(load_json(text))
        if suffix in (".yaml", ".yml"):
            return _document_classes(load_yaml(text))
        lines = {f"line {n}": line for n, line in enumerate(text.splitlines(), 1) if line.strip()}
        if not lines:
            raise ValueError("expected one class a line, got an empty file")
        classes = [_parse_at(place, line) for place, line in lines.items()]
        return [str(entry) for entry in _distinct(list(lines), classes)]


def dataset_classes(name: str) -> list[str]:
    """The entries of a benchmark, in label order, with its background as class 0 where it has one.

    They are the lists that the methods' authors released. "voc21" and "coco-object" ask for their background by a list
    of things (see `background_names`), "context60" by the word.

    Args:
        name: one of `DATASETS`.

    Raises:
        ValueError: another name.
    """
    _check_choice(name, DATASETS, "dataset")
    entries = _packaged_lines(name)
    if name in BACKGROUND_LISTS:
        entries[0] = f"{_BACKGROUND}: {entries[0]}"
    return check_classes(entries)


def background_names(name: str = "voc21") -> list[str]:
    """What a benchmark's background is asked for as: "sky", "wall", "tree" and so on.

    Args:
        name: one of `BACKGROUND_LISTS`.

    Raises:
        ValueError: another name.
    """
    _check_choice(name, BACKGROUND_LISTS, "background list")
    return list(parse_entry(_packaged_lines(name)[0]).queries)


def with_background(classes: Sequence[str], background: str = "voc21") -> list[str]:
    """`classes` with one more in front: "background", asked for by the names of a background list.

    The word "background" itself is a poor query: captions seldom say it, so it resembles little in an image, while the
    names of what tends to stand behind things do. What `classes` ask for themselves is left out of the background:
    of two equal queries the first class would always win.

    Args:
        classes: entries, none of them called "background".
        background: one of `BACKGROUND_LISTS`.

    Raises:
        ValueError: an unknown list, classes that already have a background, or that ask for all of the list.
        TypeError: `classes` is no list of text.
    """
    entries = parse_entries(classes)
    asked = {_key(query) for entry in entries for query in entry.queries}
    names = tuple(name for name in background_names(background) if _key(name) not in asked)
    if not names:
        raise ValueError(
            f"expected classes that leave something to the background, got all names of {background!r} among them"
        )
    return check_classes([str(ClassEntry(_BACKGROUND, names)), *map(str, entries)])


def _document_classes(document: object) -> list[str]:
    """Entries of a JSON or YAML document."""
    if not isinstance(document, list):
        raise ValueError(
            f"expected a list of class names, or an object from names to names, got {kind_of(document)}"
        )
    places = [f"item {number}" for number in range(1, len(document) + 1)]
    wrap = isinstance(document, Pairs)
    classes = [
        _item_class(place, Pairs([item]) if wrap else item)
        for place, item in zip(places, document, strict=True)
    ]
    return [str(entry) for entry in _distinct(places, classes)]


def _item_class(place: str, item: object) -> ClassEntry:
    if isinstance(item, str):
        return _parse_at(place, item)
    with _naming(place):
        if not isinstance(item, list) or not item:
            raise ValueError(f"expected a name or a list of names, got {kind_of(item)}")
        if not isinstance(item, Pairs):
            names = _texts(item)
            return ClassEntry(names[0], names)
        if len(item) > 1:
            raise ValueError(f"expected an object of one class, got {len(item)} keys")
        [(key, value)] = item
        [name] = _texts([key])
        if isinstance(value, str):
            value = value.split(",") if value.strip() else None
        if value is not None and (not isinstance(value, list) or isinstance(value, Pairs)):
            raise ValueError(f"expected a list of names for {name!r}, got {kind_of(value)}")
        return ClassEntry(name, _texts(value or [name]))


def _texts(items: Sequence[object]) -> tuple[str, ...]:
    for number, item in enumerate(items, 1):
        if not isinstance(item, str):
            raise ValueError(f"expected a name, got {kind_of(item)} as name {number}")
    return tuple(map(str, items))


def _parse_at(place: str, entry: object) -> ClassEntry:
    if not isinstance(entry, str):
        raise TypeError(f"expected class names to be text, {place} is {entry!r}")
    if not entry.strip():
        raise ValueError(f"expected a class name, got nothing for {place}")
    with _naming(place):
        return parse_entry(entry)


def _distinct(places: Sequence[str], classes: Sequence[ClassEntry]) -> list[ClassEntry]:
    """`classes`, of which there is at least one and none is there twice."""
    if not classes:
        raise ValueError("expected at least one class name, got none")
    seen: dict[str | frozenset[str], int] = {}
    for position, entry in enumerate(classes):
        for key in (_key(entry.name), frozenset(map(_key, entry.queries))):
            earlier = seen.setdefault(key, position)
            if earlier != position:
                raise ValueError(
                    f"expected each class once, got {str(classes[earlier])!r} ({places[earlier]}) "
                    f"and {str(entry)!r} ({places[position]}); remove or rename one"
                )
    return list(classes)


@contextlib.contextmanager
def _naming(place: object) -> Iterator[None]:
    """Errors within say where they arose."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _check_choice(name: str, choices: Sequence[str], kind: str) -> None:
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}; use one of: {', '.join(choices)}")


def _packaged_lines(name: str) -> list[str]:
    path = Path(__file__).parents[1] / "data" / "classnames" / f"{name}.txt"
    return read_text(path, "class names, one class a line").splitlines()


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _key(name: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
