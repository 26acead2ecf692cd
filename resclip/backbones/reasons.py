"""Errors of other libraries, told in one line. Knows no model."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The gist of an error: its type and the first sentence of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].split(". ")[0][:200] if lines else "no message"
    return f"{type(error).__name__}: {text}"
