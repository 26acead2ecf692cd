"""Argument checks that ops and methods share: each raises with what was expected and what came.

Those of numbers and texts serve options too, which are listed without torch: it is imported by the checks of tensors.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Options = TypeVar("Options")

MOST_QUOTED = 80
"""Characters of what came that an error shows."""


def quoted(value: Any) -> str:
    """What came, for an error: as Python writes it if that is short, the beginning of a text, else its type."""
    if isinstance(value, str):
        return repr(value if len(value) <= MOST_QUOTED else f"{value[:MOST_QUOTED]}…")
    try:
        text = repr(value)
    # Whatever an object says of itself may fail; Python itself writes no number of many thousand digits.
    except Exception:  # noqa: BLE001
        return type(value).__name__
    return text if len(text) <= 60 and "\n" not in text else type(value).__name__


def check_type(
    name: str, value: Any, kinds: type[Any] | tuple[type[Any], ...], expected: str
) -> None:
    """`value` must be an instance of `kinds`, which `expected` says in words."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {expected}; got {quoted(value)}")


def check_callable(name: str, value: Any, expected: str) -> None:
    """`value` must be callable; `expected` says what it takes."""
    if not callable(value):
        raise TypeError(f"{name} must be {expected}; got {quoted(value)}")


def check_flag(name: str, value: bool) -> None:
    """`value` must be True or False."""
    check_type(name, value, bool, "True or False")


def check_choice(name: str, value: Any, valid: Sequence[str], otherwise: str = "") -> None:
    """`value` must be one of these texts; `otherwise` names what else the caller takes, such as ", or None"."""
    if not isinstance(value, str) or value not in valid:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, valid))}{otherwise}; got {quoted(value)}"
        )


def check_float(name: str, tensor: Tensor, dimensions: int, layout: str) -> None:
    """`tensor` must be a floating-point tensor with `dimensions` axes, described by `layout`."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {layout}; got {type(tensor).__name__}")
    if tensor.ndim != dimensions:
        raise ValueError(
            f"{name} must have {dimensions} dimensions {layout}; got {tuple(tensor.shape)}"
        )
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{name} must be floating point; got {tensor.dtype}")


def check_count(name: str, value: int, least: int, most: int | None = None) -> None:
    """`value` must be an integer of at least `least`, and at most `most` unless that is None."""
    # While torch.export traces, a size is a symbol; looked at by name, for torch need not be there yet.
    is_whole = isinstance(value, int) or type(value).__name__ == "SymInt"
    if isinstance(value, bool) or not is_whole:
        raise TypeError(f"{name} must be an integer; got {quoted(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {quoted(value)}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most:,}; got {quoted(value)}")


def check_number(name: str, value: float) -> None:
    """`value` must be an integer or a float; NumPy's scalars are."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number; got {quoted(value)}")


def check_range(name: str, value: float, least: float, most: float) -> None:
    """`value` must lie in [least, most], both of them finite."""
    check_number(name, value)
    if not least <= value <= most:
        raise ValueError(
            f"{name} must be a finite number from {least:g} to {most:g}; got {quoted(value)}"
        )


def check_fraction(name: str, value: float) -> None:
    """`value` must lie in [0, 1]."""
    check_number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie between 0 and 1; got {quoted(value)}")


def check_positive(name: str, value: float) -> None:
    """`value` must be a finite number above 0."""
    check_number(name, value)
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0; got {quoted(value)}")


def check_finite(name: str, value: float) -> None:
    """`value` must be a finite number."""
    check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {quoted(value)}")


def check_not_negative(name: str, value: float) -> None:
    """`value` must be a finite number of at least 0."""
    check_number(name, value)
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0; got {quoted(value)}")


def check_same_images(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Both tensors must hold the same number of images, on one device."""
    if first.shape[0] != second.shape[0]:
        raise ValueError(
            f"{first_name} and {second_name} must hold the same number of images; "
            f"got {first.shape[0]} and {second.shape[0]}"
        )
    if first.device != second.device:
        raise ValueError(
            f"{first_name} and {second_name} must be on one device; "
            f"got {first.device} and {second.device}"
        )


def check_grid(grid: Sequence[int]) -> tuple[int, int]:
    """(h, w) as a tuple; TypeError or ValueError unless it is two integers of at least 0."""
    return check_pair("grid", grid, "(h, w) in patches", 0)


def check_pair(name: str, pair: Sequence[int], meaning: str, least: int) -> tuple[int, int]:
    """`pair` as a tuple; TypeError or ValueError unless it is two integers of at least `least`."""
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or any(isinstance(side, bool) or not hasattr(side, "__index__") for side in pair)
    ):
        raise TypeError(f"{name} must be {meaning}, two integers; got {quoted(pair)}")
    if pair[0] < least or pair[1] < least:
        raise ValueError(f"{name} must be {meaning}, at least {least} each; got {quoted(pair)}")
    return pair[0], pair[1]


def set_floats(options: Any, *names: str) -> None:
    """Make these fields of a frozen dataclass Python's own floats: operators and kernels take no NumPy scalars."""
    for name in names:
        object.__setattr__(options, name, float(getattr(options, name)))


def row_numbers(rows: Tensor, count: int, *, allow_none: bool = False) -> list[int]:
    """`rows` as numbers; TypeError or ValueError unless it is (R,) int64, each in 0 … count − 1, and at least one."""
    import torch

    if not isinstance(rows, torch.Tensor) or rows.dtype != torch.int64:
        got = rows.dtype if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise TypeError(f"rows must be an int64 tensor (R,) of indices; got {got}")
    if rows.ndim != 1 or not (len(rows) or allow_none):
        raise ValueError(f"rows must be (R,), at least one; got {tuple(rows.shape)}")
    numbers: list[int] = rows.tolist()
    outside = [number for number in numbers if not 0 <= number < count]
    if outside:
        raise ValueError(f"rows must lie between 0 and {count - 1}; got {outside[0]}")
    return numbers


def merge_options(
    kind: type[Options], options: Options | None, keywords: Mapping[str, Any]
) -> Options:
    """An op's options: `options`, or the defaults where it is None, with the fields that `keywords` name replaced."""
    if options is not None and not isinstance(options, kind):
        raise TypeError(
            f"options must be {kind.__name__}; got {type(options).__name__}: "
            "make one, or pass its fields as keyword arguments"
        )
    if options is not None and not keywords:
        return options
    try:
        return kind(**keywords) if options is None else replace(options, **keywords)  # type: ignore[type-var]
    except TypeError:
        # Python's own message about a name would speak of the options' constructor, which nobody called.
        known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"unexpected argument {name!r}; the options are {', '.join(known)}"
                ) from None
        for name, field in known.items():
            if options is None and field.default is MISSING and name not in keywords:
                raise TypeError(
                    f"expected {name}=, or options={kind.__name__}(…); got neither"
                ) from None
        raise
