"""Lists of images as text: a location a line, JSON lines, and tables whose first line names the columns."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from unicodedata import category

from resclip.batch.parquet import LOCATIONS, columns_named
from resclip.batch.paths import read_range, suffix, title
from resclip.errors import reason
from resclip.io.limits import Limits
from resclip.io.signatures import SIGNATURE_BYTES, looks_like_image
from resclip_kernels import quoted

JSON_LISTS = (".jsonl", ".ndjson")
TEXT_TABLES = (".csv", ".tsv")
WITH_COLUMNS = (*JSON_LISTS, *TEXT_TABLES)
"""Suffixes of lists whose images are in a column."""

STDIN = "-"
"""In place of a list's path: the standard input."""

COLUMNS = (*LOCATIONS, "location", "uri", "img")
"""Columns that are looked for, in any case, the most likely first."""


class Line(NamedTuple):
    """What a line of a list names, or why it names nothing."""

    number: int
    """From 1."""
    text: str
    """A path or URL; "" where there is an error."""
    error: str | None = None


def read_list(location: str, column: str | None, limits: Limits) -> Iterator[Line]:
    """The lines of a list but empty ones and, where it has no columns, comments, which begin with `#`.

    Args:
        location: of the list: .jsonl and .ndjson hold an object, or a text, a line; .csv and .tsv a table; any other
            a location a line. Or `STDIN`.
        column: with the locations; None to find it by its name.
        limits: how large the list may be.

    Raises:
        ValueError: it has no such column or, of JSON lines, names nothing at all.
        OSError: it cannot be read.
    """
    shown = "standard input" if location == STDIN else title(location)
    data = _standard_input(limits) if location == STDIN else read_range(location, limits=limits)
    kind = suffix(location)
    if kind in JSON_LISTS:
        return _of_json(shown, data, column)
    if kind in TEXT_TABLES:
        return _of_table(shown, data, column, kind)
    return _of_lines(shown, data)


def _standard_input(limits: Limits) -> bytes:
    data = sys.stdin.buffer.read(limits.max_bytes + 1)
    if len(data) > limits.max_bytes:
        raise ValueError(
            f"standard input: expected a list of at most {limits.max_bytes:,} bytes, got more; raise max_bytes="
        )
    if looks_like_image(data[:SIGNATURE_BYTES]):
        raise ValueError(
            "standard input: expected the paths or URLs of images, one a line, got an image; write it to a file"
        )
    return data


def _of_lines(shown: str, data: bytes) -> Iterator[Line]:
    first = None
    some = False
    with io.TextIOWrapper(
        io.BytesIO(data), encoding="utf-8-sig", errors="surrogateescape"
    ) as stream:
        for number, line in enumerate(stream, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            if any(category(letter) == "Cs" for letter in text):
                came = text[:80].encode(errors="surrogateescape").decode(errors="replace")
                problem = Line(
                    number,
                    "",
                    f"{shown}, line {number}: expected a path or URL in UTF-8, got {came!r}; save it as UTF-8",
                )
                first = first or problem
                yield problem
            else:
                some = True
                yield Line(number, text)
    if first is not None and not some:
        raise ValueError(first.error)


def _of_json(shown: str, data: bytes, column: str | None) -> Iterator[Line]:
    first = None
    some = False
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        found = _of_object(line, column)
        if isinstance(found, str):
            some = True
            yield Line(number, found)
        else:
            problem = Line(number, "", f"{shown}, line {number}: {found[0]}")
            first = first or problem
            yield problem
    if first is not None and not some:
        raise ValueError(first.error)


def _of_object(line: bytes, column: str | None) -> str | tuple[str]:
    """The location that a line of JSON has, or the reason why it has none, in a tuple."""
    try:
        value = json.loads(line)
    # Of brackets in brackets Python says that they are too deep.
    except (ValueError, RecursionError) as error:
        return (f"expected an object of JSON, got other text ({reason(error)[:80]}); mend it",)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if not isinstance(value, dict):
        return (f"expected an object of JSON, got {_kind(value)}; mend it",)
    wanted = COLUMNS if column is None else (column,)
    found = [name for name in columns_named(value, wanted) if isinstance(value[name], str)]
    text = next((value[name].strip() for name in found if value[name].strip()), "")
    if not _is_plain(text):
        return (f"expected a path or URL, got {text[:80]!r}; mend it",)
    return text or (f"expected a path or URL {_under(column)}, got {_keys(list(value))}",)


def _of_table(shown: str, data: bytes, column: str | None, kind: str) -> Iterator[Line]:
    # What is no UTF-8 is one line's fault; it is found again below.
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    first = text.partition("\n")[0]
    commas = {mark: first.count(mark) for mark in ",;\t"}
    mark = "\t" if kind == ".tsv" else max(commas, key=lambda mark: commas[mark])
    rows = _whole(list(io.StringIO(text, newline="")), mark)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    named = columns_named(header, COLUMNS if column is None else (column,))
    if not named:
        raise ValueError(
            f"{shown}: expected a first line that names the columns, with a path or URL {_under(column)}, got "
            f"{_keys(header)}; name one by column="
        )
    at = header.index(named[0])
    for number, row in rows:
        if not row:
            continue
        where = f"{shown}, line {number}"
        cell = row[at].strip() if len(row) > at else ""
        if not _is_plain(cell):
            error = f"{where}: expected a path or URL in UTF-8, got {cell[:80]!r}"
            yield Line(number, "", error)
        elif cell:
            yield Line(number, cell)
        else:
            yield Line(
                number,
                "",
                f"{where}: expected a path or URL in column {quoted(named[0])}, got none",
            )


def _whole(lines: Sequence[str], mark: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the last line and fields of each row; no fields but an empty one where it cannot be taken apart.

    A quote that is never closed would take all lines behind it: its line is bad, and the next one begins a row.
    """
    first = 0
    while first < len(lines):
        rest = (lines[number] for number in range(first, len(lines)))
        rows = csv.reader(rest, delimiter=mark, strict=True)
        read = 0
        try:
            for row in rows:
                read = rows.line_num
                yield first + read, row
        except csv.Error:
            yield first + read + 1, [""]
            first += read + 1
        else:
            return


def _is_plain(text: str) -> bool:
    """Whether a text has neither control characters nor bytes that are no UTF-8."""
    return text.isprintable() or not any(category(letter) in ("Cc", "Cs") for letter in text)


def _under(column: str | None) -> str:
    if column is not None:
        return f"in column {quoted(column)}"
    return f"in a column such as {', '.join(COLUMNS[:3])}"


def _keys(names: Sequence[str]) -> str:
    shown = ", ".join(map(quoted, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"the columns {shown}" if names else "no columns"


def _kind(value: object) -> str:
    kinds = {list: "an array", int: "a number", float: "a number", str: "an empty text"}
    return kinds.get(type(value), "another value")
