"""What a single image may take: bounds against files that are made, by mistake or on purpose, to exhaust a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

BYTES_PER_PIXEL = 16
"""What an image takes that is decoded whole: its colours while they are converted, labels, scores and an overlay."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one image; small, and can be pickled.

    Args:
        max_pixels: the most pixels, height × width; None: `MAX_PIXELS` for an image that is decoded whole, and
            `MAX_BLOCK_PIXELS` for one that is read by block.
        max_memory: bytes that an image which is decoded whole may take until it is written, about `BYTES_PER_PIXEL` a
            pixel; None: any number.
        max_bytes: the most encoded bytes that are held in memory for it: a remote file, a member of an archive, a cell
            of a table. A local file is not held.
        timeout: seconds that a server may take to connect, or be silent, before its file counts as unreadable.

    Raises:
        TypeError, ValueError: a value that is no positive number.
    """

    max_pixels: int | None = None
    max_memory: int | None = None
    max_bytes: int = 1 << 30
    timeout: float = 60.0

    def __post_init__(self) -> None:
        # Without the checks of resclip_kernels, which would have the command line wait for torch.
        for name in ("max_pixels", "max_memory", "max_bytes"):
            value = getattr(self, name)
            if value is None and name != "max_bytes":
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
