"""Class names as people write them: an entry per class, lists of entries as text or files, and datasets' own lists.

A class is written as one entry:

    entry = [ name ":" ] query { "," query }

    sky                             the class "sky", with the query "sky"
    cat, kitten                     the class "cat", with the queries "cat" and "kitten"; the better one counts
    background: sky, wall, tree     the class "background", with the queries "sky", "wall" and "tree", not its name

A query is what the model is asked for; the name is what a person is shown, by default the first query. A colon
separates only before a space or at the end, so "16:9 screen" is a name. Spaces at the ends are dropped, and several
count as one. Names and queries are in any script and contain no comma; a name contains no colon before a space.

A list of classes comes from text (`parse_classes`), a file (`read_classes`) or a dataset (`dataset_classes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resclip.errors import ClassNumbersWarning
from resclip.io.files import is_file, read_text

DATASETS = (
    "voc20", "voc21", "context59", "context60", "coco-object", "coco-stuff", "cityscapes", "ade20k",
)  # fmt: skip
"""The benchmarks whose classes `dataset_classes` returns."""
BACKGROUND_LISTS = ("voc21", "coco-object")
"""The benchmarks whose background is a list of names: the first line of their files."""
BACKGROUND = "background"
"""The name of the class that `with_background` puts first."""
FORMATS = (".txt", ".json", ".yaml", ".yml")
"""Endings by which text that a person typed is taken for the path of a file, even of a missing one."""
YAML_DEPTH = 3
"""Levels of nested lists and objects that are read; deeper ones come out empty, as an alias may contain itself."""
MOST_CLASSES = 65_535
"""Label maps hold 16 bits a pixel, and their largest value stands for unlabelled pixels."""
MOST_QUERIES = 1 << 18
"""Queries of all classes together: each is encoded in every template."""
MOST_LETTERS = 1_000
"""Characters of a name or query: a model reads some 300 of them."""
MOST_OF_ENTRY = 100_000
"""Characters of an entry, with all its queries."""
# A tab between two texts; one behind a comma is a space.
_COLUMNS = re.compile(r"[^\s,] *\t\s*[^\s,]")
_NUMBERED = tuple(
    re.compile(pattern)
    for pattern in (r"\s*(\d{1,9})\t(.*)", r"\s*(\d{1,9})\s*: (.*)", r"(\d{1,9}) +(.*)")
)
"""A line of a file with the class's number in front: behind a tab, a colon, or spaces."""
_NAMED = re.compile(r"(.*?):(?:$| (.*))")


@dataclass(frozen=True)
class ClassEntry:
    """One class; `str` writes it as an entry.

    Attributes:
        name: what people are shown.
        queries: what the model is asked for; at least one, none twice whatever the case and the Unicode form.

    Raises:
        ValueError: no query, an empty name or query, or one that cannot be written in an entry.
    """

    name: str
    queries: tuple[str, ...]

    def __post_init__(self) -> None:
        name = _squeeze(self.name)
        queries = [_squeeze(query) for query in self.queries]
        for text in (name, *queries):
            if len(text) > MOST_LETTERS:
                raise ValueError(
                    f"expected a name of at most {MOST_LETTERS:,} characters, got {len(text):,}, which begin with "
                    f"{text[:40]!r}; separate names by commas, and classes by lines or semicolons"
                )
            if text.startswith(":"):
                raise ValueError(
                    f"expected a name before the colon, got {_shown(text)}; remove the colon"
                )
            if any(unicodedata.category(letter) == "Cs" for letter in text):
                raise ValueError(f"expected text, got {_shown(text)}, which is not valid UTF-8")
            if "," in text:
                raise ValueError(
                    f"expected a name without a comma, got {_shown(text)}; commas separate names"
                )
        if not queries or not all(queries):
            raise ValueError(
                f"expected names separated by single commas, got {_shown(', '.join(queries))}; remove the empty name"
            )
        if not name or ": " in name:
            raise ValueError(f"expected one name before the colon, got {_shown(name)}")
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
    """The class that an entry stands for; the module's docstring has the grammar.

    Raises:
        ValueError: the text is no entry.
    """
    if len(text) > MOST_OF_ENTRY:
        raise ValueError(
            f"expected a class of at most {MOST_OF_ENTRY:,} characters, got {len(text):,}; is this a list of classes?"
        )
    text = _squeeze(text)
    named = _NAMED.fullmatch(text)
    if named is None:
        queries = text.split(",")
        return ClassEntry(queries[0], tuple(queries))
    name, listed = named.groups()
    if "," in name or not name:
        raise ValueError(f"expected one name before the colon, got {_shown(text)}")
    if not listed:
        raise ValueError(f"expected names after the colon, got {_shown(text)}")
    return ClassEntry(name, tuple(listed.split(",")))


def parse_entries(entries: Sequence[str | ClassEntry]) -> list[ClassEntry]:
    """The classes of a list of entries: at least one, none twice.

    Two entries are the same class if their names agree, or all their queries do, whatever the case and the Unicode
    form. A query may occur in several entries.

    Raises:
        ValueError: which entries are wrong, and why.
        TypeError: `entries` is one string, or an item is no string.
    """
    if isinstance(entries, str):
        raise TypeError(
            f"expected a list of class names, got the string {_shown(entries)}; split it"
        )
    if isinstance(entries, bytes) or not isinstance(entries, Iterable):
        raise TypeError(f"expected a list of class names, got {_shown(entries)}")
    if isinstance(entries, (AbstractSet, Mapping)):
        kind = "a set, which has no order" if isinstance(entries, AbstractSet) else "a mapping"
        raise TypeError(f"expected a list of class names, got {kind}: {_shown(entries)}")
    return _parse_all([(f"class {number}", entry) for number, entry in enumerate(entries, 1)])


def read_entries(classes: str | os.PathLike[str] | Sequence[str | ClassEntry]) -> list[ClassEntry]:
    """The classes of a list of entries, or of text, a file or a dataset's name as `parse_classes` reads them.

    A mapping is what a JSON object of a file is, see `read_classes`: {"pet": ["cat", "dog"], "sky": None}.

    Raises:
        ValueError, TypeError, OSError: as `parse_entries` and `parse_classes`.
    """
    if isinstance(classes, (str, os.PathLike)):
        return parse_entries(parse_classes(classes))
    if isinstance(classes, Mapping):
        # What a JSON object of a file says: names with what is asked for, or numbers with names.
        pairs = Pairs(
            (key, list(value) if isinstance(value, tuple) else value)
            for key, value in classes.items()
        )
        return parse_entries(_document_classes(pairs))
    return parse_entries(classes)


def check_classes(entries: Sequence[str]) -> list[str]:
    """`entries` without surplus spaces and repeated queries; raises as `parse_entries`."""
    return [str(entry) for entry in parse_entries(entries)]


def parse_classes(text_or_path: str | os.PathLike[str]) -> list[str]:
    """Entries from what a person typed: a dataset's name, a file's path, or the classes themselves.

    "@voc21" is a dataset: see `dataset_classes`. An existing file is read by `read_classes`. In any other text, a `;`
    anywhere means that `;` separates classes and `,` separates queries: "cat, kitten; dog" is two classes. Without
    `;`, commas separate classes: "sky, tree" is two. A class that starts with "@" has to be written in a file.

    Raises:
        ValueError: no class, an empty one, one named twice, an unknown dataset, or a file that is no list of classes.
        OSError: the file is missing or cannot be read.
    """
    if isinstance(text_or_path, os.PathLike):
        return read_classes(text_or_path)
    text = text_or_path.strip()
    if text.startswith("@"):
        return dataset_classes(text[1:])
    if is_file(text_or_path) or (text.endswith(FORMATS) and "," not in text and ";" not in text):
        return read_classes(text_or_path)
    separator = ";" if ";" in text else ","
    entries = text.split(separator)
    if separator == ";" and not entries[-1].strip():
        entries.pop()  # "cat, kitten;" is how to write one class with two names.
    for entry in map(str.strip, entries):
        if entry.startswith("@"):
            raise ValueError(
                f"expected a dataset's name such as '@voc21' to stand alone, got {_shown(entry)} among other classes"
            )
    return check_classes(entries)


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """Entries from a UTF-8 file, in a format by its ending.

    | ending | content |
    |---|---|
    | .json | a list, each item one class: an entry, a list of names (the first is the class's), or an object as below |
    | .json | an object, each key one class's name, each value what it is asked for: a list, or text with commas |
    | .yaml, .yml | the same; every scalar is text, so `no` and `7` are names |
    | any other | one entry per line; blank lines are skipped, and comments, which begin with "# " |

    Classes may be numbered, and come in the order of their numbers: {"0": "sky", "1": "tree"} (Hugging Face's id2label,
    alone or in a config.json), {"sky": 0, "tree": 1} (label2id), COCO's categories, alone or in their file, and lines
    such as "0: sky", or "0" and "sky" with a tab between them.

    An object's key is a name and no query, as before an entry's colon: {"cat": ["kitten"]} asks for "kitten" alone.
    If the value is empty or null, the name is the query.

    Raises:
        ValueError: names the file, the line or item, what was expected there and what it was.
        OSError: the file cannot be read.

    Warns:
        ClassNumbersWarning: numbers with gaps, or that begin with neither 0 nor 1.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    layout = "" if suffix in FORMATS[1:] else ", one class per line"
    text = read_text(file, f"class names{layout}")
    with _naming(file):
        if suffix == ".json":
            return _document_classes(load_json(text))
        if suffix in (".yaml", ".yml"):
            return _document_classes(load_yaml(text))
        lines = [
            (f"line {n}", line)
            for n, line in enumerate(text.splitlines(), 1)
            if line.strip() and not f"{line} ".startswith("# ")
        ]
        if not lines:
            raise ValueError("expected one class per line, got an empty file")
        numbered = _numbered_lines(lines)
        columns = next((where for where, line in lines if _COLUMNS.search(line)), None)
        if numbered is None and columns is not None:
            raise ValueError(
                f"{columns}: expected a name, or a number, a tab and a name in every line, got other columns; leave "
                "out the heading and all columns but these"
            )
        return [str(entry) for entry in _parse_all(numbered or lines)]


def dataset_classes(name: str) -> list[str]:
    """The entries of a benchmark, in label order, with the background, if it has one, as class 0.

    They are the lists that the methods' authors released. The background of "voc21" and "coco-object" has a list of
    queries (see `background_names`), that of "context60" is the word itself.

    Args:
        name: one of `DATASETS`.

    Raises:
        ValueError: another name.
    """
    _check_choice(name, DATASETS, "dataset")
    entries = _packaged_lines(name)
    if name in BACKGROUND_LISTS:
        entries[0] = f"{BACKGROUND}: {entries[0]}"
    return check_classes(entries)


def background_names(name: str = "voc21") -> list[str]:
    """The queries of a benchmark's background: "sky", "wall", "tree" and so on.

    Args:
        name: one of `BACKGROUND_LISTS`.

    Raises:
        ValueError: another name.
    """
    _check_choice(name, BACKGROUND_LISTS, "background list")
    return list(parse_entry(_packaged_lines(name)[0]).queries)


def with_background(classes: Sequence[str | ClassEntry], background: str = "voc21") -> list[str]:
    """`classes` with one more in front: "background", whose queries are a background list.

    The word "background" is a poor query: captions seldom contain it, so it resembles little in an image, while the
    names of what is usually behind things do. Queries that `classes` have themselves are left out of the background:
    of two equal queries the first class would always win.

    Args:
        classes: entries, none of them called "background".
        background: one of `BACKGROUND_LISTS`.

    Raises:
        ValueError: an unknown list, classes that already have a background, or that leave nothing of the list.
        TypeError: `classes` is no list of text.
    """
    entries = parse_entries(classes)
    taken = {_key(query) for entry in entries for query in entry.queries}
    names = tuple(name for name in background_names(background) if _key(name) not in taken)
    if not names:
        raise ValueError(
            f"expected classes that leave something to the background, got all names of {background!r} among them"
        )
    return [str(entry) for entry in parse_entries([ClassEntry(BACKGROUND, names), *entries])]


def _parse_all(entries: Sequence[tuple[str, object]]) -> list[ClassEntry]:
    """The classes of entries, each with its position for errors: at least one, none twice."""
    if len(entries) > MOST_CLASSES:
        raise ValueError(
            f"expected at most {MOST_CLASSES:,} classes, for label maps tell no more apart, got {len(entries):,}"
        )
    classes: list[ClassEntry] = []
    first: dict[
        str | frozenset[str], int
    ] = {}  # Number of the first entry with this name or these queries.
    for number, (position, entry) in enumerate(entries):
        if isinstance(entry, str):
            if not entry.strip():
                raise ValueError(f"expected a class name, got nothing for {position}")
            with _naming(position):
                parsed = parse_entry(entry)
        elif isinstance(entry, ClassEntry):
            parsed = entry
        else:
            raise TypeError(f"expected class names to be text, {position} is {_shown(entry)}")
        classes.append(parsed)
        for key in (_key(parsed.name), frozenset(map(_key, parsed.queries))):
            earlier = first.setdefault(key, number)
            if earlier != number:
                raise ValueError(
                    f"expected each class once, got {_shown(str(classes[earlier]))} ({entries[earlier][0]}) "
                    f"and {_shown(str(parsed))} ({position}); remove or rename one"
                )
    if not classes:
        raise ValueError("expected at least one class name, got none")
    queries = sum(len(entry.queries) for entry in classes)
    if queries > MOST_QUERIES:
        raise ValueError(f"expected at most {MOST_QUERIES:,} names in all classes, got {queries:,}")
    return classes


def _numbered_lines(lines: Sequence[tuple[str, str]]) -> list[tuple[str, object]] | None:
    """The lines without the numbers of their classes, in the order of these; None where not all have one."""
    for pattern in _NUMBERED:
        matches = [pattern.fullmatch(line) for _, line in lines]
        found = [match for match in matches if match is not None]
        if len(found) < len(lines):
            continue
        numbers = [int(match[1]) for match in found]
        counts = numbers in (list(range(len(lines))), list(range(1, len(lines) + 1)))
        # "2 dollar bill" is a name as well; lines that count from 0 or 1 are numbers.
        if pattern is _NUMBERED[-1] and (not counts or len(lines) < 2):
            continue
        texts = [(position, match[2]) for (position, _), match in zip(lines, found, strict=True)]
        return _in_order(numbers, texts)
    return None


def _in_order(
    numbers: Sequence[int], classes: Sequence[tuple[str, object]]
) -> list[tuple[str, object]]:
    """The classes in the order of their numbers; ValueError for a number that comes twice."""
    position_of: dict[int, str] = {}
    for number, (position, _) in zip(numbers, classes, strict=True):
        if number in position_of:
            raise ValueError(
                f"expected each number once, got {number} for {position_of[number]} and {position}"
            )
        position_of[number] = position
    ordered = sorted(zip(numbers, classes, strict=True), key=lambda pair: pair[0])
    first, last = ordered[0][0], ordered[-1][0]
    if first > 1 or last - first >= len(ordered):
        warnings.warn(
            f"the file numbers its {len(ordered):,} classes from {first} to {last}"
            f"{', with gaps' if last - first >= len(ordered) else ''}: label maps number them from 0 to "
            f"{len(ordered) - 1:,}, in the same order",
            ClassNumbersWarning,
            stacklevel=2,
        )
    return [one for _, one in ordered]


def _number(value: object) -> int | None:
    """A class's number, as JSON and YAML write it; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    is_digits = isinstance(value, str) and value.isascii() and value.isdecimal()
    return int(str(value)) if is_digits and len(str(value)) < 10 else None


def _member(item: object, name: str) -> object:
    """The value of an object's key; None where there is none."""
    pairs = item if isinstance(item, Pairs) else []
    return next((value for key, value in pairs if key == name), None)


def _numbered_items(document: object) -> list[tuple[str, object]] | None:
    """The classes of a document that numbers them, in their order; None for other documents."""
    if isinstance(document, Pairs):
        # Ultralytics' files name their classes beside the folders of a dataset.
        is_yolo = any(_member(document, key) is not None for key in ("nc", "path", "train", "val"))
        for name in ("id2label", "label2id", "categories", "names"):
            inner = _member(document, name)
            # A list of names without more beside it is one class, "names", and what it is asked for.
            if isinstance(inner, list) and (name != "names" or is_yolo or isinstance(inner, Pairs)):
                found = _numbered_items(inner)
                return found if found is not None or name != "names" else _positions(inner)
        keys = [_number(key) for key, _ in document]
        values = [_number(value) for _, value in document]
        if document and all(value is not None for value in values):
            listed: list[object] = [key for key, _ in document]
            return _in_order([value for value in values if value is not None], _positions(listed))
        # With no value at all, "7" is a name; with some, it is a class's number, and its name is missing.
        if document and all(key is not None for key in keys) and any(v for _, v in document):
            listed = [value for _, value in document]
            return _in_order([key for key in keys if key is not None], _positions(listed))
        return None
    if isinstance(document, list) and document:
        ids = [_number(_member(item, "id")) for item in document]
        names = [_member(item, "name") for item in document]
        numbers = [number for number in ids if number is not None]
        if len(numbers) == len(document) and None not in names:
            return _in_order(numbers, _positions(names))
    return None


def _positions(items: Sequence[object]) -> list[tuple[str, object]]:
    """Each item with its position for errors, as a class."""
    positions = [f"item {number}" for number in range(1, len(items) + 1)]
    return [
        (position, _item_class(position, item))
        for position, item in zip(positions, items, strict=True)
    ]


def _document_classes(document: object) -> list[str]:
    """Entries of a JSON or YAML document."""
    numbered = _numbered_items(document)
    if numbered is not None:
        return [str(entry) for entry in _parse_all(numbered)]
    if not isinstance(document, list):
        raise ValueError(
            f"expected a list of class names, or an object from names to names, got {kind_of(document)}"
        )
    items = [Pairs([pair]) for pair in document] if isinstance(document, Pairs) else document
    return [str(entry) for entry in _parse_all(_positions(items))]


def _item_class(position: str, item: object) -> str | ClassEntry:
    """An item of a document: text is an entry, a list its queries, an object of one key its name and queries."""
    if isinstance(item, str):
        return item
    with _naming(position):
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
            raise ValueError(f"expected a list of names for {_shown(name)}, got {kind_of(value)}")
        return ClassEntry(name, _texts(value or [name]))


def _texts(items: Sequence[object]) -> tuple[str, ...]:
    """The items, if all are text."""
    for number, item in enumerate(items, 1):
        if not isinstance(item, str):
            raise ValueError(f"expected a name, got {kind_of(item)} as name {number}")
    return tuple(map(str, items))


class Pairs(list[tuple[Any, Any]]):
    """The keys and values of a JSON or YAML object; a dict would lose a key that occurs twice."""


def load_json(text: str) -> object:
    """The value of a JSON document; ValueError says where and why it is none."""
    try:
        return json.loads(text, object_pairs_hook=Pairs)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {error.lineno}, column {error.colno}: expected JSON, got an error: {error.msg}"
        ) from None
    except RecursionError:
        raise ValueError("expected JSON, got lists too deep to read") from None
    except ValueError:
        # Python's own words for it advise on its settings.
        raise ValueError("expected JSON, got a number of thousands of digits") from None


def load_yaml(text: str) -> object:
    """The value of a YAML document, None if it is empty; ValueError says why it is none.

    Every scalar stays text, so `no` and `7` are words.
    """
    import yaml  # Here, so that commands which read no YAML need not wait for it.

    def plain(node: Any, depth: int) -> object:
        if isinstance(node, yaml.ScalarNode):
            return node.value
        items = node.value if depth < YAML_DEPTH else []
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, depth + 1) for item in items]
        return Pairs((plain(key, YAML_DEPTH), plain(value, depth + 1)) for key, value in items)

    try:
        # Nodes keep a key that occurs twice, and no tag can make them Python objects.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML, got an error: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError("expected YAML, got lists too deep to read") from None
    return None if node is None else plain(node, 0)


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON: "an object", "a list", or the value itself."""
    if isinstance(value, Pairs):
        return "an object"
    if isinstance(value, list):
        return "a list"
    written = json.dumps(value, default=repr)
    return written if len(written) <= 80 else f"{written[:80]}…"


@contextlib.contextmanager
def _naming(position: object) -> Iterator[None]:
    """Puts `position` in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{position}: {error}") from None


def _check_choice(name: str, choices: Sequence[str], kind: str) -> None:
    if name not in choices:
        raise ValueError(f"unknown {kind} {_shown(name)}; use one of: {', '.join(choices)}")


def _packaged_lines(name: str) -> list[str]:
    path = Path(__file__).parents[1] / "data" / "classnames" / f"{name}.txt"
    return read_text(path, "class names, one class per line").splitlines()


def _shown(value: object) -> str:
    """What came, for an error: the beginning of it."""
    # Not `resclip_kernels.quoted`, which would wait for torch.
    text = repr(value)
    return text if len(text) <= 82 else f"{text[:80]}…{text[-1]}"


def _squeeze(text: str) -> str:
    """The text with single spaces, and none at its ends."""
    return " ".join(text.split())


def _key(name: str) -> str:
    """The form in which two spellings of one name are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
