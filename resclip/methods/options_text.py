"""Options as text, such as "weight=0.6,rounds=2", for any dataclass of options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from resclip_kernels import quoted

Options = TypeVar("Options")
CONSTANTS = {"none": None, "true": True, "false": False}


def parse_options(kind: type[Options], text: str, **others: Any) -> Options:
    """A `kind` with the values of `text` and of `others`, and else its defaults.

    Args:
        kind: a dataclass whose fields are the options.
        text: name=value, separated by commas; "none", "true" and "false" mean what they say.

    Raises:
        ValueError, TypeError: a name that is no option, one named twice, or a value that does not fit.
    """
    return kind(**others, **split_options(kind, text))


def split_options(kind: type[Any], text: str) -> Mapping[str, Any]:
    """The values in `text`, by the names of the fields of `kind`; raises as `parse_options`."""
    types = {field.name: str(field.type) for field in fields(kind)}
    values: dict[str, Any] = {}
    # A comma separates options only before a name: "layers=3,6-9" is one.
    for part in re.split(r",(?=\s*\w+\s*=)", text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in types:
            raise ValueError(
                f"expected name=value for some of {', '.join(types)}, separated by commas; got {quoted(part.strip())}"
            )
        if name in values:
            raise ValueError(f"expected {name} once, got it twice in {quoted(text)}")
        values[name] = parse_value(value, is_text="| str" in types[name])
    return values


def parse_value(text: str, is_text: bool) -> Any:
    """A constant, a number, or the text itself."""
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    if is_text:
        return text
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def as_dict(options: Any) -> dict[str, Any] | None:
    """A dataclass of options as a JSON-able dict, without those of its `OPTIONAL` that are defaults; None for None."""
    if options is None:
        return None
    optional = getattr(options, "OPTIONAL", ())
    usual = {field.name: field.default for field in fields(options) if field.name in optional}
    return {
        name: value
        for name, value in asdict(options).items()
        if name not in usual or value != usual[name]
    }
