"""Pieces and steps by name: a base's own with some of them added, changed or taken away."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from resclip.methods.options_text import split_options
from resclip.methods.pieces import Pieces
from resclip.methods.steps import Steps
from resclip_kernels import check_type, quoted

Composition = TypeVar("Composition", Pieces, Steps)


def compose(own: Composition, changes: Composition | Mapping[str, Any] | None) -> Composition:
    """A base's own pieces or steps, with changes.

    Args:
        own: what the base has.
        changes: None for none; a whole composition instead; or by name: None or False takes a part away, True adds it
            with its defaults where it is not there, a mapping changes some of its options, and a value replaces it.

    Raises:
        TypeError, ValueError: a name or option that does not exist, a value that does not fit, or parts that do not go
            together.
    """
    if changes is None:
        return own
    if isinstance(changes, type(own)):
        return changes
    what = type(own).__name__.lower()
    check_type(what, changes, Mapping, f"a {type(own).__name__}, a mapping of names, or None")
    kinds = own.kinds
    chosen: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in kinds:
            raise ValueError(
                f"unknown name {quoted(name)} in {what}; use one of: {', '.join(kinds)}"
            )
        part = getattr(own, name)
        if value is None or value is False:
            chosen[name] = None
        elif value is True:
            chosen[name] = kinds[name]() if part is None else part
        elif isinstance(value, Mapping):
            chosen[name] = with_changes(name, kinds[name], part, value)
        elif isinstance(value, kinds[name]):
            chosen[name] = value
        else:
            raise TypeError(
                f"{name} in {what} must be True, None, a mapping of its options, or {kinds[name].__name__}(…); got "
                f"{quoted(value)}"
            )
    return replace(own, **chosen)


def with_changes(name: str, kind: type[Any], part: Any, options: Mapping[str, Any]) -> Any:
    """A part, or its defaults, with some options changed."""
    known = [field.name for field in fields(kind)]
    for option in options:
        if option not in known:
            raise TypeError(
                f"{name} takes the options {', '.join(known)}; got {quoted(option)}"
                if known
                else f"{name} takes no options; got {quoted(option)}"
            )
    return kind(**options) if part is None else replace(part, **options)


def parse_changes(kind: type[Pieces | Steps], texts: Sequence[str]) -> dict[str, Any]:
    """Changes for `compose`, from texts such as "outliers", "outliers:detector=norm,count=10" or "outliers:none".

    Raises:
        ValueError, TypeError: a name or option that does not exist, or one named twice.
    """
    kinds = kind.kinds
    changes: dict[str, Any] = {}
    for text in texts:
        name, colon, options = (part.strip() for part in text.partition(":"))
        if name not in kinds:
            raise ValueError(
                f"unknown {kind.__name__.lower()[:-1]} {quoted(name)}; use one of: {', '.join(kinds)}"
            )
        if name in changes:
            raise ValueError(f"expected {name} once, got it twice")
        if options.lower() == "none":
            changes[name] = None
        else:
            changes[name] = dict(split_options(kinds[name], options)) if colon else True
    return changes


def as_parts(composition: Pieces | Steps) -> dict[str, dict[str, Any]]:
    """Its parts with all their options, as JSON-able values; those that are not there are left out."""
    parts: dict[str, dict[str, Any]] = json.loads(
        json.dumps({name: asdict(part) for name, part in composition.items()})
    )
    return parts
