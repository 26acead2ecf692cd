"""Errors and warnings that a caller may want to tell apart; everything else is a ValueError or TypeError."""

from __future__ import annotations

import errno

# A RuntimeError of torch's CPU allocator ("can't allocate memory"; "not enough memory" on Windows), of C++, of CUDA or
# HIP, and of cuBLAS and cuDNN (…_STATUS_ALLOC_FAILED, …_DEVICE_ALLOCATION_FAILED).
OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the system has run out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY_SIGNS)


def first_line(error: Exception) -> str:
    """The gist of an error: its type and the first sentence of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].split(". ")[0][:200] if lines else "no message"
    return f"{type(error).__name__}: {text}"


class WeightsUnavailable(RuntimeError):
    """A model's weights cannot be fetched or read; the message says why and what to do."""


class UnknownWordsWarning(UserWarning):
    """The built-in model was asked for words that it has never read; the message names them."""


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
