"""Which implementation of an op runs, and why.

Knows the names of the implementations and the rule that picks one. Knows no op: each op hands in the table of
what it has, so an implementation that an op lacks cannot be asked for by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

Function = TypeVar("Function")


class Implementation(str, Enum):
    """The values of every op's `implementation` argument."""

    AUTO = "auto"
    """The fastest one that the op has for the tensor's device."""
    TRITON = "triton"
    """Fused GPU kernels."""
    TORCH = "torch"
    """Lean PyTorch for any device, CPU included."""
    REFERENCE = "reference"
    """The plain formula, materialised; float64-capable. The oracle of the tests and the baseline of the benchmarks."""


@dataclass(frozen=True)
class Choice(Generic[Function]):
    """What was resolved: the implementation's name, the reason in words, and the function itself."""

    implementation: Implementation
    reason: str
    function: Function


def parse_implementation(asked: Implementation | str) -> Implementation:
    """Turn `asked` into an `Implementation`; ValueError with the valid names otherwise."""
    try:
        return Implementation(asked)
    except ValueError:
        valid = ", ".join(repr(member.value) for member in Implementation)
        raise ValueError(f"implementation must be one of {valid}; got {asked!r}") from None


def resolve(
    asked: Implementation | str, available: Mapping[Implementation, Function]
) -> Choice[Function]:
    """Pick an implementation from the ones an op has.

    An explicit request is honoured or refused, never replaced by another implementation.

    Args:
        asked: what the caller wants, `"auto"` to leave it open.
        available: the op's implementations by name; `TORCH` is always among them.

    Raises:
        ValueError: `asked` is no implementation, or one that this op does not have.
    """
    implementation = parse_implementation(asked)
    if implementation is Implementation.AUTO:
        implementation, reason = Implementation.TORCH, "portable PyTorch runs on every device"
    else:
        reason = "asked for by name"
    if implementation not in available:
        has = ", ".join(repr(member.value) for member in available)
        raise ValueError(
            f"implementation {implementation.value!r} does not exist for this op; it has {has}. "
            "Use 'auto' for the fastest of them"
        )
    return Choice(implementation, reason, available[implementation])
