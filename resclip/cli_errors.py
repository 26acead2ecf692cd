"""What the command line says of an error: one line, without Python's words where people need others.

Knows the errors of this library, of the system and of torch. Knows no command.
"""

from __future__ import annotations

from resclip.errors import WeightsUnavailable
from resclip.memory import is_out_of_memory



def describe(error: Exception) -> str:
    """One line that says what `error` says."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        if isinstance(error, MemoryError) and text.startswith("there is not enough"):
            return text
        return "out of memory; try a smaller --batch-size, --window or --short-side"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, RuntimeError) and not isinstance(error, WeightsUnavailable):
        return f"unexpected error: {text or type(error).__name__} (--debug shows where)"
    return text or type(error).__name__
