"""Lists and objects from JSON and YAML text, just as they are written.

Knows the two formats. Knows nothing of what a document is about.

Either gives the same values: str, None, list, or `Pairs` for an object; JSON its numbers and truth values too.
"""

from __future__ import annotations

import json
from typing import Any


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
