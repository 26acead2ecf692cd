"""What a single image may take: bounds against files that are made, by mistake or on purpose, to exhaust a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class Limits:
    """Bounds of one image; small, and can be pickled.

    Args:
        max_pixels: the most pixels, height × width; None: `MAX_PIXELS` for an image that is decoded whole, and
            `MAX_BLOCK_PIXELS` for one that is read by block.
        max_bytes: the most encoded bytes that are held in memory for it: a remote file, a member of an archive, a cell
            of a table. A local file is not held.
        timeout: seconds that a server may take to connect, or be silent, before its file counts as unreadable.

    Raises:
        TypeError, ValueError: a value that is no positive number.
    """

    max_pixels: int | None = None
    max_bytes: int = 1 << 30
    timeout: float = 60.0

    def __post_init__(self) -> None:
        # Without the checks of resclip_kernels, which would have the command line wait for torch.
        counts = {"max_pixels": self.max_pixels, "max_bytes": self.max_bytes}
        for name, value in counts.items():
            if value is None and name == "max_pixels":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be an integer; got {str(value)[:80]!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, Real):
            raise TypeError(f"timeout must be a number of seconds; got {str(self.timeout)[:80]!r}")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds; got {self.timeout}")


DEFAULT_LIMITS = Limits()
"""What holds where nobody says otherwise."""
