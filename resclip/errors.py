"""Error classes of the library, and the words in which an error is reported.

Everything that a caller has no reason to tell apart is a plain ValueError, TypeError or OSError. Messages name
parameters, as in "take a smaller window="; the command line turns them into its options.
"""

from __future__ import annotations

import errno

# torch's CPU allocator says "can't allocate memory" ("not enough memory" on Windows), C++ says "bad_alloc", CUDA and
# HIP "out of memory", cuBLAS and cuDNN "…_STATUS_ALLOC_FAILED" or "…_DEVICE_ALLOCATION_FAILED".
OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
)


class WeightsUnavailable(RuntimeError):
    """A model's weights cannot be fetched or read; the message says why and what to do."""


class EmbeddingError(ValueError):
    """A file that is no embedding, or one that a model cannot classify."""


class SlowPrecisionWarning(UserWarning):
    """The chosen precision is slower than float32 on this machine."""


class UnknownWordsWarning(UserWarning):
    """The built-in model was asked for words that it has never read; the message names them."""


class DrawnScenesWarning(UserWarning):
    """The built-in model, which knows drawn scenes alone, was given another picture."""


class DownloadWarning(UserWarning):
    """Weights are about to be fetched; the message says which, how large, from where, and where they are kept."""


class UnknownChannelsWarning(UserWarning):
    """A method denoises tokens by channels that stand out, and those of this checkpoint are not known."""


class CutTextWarning(UserWarning):
    """The text of a class is longer than the model reads, so that its end counts for nothing."""


class ActivationWarning(UserWarning):
    """A file of weights does not say by which activation function they were trained, and it may be another one."""


class ClassNumbersWarning(UserWarning):
    """A file numbers its classes with gaps, which label maps do not have."""


class MissingLettersWarning(UserWarning):
    """A picture shows a name in a script that no font here has, or that Pillow here cannot lay out."""


class ManyWindowsWarning(UserWarning):
    """An image takes very many overlapping windows; the message says how many, and how to take fewer."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the system has run out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY_SIGNS)


def reason(error: BaseException) -> str:
    """The error's own words in one line, without the name of the file that it was about."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def first_sentence(error: BaseException) -> str:
    """The type and the first sentence of an error, for libraries whose messages run to paragraphs."""
    line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {line.split('. ')[0][:200]}"


def describe(error: BaseException) -> str:
    """One line that tells a person what went wrong and, if that is known, what to do."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        # The library's own refusals already say what would help.
        if isinstance(error, MemoryError) and text.startswith("there is not enough"):
            return text
        return "out of memory; try a smaller batch_size=, window= or short_side="
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, WeightsUnavailable)):
        return text or type(error).__name__
    # What libraries say in a RuntimeError is a sentence; a KeyError or an AssertionError says little by itself.
    if not text or not isinstance(error, RuntimeError):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return f"unexpected error: {text}"
