"""The spills that the kernels' report accepts, each with what it measured: larger ones and all others fail it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Spill(NamedTuple):
    """A kernel of one call on one target, named as in the report's table."""

    kernel: str
    case: str
    model: str
    dtype: str
    target: str


KnownSpills = Mapping[Spill, Mapping[str, int]]
"""Bytes a thread by Triton's version."""

KNOWN_SPILLS: KnownSpills = {}
